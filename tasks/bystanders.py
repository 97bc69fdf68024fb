"""Who else used the device while a trial ran: processes that are not the attempt's, by name.

Requests carry the thread that issued them. Which threads are the attempt's, the kernel's or others' is read from
/proc (proc(5)) at the window's begin and end and now and then between. A thread that no look has seen is nobody's: it
is never accused. What the kernel writes back for others in its own threads has no name.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tasks.lease import TOKEN_VARIABLE
from tasks.units import format_bytes

#: Least seconds between looks, and how many times its own CPU time the next one waits: 0.3 % of one core at most.
_INTERVAL_S = 1.0
_RARENESS = 300

#: The first namespace of process numbers (PROC_PID_INIT_INO, include/linux/proc_ns.h).
_HOST_NUMBERS = f"pid:[{0xEFFFFFFC}]"

#: Flag of a kernel thread in the ninth field of /proc/PID/stat (PF_KTHREAD, include/linux/sched.h).
_KERNEL_THREAD = 0x00200000


class Bystanders:
    """The processes of this machine that are not the attempt's, seen over a trial."""

    def __init__(self, token: str) -> None:
        """Tell them from those that carry `token`, and from this process."""
        self._wanted = f"{TOKEN_VARIABLE}={token}".encode()
        self._threads: dict[int, str] = {}
        self._ours: set[int] = set()
        self._moved: dict[int, tuple[str, int, int]] = {}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look at the begin, every few seconds while the body runs, and at the end."""
        stop = threading.Event()

        def loop() -> None:
            while not stop.wait(max(_INTERVAL_S, _RARENESS * self.look())):
                continue

        self.look()
        thread = threading.Thread(target=loop, name="bystanders", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self.look()

    def look(self) -> float:
        """Take note of all threads there are now, and of what their processes have moved; return its CPU seconds."""
        begin_s = time.thread_time()
        parents: dict[int, int] = {}
        others: dict[int, tuple[str, list[int], int]] = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                self._note(folder, parents, others)
            except (OSError, ValueError, IndexError):
                continue  # it has ended meanwhile, or is not ours to look into
        for pid, (name, threads, moved) in others.items():
            if self._descends(pid, parents):
                self._ours.update(threads)
                continue
            self._threads |= dict.fromkeys(threads, f"{name} (pid {pid})")
            _, first, _ = self._moved.get(pid, (name, moved, moved))
            self._moved[pid] = (name, first, moved)
        return time.thread_time() - begin_s

    def _note(self, folder: Path, parents: dict[int, int], others: dict[int, tuple[str, list[int], int]]) -> None:
        stat = (folder / "stat").read_text()
        name, fields = stat[stat.index("(") + 1 : stat.rindex(")")], stat[stat.rindex(")") + 2 :].split()
        if int(fields[6]) & _KERNEL_THREAD:
            return
        pid = int(folder.name)
        threads = [int(tid) for tid in os.listdir(folder / "task")]
        if pid == os.getpid() or self._wanted in _environment(folder):
            self._ours.update(threads)
            return
        parents[pid] = int(fields[1])
        others[pid] = (name, threads, _storage_bytes(folder))

    def _descends(self, pid: int, parents: Mapping[int, int]) -> bool:
        """Say whether a process is of ours by an ancestor: it may have overwritten its environment with a title."""
        seen: set[int] = set()
        while pid not in self._ours and pid in parents and pid not in seen:
            seen.add(pid)
            pid = parents[pid]
        return pid in self._ours

    def named(self, moved: Mapping[int, int]) -> dict[str, int] | None:
        """Return the bytes of those threads in `moved` (bytes by thread) that are somebody else's, by process.

        None in a container with process numbers of its own: the trace has the host's.
        """
        if os.readlink("/proc/self/ns/pid") != _HOST_NUMBERS:
            return None
        found: Counter[str] = Counter()
        for tid, count in moved.items():
            if tid in self._threads and tid not in self._ours:
                found[self._threads[tid]] += count
        return dict(found.most_common())

    def busiest(self, most: int = 3) -> dict[str, int]:
        """Return the processes that moved most bytes to or from any drive between the first look and the last."""
        rows = {f"{name} (pid {pid})": last - first for pid, (name, first, last) in list(self._moved.items())}
        return dict(Counter({k: v for k, v in rows.items() if v > 0}).most_common(most))


def _environment(folder: Path) -> list[bytes]:
    try:
        return (folder / "environ").read_bytes().split(b"\0")
    except PermissionError:
        return []  # another user's, and so none of ours


def _storage_bytes(folder: Path) -> int:
    """Return the bytes a process has caused on storage so far, 0 where that is not ours to know."""
    try:
        lines = dict(line.split(": ") for line in (folder / "io").read_text().splitlines())
    except OSError:
        return 0
    return int(lines["read_bytes"]) + int(lines["write_bytes"])


def listed(moved: Mapping[str, int]) -> str:
    """Return processes and what they moved, in words."""
    return ", ".join(f"{name} {format_bytes(count)}" for name, count in moved.items())
