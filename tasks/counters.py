"""The kernel's own counters as sources of samples: processors, memory, paging, pressure, block devices, a cgroup.

A source holds its files open and reads them from their start each time (pread), so that a sample costs a few system
calls. Counters count from the moment the source was opened; gauges are as the kernel shows them.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

#: Where /proc and /sys are.
ROOT = Path("/")

#: Counters in milliseconds or clock ticks say nothing about a shorter time than this.
_SHORTEST_NS = 5_000_000

_SECTOR_BYTES = 512
_NS_PER_MS = 1_000_000
_CHUNK_BYTES = 1 << 16


class Source(Protocol):
    """What can be sampled: `name` and, for each value that `read` returns, its name and unit."""

    @property
    def name(self) -> str: ...

    @property
    def columns(self) -> Sequence[tuple[str, str]]: ...

    def read(self, t_ns: int) -> Sequence[float]:
        """Return the values of now, which is `t_ns` (monotonic); NaN where there is none. Raises OSError, ValueError
        or LookupError where the source cannot be read any more."""

    def close(self) -> None:
        """Let go of its files."""


class CounterFile:
    """A small file of the kernel's that is read again and again."""

    def __init__(self, path: Path) -> None:
        """Open it; raises OSError."""
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def pieces(self) -> Iterator[bytes]:
        """Yield it piece by piece: a file of lines (seq_file) comes a page at a time, whatever one asks for."""
        offset = 0
        while piece := os.pread(self._fd, _CHUNK_BYTES, offset):
            yield piece
            offset += len(piece)

    def first(self, count: int) -> bytes:
        """Return its first `count` bytes."""
        return os.pread(self._fd, count, 0)

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)


@dataclass(frozen=True)
class Column:
    """One value of a table: a sum of the numbers that follow these words, each with a factor."""

    name: str
    unit: str
    terms: tuple[tuple[bytes, float], ...]
    counts: bool = False


def gauge(name: str, unit: str, *keys: str, factor: float = 1.0) -> Column:
    """Return a column that is what it is now."""
    return Column(name, unit, tuple((key.encode(), factor) for key in keys))


def counter(name: str, unit: str, *keys: str, factor: float = 1.0) -> Column:
    """Return a column that counts from when the source was opened."""
    return Column(name, unit, tuple((key.encode(), factor) for key in keys), True)


