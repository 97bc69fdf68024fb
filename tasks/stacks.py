"""Who submitted a trial's requests: kernel and user stacks, counted by `bpftrace/stacks.bt` beside the trial's tracer.

An optional artefact: what goes wrong here is recorded, and costs the trial nothing but its stacks. Kernel frames get
their names from bpftrace. User frames get theirs afterwards, when the process is gone, from its mappings: those are
read when its first request shows up, and twice a second from then on.

The files are in the folded format of Brendan Gregg's stackcollapse tools: `frame;frame;frame count`, root first. The
first two frames are the operation and the command; `_[k]` ends the name of a kernel function.
"""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from tasks.device import Devices
from tasks.errors import TaskError, TracerError
from tasks.files import bpftrace_script
from tasks.lease import Lease
from tasks.process import child, interrupt, log_tail
from tasks.symbols import AddressSpace
from tasks.tracers.tracefs import ensure_mounted

SCRIPT = "stacks.bt"
REQUESTS, BYTES = "stacks.folded", "stacks-bytes.folded"

#: Frames that stand for what is not known.
NO_USER, NO_KERNEL = "[user stack unknown]", "[kernel stack unknown]"

#: As many device numbers as the script takes.
_MOST_DEVICES = 8

#: Stacks that each map of the script holds; of requests beyond, only the innermost user frame is kept.
_MAP_KEYS = 16384

_START_LIMIT_S = 60.0
_END_LIMIT_S = 120.0
_LISTEN_S = 0.02
_LOOK_S = 0.5

_OPERATIONS = {"0": "other", "1": "read", "2": "write", "3": "discard", "4": "flush"}
_STACK = r"((?:\n(?:\t.*\n)+)?)"
_TOTAL = re.compile(r"@total\[(\d)\]: (\d+)\n?")
_COUNT = re.compile(rf"@((?:leaf_)?(?:requests|bytes))\[(\d), (\d+), (.*?), {_STACK}, {_STACK}\]: (\d+)\n?")
_END_OF_ENTRY = re.compile(r"\]: \d+\n?$")
_ADDRESS = re.compile(r"\t([0-9a-f]{1,16}) ")
_KERNEL_FRAME = re.compile(r"[0-9a-f]+ (.*?)(?:\+\d+)?")
_NUMBERED = re.compile(r"(kworker|iou-wrk|iou-sqp)\b.*")


class Key(NamedTuple):
    """Who submitted requests: the kernel stack as bpftrace prints it, the user stack's addresses, both leaf first."""

    op: str
    pid: int
    comm: str
    kernel: str
    user: tuple[int, ...]


class Counts:
    """What the script's maps hold, by name: requests and bytes by `Key`; `leaf_...` with one user frame at most."""

    def __init__(self) -> None:
        self.total: Counter[str] = Counter()
        self.maps: dict[str, Counter[Key]] = {
            name: Counter() for name in ("requests", "bytes", "leaf_requests", "leaf_bytes")
        }
        self.malformed = 0

    @classmethod
    def parse(cls, lines: Iterable[str]) -> Counts:
        """Read what bpftrace printed; what is no entry of a map or no line of the script counts as malformed."""
        counts = cls()
        for entry in _entries(lines):
            counts._take(entry)
        return counts

    def _take(self, entry: str) -> None:
        if total := _TOTAL.fullmatch(entry):
            self.total[_OPERATIONS.get(total[1], "other")] += int(total[2])
        elif found := _COUNT.fullmatch(entry):
            name, op, pid, comm, kernel, user, count = found.groups()
            addresses = tuple(int(address, 16) for address in _ADDRESS.findall(user))
            self.maps[name][Key(_OPERATIONS.get(op, "other"), int(pid), comm, kernel, addresses)] += int(count)
        elif entry.strip() and not entry.startswith(("Attaching ", "B\n", "P\t", "E\n", "Lost ")):
            self.malformed += 1

    @property
    def lost(self) -> int:
        """Requests that no map of stacks had room for."""
        return self.total.total() - self.maps["leaf_requests"].total()


