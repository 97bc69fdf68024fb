"""Whose bytes a trial moved: every request has the role of the file that its first sector belonged to.

`extents.parquet` tells which sectors belonged to which file, and when somebody saw that. Where one sector belonged to
files of several roles, the mapping seen nearest in time to the request counts. What lies in no extent is `metadata`
where the kernel marked it so, and `other`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.attribution import DATA
from analysis.errors import AnalysisError, CannotDraw
from analysis.run import load_trial
from analysis.schema import OPERATIONS
from analysis.trace import NEVER, Addressed, addressed, events, time_column

Array = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

JOURNAL, METADATA, FLUSH, OTHER = "journal", "metadata", "flush", "other"
#: The order of roles in tables and figures; a workload's own words stand after `file`.
_FIRST = ("weights", "kv", "activations", "tensor", "file")
_LAST = (JOURNAL, METADATA, FLUSH, OTHER)


@dataclass(frozen=True)
class _Extents:
    """Extents of one device, as columns; `role` is an index into the names."""

    begin: Array
    end: Array
    from_ns: Array
    to_ns: Array
    role: Array


class Owners:
    """Tells the roles of requests. `roles` are their names, in the order of tables."""

    def __init__(self, extents: pa.Table) -> None:
        """Take extents as `analysis.schema.EXTENTS` has them."""
        names = [str(name) for name in extents["role"].cast(pa.string()).unique().to_pylist()]
        own = sorted({*names} - {*_FIRST} - {*_LAST})
        self.roles = (*(name for name in _FIRST if name in names), *own, *_LAST)
        role = extents["role"].cast(pa.string()).to_numpy()
        dev = extents["dev"].cast(pa.string()).to_numpy()
        number = {name: place for place, name in enumerate(self.roles)}
        begin, size, from_ns, to_ns = (
            extents[name].to_numpy().astype(np.int64) for name in ("sector", "sectors", "seen_from_ns", "seen_to_ns")
        )
        places = np.array([number[name] for name in role], np.int64)
        self._devices = {}
        for name in {*dev}:
            mine = dev == name
            columns = (begin[mine], (begin + size)[mine], from_ns[mine], to_ns[mine], places[mine])
            self._devices[str(name)] = _Device(_Extents(*columns))

    def of(self, requests: Addressed) -> Array:
        """Return the role of each request, as an index into `roles`."""
        number = {name: place for place, name in enumerate(self.roles)}
        found = np.full(requests.sector.size, number[OTHER])
        t_ns = np.where(requests.issue_ns == NEVER, requests.complete_ns, requests.issue_ns)
        for place, name in enumerate(requests.devices):
            mine = requests.dev == place
            if name in self._devices and mine.any():
                owner = self._devices[name].owner(requests.sector[mine], t_ns[mine])
                found[mine] = np.where(owner < 0, number[OTHER], owner)
        # No filesystem marks a file's data as metadata; journals are marked by some
        found[requests.marked & (found != number[JOURNAL])] = number[METADATA]
        found[requests.op == OPERATIONS.index("flush")] = number[FLUSH]
        return found


class _Device:
    """The owners of one device's sectors: one for each stretch between two boundaries of extents, or several."""

    def __init__(self, extents: _Extents) -> None:
        self._edges = np.unique(np.concatenate((extents.begin, extents.end)))
        first, last = (np.searchsorted(self._edges, at) for at in (extents.begin, extents.end))
        roles = np.unique(extents.role)
        covers = np.stack([_covered(first[own], last[own], self._edges.size) for own in extents.role == roles[:, None]])
        count = covers.sum(axis=0)
        self._owner = np.where(count > 0, roles[np.argmax(covers, axis=0)], -1)
        contested = count > 1
        self._number = np.where(contested, np.cumsum(contested) - 1, -1)
        before = np.concatenate(([0], np.cumsum(contested)))
        self._claims = _Claims(extents, before[first], before[last])

    def owner(self, sector: Array, t_ns: Array) -> Array:
        """Return the role to which each sector belonged at its time; -1 for none."""
        at = np.searchsorted(self._edges, sector, side="right") - 1
        found = np.where(at >= 0, self._owner[at], -1)
        contested = np.flatnonzero((at >= 0) & (self._number[at] >= 0))
        if contested.size:
            found[contested] = self._claims.owner(self._number[at[contested]], t_ns[contested])
        return found


class _Claims:
    """Who claims the stretches that extents of several roles covered, over time.

    The claims of a stretch are sorted by when they begin. Of those begun by a time, the one that lasts longest is the
    nearest; with its distance competes the next that begins.
    """

    def __init__(self, extents: _Extents, first: Array, last: Array) -> None:
        """Take the numbers of the contested stretches [first, last) that each extent covers."""
        which = np.repeat(np.arange(first.size), last - first)
        ends = np.cumsum(last - first)
        stretch = np.arange(which.size) - np.repeat(ends - last, last - first)
        order = np.lexsort((extents.role[which], extents.to_ns[which], extents.from_ns[which], stretch))
        which, self._stretch = which[order], stretch[order]
        self._from, to = extents.from_ns[which], extents.to_ns[which]
        self._role = extents.role[which]
        # Who lasts longest so far: a running maximum within each stretch, of the rank by (end, place)
        rank = np.empty(which.size, np.int64)
        by_end = np.lexsort((np.arange(which.size), to))
        rank[by_end] = np.arange(which.size)
        running = np.maximum.accumulate(self._stretch * (which.size + 1) + rank)
        self._longest = by_end[running - self._stretch * (which.size + 1)]
        self._to = to[self._longest] if which.size else to
        self._times = np.unique(self._from)
        self._keys = self._key(self._stretch, self._from)

    def _key(self, stretch: Array, t_ns: Array) -> Array:
        """Return numbers that sort as (stretch, rank of the time among the claims' beginnings) does."""
        return stretch * (self._times.size + 1) + np.searchsorted(self._times, t_ns, side="right")

    def owner(self, stretch: Array, t_ns: Array) -> Array:
        """Return the role of the claim to each stretch that is nearest to its time."""
        after = np.searchsorted(self._keys, self._key(stretch, t_ns), side="right")
        before = np.maximum(after - 1, 0)
        begun = (after > 0) & (self._stretch[before] == stretch)
        following = np.minimum(after, self._stretch.size - 1)
        coming = (after < self._stretch.size) & (self._stretch[following] == stretch)
        since = np.maximum(t_ns - self._to[before], 0)
        nearer = coming & (~begun | (self._from[following] - t_ns <= since)) & ~(begun & (since == 0))
        return np.where(nearer, self._role[following], self._role[self._longest[before]])


