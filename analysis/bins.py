"""Bytes over the time of spans, in bins that follow each span: peak and percentiles of its bandwidth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis import metrics
from analysis.attribution import DATA
from analysis.depth import ALL
from analysis.spans import Span, joined
from analysis.units import GIB, NS_PER_S

Array = npt.NDArray[np.int64]

#: A span is cut into no more bins than this.
_MOST_BINS = 1 << 18
_SHARES = {"peak": 1.0, "p5": 0.05, "p50": 0.5, "p95": 0.95}
_NAMES = [f"bandwidth_{name}_gib_s" for name in _SHARES]
#: Sums of floating-point numbers agree within this.
_ROUNDING = 1 - 1e-9


class Bins:
    """Bytes by operation in bins of each span: its stretches laid end to end, cut into bins of one width.

    The bin is `metrics.round_bin` of the span's longest stretch, gaps shorter than the finest bin closed, or as little
    wider as makes whole bins; a span shorter than two is one bin. All of a span's time lies in its bins.
    """

    def __init__(self, told: Sequence[Span]) -> None:
        cuts = [_absolute(span, _cuts(span)) for span in told if span.begin_ns.size]
        parts = [*cuts, *(span.begin_ns for span in told), *(span.end_ns for span in told)]
        self._edges: Array = np.unique(np.concatenate(parts)) if parts else np.empty(0, np.int64)
        self._bytes = {op: np.zeros(max(self._edges.size - 1, 0)) for op in DATA}

    def add(self, op: str, t_ns: Array, size: Array) -> None:
        """Count bytes at times; those in no span, and those at no time, are left out."""
        held = self._bytes[op]
        place = np.searchsorted(self._edges, t_ns, side="right") - 1
        inside = (place >= 0) & (place < held.size)
        if not inside.all():
            place, size = place[inside], size[inside]
        if place.size:
            least = int(place.min())
            moved = np.bincount(place - least, weights=size)  # sums below 2^53: exact
            held[least : least + moved.size] += moved

    def spread(self, op: str, t_ns: Array, total: npt.NDArray[np.float64]) -> None:
        """Take a counter's readings, evenly between two of them."""
        if self._edges.size:
            self._bytes[op] = np.diff(np.interp(self._edges, t_ns, total))

    def columns(self, span: Span, op: str, moved: int | None) -> dict[str, Any]:
        """Return the width of the span's bins, and peak and percentiles (nearest-rank) of the bandwidth in them.

        `moved` is what the span's requests moved, whenever that was: where more of it completed after the span than
        its bins can tell of, so that the mean is above their peak, nothing is known.
        """
        blank: dict[str, Any] = {"bin_ns": None, **dict.fromkeys(_NAMES)}
        if not span.duration_ns:
            return blank
        cuts = _cuts(span)
        rates = np.sort(self._within(span, op, cuts) / np.diff(cuts)) * (NS_PER_S / GIB)
        if moved is not None and rates[-1] < moved / span.duration_ns * (NS_PER_S / GIB) * _ROUNDING:
            return blank
        ranks = [max(int(np.ceil(share * rates.size)), 1) - 1 for share in _SHARES.values()]
        return {"bin_ns": int(cuts[1]), **{name: float(rates[at]) for name, at in zip(_NAMES, ranks, strict=True)}}

    def _within(self, span: Span, op: str, cuts: Array) -> npt.NDArray[np.float64]:
        """Return the bytes in each bin of a span."""
        begin = self._edges[:-1]
        stretch = np.searchsorted(span.begin_ns, begin, side="right") - 1
        inside = (stretch >= 0) & (begin < span.end_ns[np.maximum(stretch, 0)])
        begin, stretch = begin[inside], stretch[inside]
        own = _before(span)[stretch] + begin - span.begin_ns[stretch]
        held: npt.NDArray[np.float64] = sum((self._bytes[one] for one in (DATA if op == ALL else (op,))), np.zeros(1))
        place = np.searchsorted(cuts, own, side="right") - 1
        return np.bincount(place, weights=held[inside], minlength=cuts.size - 1).astype(np.float64)


def _before(span: Span) -> Array:
    """Return the time in a span before each of its stretches."""
    length = span.end_ns - span.begin_ns
    before: Array = np.cumsum(length) - length
    return before


def _cuts(span: Span) -> Array:
    """Return the edges of a span's bins, from 0 to its duration."""
    begin, end = joined(span.begin_ns, span.end_ns, metrics.round_bin(1))
    width = metrics.round_bin(int((end - begin).max()))
    count = min(max(span.duration_ns // width, 1), _MOST_BINS)
    cuts: Array = np.arange(count + 1, dtype=np.int64) * (span.duration_ns // count)
    cuts[-1] = span.duration_ns
    return cuts


def _absolute(span: Span, own: Array) -> Array:
    """Return where moments of a span's own time lie in monotonic time."""
    stretch = np.searchsorted(_before(span), own, side="right") - 1
    found: Array = span.begin_ns[stretch] + own - _before(span)[stretch]
    return found
