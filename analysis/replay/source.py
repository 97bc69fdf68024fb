"""The requests that are exported, in bounded pieces, and what they are taken together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from analysis.depth import ALL, InFlight, Stretches
from analysis.errors import AnalysisError
from analysis.metrics import requests_path
from analysis.run import Trial
from analysis.schema import OPERATIONS
from analysis.selection import Span, inside, phase_spans
from analysis.trace import NEVER, Addressed, addressed, events
from analysis.units import MIB, SECTOR_BYTES

Array = npt.NDArray[np.int64]

#: The device is noted in pieces of this size where it is asked which parts of it are used.
CHUNK_BYTES = MIB
READ, WRITE, FLUSH = (OPERATIONS.index(op) for op in ("read", "write", "flush"))


@dataclass(frozen=True)
class Source:
    """Requests of one trial: all, or those issued in the phases that `phase` describes, on one device or on each."""

    trial: Trial
    path: Path
    phase: str | None = None
    spans: tuple[Span, ...] | None = None
    dev: str | None = None

    @classmethod
    def of(cls, trial: Trial, phase: str | None = None, dev: str | None = None) -> Source:
        """Return the requests of `trial`; AnalysisError where it has none, or no such phase."""
        spans = None if phase is None else tuple(phase_spans(trial.path, phase))
        return cls(trial, requests_path(trial.path), phase, spans, dev)

    @property
    def begin_ns(self) -> int | None:
        """The begin of the trial's traced window, monotonic ns."""
        return None if self.trial.window is None else self.trial.window[0]

    def pieces(self, whole: bool = False) -> Iterator[Addressed]:
        """Yield the requests in issue order, a bounded number at a time; with `whole`, `rows` have every column."""
        last = NEVER
        for part in addressed(self.path, whole):
            issued = part.issue_ns[part.issue_ns != NEVER]
            if issued.size and (issued[0] < last or np.any(np.diff(issued) < 0)):
                raise AnalysisError(f"{self.path} is not sorted by issue_ns")
            last = int(issued[-1]) if issued.size else last
            yield self._meant(part)

    def _meant(self, part: Addressed) -> Addressed:
        mask = np.ones(part.op.size, dtype=bool)
        if self.spans is not None:
            mask &= inside(part.issue_ns, self.spans)
        if self.dev is not None:
            mask &= np.isin(part.dev, [place for place, name in enumerate(part.devices) if name == self.dev])
        return part if mask.all() else kept(part, mask)


def kept(part: Addressed, mask: npt.NDArray[np.bool_]) -> Addressed:
    """Return the requests of `part` where `mask` is true."""
    arrays = {name: getattr(part, name)[mask] for name in ("issue_ns", "complete_ns", "op", "bytes", "sector", "dev")}
    return replace(part, **arrays, marked=part.marked[mask], rows=part.rows.filter(pa.array(mask)))


def data_and_flushes(part: Addressed) -> npt.NDArray[np.bool_]:
    """Say which requests a replay issues: reads and writes that carry data, and flushes, whose issue time is known."""
    data = ((part.op == READ) | (part.op == WRITE)) & (part.bytes > 0)
    return np.asarray((data | (part.op == FLUSH)) & (part.issue_ns != NEVER), dtype=bool)


@dataclass
class Survey:
    """What the requests of a source are together.

    Counts and bytes are by operation, of all requests; `low_bytes`, `end_bytes`, `largest_bytes`, `unit_bytes` (the
    largest power of two that divides every offset and size), `depth` (most reads and writes in flight at once; None
    where completions were not recorded) and `chunks` are of those that a replay issues.
    """

    recorded: tuple[str, ...]
    requests: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    devices: Counter[str] = field(default_factory=Counter)
    replayed: int = 0
    unissued: int = 0
    first_ns: int | None = None
    last_ns: int | None = None
    low_bytes: int = 0
    end_bytes: int = 0
    largest_bytes: int = 0
    unit_bytes: int = 0
    depth: int | None = None
    _used: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=bool))
    _bits: int = 0
    _in_flight: InFlight = field(default_factory=lambda: InFlight(np.empty(0, dtype=np.int64)))

    @property
    def chunks(self) -> Array:
        """The used pieces of CHUNK_BYTES, by number, in order."""
        return np.flatnonzero(self._used)

    def add(self, part: Addressed) -> None:
        """Count the requests of `part`, which follow those of the part before in issue order."""
        for place, count in enumerate(np.bincount(part.op, minlength=len(OPERATIONS)).tolist()):
            self.requests[OPERATIONS[place]] += count
            self.bytes[OPERATIONS[place]] += int(part.bytes[part.op == place].sum())
        for place, count in enumerate(np.bincount(part.dev, minlength=len(part.devices)).tolist()):
            if count:
                self.devices[part.devices[place]] += count
        self.unissued += int((part.issue_ns == NEVER).sum())
        part = kept(part, data_and_flushes(part))
        if part.op.size:
            self.replayed += part.op.size
            self.first_ns = int(part.issue_ns[0]) if self.first_ns is None else self.first_ns
            self.last_ns = int(part.issue_ns[-1])
            self._place(kept(part, part.op != FLUSH))

    def _place(self, part: Addressed) -> None:
        if not part.op.size:
            return
        begin = part.sector * SECTOR_BYTES
        end = begin + part.bytes
        low = int(begin.min())
        self.low_bytes = min(self.low_bytes, low) if self._bits else low
        self.end_bytes = max(self.end_bytes, int(end.max()))
        self.largest_bytes = max(self.largest_bytes, int(part.bytes.max()))
        self._bits |= int(np.bitwise_or.reduce(begin | part.bytes))
        self.unit_bytes = self._bits & -self._bits
        self._use(begin // CHUNK_BYTES, (end - 1) // CHUNK_BYTES)
        # at least 1 ns: the clock may be coarser than a request is long
        self._deepen(self._in_flight.add(part.issue_ns, np.maximum(part.complete_ns, part.issue_ns + 1), part.op))

    def _use(self, first: Array, last: Array) -> None:
        missing = int(last.max()) + 1 - self._used.size
        if missing > 0:
            self._used = np.concatenate([self._used, np.zeros(missing, dtype=bool)])
        for step in range(int((last - first).max()) + 1):
            self._used[np.minimum(first + step, last)] = True

    def close(self) -> None:
        """Take note that there are no more requests."""
        self._deepen(self._in_flight.finish())

    def _deepen(self, known: Stretches) -> None:
        if "completion" in self.recorded:
            self.depth = max(self.depth or 1, int(known.depth[ALL].max(initial=0)))


def survey(source: Source) -> Survey:
    """Return what the requests of `source` are together; AnalysisError where there are none."""
    found = Survey(events(source.path))
    for part in source.pieces():
        found.add(part)
    found.close()
    if not sum(found.requests.values()):
        raise nothing(source)
    return found


def nothing(source: Source) -> AnalysisError:
    """Return the error of a source without requests."""
    where = f" in the phase {source.phase!r}" if source.phase else ""
    on = f" on {source.dev}" if source.dev else ""
    return AnalysisError(f"{source.path}: no requests{on} were issued{where}")