def _covered(first: Array, last: Array, size: int) -> Bools:
    """Return which stretches lie in any of [first, last)."""
    change = np.zeros(size + 1, np.int64)
    np.add.at(change, first, 1)
    np.add.at(change, last, -1)
    return np.cumsum(change)[:size] > 0


def owners(trial_dir: str | Path) -> Owners:
    """Return whose sectors a trial's devices held; CannotDraw where nobody looked."""
    path = load_trial(trial_dir).table("extents")
    if path is None:
        raise CannotDraw("the trial has no extents.parquet, so nobody knows which file its requests belonged to")
    try:
        return Owners(pq.read_table(path))
    except (pa.ArrowException, OSError, KeyError) as error:
        raise AnalysisError(f"{path}: cannot be read as extents ({str(error).splitlines()[0]})") from None


def requests_with_roles(trial_dir: str | Path) -> Iterator[pl.DataFrame]:
    """Yield the requests of a trial (`analysis.schema.REQUESTS`) in file order, a bounded number at a time, with the
    column `role`."""
    told, path = owners(trial_dir), load_trial(trial_dir).table("requests")
    if path is None:
        raise CannotDraw("the trial has no requests.parquet")
    names = pl.Series("role", told.roles, pl.Enum(told.roles))
    for part in addressed(path, whole=True):
        frame = pl.from_arrow(part.rows)
        assert isinstance(frame, pl.DataFrame)
        yield frame.with_columns(names.gather(told.of(part)))


def role_bytes(path: Path, told: Owners, spans: Sequence[tuple[int, int]]) -> list[dict[tuple[str, str], int]]:
    """Return, for each span [begin, end) in monotonic ns, the bytes by (role, operation) of the requests issued in it.

    `path` is a `requests.parquet`. Reads and writes; bytes count what completed, as in `analysis.attribution`. Roles of
    which no byte was moved in any span are left out.
    """
    completion = "completion" in events(path)
    begin, end = (np.array([span[side] for span in spans], np.int64) for side in (0, 1))
    labels = [(role, op) for role in told.roles for op in DATA]
    totals = np.zeros((len(labels), len(spans)), np.int64)
    for part in addressed(path):
        key = np.where(part.issue_ns == NEVER, part.complete_ns, part.issue_ns)
        moved = np.where((part.complete_ns == NEVER) & completion, 0, part.bytes)
        label = _label(told.of(part), part.op)
        for place in np.unique(label[label >= 0]):
            chosen = np.flatnonzero(label == place)
            chosen = chosen[np.argsort(key[chosen], kind="stable")]
            running = np.concatenate(([0], np.cumsum(moved[chosen])))
            first = np.searchsorted(key[chosen], begin, side="left")
            last = np.maximum(np.searchsorted(key[chosen], end, side="left"), first)
            totals[place] += running[last] - running[first]
    seen = [place for place in range(len(labels)) if totals[place].any()]
    roles = dict.fromkeys(labels[place][0] for place in seen)
    kept = [(place, label) for place, label in enumerate(labels) if label[0] in roles]
    return [{label: int(totals[place, span]) for place, label in kept} for span in range(len(spans))]


def roles_over_time(path: Path, told: Owners, begin_ns: int, end_ns: int, bin_ns: int) -> pl.DataFrame:
    """Return the bytes that completed in each bin of [begin, end) by role: `op`, `role`, `bin`, `bytes`, none of 0.

    `path` is a `requests.parquet`. Bytes count when they were issued where completion was not recorded.
    """
    column = time_column(path)
    bins = max((end_ns - begin_ns - 1) // bin_ns + 1, 1)
    totals = np.zeros((len(told.roles) * len(DATA), bins), np.int64)
    for part in addressed(path):
        at = part.complete_ns if column == "complete_ns" else part.issue_ns
        label, place = _label(told.of(part), part.op), (at - begin_ns) // bin_ns
        chosen = (label >= 0) & (at != NEVER) & (place >= 0) & (place < bins)
        np.add.at(totals, (label[chosen], place[chosen]), part.bytes[chosen])
    label, place = np.nonzero(totals)
    return pl.DataFrame(
        {
            "op": [DATA[n % len(DATA)] for n in label],
            "role": [told.roles[n // len(DATA)] for n in label],
            "bin": place,
            "bytes": totals[label, place],
        },
        schema={"op": pl.String, "role": pl.String, "bin": pl.Int64, "bytes": pl.Int64},
    )


def _label(role: Array, op: Array) -> Array:
    """Return role and operation as one number, -1 for what is neither read nor written."""
    place = np.full(len(OPERATIONS), -1)
    for number, name in enumerate(DATA):
        place[OPERATIONS.index(name)] = number
    return np.where(place[op] < 0, -1, role * len(DATA) + place[op])
