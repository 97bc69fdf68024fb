"""Which requests belong to which span of time: the span in which they were issued."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from analysis.errors import AnalysisError
from analysis.latency import Latencies
from analysis.schema import OPERATIONS
from analysis.trace import NEVER, Batch, batches, events
from analysis.units import NS_PER_S

Array = npt.NDArray[np.int64]

#: The operations that carry data to and from a phase.
DATA = ("read", "write")
#: The percentiles of a latency that tables have, by the name in their columns, and the maximum after them.
PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999, "p9999": 0.9999}
LATENCIES = tuple(f"d2c_{name}_us" for name in (*PERCENTILES, "max"))
_US = NS_PER_S // 1_000_000


class Attribution:
    """Totals of the requests issued in each span [begin, end), fed in batches. Spans may nest and overlap.

    Bytes count what completed, or every request where no completion was recorded at all; request counts are of
    requests issued. A row without an issue time belongs where it completed, and has no latency. Memory grows with
    the spans and with the requests of the spans still open, not with the trace.
    """

    def __init__(self, spans: Sequence[tuple[int, int]], completion: bool) -> None:
        self._begin = np.array([begin for begin, _ in spans], dtype=np.int64)
        self._end = np.array([end for _, end in spans], dtype=np.int64)
        self._completion = completion
        self._bytes = {op: np.zeros(len(spans), dtype=np.int64) for op in DATA}
        self._requests = {op: np.zeros(len(spans), dtype=np.int64) for op in DATA}
        self._open: dict[tuple[int, str], Latencies] = {}
        self._closed: dict[tuple[int, str], dict[str, float | None]] = {}
        self._last = NEVER

    def add(self, batch: Batch) -> None:
        """Count the rows of `batch`, which follow those of the batch before in issue order."""
        key = np.where(batch.issue_ns == NEVER, batch.complete_ns, batch.issue_ns)
        done = batch.complete_ns != NEVER if self._completion else np.ones(key.size, dtype=bool)
        for op in DATA:
            chosen = np.flatnonzero((batch.op == OPERATIONS.index(op)) & (key != NEVER))
            if chosen.size:
                self._count(op, key[chosen], np.where(done[chosen], batch.bytes[chosen], 0))
                timed = chosen[(batch.issue_ns[chosen] != NEVER) & (batch.complete_ns[chosen] != NEVER)]
                self._time(op, batch.issue_ns[timed], batch.complete_ns[timed])
        issued = batch.issue_ns[batch.issue_ns != NEVER]
        if issued.size:
            if issued[0] < self._last or np.any(np.diff(issued) < 0):
                raise AnalysisError("requests.parquet is not sorted by issue_ns")
            self._last = int(issued[-1])
            self._close(self._last)

    def totals(self, span: int) -> dict[str, int | float | None]:
        """Return bytes, requests and latencies (µs) of one span, by column name."""
        row: dict[str, int | float | None] = {}
        for op in DATA:
            row[f"traced_{op}_bytes"] = int(self._bytes[op][span])
            row[f"{op}_requests"] = int(self._requests[op][span])
            row |= self._closed.get((span, op)) or _of_op(op, self._open.get((span, op), Latencies()))
        return row

    def _count(self, op: str, key: Array, moved: Array) -> None:
        if np.any(np.diff(key) < 0):
            order = np.argsort(key, kind="stable")
            key, moved = key[order], moved[order]
        running = np.concatenate(([0], np.cumsum(moved)))
        first, last = self._bounds(key)
        self._requests[op] += last - first
        self._bytes[op] += running[last] - running[first]

    def _time(self, op: str, issue: Array, complete: Array) -> None:
        latency = complete - issue
        first, last = self._bounds(issue)
        for span in np.flatnonzero(last > first):
            latencies = self._open.setdefault((int(span), op), Latencies())
            latencies.add(latency[first[span] : last[span]])

    def _bounds(self, key: Array) -> tuple[Array, Array]:
        first = np.searchsorted(key, self._begin, side="left")
        last = np.searchsorted(key, self._end, side="left")
        return first, np.maximum(last, first)

    def _close(self, now: int) -> None:
        """Reduce the spans that no later request can belong to."""
        for span, op in [key for key in self._open if self._end[key[0]] <= now]:
            self._closed[span, op] = _of_op(op, self._open.pop((span, op)))


def attribute(path: Path, spans: Sequence[tuple[int, int]]) -> Attribution:
    """Attribute every request of `requests.parquet` at `path` to `spans` (monotonic ns)."""
    attribution = Attribution(spans, completion="completion" in events(path))
    for batch in batches(path):
        try:
            attribution.add(batch)
        except AnalysisError as error:
            raise AnalysisError(f"{path}: {error}") from None
    return attribution


def percentiles(latencies: Latencies) -> dict[str, float | None]:
    """Return the columns LATENCIES of latencies in ns."""
    values = [*(latencies.percentile(share) for share in PERCENTILES.values()), latencies.maximum()]
    return {name: None if value is None else value / _US for name, value in zip(LATENCIES, values, strict=True)}


def _of_op(op: str, latencies: Latencies) -> dict[str, float | None]:
    return {f"{op}_{name}": value for name, value in percentiles(latencies).items()}
