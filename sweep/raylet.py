"""Ray on this machine, as a head or as a member of a cluster: started, watched, started again when it ends.

A node that is cut off for more than a minute ends its Ray by itself; so does one whose head is gone.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from sweep import authentication, session
from sweep.authentication import NotAdmitted
from sweep.cluster import check_reachable
from sweep.errors import ClusterError
from sweep.membership import MACHINE_LABEL
from sweep.placement import resources_of
from sweep.settings import ENVIRONMENT, STORE_BYTES
from tasks import lease
from tasks.lease import process_start
from tasks.machine import Offer
from tasks.process import child, end_group, log_tail
from tasks.state import state_dir
from tasks.units import format_bytes

#: Told, in words, what happens to this node.
Say = Callable[[str], None]

_LOOK_S = 0.5

#: How often a head that does not answer is tried.
_RETRY_S = 2.0

#: How long Ray may take to start, and to end.
_START_LIMIT_S = 120.0
_END_LIMIT_S = 15.0

#: How long Ray may take, once its raylet has ended, to say why.
_LAST_WORDS_S = 3.0

#: How long to wait before Ray is started again: at first, at most, and how long it must have run to begin anew.
_FIRST_WAIT_S, _LONGEST_WAIT_S, _STEADY_S = 1.0, 30.0, 60.0

#: How long attempts of this node get to clean up after its Ray has ended.
_CLEAN_LIMIT_S = 60.0

_STARTED = "Ray runtime started"

#: The first of a node's ports are Ray's own, workers have the rest.
_OWN_PORTS, _ALL_PORTS = 10, 1000


@dataclass(frozen=True)
class Role:
    """What this machine is in a cluster: `address` is the head's, `ip` its own, `token` the file that admits it."""

    offer: Offer
    address: str
    head: bool
    ip: str
    ports: int | None
    token: Path | None

    def environment(self) -> dict[str, str]:
        """Return what Ray and all that it starts here find in their environment."""
        own = authentication.with_token(self.token) if self.token else authentication.without_token()
        kept = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_TOKEN"}
        return kept | ENVIRONMENT | own | _clone_path()

    def argv(self, folder: Path) -> list[str]:
        """Return the command that starts Ray with its files in `folder`."""
        role = ["--head", f"--port={self.address.rpartition(':')[2]}", "--include-dashboard=false"]
        return [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--log-color=false"),
            *(role if self.head else [f"--address={self.address}"]),
            f"--node-ip-address={self.ip}",
            f"--temp-dir={folder}",
            f"--object-store-memory={STORE_BYTES}",
            f"--num-gpus={len(self.offer.facts['gpus'])}",
            f"--resources={json.dumps(resources_of(self.offer))}",
            f"--labels={','.join(f'{name}={value}' for name, value in self._labels().items() if value)}",
            *self._port_options(),
        ]

    def _labels(self) -> Mapping[str, str]:
        """Return what is said of the machine beside its resources; no trial is placed by it."""
        facts = self.offer.facts
        identity = f"{self.offer.hostname} {self.ip} {state_dir()}"
        return {
            MACHINE_LABEL: hashlib.sha256(identity.encode()).hexdigest()[:16],
            "kernel": _label(facts["kernel"]),
            "cpu": _label(facts["cpu"]),
            "gpu": _label(", ".join(dict.fromkeys(facts["gpus"]))),
        }

    def _port_options(self) -> list[str]:
        if self.ports is None:
            return []
        names = ["node-manager-port", "object-manager-port", "runtime-env-agent-port", "metrics-export-port"]
        names += ["dashboard-agent-listen-port", "dashboard-agent-grpc-port"]
        workers = (self.ports + _OWN_PORTS, self.ports + _ALL_PORTS - 1)
        own = [f"--{name}={self.ports + n}" for n, name in enumerate(names)]
        return [*own, f"--min-worker-port={workers[0]}", f"--max-worker-port={workers[1]}"]


def _label(text: str) -> str:
    """Return text as a value of a label may be: at most 63 letters, digits, `-`, `_` and `.` (Kubernetes' rule)."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text)[:63].strip("-_.")


def _clone_path() -> dict[str, str]:
    """Return what lets Ray's workers import this package from a clone, where it need not be installed."""
    root = Path(__file__).resolve().parent.parent
    others = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and Path(p).resolve() != root]
    return {"PYTHONPATH": os.pathsep.join([str(root), *others])} if (root / "pyproject.toml").exists() else {}


def own_address(head: str | None) -> str:
    """Return the address by which this machine reaches the head, or, without one, its own towards the world."""
    towards = (head.rpartition(":")[0].strip("[]"), 1) if head else ("192.0.2.1", 1)  # one that is nobody's (RFC 5737)
    try:
        family = socket.getaddrinfo(*towards, type=socket.SOCK_DGRAM)[0][0]
        with socket.socket(family, socket.SOCK_DGRAM) as s:
            s.connect(towards)  # of a datagram socket: nothing is sent
            return str(s.getsockname()[0])
    except (OSError, UnicodeError) as e:
        why = getattr(e, "strerror", None) or e
        raise ClusterError(f"this machine has no route to {towards[0]} ({why}): say --node-ip") from None


