"""Queue depth: how many requests were issued and not yet completed, over time and as a distribution of time.

Requests come in the order of their issue and complete in any. Whatever completes before the latest issue is in its
place for good, the rest waits: memory grows with what is outstanding, not with the trace.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from analysis import metrics
from analysis.attribution import DATA
from analysis.errors import AnalysisError, CannotDraw
from analysis.schema import OPERATIONS
from analysis.trace import NEVER, batches, events
from analysis.units import NS_PER_S

Array = npt.NDArray[np.int64]

#: Reads and writes together, beside each of them.
ALL = "all"
#: Events as a number below their time: issue and completion by operation, and a cut, which changes nothing.
_BITS = 3
_KINDS = 1 << _BITS
_CUT = 2 * len(DATA)
#: The kind of an issue by operation, -1 for what is not counted.
_KIND = np.array([DATA.index(op) if op in DATA else -1 for op in OPERATIONS], np.int64)
#: Both depths are summed up as one number, each in bits of its own: the depth never falls below 0.
_PACK = 31
_CHANGE = np.zeros(_KINDS, np.int64)
for _place in range(len(DATA)):
    _CHANGE[[_place, len(DATA) + _place]] = 1 << (_PACK * _place), -(1 << (_PACK * _place))


@dataclass(frozen=True)
class Stretches:
    """Consecutive stretches of time of a positive length (ns), and the depth in each by operation, `all` among them."""

    begin_ns: Array
    length_ns: Array
    depth: dict[str, Array]


class InFlight:
    """Turns requests, fed in the order of their issue, into stretches of constant depth.

    Reads and writes count. A request that never completed is in flight to the end; one without an issue time is not
    counted, for nobody knows since when it was. Stretches are cut at the times `cuts`, begin with the first of them or
    the first issue, and end with the last of them or the last event.
    """

    def __init__(self, cuts: Array) -> None:
        """Take the times at which stretches end, sorted."""
        self._cuts = (cuts << _BITS) | _CUT
        self._waiting = np.empty(0, np.int64)
        self._now: int | None = None
        self._last = NEVER
        self._packed = 0

    def add(self, issue_ns: Array, complete_ns: Array, op: Array) -> Stretches:
        """Take more requests (`op` indexes OPERATIONS, NEVER is no time); return what is known by the latest issue."""
        kind = _KIND[op]
        issued = issue_ns != NEVER
        known = issued & (kind >= 0)
        if not known.all():
            times, issue_ns, complete_ns, kind = issue_ns[issued], issue_ns[known], complete_ns[known], kind[known]
        else:
            times = issue_ns
        if times.size:
            if times[0] < self._last or np.any(times[1:] < times[:-1]):
                raise AnalysisError("requests are not sorted by issue_ns")
            self._last = int(times[-1])
        done = (np.maximum(complete_ns, issue_ns) << _BITS) | (kind + len(DATA))
        ended = complete_ns != NEVER
        parts = (self._waiting, (issue_ns << _BITS) | kind, done if ended.all() else done[ended])
        return self._until(np.concatenate(parts), (self._last << _BITS) | (_KINDS - 1))

    def finish(self) -> Stretches:
        """Return what is left, when there are no more requests."""
        return self._until(self._waiting, np.iinfo(np.int64).max)

    def _until(self, keys: Array, horizon: int) -> Stretches:
        """Return the stretches up to `horizon` (a key); later events wait."""
        due = int(np.searchsorted(self._cuts, horizon, side="right"))
        keys = np.sort(np.concatenate((keys, self._cuts[:due])))
        self._cuts = self._cuts[due:]
        known = int(np.searchsorted(keys, horizon, side="right"))
        keys, self._waiting = keys[:known], keys[known:].copy()
        kind, times = keys & (_KINDS - 1), keys >> _BITS
        if not times.size:
            return Stretches(times, times, dict.fromkeys((*DATA, ALL), times))
        begin = np.concatenate(([times[0] if self._now is None else self._now], times[:-1]))
        self._now = int(times[-1])
        length = times - begin
        after = self._packed + np.cumsum(_CHANGE[kind])
        before = np.concatenate(([self._packed], after[:-1]))
        self._packed = int(after[-1])
        lasting = length > 0
        if not lasting.all():
            begin, length, before = begin[lasting], length[lasting], before[lasting]
        depth = {op: (before >> (_PACK * place)) & ((1 << _PACK) - 1) for place, op in enumerate(DATA)}
        depth[ALL] = depth["read"] + depth["write"]
        return Stretches(begin, length, depth)


class DepthTime:
    """How long each depth lasted, exactly; memory grows with the greatest depth."""

    def __init__(self) -> None:
        self.time_ns = np.zeros(1, np.int64)

    def add(self, depth: Array, length_ns: Array) -> None:
        """Count stretches."""
        if depth.size:
            least = int(depth.min())
            # sums of ns below 2^53, so that they are whole in floating point too
            times = np.bincount(depth - least, weights=length_ns).astype(np.int64)
            self._grow(least + times.size)
            self.time_ns[least : least + times.size] += times

    def merge(self, other: DepthTime) -> None:
        """Take the time of `other` too."""
        self._grow(other.time_ns.size)
        self.time_ns[: other.time_ns.size] += other.time_ns

    def _grow(self, size: int) -> None:
        if size > self.time_ns.size:
            self.time_ns = np.concatenate((self.time_ns, np.zeros(size - self.time_ns.size, np.int64)))

    @property
    def total_ns(self) -> int:
        """All time counted."""
        return int(self.time_ns.sum())

    def mean(self) -> float | None:
        """Return the mean over time."""
        total = self.total_ns
        return float(self.time_ns @ np.arange(self.time_ns.size, dtype=np.float64)) / total if total else None

    def percentile(self, share: float) -> int | None:
        """Return the least depth that was not exceeded in `share` (0 to 1) of the time."""
        total = self.total_ns
        return int(np.searchsorted(np.cumsum(self.time_ns), share * total, side="left")) if total else None

    def maximum(self) -> int | None:
        """Return the greatest depth that lasted for any time."""
        return int(np.flatnonzero(self.time_ns)[-1]) if self.total_ns else None

    def busy_share(self) -> float | None:
        """Return the share of the time with at least one request in flight."""
        total = self.total_ns
        return 1 - int(self.time_ns[0]) / total if total else None


@dataclass(frozen=True)
class Depths:
    """Queue depth of a trial. `over_time` has `op` (read, write, all), `begin_s` (bin begin, seconds since `begin_ns`),
    `mean` (over time) and `max`; `distribution` has a DepthTime by operation, of the same time."""

    begin_ns: int
    end_ns: int
    bin_ns: int
    over_time: pl.DataFrame
    distribution: dict[str, DepthTime]


def queue_depth(trial_dir: str | Path, bin_ns: int | None = None) -> Depths:
    """Return the queue depth from the traced window's begin to its end, or the last request's, in bins and in all.

    Without `bin_ns` the bin is the roundest that gives at most 600. Raises CannotDraw where the trace has no requests
    or not both of issue and completion.
    """
    path = metrics.requests_path(trial_dir)
    if missing := {"issue", "completion"} - {*events(path)}:
        raise CannotDraw(f"the trace holds no {' and no '.join(sorted(missing))} events, so nobody knows queue depths")
    begin, end = metrics.extent(trial_dir)
    width = bin_ns or metrics.round_bin(end - begin)
    edges = np.append(np.arange(begin, end, width), end)
    binned = {op: _Binned(edges.size - 1) for op in (*DATA, ALL)}
    spread = {op: DepthTime() for op in (*DATA, ALL)}
    for part in stretches(path, edges):
        inside = (part.begin_ns >= begin) & (part.begin_ns < end)
        place, length = (part.begin_ns[inside] - begin) // width, part.length_ns[inside]
        for op, depth in part.depth.items():
            binned[op].add(place, depth[inside], length)
            spread[op].add(depth[inside], length)
    lengths = np.diff(edges)
    frames = [
        pl.DataFrame(
            {"op": op, "begin_s": (edges[:-1] - begin) / NS_PER_S, "mean": one.area / lengths, "max": one.most}
        )
        for op, one in binned.items()
    ]
    return Depths(begin, end, width, pl.concat(frames), spread)


def stretches(path: Path, cuts: Array) -> Iterator[Stretches]:
    """Yield the depth of `requests.parquet` at `path` in order of time, cut at `cuts`."""
    flight = InFlight(cuts)
    for batch in batches(path):
        try:
            yield flight.add(batch.issue_ns, batch.complete_ns, batch.op)
        except AnalysisError as error:
            raise AnalysisError(f"{path}: {error}") from None
    yield flight.finish()


class _Binned:
    """Depth times time (ns), and the greatest depth, of each bin."""

    def __init__(self, bins: int) -> None:
        self.area, self.most = np.zeros(bins, np.int64), np.zeros(bins, np.int64)

    def add(self, place: Array, depth: Array, length_ns: Array) -> None:
        """Count stretches, of which the bins are sorted."""
        if not place.size:
            return
        first = np.flatnonzero(np.concatenate(([True], place[1:] != place[:-1])))
        self.area[place[first]] += np.add.reduceat(depth * length_ns, first)
        self.most[place[first]] = np.maximum(self.most[place[first]], np.maximum.reduceat(depth, first))
