"""How often each sector was accessed, exactly, without an entry per sector.

A request begins at one sector and ends before another. Where all beginnings and all ends of some requests are sorted,
each for itself, one walk over both tells how many requests lie over every stretch of sectors: those begun less those
ended. Sorting plain numbers in place is what takes little time and memory here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from analysis.attribution import DATA
from analysis.schema import OPERATIONS
from analysis.spans import Sections, Span, by_class
from analysis.trace import Addressed, Array, Extents, addressed, extents, row_count, value_range
from analysis.units import SECTOR_BYTES

#: What beginnings and ends may take; with more of them the sectors are cut into parts, each a pass over the file.
MOST_BYTES = 256 << 20
#: Boundaries that are walked over at a time.
_WALK = 1 << 18
#: Parts of the sectors in which requests are counted to find where to cut.
_BUCKETS = 1 << 16
#: Sectors of several devices follow each other at this distance.
_DEVICE = 1 << 44
_END = np.iinfo(np.int64).max
_WORD = 64

Places = npt.NDArray[Any]  # int64, or uint32 where the sectors fit
Located = Extents | Addressed
#: Tells a label, a small number, of each request of one operation (its place in DATA): an array, or one of one.
Labels = Callable[[Located, int, Array], Array]


def access_counts(path: Path) -> pl.DataFrame:
    """Return how many sectors were accessed how often: `op`, `accesses`, `sectors`, sorted, read and write apart.

    Every request with data counts, completed or not, for each 512-byte sector that it touches.
    """
    counted: list[Counter[int]] = [Counter() for _ in DATA]
    for covers in _covers(path, extents, lambda part, op, chosen: np.array([op])):
        for label, cover in covers.items():
            counted[label] += cover.tally()
    found = [(op, *row) for op, own in zip(DATA, counted, strict=True) for row in sorted(own.items())]
    return pl.DataFrame(found, schema={"op": pl.String, "accesses": pl.Int64, "sectors": pl.Int64}, orient="row")


def footprints(path: Path, told: Sequence[Span], sections: Sections) -> list[dict[str, int]]:
    """Return for each span the number of sectors touched by the requests issued in it: by `read`, `write` and `all`.

    `sections` are those of the spans. Requests count as in `access_counts`; one without an issue time belongs where it
    completed.
    """
    places = len(DATA)

    def label(part: Located, op: int, chosen: Array) -> Array:
        assert isinstance(part, Addressed)
        return sections.of(part.key_ns()[chosen]) * places + op

    totals: Counter[frozenset[int]] = Counter()
    for covers in _covers(path, addressed, label):
        totals += _shared(covers)
    found = []
    for place in range(len(told)):
        mine = {
            op: {n * places + number for n in range(sections.count) if place in sections.spans_of(n)}
            for number, op in enumerate(DATA)
        }
        mine["all"] = set().union(*mine.values())
        found.append({op: sum(count for held, count in totals.items() if held & own) for op, own in mine.items()})
    return found


@dataclass(frozen=True)
class _Room:
    """Where all requests lie, and how their sectors are held: as int64, or less `base` as uint32 if they fit."""

    base: int
    kind: type[np.uint32] | type[np.int64]

    @property
    def most(self) -> int:
        """How many requests fit into memory."""
        return max(MOST_BYTES // (2 * np.dtype(self.kind).itemsize), 1)


def _room(path: Path) -> _Room:
    sectors, sizes, devices = (value_range(path, name) for name in ("sector", "bytes", "dev"))
    if not (sectors and sizes and devices) or devices[0] != devices[1] or sectors[0] < 0:
        return _Room(0, np.int64)
    extent = sectors[1] - sectors[0] + sizes[1] // SECTOR_BYTES + 1
    return _Room(sectors[0], np.uint32) if extent < np.iinfo(np.uint32).max else _Room(0, np.int64)


def _covers(path: Path, read: Callable[[Path], Iterator[Located]], label: Labels) -> Iterator[dict[int, _Cover]]:
    """Yield the reads and writes by label, for one part of the sectors after the other."""
    room = _room(path)
    cuts = _cuts(path, room) if row_count(path) > room.most else [0, _END]
    for low, high in pairwise(cuts):
        covers: dict[int, _Cover] = {}
        held = 0
        for part, op, chosen, begin, end in _placed(path, read, room):
            if len(cuts) > 2:
                inside = (begin < high) & (end > low)
                chosen, begin, end = chosen[inside], np.maximum(begin[inside], low), np.minimum(end[inside], high)
            for own, (first, last) in by_class(label(part, op, chosen), begin, end):
                covers.setdefault(own, _Cover(room.kind)).add(first, last)
                held += first.size
            if held > room.most:  # many requests for few sectors
                held = sum(cover.fold() for cover in covers.values())
        yield covers


def _placed(
    path: Path, read: Callable[[Path], Iterator[Located]], room: _Room
) -> Iterator[tuple[Located, int, Array, Array, Array]]:
    """Yield pieces of the file with the rows of one operation that have data, and where each begins and ends."""
    numbers: dict[str, int] = {}
    for part in read(path):
        own = np.array([numbers.setdefault(name, len(numbers)) for name in part.devices] or [0], np.int64)
        for op, name in enumerate(DATA):
            chosen = np.flatnonzero((part.op == OPERATIONS.index(name)) & (part.bytes > 0))
            begin = part.sector[chosen] - room.base
            if own.any():
                begin += own[part.dev[chosen]] * _DEVICE
            yield part, op, chosen, begin, begin - (-part.bytes[chosen] // SECTOR_BYTES)


def _cuts(path: Path, room: _Room) -> list[int]:
    """Return where to cut the sectors so that the requests of each part fit into memory, as far as that is possible."""
    last = max((int(end.max()) for _, _, _, _, end in _placed(path, extents, room) if end.size), default=1)
    width = -(-last // _BUCKETS)
    counts = np.zeros(_BUCKETS + 1, np.int64)
    for _, _, _, begin, _ in _placed(path, extents, room):
        counts += np.bincount(begin // width, minlength=counts.size)
    cuts, held = [0], 0
    for place, count in enumerate(counts.tolist()):
        if held and held + count > room.most * 3 // 4:
            cuts.append(place * width)
            held = 0
        held += count
    return [*cuts, _END]


class _Cover:
    """The sectors that some requests touch: beginnings and ends, and what was folded of them."""

    def __init__(self, kind: type[np.uint32] | type[np.int64]) -> None:
        self._begin, self._end = _Numbers(kind), _Numbers(kind)
        self._at = np.empty(0, np.int64)
        self._change = np.empty(0, np.int64)

    def add(self, begin: Array, end: Array) -> None:
        """Add requests for the sectors [begin, end)."""
        self._begin.add(begin)
        self._end.add(end)

    def fold(self) -> int:
        """Keep one boundary for all that begins or ends at a sector; return the room they take, in requests."""
        at, change = self._at, self._change
        self._at, self._change = np.empty(0, np.int64), np.empty(0, np.int64)
        for numbers, sign in ((self._begin, 1), (self._end, -1)):
            places, count = _runs(numbers.sorted())
            at, change = _merged(np.concatenate((at, places)), np.concatenate((change, sign * count)))
            numbers.clear()
        self._at, self._change = at, change
        return 2 * at.size

    def tally(self) -> Counter[int]:
        """Return the number of sectors by number of accesses, those of no access left out."""
        found: Counter[int] = Counter()
        for accesses, sectors in self._stretches():
            touched = accesses > 0
            accesses, sectors = accesses[touched], sectors[touched]
            if accesses.size and accesses.max() < _WALK:
                count = np.bincount(accesses, weights=sectors)  # sums below 2^53: exact
                seen = np.flatnonzero(count)
                found.update(dict(zip(seen.tolist(), count[seen].astype(np.int64).tolist(), strict=True)))
            else:
                for number, count in zip(accesses.tolist(), sectors.tolist(), strict=True):
                    found[number] += count
        return found

    def _stretches(self) -> Iterator[tuple[Array, Array]]:
        """Yield stretches of sectors: how many requests lie over each, and its sectors."""
        if self._at.size:
            self.fold()
            yield np.cumsum(self._change)[:-1], np.diff(self._at)
            return
        before, depth = 0, 0
        for keys in _walk(self._begin.sorted(), self._end.sorted()):
            at = keys >> 1
            after = depth + np.cumsum(1 - 2 * (keys & 1))
            yield np.append(depth, after[:-1]), np.diff(at, prepend=before)
            before, depth = int(at[-1]), int(after[-1])

    def union(self) -> tuple[Places, Places]:
        """Return the sectors touched at all as stretches that do not meet, sorted: where they begin and end.

        What was added is used up.
        """
        if self._at.size:
            self.fold()
            under = np.cumsum(self._change) > 0
            edge = under != np.append(False, under[:-1])
            return self._at[edge & under], self._at[edge & ~under]
        return _parted(self._begin.sorted(), self._end.sorted())


class _Numbers:
    """Numbers that are added in pieces and sorted in place."""

    def __init__(self, kind: type[np.uint32] | type[np.int64]) -> None:
        self._held: Places = np.empty(0, kind)
        self._count = 0

    def add(self, values: Array) -> None:
        """Add values; they fit."""
        needed = self._count + values.size
        if needed > self._held.size:
            self._held.resize(needed + needed // 8, refcheck=False)  # realloc moves pages and copies nothing
        self._held[self._count : needed] = values
        self._count = needed

    def sorted(self) -> Places:
        """Return all of them, sorted: a view that the next addition makes stale."""
        held = self._held[: self._count]
        held.sort()
        return held

    def clear(self) -> None:
        """Forget them."""
        self._held, self._count = np.empty(0, self._held.dtype), 0


def _parted(begin: Places, end: Places) -> tuple[Places, Places]:
    """Return the beginnings and ends, each sorted, of what they cover, in the same memory.

    Where as many have ended as have begun before the next begins, nothing lies between.
    """
    begins = ends = min(begin.size, 1)
    for first in range(0, begin.size - 1, _WALK):
        ahead, behind = begin[first + 1 : first + 1 + _WALK], end[first : first + _WALK]
        apart = ahead > behind[: ahead.size]
        kept, left = ahead[apart], behind[: ahead.size][apart]
        begin[begins : begins + kept.size] = kept
        end[ends - 1 : ends - 1 + left.size] = left
        begins, ends = begins + kept.size, ends + left.size
    if ends:
        end[ends - 1] = end[-1]
    return begin[:begins], end[:ends]


def _runs(ordered: Places) -> tuple[Array, Array]:
    """Return the distinct ones among sorted numbers, and how often each is there."""
    first = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1]))[: ordered.size])
    return ordered[first].astype(np.int64), np.diff(np.append(first, ordered.size))


def _merged(at: Array, change: Array) -> tuple[Array, Array]:
    """Return the places in order, each once, with the sum of its changes; those that cancel out are dropped."""
    if not at.size:
        return at, change
    order = np.argsort(at, kind="stable")
    at, change = at[order], change[order]
    first = np.flatnonzero(np.concatenate(([True], at[1:] != at[:-1])))
    change = np.add.reduceat(change, first)
    kept = change != 0
    return at[first][kept], change[kept]


def _walk(begin: Places, end: Places) -> Iterator[Array]:
    """Yield all of two sorted columns in order, a bounded number at a time, as 2 * sector + (is it an end)."""
    first = last = 0
    while last < end.size:
        starts, ends = begin[first : first + _WALK], end[last : last + _WALK]
        limit = min(int(part[-1]) for part in (starts, ends) if part.size)
        if first + starts.size == begin.size and last + ends.size == end.size:
            limit = int(ends[-1])
        starts = starts[: np.searchsorted(starts, limit, side="right")]
        ends = ends[: np.searchsorted(ends, limit, side="right")]
        first, last = first + starts.size, last + ends.size
        yield np.sort(np.concatenate((starts.astype(np.int64) << 1, (ends.astype(np.int64) << 1) | 1)))


def _shared(covers: dict[int, _Cover]) -> Counter[frozenset[int]]:
    """Return the number of sectors by the labels that touch them; the covers are used up."""
    unions = {label: cover.union() for label, cover in covers.items()}
    if len(unions) == 1:
        ((label, (begin, end)),) = unions.items()
        return Counter({frozenset([label]): int(end.sum(dtype=np.int64) - begin.sum(dtype=np.int64))})
    labels = list(unions)
    found: Counter[frozenset[int]] = Counter()
    for masks, sectors in _overlaid(list(unions.values())):
        held = [label for place, label in enumerate(labels) if masks[place // _WORD] >> (place % _WORD) & 1]
        found[frozenset(held)] += sectors
    del found[frozenset()]
    return found


def _overlaid(unions: Sequence[tuple[Places, Places]]) -> Iterator[tuple[tuple[int, ...], int]]:
    """Lay unions over each other; yield sets of them, as bits of words, with sectors that exactly those hold.

    Where a union begins or ends its bit changes: the bits of a stretch are all changes before it.
    """
    words = -(-len(unions) // _WORD)
    bits = np.left_shift(np.uint64(1), np.arange(len(unions), dtype=np.uint64) % np.uint64(_WORD))
    carried, before = [np.uint64(0)] * words, 0
    shift = len(unions).bit_length()
    for keys in _edges(unions, shift):
        at, label = keys >> shift, keys & ((1 << shift) - 1)
        columns: dict[str, Any] = {"sectors": np.diff(at, prepend=before)}
        for word in range(words):
            changes = np.where(label // _WORD == word, bits[label], np.uint64(0))
            after = np.bitwise_xor.accumulate(changes) ^ carried[word]
            columns[f"{word}"] = np.append(carried[word], after[:-1])
            carried[word] = after[-1]
        before = int(at[-1])
        sums = pl.DataFrame(columns).group_by([f"{word}" for word in range(words)]).agg(pl.col("sectors").sum())
        yield from ((row[:-1], row[-1]) for row in sums.iter_rows())


def _edges(unions: Sequence[tuple[Places, Places]], shift: int) -> Iterator[Array]:
    """Yield all edges of unions in order, a bounded number at a time, as sector * 2^shift + place."""
    columns = [(place, side) for place, union in enumerate(unions) for side in union]
    done = [0] * len(columns)
    step = max(_WALK // 4, 1)
    while any(at < side.size for at, (_, side) in zip(done, columns, strict=True)):
        ahead = [side[at : at + step] for at, (_, side) in zip(done, columns, strict=True)]
        limit = min(int(part[-1]) for part in ahead if part.size)
        parts = []
        for number, part in enumerate(ahead):
            due = part[: np.searchsorted(part, limit, side="right")]
            done[number] += due.size
            parts.append((due.astype(np.int64) << shift) | columns[number][0])
        yield np.sort(np.concatenate(parts))
