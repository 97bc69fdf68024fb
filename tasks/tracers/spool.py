"""Where raw trace pages wait until the window has ended: in memory up to a limit, on the node's disk beyond it.

That disk is often the drive under test, or the one beneath the image; in memory the trace does not write to it. Pages
are read into memory that is there already and kept without their unused rest: what costs the job least.
"""

from __future__ import annotations

import errno
import mmap
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tasks.tracers.ring_buffer import page_length

#: Memory is taken in pieces of this size, filled with zeros by the kernel at once and not fault by fault. A CPU's first
#: ones are smaller: most CPUs of a large machine see few requests.
_PIECE_BYTES = 4 << 20
_FIRST_PIECE_BYTES = 128 << 10

Integers = npt.NDArray[np.int64]


@dataclass
class Segment:
    """Pages of one CPU one after the other, in memory or in a file: when each begins (ns), and where."""

    where: mmap.mmap | Path
    begins_ns: array[int] = field(default_factory=lambda: array("q"))
    offsets: array[int] = field(default_factory=lambda: array("q"))
    end: int = 0

    def add(self, begin_ns: int, length: int) -> None:
        """Take note of a page at the end of what there is."""
        self.begins_ns.append(begin_ns)
        self.offsets.append(self.end)
        self.end += length

    def pages(self, first: int, last: int) -> tuple[npt.NDArray[np.uint8], Integers]:
        """Return the bytes of pages `first` up to `last`, and where in them each page begins."""
        offsets = np.frombuffer(self.offsets, np.int64)[first:last] if last > first else np.empty(0, np.int64)
        begin = int(offsets[0]) if last > first else 0
        end = int(self.offsets[last]) if last < len(self.offsets) else self.end
        if last <= first:
            return np.empty(0, np.uint8), offsets
        if isinstance(self.where, Path):
            return np.fromfile(self.where, np.uint8, end - begin, offset=begin), offsets - begin
        return np.frombuffer(self.where, np.uint8, end - begin, begin), offsets - begin


class Spool:
    """Pages of several CPUs, each in the order in which they came."""

    def __init__(self, folder: Path, memory_bytes: int) -> None:
        """Keep `memory_bytes` over all CPUs in memory and what comes after in files in `folder`."""
        self.folder, self._left_bytes = folder, memory_bytes
        self.cpus: dict[str, list[Segment]] = {}
        self._files: dict[str, int] = {}
        #: Bytes that went to the disk.
        self.disk_bytes = 0

    def take(self, cpu: str, source: int, page_bytes: int, last: bool = False) -> None:
        """Read all pages that `source`, a `trace_pipe_raw` that does not block, holds now.

        Up to the one that is being written, unless it is the `last` time: of that one there is always a little more.
        The first may be the rest of such a one. Raises OSError where the disk is full.
        """
        if len(self._page) < page_bytes:
            self._page = bytearray(page_bytes)
        first = True
        while True:
            segment = self._with_room(cpu, page_bytes)
            memory, at = (self._page, 0) if segment is None else (segment.where, segment.end)
            with memoryview(memory) as whole, whole[at : at + page_bytes] as page:  # type: ignore[arg-type]
                try:
                    if not os.readv(source, [page]):
                        return
                except BlockingIOError:
                    return
                length = page_length(bytes(page[8:16]))
                if segment is None:
                    self._keep(cpu, page[:length])
                else:
                    segment.add(int.from_bytes(page[:8], "little"), length)
            if not (first or last or length > page_bytes // 2):
                return
            first = False

    def _with_room(self, cpu: str, length: int) -> Segment | None:
        """Return the memory that the next page of `cpu` can be read into without a copy, if there is some."""
        segments = self.cpus.get(cpu)
        if not segments or isinstance(segments[-1].where, Path):
            return None
        return segments[-1] if segments[-1].end + length <= len(segments[-1].where) else None

    def _keep(self, cpu: str, page: memoryview) -> None:
        segment = self._room(cpu, len(page))
        if isinstance(segment.where, mmap.mmap):
            segment.where[segment.end : segment.end + len(page)] = page
        else:
            if os.write(self._files[cpu], page) < len(page):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.disk_bytes += len(page)
        segment.add(int.from_bytes(page[:8], "little"), len(page))

    def _room(self, cpu: str, length: int) -> Segment:
        """Return the segment that the next page of `cpu` goes to; memory comes in pieces, the first ones small."""
        segments = self.cpus.setdefault(cpu, [])
        last = segments[-1] if segments else None
        if last and (isinstance(last.where, Path) or last.end + length <= len(last.where)):
            return last
        size = min(_PIECE_BYTES, _FIRST_PIECE_BYTES << len(segments))
        if self._left_bytes >= size >= length:
            self._left_bytes -= size
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
            segments.append(Segment(mmap.mmap(-1, size, flags)))
            return segments[-1]
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"{cpu}.pages"
        self._files[cpu] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        segments.append(Segment(path))
        return segments[-1]

    _page = bytearray()

    @property
    def size_bytes(self) -> int:
        """Bytes of all pages."""
        return sum(segment.end for segments in self.cpus.values() for segment in segments)

    def finish(self) -> None:
        """Close the files: nothing comes after this."""
        for fd in self._files.values():
            os.close(fd)
        self._files = {}

    def close(self) -> None:
        """Give the memory back; the disk's files stay until their folder goes."""
        self.finish()
        self.cpus = {}


class Reader:
    """Reads one CPU's pages once, in order."""

    def __init__(self, segments: list[Segment]) -> None:
        """Read `segments` one after the other."""
        self._segments = segments
        self._at = [0] * len(segments)
        self.begins_ns = np.concatenate([np.empty(0, np.int64), *(np.array(s.begins_ns, np.int64) for s in segments)])
        lengths = [np.diff(np.append(np.array(s.offsets, np.int64), s.end)) for s in segments]
        self.lengths = np.concatenate([np.empty(0, np.int64), *lengths])

    def before(self, cut_ns: int | None) -> Iterator[tuple[npt.NDArray[np.uint8], Integers]]:
        """Yield the pages from where the last call ended up to those that begin at `cut_ns` or later."""
        for n, segment in enumerate(self._segments):
            begins = np.frombuffer(segment.begins_ns, np.int64) if segment.begins_ns else np.empty(0, np.int64)
            last = begins.size if cut_ns is None else int(np.searchsorted(begins, cut_ns))
            first, self._at[n] = self._at[n], max(self._at[n], last)
            yield segment.pages(first, self._at[n])
