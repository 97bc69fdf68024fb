"""The events of all CPUs in time order, decoded from files of raw trace pages a bounded number at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tasks.tracers.pairing import EVENT, UNSEEN, Rows
from tasks.tracers.ring_buffer import EventFormat, decode, texts

#: Pages decoded at a time, over all CPUs; with its arrays about 25 times as much memory, and two chunks are under way.
_CHUNK_PAGES = 2048

_FIELDS = {"dev": "dev", "sector": "sector", "nr_sector": "sectors", "error": "error", "common_pid": "pid"}
_TEXTS = ("rwbs", "comm")


class EventStream:
    """Reads the pages of all CPUs once, from begin to end."""

    def __init__(self, files: Mapping[str, Sequence[Path]], formats: Mapping[int, EventFormat]) -> None:
        """Read each CPU's `files` in turn; `formats` tells each kind of event's layout (`tasks.tracers.pairing`)."""
        names = [*_FIELDS, *_TEXTS]
        self._layouts = {kind: (form.number, form.layout(names)) for kind, form in formats.items()}
        self._words: dict[str, int] = {"": 0}
        self._cpus = [_Pages(own) for own in files.values()]
        self._last_ns = [0] * len(self._cpus)
        #: Pages before which the kernel says that events were lost.
        self.gaps = 0
        #: Events that are none of the known kinds.
        self.malformed = 0
        #: Events whose time is before that of the event before them on their CPU.
        self.out_of_order = 0

    def chunks(self) -> Iterator[Rows]:
        """Yield events ordered by time; every event of a chunk is before all of the next.

        The next chunk is decoded in a thread of its own while the caller works on the one before.
        """
        with ThreadPoolExecutor(1) as ahead:
            pieces = self._pieces()
            coming = ahead.submit(next, pieces, None)
            while (events := coming.result()) is not None:
                coming = ahead.submit(next, pieces, None)
                yield events

    def _pieces(self) -> Iterator[Rows]:
        held = np.empty(0, EVENT)
        begins = np.sort(np.concatenate([np.empty(0, np.int64), *(pages.begins_ns for pages in self._cpus)]))
        cuts = [int(t) for t in np.unique(begins[_CHUNK_PAGES::_CHUNK_PAGES])]
        for cut in [*cuts, None]:
            pieces = [self._decoded(n, piece) for n, cpu in enumerate(self._cpus) for piece in cpu.before(cut)]
            events = np.concatenate([held, *pieces])
            events = events[np.argsort(events["t_ns"], kind="stable")]
            # A page that begins before the cut may end after it.
            split = len(events) if cut is None else int(np.searchsorted(events["t_ns"], cut))
            yield events[:split]
            held = events[split:].copy()

    def _decoded(self, cpu: int, pages: npt.NDArray[np.uint8]) -> Rows:
        found = decode(pages)
        self.gaps += found.missed
        times = np.concatenate([[self._last_ns[cpu]], found.t_ns])
        self.out_of_order += int(np.count_nonzero(times[1:] < times[:-1]))
        self._last_ns[cpu] = int(times[-1])
        numbers = found.numbers()
        out = np.empty(len(numbers), EVENT)
        out["t_ns"], out["insert_ns"] = found.t_ns, UNSEEN
        known = np.zeros(len(numbers), bool)
        for kind, (number, layout) in self._layouts.items():
            chosen = numbers == number
            if chosen.any():
                known |= chosen
                self._fill(out, chosen, kind, found.records(layout, chosen))
        if known.all():
            return out
        self.malformed += int(np.count_nonzero(~known))
        return out[known]

    def _fill(self, out: Rows, chosen: npt.NDArray[np.bool_], kind: int, records: npt.NDArray[np.void]) -> None:
        names = records.dtype.names or ()
        out["kind"][chosen] = kind
        for name, column in _FIELDS.items():
            out[column][chosen] = records[name] if name in names else 0
        for name in _TEXTS:
            out[name][chosen] = self._codes(records[name]) if name in names else 0

    def _codes(self, values: npt.NDArray[np.bytes_]) -> npt.NDArray[np.int64]:
        words, codes = texts(values)
        known = np.array([self._words.setdefault(word, len(self._words)) for word in words], np.int64)
        return known[codes]

    def table(self, issue: Rows, completion: Rows | None) -> pa.Table:
        """Return requests as `RequestWriter` takes them; without completions, as they were issued."""
        end = issue if completion is None else completion
        n = len(issue)
        words = pa.array(list(self._words), pa.string())
        columns: dict[str, Any] = {
            "issue_ns": issue["t_ns"],
            "complete_ns": pa.nulls(n, pa.int64()) if completion is None else completion["t_ns"],
            "insert_ns": pa.array(issue["insert_ns"], mask=issue["insert_ns"] == UNSEEN),
            "rwbs": pa.DictionaryArray.from_arrays(end["rwbs"].copy(), words),
            "sector": np.maximum(end["sector"], 0),  # a flush is keyed by what is no sector
            "sectors": end["sectors"],
            "error": pa.nulls(n, pa.int32()) if completion is None else completion["error"],
            "comm": pa.DictionaryArray.from_arrays(issue["comm"].copy(), words),
            "pid": issue["pid"],
        }
        return pa.table({k: np.ascontiguousarray(v) if isinstance(v, np.ndarray) else v for k, v in columns.items()})


class _Pages:
    """The raw pages of one CPU, in the order in which it filled them."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files = [_PageFile(path) for path in paths]
        self.begins_ns = np.concatenate([np.empty(0, np.int64), *(f.begins_ns for f in self._files)])

    def before(self, cut_ns: int | None) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield the pages from where the last call ended up to those that begin at `cut_ns` or later."""
        for file in self._files:
            yield file.before(cut_ns)


class _PageFile:
    def __init__(self, path: Path) -> None:
        self._path, self._page_bytes, self._at = path, os.sysconf("SC_PAGE_SIZE"), 0
        count = path.stat().st_size // self._page_bytes
        self.begins_ns = np.empty(count, np.int64)
        with path.open("rb") as f:
            for page in range(count):
                self.begins_ns[page] = int.from_bytes(os.pread(f.fileno(), 8, page * self._page_bytes), "little")

    def before(self, cut_ns: int | None) -> npt.NDArray[np.uint8]:
        end = len(self.begins_ns) if cut_ns is None else int(np.searchsorted(self.begins_ns, cut_ns))
        count, offset = max(0, end - self._at), self._at * self._page_bytes
        self._at += count
        pages = np.fromfile(self._path, np.uint8, count * self._page_bytes, offset=offset)
        return pages.reshape(count, self._page_bytes)