class Table:
    """Numbers in a file of lines `word number`; a column of which a word is missing there is left out.

    Their places are looked up once: the kernel keeps the order of such a file until it is booted anew.
    """

    def __init__(self, name: str, path: Path, columns: Iterable[Column], before: bytes = b"") -> None:
        """Open the table at `path`; `before` is put in front of its text, to name a number that stands alone."""
        self.name = name
        self._before = before
        self._file = CounterFile(path)
        self._enough = sys.maxsize
        try:
            words = self._words()
            held = set(words)
            self._chosen = [c for c in columns if all(key in held for key, _ in c.terms)]
            self._places = {key: words.index(key) + 1 for c in self._chosen for key, _ in c.terms}
            self._enough = max(self._places.values(), default=0) + 1
            self.columns = [(c.name, c.unit) for c in self._chosen]
            self._base = [value if c.counts else 0.0 for c, value in zip(self._chosen, self._sums(words), strict=True)]
        except BaseException:
            self._file.close()
            raise

    def read(self, t_ns: int) -> list[float]:
        """Return the columns' values."""
        words = self._words()
        if any(words[place - 1] != key for key, place in self._places.items()):
            raise ValueError("its lines have changed places")
        return [now - base for now, base in zip(self._sums(words), self._base, strict=True)]

    def _words(self) -> list[bytes]:
        """Return the words of the file as far as they are wanted."""
        text, words = self._before, []
        for piece in self._file.pieces():
            text += piece
            words = text.split()
            if len(words) >= self._enough:
                break
        return words

    def _sums(self, words: list[bytes]) -> list[float]:
        return [sum(int(words[self._places[key]]) * factor for key, factor in c.terms) for c in self._chosen]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Processors:
    """Where the time of all CPUs goes, in percent of it (proc(5), /proc/stat): `busy` is all but idle and iowait.

    Guests are within user; iowait is idle time with requests of that CPU in flight, a hint and not a sum.
    """

    name = "cpu"
    columns = tuple((name, "%") for name in ("busy", "user", "system", "iowait", "irq", "steal"))

    def __init__(self, root: Path = ROOT) -> None:
        """Open /proc/stat."""
        self._file = CounterFile(root / "proc/stat")
        self._before: tuple[int, list[int]] | None = None

    def _ticks(self) -> list[int]:
        return [int(x) for x in self._file.first(512).split(b"\n", 1)[0].split()[1:9]]

    def read(self, t_ns: int) -> list[float]:
        """Return the shares since the last reading; NaN for the first one, and where less than a tick has passed."""
        now = self._ticks()
        last_ns, before = self._before or (t_ns, now)
        if self._before is None:
            self._before = (t_ns, now)
        user, nice, system, idle, iowait, irq, softirq, steal = (
            max(b - a, 0) for a, b in zip(before, now, strict=True)
        )
        total = user + nice + system + idle + iowait + irq + softirq + steal
        if not total or t_ns - last_ns < _SHORTEST_NS:
            return [math.nan] * len(self.columns)
        self._before = (t_ns, now)
        busy = total - idle - iowait
        return [100.0 * part / total for part in (busy, user + nice, system, iowait, irq + softirq, steal)]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Pressure:
    """Time in which tasks stood still for want of a resource, in seconds (Documentation/accounting/psi.rst).

    `some`: at least one of them; `full`: all that were not idle.
    """

    _TOTAL = re.compile(rb"(some|full) .*?total=(\d+)")

    def __init__(self, name: str, path: Path, resource: str) -> None:
        """Open a pressure file such as /proc/pressure/io; raises OSError where the kernel keeps none."""
        self.name = name
        self._file = CounterFile(path)
        try:
            self._base = dict(self._totals())
            if not self._base:
                raise ValueError(f"{path} holds no totals")
        except BaseException:
            self._file.close()
            raise
        self.columns = [(f"{resource}_{kind.decode()}_stalled", "s") for kind in self._base]

    def _totals(self) -> list[tuple[bytes, int]]:
        return [(kind, int(total_us)) for kind, total_us in self._TOTAL.findall(self._file.first(512))]

    def read(self, t_ns: int) -> list[float]:
        """Return the seconds stalled since the source was opened."""
        return [(total_us - self._base[kind]) / 1e6 for kind, total_us in self._totals()]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


#: Counters of Documentation/block/stat.rst by their place in the line, with name, unit and factor.
_STAT = (
    (2, "read_bytes", "B", _SECTOR_BYTES),
    (6, "write_bytes", "B", _SECTOR_BYTES),
    (13, "discard_bytes", "B", _SECTOR_BYTES),
    (0, "reads", "requests", 1),
    (4, "writes", "requests", 1),
    (15, "flushes", "requests", 1),
    (3, "read_time", "s", 1e-3),
    (7, "write_time", "s", 1e-3),
)
_IN_FLIGHT, _IO_MS, _QUEUE_MS = 8, 9, 10


