"""The events of all CPUs in time order, decoded from raw trace pages a bounded number at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tasks.tracers.pairing import EVENT, UNSEEN, Rows
from tasks.tracers.ring_buffer import EventFormat, decode, texts
from tasks.tracers.spool import Reader, Segment

#: Bytes of pages decoded at a time, over all CPUs; with its arrays about ten times as much, and two are under way.
_CHUNK_BYTES = 8 << 20

_FIELDS = {"dev": "dev", "sector": "sector", "nr_sector": "sectors", "error": "error", "common_pid": "pid"}
_TEXTS = ("rwbs", "comm")


class EventStream:
    """Reads the pages of all CPUs once, from begin to end."""

    def __init__(self, cpus: Sequence[list[Segment]], formats: Mapping[int, EventFormat]) -> None:
        """Read each CPU's segments in turn; `formats` tells each kind of event's layout (`tasks.tracers.pairing`)."""
        names = [*_FIELDS, *_TEXTS]
        self._layouts = {kind: (form.number, form.layout(names)) for kind, form in formats.items()}
        self._words: dict[str, int] = {"": 0}
        self._cpus = [Reader(segments) for segments in cpus]
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
        for cut in [*self._cuts(), None]:
            pieces = [self._decoded(n, *piece) for n, cpu in enumerate(self._cpus) for piece in cpu.before(cut)]
            events = np.concatenate([held, *pieces])
            events = events[np.argsort(events["t_ns"], kind="stable")]
            # A page that begins before the cut may end after it.
            split = len(events) if cut is None else int(np.searchsorted(events["t_ns"], cut))
            yield events[:split]
            held = events[split:].copy()

    def _cuts(self) -> list[int]:
        """Return times (ns) between which the pages of all CPUs begin that make a chunk."""
        begins = np.concatenate([np.empty(0, np.int64), *(cpu.begins_ns for cpu in self._cpus)])
        lengths = np.concatenate([np.empty(0, np.int64), *(cpu.lengths for cpu in self._cpus)])
        order = np.argsort(begins, kind="stable")
        chunk = np.cumsum(lengths[order]) // _CHUNK_BYTES
        first = np.flatnonzero(np.diff(chunk)) + 1
        return [int(t) for t in np.unique(begins[order][first])]

    def _decoded(self, cpu: int, data: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64]) -> Rows:
        found = decode(data, starts)
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
            "issued_sectors": issue["sectors"],
            "error": pa.nulls(n, pa.int32()) if completion is None else completion["error"],
            "comm": pa.DictionaryArray.from_arrays(issue["comm"].copy(), words),
            "pid": issue["pid"],
        }
        return pa.table({k: np.ascontiguousarray(v) if isinstance(v, np.ndarray) else v for k, v in columns.items()})
