"""How often each sector was accessed, exactly, without an entry per sector.

A request is +1 where it begins and -1 where it ends. Summed up in order of the sectors, these boundaries give the
number of accesses of every stretch between two of them.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from analysis.attribution import DATA
from analysis.schema import OPERATIONS
from analysis.trace import Array, extents
from analysis.units import SECTOR_BYTES

#: Beyond this many boundaries (12 bytes each) the upper half of the sectors waits for another pass over the file.
MOST_BOUNDARIES = 1 << 21
Changes = npt.NDArray[np.int32]
_END = np.iinfo(np.int64).max


def access_counts(path: Path) -> pl.DataFrame:
    """Return how many sectors were accessed how often: `op`, `accesses`, `sectors`, sorted, read and write apart.

    Every request with data counts, completed or not, for each 512-byte sector that it touches.
    """
    rows = [(op, accesses, sectors) for op in DATA for accesses, sectors in sorted(_tally(path, op).items())]
    return pl.DataFrame(rows, schema={"op": pl.String, "accesses": pl.Int64, "sectors": pl.Int64}, orient="row")


def _tally(path: Path, op: str) -> Counter[int]:
    """Return the number of sectors by number of accesses, in as many passes as memory asks for."""
    tally: Counter[int] = Counter()
    low = 0
    while low < _END:
        stretch = _Stretch(low)
        for part in extents(path):
            chosen = (part.op == OPERATIONS.index(op)) & (part.bytes > 0)
            begin = part.sector[chosen]
            stretch.add(begin, begin - (-part.bytes[chosen] // SECTOR_BYTES))
        tally += stretch.tally()
        low = stretch.high
    return tally


class _Stretch:
    """The boundaries in [low, high); `high` comes down when they become too many."""

    def __init__(self, low: int) -> None:
        self.low, self.high = low, _END
        self._at = np.empty(0, np.int64)
        self._change = np.empty(0, np.int32)
        self._waiting: list[tuple[Array, Changes]] = []
        self._waits = 0

    def add(self, begin: Array, end: Array) -> None:
        """Add requests for the sectors [begin, end)."""
        inside = (begin < self.high) & (end > self.low)
        begin, end = np.maximum(begin[inside], self.low), end[inside]
        end = end[end < self.high]  # what goes on beyond is open at `high`
        changes = np.concatenate((np.ones(begin.size, np.int32), np.full(end.size, -1, np.int32)))
        self._waiting.append(_merged(np.concatenate((begin, end)), changes))
        self._waits += self._waiting[-1][0].size
        if self._waits > max(self._at.size, MOST_BOUNDARIES // 8):
            self._take_in()

    def tally(self) -> Counter[int]:
        """Return the number of sectors by number of accesses, those of no access left out."""
        self._take_in()
        lengths = np.diff(np.append(self._at, self.high))
        accesses = np.cumsum(self._change, dtype=np.int64)
        seen = accesses > 0
        times, place = np.unique(accesses[seen], return_inverse=True)
        sectors = np.zeros(times.size, np.int64)
        np.add.at(sectors, place, lengths[seen])
        return Counter(dict(zip(times.tolist(), sectors.tolist(), strict=True)))

    def _take_in(self) -> None:
        parts = [(self._at, self._change), *self._waiting]
        at, change = np.concatenate([at for at, _ in parts]), np.concatenate([change for _, change in parts])
        del parts
        self._waiting, self._waits = [], 0
        self._at, self._change = _merged(at, change)
        while self._at.size > MOST_BOUNDARIES:
            half = self._at.size // 2
            self.high = int(self._at[half])
            self._at, self._change = self._at[:half].copy(), self._change[:half].copy()


def _merged(at: Array, change: Changes) -> tuple[Array, Changes]:
    """Return the places in order, each once, with the sum of its changes; those that cancel out are dropped."""
    order = np.argsort(at, kind="stable")
    at, change = at[order], change[order]
    if not at.size:
        return at, change
    first = np.flatnonzero(np.concatenate(([True], at[1:] != at[:-1])))
    change = np.add.reduceat(change, first, dtype=np.int32)
    kept = change != 0
    return at[first][kept], change[kept]