class BlockDevices:
    """What block devices have done together, from their `stat` files.

    `read_time` and `write_time` are summed over requests, so that their quotient with `reads` and `writes` is the mean
    latency. `queue_depth` is iostat's aqu-sz: the growth of time in queue over the time passed. `utilisation` is
    iostat's %util: the share of time with anything in flight, the mean of the devices, in steps of the kernel's tick.
    """

    columns = (
        *((name, unit) for _, name, unit, _ in _STAT),
        ("in_flight", "requests"),
        ("utilisation", "%"),
        ("queue_depth", "requests"),
    )

    def __init__(self, name: str, paths: Sequence[Path]) -> None:
        """Open the `stat` files."""
        self.name = name
        self._files: list[CounterFile] = []
        try:
            for path in paths:
                self._files.append(CounterFile(path))
            self._base = self._fields()
        except BaseException:
            self.close()
            raise
        self._before: tuple[int, list[int]] | None = None

    def _fields(self) -> list[int]:
        lines = [[int(x) for x in file.first(512).split()] for file in self._files]
        return [sum(column) for column in zip(*([*line, *[0] * (17 - len(line))] for line in lines), strict=True)]

    def read(self, t_ns: int) -> list[float]:
        """Return counters since the source was opened, and what became of the queue since the last reading."""
        now = self._fields()
        counted = [(now[place] - self._base[place]) * factor for place, _, _, factor in _STAT]
        return [*counted, now[_IN_FLIGHT], *self._queue(t_ns, now)]

    def _queue(self, t_ns: int, now: list[int]) -> tuple[float, float]:
        last_ns, before = self._before or (t_ns, now)
        if self._before is not None and t_ns - last_ns < _SHORTEST_NS:
            return math.nan, math.nan
        self._before = (t_ns, now)
        if t_ns == last_ns:
            return math.nan, math.nan
        passed_ms = (t_ns - last_ns) / _NS_PER_MS
        busy = (now[_IO_MS] - before[_IO_MS]) / passed_ms / len(self._files)
        return min(100.0 * busy, 100.0), (now[_QUEUE_MS] - before[_QUEUE_MS]) / passed_ms

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()


class CgroupIo:
    """What a cgroup v2 has moved on some devices (io.stat in Documentation/admin-guide/cgroup-v2.rst)."""

    name = "cgroup"
    columns = (("read_bytes", "B"), ("write_bytes", "B"))

    def __init__(self, path: Path, devices: Iterable[str]) -> None:
        """Open `io.stat`, of which the lines of `devices` (major:minor) count."""
        self._devices = {device.encode() for device in devices}
        self._file = CounterFile(path)

    def read(self, t_ns: int) -> list[float]:
        """Return bytes since the cgroup was made."""
        found = {b"rbytes": 0, b"wbytes": 0}
        for line in b"".join(self._file.pieces()).splitlines():
            device, *pairs = line.split()
            for key, _, value in (pair.partition(b"=") for pair in pairs if device in self._devices):
                if key in found:
                    found[key] += int(value)
        return [float(value) for value in found.values()]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _meminfo() -> list[Column]:
    kib = 1024.0
    used = Column("used", "B", ((b"MemTotal:", kib), (b"MemAvailable:", -kib)))
    return [
        used,
        gauge("page_cache", "B", "Cached:", factor=kib),
        gauge("dirty", "B", "Dirty:", "Writeback:", factor=kib),
        gauge("shared", "B", "Shmem:", factor=kib),
        gauge("anonymous", "B", "AnonPages:", factor=kib),
    ]


def _paging(page_bytes: int) -> list[Column]:
    """Return what tells whether the page cache thrashes, from /proc/vmstat (mm/workingset.c, mm/vmscan.c).

    A refault is the return of a page that was evicted a short while ago: within a memory's worth of other pages. One
    that had been in active use counts as restored too. Of the scans only those by kind of page count the reclaim of
    cgroups.
    """
    page = float(page_bytes)
    return [
        counter("refault_file_bytes", "B", "workingset_refault_file", factor=page),
        counter("refault_anon_bytes", "B", "workingset_refault_anon", factor=page),
        counter("restored_file_bytes", "B", "workingset_restore_file", factor=page),
        counter("scanned_bytes", "B", "pgscan_file", "pgscan_anon", factor=page),
        counter("reclaimed_bytes", "B", "pgsteal_file", "pgsteal_anon", factor=page),
        counter("swap_in_bytes", "B", "pswpin", factor=page),
        counter("swap_out_bytes", "B", "pswpout", factor=page),
        counter("major_faults", "faults", "pgmajfault"),
    ]


