"""Hosts of one machine: each with a network, a process tree, mounts and a name of its own, joined by a bridge.

What is made is named by this process's pid and start time, so that a later process can tell what a dead one left.
A host's processes end with `Host.power_off`, with the network, or with this process, whatever becomes of it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from tasks.lease import process_start
from tasks.process import die_with_parent
from tests.machine import ROOT, wait_for

#: Not /tmp, of which each host has its own.
_PARENT = Path("/var/tmp")
_NAME = re.compile(r"osn-(\d+)-(\d+)")
_NETNS = Path("/run/netns")
_MIB = 1 << 20
_PROGRAMS = ("ip", "unshare", "nsenter", "losetup")
_UNSHARE = ("unshare", "--mount", "--uts", "--pid", "--mount-proc", "--fork", "--kill-child")


@cache
def obstacle() -> str | None:
    """Return why this machine cannot have such hosts, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if missing := [name for name in _PROGRAMS if not shutil.which(name)]:
        return f"network namespaces need {', '.join(missing)}: apt-get install iproute2 util-linux"
    tried = f"osn-{os.getpid()}-tried"
    try:
        _ip("netns", "add", tried)
        _ip("-n", tried, "link", "add", "br0", "type", "bridge")
        _run("nsenter", f"--net={_NETNS / tried}", *_UNSHARE, "true")
    except subprocess.CalledProcessError as e:
        return f"{' '.join(e.cmd)}: {e.stderr.strip()}"
    finally:
        subprocess.run(["ip", "netns", "del", tried], capture_output=True)
    return None


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True, text=True)


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


#: What a host runs, as an argument list.
Service = Callable[["Host"], Sequence[str]]


class Network:
    """A bridge that hosts are plugged into; make one with `network()`."""

    def __init__(self) -> None:
        """Name it; nothing is made yet."""
        pid = os.getpid()
        self.name = f"osn-{pid}-{process_start(pid)}"
        self.folder = _PARENT / self.name
        self.switch = f"{self.name}-switch"
        self.hosts: list[Host] = []
        self.timers: list[threading.Timer] = []

    def host(self, name: str, fs: str, service: Service, instead: Mapping[str, Path] | None = None) -> Host:
        """Switch a new host on: with a drive of this filesystem, and what `service` says as its one service.

        `instead`: by name, folders that the host has in the place of those of this clone.
        """
        host = Host(self, len(self.hosts) + 1, name, fs, service, instead or {})
        self.hosts.append(host)
        host.plug_in()
        host.power_on()
        return host