def _entries(lines: Iterable[str]) -> Iterator[str]:
    """Yield the entries of maps, which go over several lines, and every other line by itself."""
    entry = ""
    for line in lines:
        if entry and line.startswith("@"):  # the one before was cut short
            yield entry
            entry = ""
        entry += line
        if not entry.startswith("@") or _END_OF_ENTRY.search(line):
            yield entry
            entry = ""
    if entry:
        yield entry


class Folding:
    """Turns counts into folded stacks, and counts what has no stack."""

    def __init__(self, processes: dict[int, AddressSpace]) -> None:
        """Name user frames by the code of `processes`, by process id."""
        self._processes = processes
        self._user_frames = cache(self._walked)
        self._kernel_frames = cache(_kernel_frames)

    def fold(self, whole: Counter[Key], leaves: Counter[Key]) -> Counter[str]:
        """Return counts by folded stack: `whole` ones, and of `leaves` what those leave over.

        The maps of whole stacks may be full, and a stack may have no place in the kernel's table of them; then its key
        has no user frame.
        """
        folded: Counter[str] = Counter()
        rest = Counter(leaves)
        for key, n in whole.items():
            if key.user:
                folded[self._line(key)] += n
                leaf = key._replace(user=key.user[:1])
                rest[leaf if leaf in leaves else key._replace(user=())] -= n
        for key, n in rest.items():
            if n > 0:
                folded[self._line(key)] += n
        return folded

    def _line(self, key: Key) -> str:
        comm = _NUMBERED.sub(r"\1", key.comm)
        kernel = [f"{_clean(frame)}_[k]" for frame in self._kernel_frames(key.kernel)]
        frames = [key.op, _clean(comm), *self._user_frames(key.pid, key.user), *(kernel or [NO_KERNEL])]
        return ";".join(frames)

    def _walked(self, pid: int, addresses: tuple[int, ...]) -> tuple[str, ...]:
        """Return a user stack's frames, root first, as far as they lead through code; nothing for a kernel thread."""
        process = self._processes.get(pid)
        if not process:
            return (NO_USER,) if addresses else ()
        found: list[str] = []
        for address in addresses:
            name = process.name(address, returns=bool(found))
            if name is None:
                break
            found.append(_clean(name))
        return tuple(reversed(found)) or (NO_USER,)


def _kernel_frames(stack: str) -> tuple[str, ...]:
    frames = [_KERNEL_FRAME.fullmatch(line.strip()) for line in stack.split("\n")]
    return tuple(frame[1] for frame in reversed(frames) if frame)


def _clean(name: str) -> str:
    """Return a frame's name without the characters that the format gives a meaning."""
    return " ".join(name.replace(";", ":").split()) or "?"