def _cgroup_stat(version: int, page_bytes: int) -> list[Column]:
    """Return columns of memory.stat: v1 in Documentation/admin-guide/cgroup-v1/memory.rst, v2 in cgroup-v2.rst.

    What v1 counts in a cgroup itself is all there is: ours has none below it.
    """
    cache, anonymous, mapped, dirty, writeback = {
        1: ("cache", "rss", "mapped_file", "dirty", "writeback"),
        2: ("file", "anon", "file_mapped", "file_dirty", "file_writeback"),
    }[version]
    page = float(page_bytes)
    return [
        gauge("page_cache", "B", cache),
        gauge("anonymous", "B", anonymous),
        gauge("mapped_file", "B", mapped),
        gauge("dirty", "B", dirty, writeback),
        counter("refault_file_bytes", "B", "workingset_refault_file", factor=page),
        counter("refault_anon_bytes", "B", "workingset_refault_anon", factor=page),
        counter("restored_file_bytes", "B", "workingset_restore_file", factor=page),
        counter("scanned_bytes", "B", "pgscan", factor=page),
        counter("reclaimed_bytes", "B", "pgsteal", factor=page),
        counter("major_faults", "faults", "pgmajfault"),
    ]


class Opened:
    """Sources that could be opened, and for each other one why not."""

    def __init__(self) -> None:
        """Begin with none."""
        self.sources: list[Source] = []
        self.absent: dict[str, str] = {}

    def try_open(self, what: str, make: Callable[[], Source]) -> None:
        """Add what `make` opens, or note why it cannot."""
        try:
            source = make()
        except (OSError, ValueError, LookupError) as e:
            self.absent[what] = e.strerror or str(e) if isinstance(e, OSError) else f"{type(e).__name__}: {e}"
            return
        if source.columns:
            self.sources.append(source)
        else:
            source.close()
            self.absent[what] = "none of its counters is known"


def open_machine(devices: Sequence[str], drives: Sequence[str], root: Path = ROOT) -> Opened:
    """Open what there is to sample of the machine, of the traced `devices` (major:minor) and `drives` (names)."""
    found, page_bytes = Opened(), os.sysconf("SC_PAGE_SIZE")
    sys_dev, sys_block = root / "sys/dev/block", root / "sys/block"
    if devices:
        found.try_open("device", partial(BlockDevices, "device", [sys_dev / dev / "stat" for dev in devices]))
    if drives:
        found.try_open("drive", partial(BlockDevices, "drive", [sys_block / name / "stat" for name in drives]))
    found.try_open("cpu", partial(Processors, root))
    found.try_open("memory", partial(Table, "memory", root / "proc/meminfo", _meminfo()))
    found.try_open("paging", partial(Table, "paging", root / "proc/vmstat", _paging(page_bytes)))
    for resource in ("io", "memory"):
        path = root / "proc/pressure" / resource
        found.try_open(f"pressure.{resource}", partial(Pressure, "pressure", path, resource))
    return found


def open_cgroup(folder: Path, version: int, devices: Sequence[str]) -> Opened:
    """Open what there is to sample of the memory cgroup in `folder`, of hierarchy `version` (1 or 2)."""
    found = Opened()
    stat = _cgroup_stat(version, os.sysconf("SC_PAGE_SIZE"))
    found.try_open("cgroup.stat", partial(Table, "cgroup", folder / "memory.stat", stat))
    use_file = {1: "memory.usage_in_bytes", 2: "memory.current"}[version]
    found.try_open("cgroup.used", partial(Table, "cgroup", folder / use_file, [gauge("used", "B", "used")], b"used "))
    hits, kills = counter("limit_hits", "1", "max"), counter("oom_kills", "1", "oom_kill")
    if version == 1:
        found.try_open("cgroup.limit_hits", partial(Table, "cgroup", folder / "memory.failcnt", [hits], b"max "))
        found.try_open("cgroup.oom_kills", partial(Table, "cgroup", folder / "memory.oom_control", [kills]))
        return found
    found.try_open("cgroup.events", partial(Table, "cgroup", folder / "memory.events", [hits, kills]))
    own = counter("cpu_time", "s", "usage_usec", factor=1e-6)
    found.try_open("cgroup.cpu", partial(Table, "cgroup", folder / "cpu.stat", [own]))
    for resource in ("memory", "io"):
        path = folder / f"{resource}.pressure"
        found.try_open(f"cgroup.{resource}_pressure", partial(Pressure, "cgroup", path, resource))
    found.try_open("cgroup.io", partial(CgroupIo, folder / "io.stat", devices))
    return found