@contextmanager
def network() -> Iterator[Network]:
    """Provide a network of hosts; all of it is gone afterwards."""
    clear_abandoned()
    net = Network()
    net.folder.mkdir()
    try:
        _ip("netns", "add", net.switch)
        _ip("-n", net.switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", net.switch, "link", "set", "br0", "up")
        yield net
    finally:
        for timer in net.timers:
            timer.cancel()
        for host in net.hosts:
            host.power_off()
        _clear(net.name)


def clear_abandoned() -> None:
    """Remove what processes that are gone have left."""
    for path in (*_PARENT.glob("osn-*"), *_NETNS.glob("osn-*")):
        name = _NAME.match(path.name)
        if name and process_start(int(name[1])) != name[2]:
            _clear(name[0])


def _clear(name: str) -> None:
    for space in _NETNS.glob(f"{name}-*"):
        users = subprocess.run(["ip", "netns", "pids", space.name], capture_output=True, text=True).stdout.split()
        for pid in users:
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        _ip("netns", "del", space.name)
    for state in (_PARENT / name).glob("*/state"):
        _forget(state)
    shutil.rmtree(_PARENT / name, ignore_errors=True)


def _forget(state: Path) -> None:
    """Undo what the attempts of a host that is off had of the kernel: its own would have ended with it."""
    for attempt in (state / "attempts").glob("*"):
        mark = f"offload-sweep-{attempt.name}"
        for instance in Path("/sys/kernel/tracing/instances").glob(f"{mark}*"):
            _remove(instance)
        for group in Path("/sys/fs/cgroup").glob(f"**/{mark}"):
            _remove(group)
        for line in subprocess.run(["losetup", "-a"], capture_output=True, text=True).stdout.splitlines():
            if mark in line:
                subprocess.run(["losetup", "--detach", line.partition(":")[0]], check=True)


def _remove(folder: Path) -> None:
    """Remove a folder of the kernel's, which may be in use for a moment after its user has ended."""

    def removed() -> bool:
        with suppress(OSError):
            folder.rmdir()
        return not folder.exists()

    wait_for(removed, 10)


class Host:
    """One host: its folder is on this machine, `offload` on all hosts is where its drive is mounted."""

    def __init__(
        self, net: Network, number: int, name: str, fs: str, service: Service, instead: Mapping[str, Path]
    ) -> None:
        """Describe it; `Network.host` switches it on."""
        self.net, self.name, self.fs, self._service, self._instead = net, name, fs, service, instead
        self.address = f"10.77.0.{number}"
        self.folder = net.folder / name
        self.offload = net.folder / "offload"
        self.state = self.folder / "state"
        self.log = self.folder / "service.log"
        own = {"OFFLOAD_SWEEP_STATE": str(self.state), "PYTHONPATH": str(ROOT)}
        self.environment = os.environ | own
        self._port, self._down = f"port{number}", self.folder / "down"
        self._space = f"{net.name}-{name}"
        self._unshare: subprocess.Popen[str] | None = None

    def plug_in(self) -> None:
        """Make the host's network and its cable."""
        for folder in (self.state, self.offload, self.net.folder / "memory", self.net.folder / "code"):
            folder.mkdir(parents=True, exist_ok=True)
        _ip("netns", "add", self._space)
        _ip("-n", self._space, "link", "set", "lo", "up")
        cable = ["type", "veth", "peer", "name", self._port, "netns", self.net.switch]
        _ip("-n", self._space, "link", "add", "eth0", *cable)
        _ip("-n", self._space, "address", "add", f"{self.address}/24", "dev", "eth0")
        _ip("-n", self._space, "link", "set", "eth0", "up")
        _ip("-n", self.net.switch, "link", "set", self._port, "master", "br0")

    def power_on(self) -> None:
        """Start the host and its service."""
        self.mend()
        setup = {"hostname": self.name, "before": self._mounts(), "service": list(self._service(self))}
        setup["down"] = str(self._down)
        argv = ["nsenter", f"--net={_NETNS / self._space}", *_UNSHARE]
        argv += [sys.executable, str(ROOT / "tests" / "namespace_init.py"), json.dumps(setup)]
        self.log.write_text("")
        with self.log.open("ab") as log:
            options = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "preexec_fn": die_with_parent}
            self._unshare = subprocess.Popen(argv, cwd=ROOT, env=self.environment, **options)
        wait_for(lambda: "ready\n" in self.said() or self._unshare.poll() is not None, 30)
        assert self._unshare.poll() is None, self.said()

    def _mounts(self) -> list[list[str]]:
        memory, code = self.net.folder / "memory", str(self.net.folder / "code")
        image, size = str(memory / "drive.img"), str(512 * _MIB)
        return [
            # a /tmp of its own, with this clone in it where it lies there
            ["mount", "--bind", str(ROOT), code],
            ["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", "/tmp"],
            ["mkdir", "-p", str(ROOT)],
            ["mount", "--bind", code, str(ROOT)],
            *(["mount", "--bind", str(folder), str(ROOT / name)] for name, folder in self._instead.items()),
            ["mount", "-t", "tmpfs", "-o", "size=2g", "tmpfs", "/dev/shm"],
            ["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", str(memory)],
            ["truncate", "--size", size, image],
            [f"mkfs.{self.fs}", "-q", image],
            # detached by the kernel when its last mount goes, and so when the host does
            ["mount", "-t", self.fs, "-o", "loop", image, str(self.offload)],
        ]

    def said(self) -> str:
        """Return what the service has printed."""
        return self.log.read_text(errors="replace")

    @property
    def first(self) -> int:
        """The pid, on this machine, of the host's process 1."""
        return int(Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children").read_text())

    def start(self, *argv: str, **options: Any) -> subprocess.Popen[str]:
        """Start a command on the host; the process returned is not it, but ends with its exit code."""
        enter = ["nsenter", f"--target={self.first}", "--net", "--mount", "--uts", "--pid", f"--wdns={ROOT}"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": self.environment}
        return subprocess.Popen([*enter, *argv], cwd=ROOT, **(pipes | options))

    def run(self, *argv: str, limit_s: float = 60) -> str:
        """Run a short command on the host and return what it printed."""
        process = self.start(*argv)
        out, err = process.communicate(timeout=limit_s)
        assert process.returncode == 0, err
        return out

    def processes(self) -> dict[int, str]:
        """Return the command line of each process of the host, by its pid on this machine."""
        space = os.stat(f"/proc/{self.first}/ns/pid").st_ino
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if os.stat(folder / "ns" / "pid").st_ino == space:
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        return found

    def kill(self, *words: str, number: int = signal.SIGKILL) -> list[str]:
        """Signal the host's processes whose command line has one of these words in it; return what they were."""
        victims = {pid: line for pid, line in self.processes().items() if any(word in line for word in words)}
        victims.pop(self.first, None)
        for pid in victims:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        return list(victims.values())

    def stop_service(self) -> None:
        """Let the service end for good when it ends next."""
        self._down.touch()

    def shut_down(self) -> None:
        """End the host in good order: its service is told, and takes its leave."""
        self.stop_service()
        for pid in Path(f"/proc/{self.first}/task/{self.first}/children").read_text().split():
            os.kill(int(pid), signal.SIGTERM)
        wait_for(lambda: len(self.processes()) == 1, 30)
        self.power_off()

    def start_service(self) -> None:
        """Start the service again."""
        self._down.unlink()

    def cut(self) -> None:
        """Pull the cable."""
        _ip("-n", self.net.switch, "link", "set", self._port, "down")

    def mend(self) -> None:
        """Plug the cable in again."""
        _ip("-n", self.net.switch, "link", "set", self._port, "up")

    def cut_for(self, seconds: float) -> None:
        """Pull the cable now, and plug it in again in so many seconds."""
        self.cut()
        timer = threading.Timer(seconds, self.mend)
        self.net.timers.append(timer)
        timer.start()

    def power_off(self) -> None:
        """End every process of the host at once, as a power failure does: nobody hears a last word from it."""
        if self._unshare is None:
            return
        self.cut()
        with suppress(OSError, ValueError):
            os.kill(self.first, signal.SIGKILL)
        self._unshare.kill()
        self._unshare.wait()
        self._unshare = None
        end = time.monotonic() + 30
        while subprocess.run(["ip", "netns", "pids", self._space], capture_output=True).stdout:
            assert time.monotonic() < end, f"{self.name} does not end"
            time.sleep(0.05)
        _forget(self.state)