def keep(role: Role, say: Say) -> None:
    """Keep Ray running on this machine until an interrupt; raise ClusterError where it cannot start at all."""
    with _only_one():
        session.clear_abandoned()
        wait_s, ran_before = _FIRST_WAIT_S, False
        while True:
            _reap(say)
            if not role.head:
                _wait_for_head(role, say)
            begin_s = time.monotonic()
            try:
                ran, why = _run(role, say)
            finally:
                _wait_until_clean()
            if role.head and not ran and not ran_before:
                raise ClusterError(f"Ray does not start on this machine: {why}")
            ran_before = ran_before or ran
            wait_s = _FIRST_WAIT_S if time.monotonic() - begin_s > _STEADY_S else min(2 * wait_s, _LONGEST_WAIT_S)
            say(f"Ray has ended here ({why}); starting it again in {wait_s:.0f} s")
            time.sleep(wait_s)


@contextmanager
def _only_one() -> Iterator[None]:
    """Hold this state folder's node lock: two nodes would end each other's attempts, and measure at once."""
    with (state_dir() / "node.lock").open("w") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = f"a sweep.node runs already with the state folder {state_dir()}"
            raise ClusterError(
                f"{text}\n  for a second one on this machine, name another: OFFLOAD_SWEEP_STATE"
            ) from None
        yield


def _reap(say: Say) -> None:
    for problem in lease.reap():
        say(f"an earlier attempt left this behind, and it cannot be removed: {problem}")


def _wait_until_clean() -> None:
    """Wait for the supervisors on this machine, which end their attempts by themselves."""
    end_s = time.monotonic() + _CLEAN_LIMIT_S
    while lease.running("") and time.monotonic() < end_s:
        time.sleep(_LOOK_S)
    lease.reap()


def _wait_for_head(role: Role, say: Say) -> None:
    """Return once the head answers; for ever, for machines start in any order.

    Raises NotAdmitted where it does not let this machine in.
    """
    if not role.address.rpartition(":")[2].isdecimal():
        check_reachable(role.address)  # says how to write it
    said = False
    while True:
        try:
            check_reachable(role.address)
            agreed = authentication.agreed(role.address, role.token)
            break
        except NotAdmitted:
            raise
        except ClusterError:
            if not said:
                say(f"waiting for the head at {role.address}")
            said = True
        time.sleep(_RETRY_S)
    if role.token and agreed == authentication.without_token():
        raise NotAdmitted(f"the cluster at {role.address} was started with --no-auth: join it with --no-auth")


def _run(role: Role, say: Say) -> tuple[bool, str]:
    """Run Ray until it ends; return whether it had started, and why it ended."""
    with session.folder() as folder:
        log = folder / "ray.log"
        with child(role.argv(folder), log, role.environment()) as process:
            try:
                if not _started(process, log):
                    return False, _died(log) or _last_line(log)
                _tell(role, say)
                while process.poll() is None and _raylet_lives(process.pid):
                    time.sleep(_LOOK_S)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_LAST_WORDS_S)
                return True, _died(log) or "its raylet has ended"
            finally:
                end_group(process, _END_LIMIT_S)


def _started(process: subprocess.Popen[bytes], log: Path) -> bool:
    end_s = time.monotonic() + _START_LIMIT_S
    while process.poll() is None and time.monotonic() < end_s:
        if _STARTED in log.read_text(errors="replace"):
            return True
        time.sleep(_LOOK_S)
    return False


def _raylet_lives(pid: int) -> bool:
    """Say whether the raylet that `ray start` watches lives: of some of its ends that command takes no notice."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    try:
        found = [int(word) for word in children.read_text().split()]
        return any(Path(f"/proc/{n}/comm").read_text().strip() == "raylet" and process_start(n) for n in found)
    except OSError:
        return False


def _died(log: Path) -> str:
    """Return which of Ray's processes died unexpectedly, as its own output tells; empty where it tells of none."""
    return ", ".join(dict.fromkeys(re.findall(r"(\w+ \[exit code=[^]]*\])", log_tail(log, 400, 1 << 17))))


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log_tail(log).splitlines() if line.strip()]
    return lines[-1] if lines else "it says nothing"


def _tell(role: Role, say: Say) -> None:
    mode = "with token authentication" if role.token else "WITHOUT authentication"
    say(f"head of a cluster at {role.address}, {mode}" if role.head else f"joined {role.address} as {role.ip}, {mode}")
    for line in described(role.offer):
        say(f"  {line}")
    if not role.head:
        return
    if role.token:
        say(f"to add a machine, copy {role.token} to the same place there (mode 600), then run there:")
    else:
        say("to add a machine, run there:")
    say(f"  python -m sweep.node --join {role.address}{'' if role.token else ' --no-auth'}")
    say(f"to run a sweep on the cluster: python -m sweep CONF --address {role.address}")


def described(offer: Offer) -> list[str]:
    """Return what a machine offers, a line for each kind of thing."""
    drives = {d: p for p in offer.places for d in p.drives if not p.ram_backed}
    have = sorted(offer.capabilities)

    def named(prefix: str) -> str:
        return ", ".join(name.removeprefix(prefix) for name in have if name.startswith(prefix)) or "none"

    return [
        f"drives: {', '.join(sorted(drives)) or 'none'}",
        *(f"storage {fs}: {folder}" for fs, folder in offer.storage.items()),
        *(f"scratch: {device.path}" for device in offer.scratch),
        f"filesystems: {named('fs:')}; tracers: {named('tracer:')}; engines: {named('engine:')}",
        f"GPUs: {', '.join(offer.facts['gpus']) or 'none'}; memory: {format_bytes(offer.memory_bytes or 0)}",
    ]