class Stacks:
    """Records the stacks of one trial's requests."""

    def __init__(self, devices: Devices, lease: Lease, environment: dict[str, str]) -> None:
        """Record the requests of `devices`; raw output goes to the lease's folder."""
        self._devices = devices
        self._output, self._log = lease.folder / "stacks.txt", lease.folder / "bpftrace-stacks.log"
        self._environment = environment | {"BPFTRACE_MAP_KEYS_MAX": str(_MAP_KEYS)}
        self._processes: dict[int, AddressSpace] = {}
        #: Why there are no stacks; None while all is well.
        self.trouble: str | None = None

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record while the body runs. Trouble is kept, never raised: the trial's trace needs no stacks."""
        with ExitStack() as running:
            with self._excused():
                process = running.enter_context(self._started())
            if self.trouble:
                yield
                return
            with _Listener(self._output, self._processes):
                yield
            with self._excused():
                self._end(process)

    def write(self, folder: Path) -> dict[str, Any]:
        """Write the folded stacks, by requests and by bytes; return the section `stacks` of `trial.json`."""
        facts: dict[str, Any] = {"script": SCRIPT, "state": "failed"}
        with self._excused():
            if self.trouble:
                raise TracerError(self.trouble)
            with self._output.open(errors="replace") as f:
                counts = Counts.parse(f)
            self._output.unlink()
            if not counts.total:
                raise TracerError(f"bpftrace saw no request of {self._devices.name}")
            folding = Folding(self._processes)
            by_requests = folding.fold(counts.maps["requests"], counts.maps["leaf_requests"])
            _write(folder / REQUESTS, by_requests)
            _write(folder / BYTES, folding.fold(counts.maps["bytes"], counts.maps["leaf_bytes"]))
            facts |= {
                "state": "recorded",
                "requests": dict(counts.total),
                "lost": counts.lost,
                "without_kernel_stack": _count_with(NO_KERNEL, by_requests),
                "without_user_stack": _count_with(NO_USER, by_requests),
                "malformed": counts.malformed,
            }
        return facts | {"reason": self.trouble}

    @contextmanager
    def _excused(self) -> Iterator[None]:
        """Take what goes wrong in the body for the end of the stacks, not of the trial; later steps then do nothing."""
        try:
            yield
        except (TaskError, OSError, ValueError, LookupError, MemoryError) as e:
            self.trouble = self.trouble or f"no stacks were recorded: {e}"

    @contextmanager
    def _started(self) -> Iterator[subprocess.Popen[bytes]]:
        numbers = [str(device.number) for device in self._devices]
        if len(numbers) > _MOST_DEVICES:
            raise TracerError(f"bpftrace/{SCRIPT} takes {_MOST_DEVICES} devices at most, these are {len(numbers)}")
        ensure_mounted()
        argv = ["bpftrace", "-B", "none", str(bpftrace_script(SCRIPT)), *numbers]
        with child(argv, self._log, self._environment, self._output) as process:
            end = time.monotonic() + _START_LIMIT_S
            while not self._said(b"B"):
                if process.poll() is not None or time.monotonic() > end:
                    raise TracerError(f"bpftrace {SCRIPT} did not start: {log_tail(self._log, 3)}")
                time.sleep(_LISTEN_S)
            yield process

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """Stop counting, and wait until all maps are printed."""
        # bpftrace may miss an interrupt, and dies of one that comes while it prints.
        interrupt(process, until=lambda: self._said(b"E"))
        try:
            code = process.wait(_END_LIMIT_S)
        except subprocess.TimeoutExpired:
            raise TracerError(f"bpftrace {SCRIPT} did not print its stacks in {_END_LIMIT_S:.0f} s") from None
        if code or not self._said(b"E"):
            raise TracerError(f"bpftrace {SCRIPT} ended early: {log_tail(self._log, 3)}")

    def _said(self, word: bytes) -> bool:
        """Say whether the script has printed a line that is `word`; those come before the maps."""
        with self._output.open("rb") as f:
            return word + b"\n" in f


def _write(path: Path, folded: Counter[str]) -> None:
    path.write_text("".join(f"{stack} {n}\n" for stack, n in sorted(folded.items())))


def _count_with(frame: str, folded: Counter[str]) -> int:
    return sum(n for stack, n in folded.items() if frame in stack.split(";"))


class _Listener:
    """A thread that learns of processes from the script as it runs, and looks at their mappings while they live."""

    def __init__(self, output: Path, processes: dict[int, AddressSpace]) -> None:
        self._output, self._processes = output, processes
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="stacks", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _listen(self) -> None:
        looked = time.monotonic()
        with self._output.open("rb") as f:
            while not self._stopped.wait(_LISTEN_S):
                for pid in _pids(f):
                    self._processes[pid] = AddressSpace(pid)
                    self._processes[pid].look()
                if time.monotonic() - looked > _LOOK_S:
                    for process in self._processes.values():
                        process.look()
                    looked = time.monotonic()


def _pids(f: Any) -> list[int]:
    """Return the processes that the whole lines since the last call name."""
    at = f.tell()
    text = f.read()
    whole = text[: text.rfind(b"\n") + 1]
    f.seek(at + len(whole))
    return [int(line[2:]) for line in whole.splitlines() if line.startswith(b"P\t") and line[2:].isdigit()]
