"""Which file lies where: the extents of the offload files, looked at while they exist, and the journal.

A thread of the trial's own process looks at every file that changed since its last look, at intervals and soon after
the job closed it; nothing is written back for it. A mapping that came and went between two looks stays unknown.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from analysis import schema
from tasks import addresses
from tasks.addresses import Place, Stretch
from tasks.device import SECTOR_BYTES, Devices
from tasks.errors import StorageError
from tasks.fiemap import Array, Mapping, mapping
from tasks.inotify import Hints
from tasks.journal import Part, journal
from tasks.mounts import device_number
from tasks.storage import Volume

#: All files are looked at at this interval, closed ones in between.
_INTERVAL_S = 0.1

#: Looking takes no more than this share of one CPU, but for bursts of this much CPU time.
_SHARE, _BURST_S = 0.02, 0.02

#: A closed file that waits for its blocks is looked at again after this, for as long as that: a sync is under way.
_AGAIN_S, _AGAIN_LIMIT_S = 0.002, 0.5

#: Where one look stops, to go on with the rest in the next; the one after the job may take longer.
_LOOK_LIMIT_S, _LAST_LOOK_LIMIT_S = 0.25, 30.0
_MOST_FILES = 20_000

#: Mappings kept, 48 bytes each.
_MOST_MAPPINGS = 2_000_000

_BLOCK = 4096

#: The columns of the file before their names are encoded: Arrow sorts no dictionaries.
_NAME_TYPE = schema.EXTENTS.field("dev").type
_PLAIN = pa.schema([f.with_type(pa.string()) if f.type == _NAME_TYPE else f for f in schema.EXTENTS])


@dataclass
class _File:
    """A file as last looked at: what stat(2) said, its extents and when each was first seen, as columns."""

    path: str
    signature: tuple[int, ...] = ()
    settled: bool = False
    seen_ns: int = 0
    logical: Array = field(default_factory=lambda: np.empty(0, np.int64))
    physical: Array = field(default_factory=lambda: np.empty(0, np.int64))
    length: Array = field(default_factory=lambda: np.empty(0, np.int64))
    from_ns: Array = field(default_factory=lambda: np.empty(0, np.int64))
    placeless: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class _Seen:
    """Mappings of one file that were first seen at `from_ns` and last at `to_ns`."""

    path: str
    logical: Array
    physical: Array
    length: Array
    from_ns: Array
    to_ns: Array


class Watch:
    """Looks at the files of an offload directory while a job runs, and writes `extents.parquet`."""

    def __init__(self, found: Volume, role: Callable[[str], str], wanted: bool = True) -> None:
        """Watch the offload directory of `found`; `role` says what a file in it holds. Unless `wanted`, do nothing.

        Reads the superblock, so make it before the traced window.
        """
        self._folder, self._devices, self._fs = found.offload_dir, found.devices, found.mount.fs
        self._role, self._wanted = role, wanted
        self._files: dict[str, _File] = {}
        self._past: list[_Seen] = []
        self._missed: set[str] = set()
        self._kept = 0
        self._chunks: dict[int, list[Stretch]] = {}
        self._chunks_end = 0
        self._begin_ns = time.monotonic_ns()
        self._facts: dict[str, Any] = {"looks": 0, "seconds": 0.0, "cpu_seconds": 0.0, "longest_look_s": 0.0}
        self._facts |= {
            "files": 0,
            "vanished": 0,
            "lost": 0,
            "cut_short": 0,
            "placeless": {},
            "unmapped": 0,
            "trouble": None,
        }
        self._journal: list[Part] = []
        if wanted:
            self._dev = device_number(self._folder)
            self._journal, self._facts["journal"] = journal(self._fs, self._dev)

    @property
    def facts(self) -> dict[str, Any] | None:
        """What was looked at, what it took and what is missing, for `trial.json`; None where nobody looked."""
        return dict(self._facts) if self._wanted else None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look while the body runs, and once after it."""
        if not self._wanted:
            yield
            return
        hints, stop = Hints(self._folder), threading.Event()
        self._facts["trouble"] = hints.trouble
        thread = threading.Thread(target=self._guarded, args=(hints, stop), name="extents", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            hints.stop()
            thread.join()
            hints.close()
            cpu = time.thread_time()
            self._try(self._look, _LAST_LOOK_LIMIT_S)
            self._facts["cpu_seconds"] += time.thread_time() - cpu

    # --- looking -----------------------------------------------------------------------------------------------------

    def _guarded(self, hints: Hints, stop: threading.Event) -> None:
        try:
            self._watch(hints, stop)
        except (OSError, ValueError, LookupError) as e:
            self._facts["trouble"] = f"looking ended early: {type(e).__name__}: {e}"
        self._facts["cpu_seconds"] += time.thread_time()

    def _watch(self, hints: Hints, stop: threading.Event) -> None:
        """Look at all files at intervals, and at those that the job closed; rest where that costs too much."""
        closed: dict[str, float] = {}
        credit_s, before, spent = _BURST_S, time.monotonic(), time.thread_time()
        due = before + _INTERVAL_S
        while not stop.is_set():
            changed, gone = hints.wait(max(0.0, min(due - time.monotonic(), _AGAIN_S if closed else _INTERVAL_S)))
            now = time.monotonic()
            # What went away may be there again under the same name
            closed = {path: limit for path, limit in closed.items() if path not in gone}
            closed |= dict.fromkeys(changed, now + _AGAIN_LIMIT_S)
            if closed or gone:
                self._try(partial(self._follow, closed, gone), _LOOK_LIMIT_S)
            if now >= due:
                self._try(self._look, _LOOK_LIMIT_S)
                due = time.monotonic() + _INTERVAL_S
            credit_s = min(_BURST_S, credit_s + _SHARE * (time.monotonic() - before)) - (time.thread_time() - spent)
            before, spent = time.monotonic(), time.thread_time()
            stop.wait(max(0.0, -credit_s / _SHARE))

    def _follow(self, closed: dict[str, float], gone: set[str], until: float) -> None:
        """Look at closed files, and drop those that have their blocks or were waited for long enough."""
        for path in gone:
            if path in self._files:
                self._leave(path)
            elif path in self._missed:  # a look at all files came before the news
                self._missed.discard(path)
            else:
                self._facts["lost"] += 1
        for path in list(closed):
            now = time.monotonic()
            signature = self._signature(path)
            if not signature:  # gone again, or no regular file
                del closed[path]
                continue
            file = self._known(path)
            if not (file.settled and file.signature == signature):
                self._look_at(file, signature)
            if not file.placeless["pending"] or now > closed[path]:
                del closed[path]
            if now > until or self._kept > _MOST_MAPPINGS:
                break

    def _try(self, look: Callable[[float], None], limit_s: float) -> None:
        """Look once. What goes wrong is noted: the trial goes on without.

        It may wait for a lock that a write of the job holds, which costs nobody anything.
        """
        begin = time.monotonic()
        try:
            look(begin + limit_s)
        except (OSError, ValueError, LookupError, MemoryError, StorageError) as e:
            self._facts["trouble"] = f"{type(e).__name__}: {e}"
        took = time.monotonic() - begin
        self._facts["looks"] += 1
        self._facts["seconds"] += took
        self._facts["longest_look_s"] = max(self._facts["longest_look_s"], took)

    def _look(self, until: float) -> None:
        now_ns = time.monotonic_ns()
        present, complete = _files_below(self._folder, until)
        changed = []
        for path, signature in present.items():
            known = self._known(path)
            if known.settled and known.signature == signature:
                known.seen_ns = now_ns
            else:
                changed.append((known.seen_ns, path, signature))
        # Those that waited longest come first, where there is no time for all
        for _, path, signature in sorted(changed):
            if time.monotonic() > until or self._kept > _MOST_MAPPINGS:
                complete = False
                break
            self._look_at(self._files[path], signature)
        for path in [path for path in self._files if path not in present] if complete else ():
            self._leave(path)
            self._missed.add(path)
        self._facts["cut_short"] += not complete

    def _known(self, path: str) -> _File:
        if path not in self._files:
            self._files[path] = _File(path)
            self._facts["files"] += 1
        return self._files[path]

    def _signature(self, path: str) -> tuple[int, ...]:
        try:
            found = os.stat(self._folder / path, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return ()
        return _signature(found) if stat.S_ISREG(found.st_mode) else ()

    def _look_at(self, file: _File, signature: tuple[int, ...]) -> None:
        try:
            fd = os.open(self._folder / file.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            now_ns = time.monotonic_ns()
            found = _within(mapping(fd), os.fstat(fd).st_size)
        finally:
            os.close(fd)
        self._take(file, found, now_ns)
        if self._fs == "btrfs" and found.physical.max(initial=0) >= self._chunks_end:  # new ones have higher addresses
            self._read_chunks()
        # A write in flight changes the mapping after the time in the inode: settled is what two looks found alike.
        file.settled = found.settled and file.signature == signature
        file.signature, file.seen_ns, file.placeless = signature, now_ns, found.placeless

    def _take(self, file: _File, found: Mapping, now_ns: int) -> None:
        """Replace the file's extents; those that are gone are kept with the time they were last seen."""
        at = np.searchsorted(file.logical, found.logical)
        near = np.minimum(at, max(file.logical.size - 1, 0))
        same = np.zeros(found.logical.size, bool)
        if file.logical.size:
            same = (file.logical[near] == found.logical) & (file.physical[near] == found.physical)
            same &= file.length[near] <= found.length  # an extent that grew is the same
        gone = np.ones(file.logical.size, bool)
        gone[near[same]] = False
        self._keep(file, gone)
        from_ns = np.full(found.logical.size, now_ns)
        from_ns[same] = file.from_ns[near[same]]
        self._kept += int(np.count_nonzero(~same))
        file.logical, file.physical, file.length, file.from_ns = found.logical, found.physical, found.length, from_ns

    def _keep(self, file: _File, chosen: npt.NDArray[np.bool_]) -> None:
        if chosen.any():
            columns = (file.logical, file.physical, file.length, file.from_ns)
            logical, physical, length, from_ns = (column[chosen] for column in columns)
            to_ns = np.full(logical.size, file.seen_ns)
            self._past.append(_Seen(file.path, logical, physical, length, from_ns, to_ns))

    def _leave(self, path: str) -> None:
        file = self._files.pop(path)
        self._keep(file, np.ones(file.logical.size, bool))
        self._count_placeless(file)
        self._facts["vanished"] += 1

    def _count_placeless(self, file: _File) -> None:
        for name, count in file.placeless.items():
            if count:
                self._facts["placeless"][name] = self._facts["placeless"].get(name, 0) + count

    def _read_chunks(self) -> None:
        """Add the chunks that btrfs has now: one that is given back later had its extents, too."""
        fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._chunks |= addresses.btrfs_chunks(fd)
            self._chunks_end = max((s.begin + s.length for copies in self._chunks.values() for s in copies), default=0)
        finally:
            os.close(fd)

    # --- writing -----------------------------------------------------------------------------------------------------

    def write(self, path: Path, provenance: dict[str, object]) -> None:
        """Write what was seen as `analysis.schema.EXTENTS`, while the filesystem is still there; once, at the end."""
        if not self._wanted:
            return
        for name in list(self._files):
            file = self._files[name]
            self._keep(file, np.ones(file.logical.size, bool))
            self._count_placeless(file)
        try:
            table = pa.concat_tables([self._journal_rows(), *self._file_rows()])
        except (StorageError, OSError, ValueError) as e:
            self._facts["trouble"] = str(e)
            table = _PLAIN.empty_table()
        self._facts["mappings"] = table.num_rows
        table = table.sort_by([(name, "ascending") for name in ("dev", "sector", "seen_from_ns")])
        described = schema.described(schema.EXTENTS, provenance | {"extents": self.facts})
        pq.write_table(table.cast(described), path, compression="zstd")

    def _file_rows(self) -> Iterator[pa.Table]:
        if not self._past:
            return
        names = list(dict.fromkeys(seen.path for seen in self._past))
        numbers = {name: number for number, name in enumerate(names)}
        file = np.concatenate([np.full(seen.logical.size, numbers[seen.path]) for seen in self._past])
        columns = ("logical", "physical", "length", "from_ns", "to_ns")
        logical, physical, length, from_ns, to_ns = (
            np.concatenate([getattr(seen, name) for seen in self._past]) for name in columns
        )
        role = pa.array([self._role(name) for name in names])
        mapped = np.zeros(physical.size, bool)
        for place in self._places(physical, physical + length):
            mapped[place.which] = True
            chosen = pa.array(file[place.which], pa.int32())
            times = (from_ns[place.which], to_ns[place.which])
            yield _rows(
                place, role.take(chosen), pa.array(names).take(chosen), logical[place.which] + place.from_begin, *times
            )
        self._facts["unmapped"] += int(np.count_nonzero(~mapped))

    def _journal_rows(self) -> pa.Table:
        begin = np.array([at for at, _ in self._journal], np.int64)
        end = begin + np.array([size for _, size in self._journal], np.int64)
        parts = [_PLAIN.empty_table()]
        for place in addresses.on_disks(self._dev, begin, end, _numbers(self._devices)):
            n = place.which.size
            times = (np.full(n, self._begin_ns), np.full(n, time.monotonic_ns()))
            parts.append(_rows(place, pa.repeat("journal", n), pa.nulls(n, pa.string()), None, *times))
        return pa.concat_tables(parts)

    def _places(self, begin: Array, end: Array) -> Iterator[Place]:
        disks = _numbers(self._devices)
        if self._fs == "btrfs":
            return addresses.through([s for copies in self._chunks.values() for s in copies], begin, end, disks)
        return addresses.on_disks(self._dev, begin, end, disks)


def _files_below(folder: Path, until: float) -> tuple[dict[str, tuple[int, ...]], bool]:
    """Return what stat(2) says of every regular file, by path within `folder`, and whether these are all."""
    found: dict[str, tuple[int, ...]] = {}
    waiting = [""]
    while waiting:
        within = waiting.pop()
        try:
            with os.scandir(folder / within) as entries:
                for entry in entries:
                    path = os.path.join(within, entry.name)
                    with suppress(FileNotFoundError):  # it went meanwhile; the others are still there
                        if entry.is_dir(follow_symlinks=False):
                            waiting.append(path)
                        elif entry.is_file(follow_symlinks=False):
                            found[path] = _signature(entry.stat(follow_symlinks=False))
        except FileNotFoundError:
            continue
        if len(found) > _MOST_FILES or time.monotonic() > until:
            return found, False
    return found, True


def _signature(s: os.stat_result) -> tuple[int, ...]:
    return (s.st_ino, s.st_size, s.st_blocks, s.st_mtime_ns, s.st_ctime_ns)


def _within(found: Mapping, size_bytes: int) -> Mapping:
    """Return the mapping without what a filesystem allocated ahead, beyond the end of the file."""
    end = -(-size_bytes // _BLOCK) * _BLOCK
    kept = found.logical < end
    logical = found.logical[kept]
    length = np.minimum(found.length[kept], end - logical)
    return Mapping(logical, found.physical[kept], length, found.placeless)


def _numbers(devices: Devices) -> Collection[str]:
    return {device.dev for device in devices}


def _rows(
    place: Place, role: pa.Array, file: pa.Array, logical: Array | None, from_ns: Array, to_ns: Array
) -> pa.Table:
    n = place.which.size
    first = place.begin // SECTOR_BYTES
    columns = {
        "role": role,
        "file": file,
        "dev": pa.repeat(place.dev, n),
        "sector": first,
        "sectors": -(-place.end // SECTOR_BYTES) - first,
        "logical_bytes": pa.nulls(n, pa.int64()) if logical is None else logical,
        "seen_from_ns": from_ns,
        "seen_to_ns": to_ns,
    }
    return pa.table(columns, schema=_PLAIN)
