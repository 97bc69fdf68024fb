"""Percentiles of latencies in bounded memory."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.int64]

#: Up to this many values are kept and give exact percentiles (8 MiB).
EXACT_VALUES = 1 << 20
#: Beyond, values are counted in this many buckets per power of two: percentiles are then within 0.14 %.
BUCKETS_PER_OCTAVE = 256


class Latencies:
    """Latencies in ns, added in pieces. Percentiles are nearest-rank; the maximum is always exact."""

    def __init__(self) -> None:
        self.count = 0
        self._largest = 0
        self._parts: list[Array] = []
        self._buckets: Array | None = None

    def add(self, values: Array) -> None:
        if not values.size:
            return
        self.count += values.size
        self._largest = max(self._largest, int(values.max()))
        if self._buckets is not None:
            self._tally(values)
            return
        self._parts.append(values.copy())
        if self.count > EXACT_VALUES:
            self._buckets = np.zeros(64 * BUCKETS_PER_OCTAVE, dtype=np.int64)
            for part in self._parts:
                self._tally(part)
            self._parts = []

    def _tally(self, values: Array) -> None:
        assert self._buckets is not None
        places = (np.log2(np.maximum(values, 1)) * BUCKETS_PER_OCTAVE).astype(np.int64)
        self._buckets += np.bincount(places, minlength=self._buckets.size)

    def percentile(self, share: float) -> float | None:
        """Return the smallest value that at least `share` (0 to 1) of all values do not exceed, in ns."""
        if not self.count:
            return None
        rank = max(math.ceil(share * self.count), 1) - 1
        if self._buckets is None:
            values = np.concatenate(self._parts)
            return float(np.partition(values, rank)[rank])
        place = int(np.searchsorted(np.cumsum(self._buckets), rank, side="right"))
        return min(2 ** ((place + 0.5) / BUCKETS_PER_OCTAVE), float(self._largest))

    def maximum(self) -> float | None:
        return float(self._largest) if self.count else None
