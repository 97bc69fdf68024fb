"""Percentiles of latencies, and of other times and distances, in bounded memory."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.int64]

#: Up to this many values are kept and give exact percentiles (512 KiB).
EXACT_VALUES = 1 << 16
#: Beyond, values are counted in this many buckets of equal width per power of two: percentiles are within 0.1 %, those
#: below this number exact. So does HdrHistogram; the bucket is the head of the value's floating-point representation.
BUCKETS_PER_OCTAVE = 512
_SHIFT = 52 - 9
_ONE = 1023 << 9
_BUCKETS = (62 << 9) + 1


class Latencies:
    """Latencies in ns, or other whole numbers from 0, added in pieces.

    Percentiles are nearest-rank. Count, mean and maximum are exact however many there are, below 2^53.
    """

    def __init__(self) -> None:
        self.count = 0
        self._sum = 0.0
        self._largest = 0
        self._parts: list[Array] = []
        self._sorted = False
        self._buckets: Array | None = None

    def add(self, values: Array) -> None:
        """Take more values, in any order; one below 0 counts as 0."""
        if not values.size:
            return
        values = np.maximum(values, 0)
        self.count += values.size
        self._sum += float(values.sum(dtype=np.float64))
        self._largest = max(self._largest, int(values.max()))
        self._keep([values])

    def merge(self, other: Latencies) -> None:
        """Take the values of `other` too, which stays as it is."""
        self.count += other.count
        self._sum += other._sum
        self._largest = max(self._largest, other._largest)
        if other._buckets is not None:
            self._buckets = other._buckets + (0 if self._buckets is None else self._buckets)
        self._keep(other._parts)

    def _keep(self, parts: list[Array]) -> None:
        """Hold the parts as they are, or count them and all that were held in buckets."""
        self._parts += parts
        self._sorted = False
        if self._buckets is None and self.count > EXACT_VALUES:
            self._buckets = np.zeros(_BUCKETS, dtype=np.int64)
        if self._buckets is not None:
            for part in self._parts:
                self._buckets += _counted(part)
            self._parts = []

    def percentile(self, share: float) -> float | None:
        """Return the smallest value that at least `share` (0 to 1) of all values do not exceed; None of no values."""
        if not self.count:
            return None
        rank = max(math.ceil(share * self.count), 1) - 1
        if self._buckets is None:
            if not self._sorted:
                self._parts, self._sorted = [np.sort(np.concatenate(self._parts))], True
            return float(self._parts[0][rank])
        place = int(np.searchsorted(np.cumsum(self._buckets), rank, side="right"))
        return min(_middle(place), float(self._largest))

    def mean(self) -> float | None:
        """Return the mean, None of no values."""
        return self._sum / self.count if self.count else None

    def maximum(self) -> float | None:
        """Return the greatest value, None of no values."""
        return float(self._largest) if self.count else None


def _counted(values: Array) -> Array:
    """Return the number of values by bucket: the first is for 0, then come those of each power of two."""
    heads = values.astype(np.float64).view(np.int64) >> _SHIFT
    return np.bincount(np.maximum(heads - (_ONE - 1), 0), minlength=_BUCKETS)


def _middle(place: int) -> float:
    """Return the middle of the whole numbers in a bucket."""
    if place == 0:
        return 0.0
    power, within = divmod(place - 1, BUCKETS_PER_OCTAVE)
    width = 2.0**power / BUCKETS_PER_OCTAVE
    least = 2.0**power + within * width
    return least if width <= 1 else least + (width - 1) / 2
