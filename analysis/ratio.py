"""By how much one set of values is above another, with an interval that fits the rank test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from scipy.stats import mannwhitneyu, norm

#: With more values the distribution of the rank test is normal to all digits that matter here.
_EXACT = 40


@dataclass(frozen=True)
class Shift:
    """A shift of logarithms: the estimate, the interval at its confidence, and the p of the rank test, of both sides.

    Where the values are too few for the confidence, the interval is all that their differences span, and `covered` is
    the confidence that it has.
    """

    estimate: float
    low: float
    high: float
    p: float
    covered: float


def shift(now: Sequence[float], base: Sequence[float], confidence: float = 0.95) -> Shift:
    """Return how far the logarithms `now` lie above those of `base` (Hodges and Lehmann, 1963).

    The interval is of the differences that the Mann-Whitney test does not reject (Hollander and Wolfe, Nonparametric
    Statistical Methods, section 4.3): test and interval agree.
    """
    pairs = np.sort(np.subtract.outer(np.asarray(now, float), np.asarray(base, float)).ravel())
    cut, covered = _cut(len(now), len(base), confidence)
    p = float(mannwhitneyu(now, base, alternative="two-sided", method=_method(now, base)).pvalue)
    return Shift(float(np.median(pairs)), float(pairs[cut]), float(pairs[-1 - cut]), p, covered)


def _method(now: Sequence[float], base: Sequence[float]) -> str:
    ties = len({*now, *base}) < len(now) + len(base)
    return "asymptotic" if ties or max(len(now), len(base)) > _EXACT else "exact"


@cache
def _cut(now: int, base: int, confidence: float) -> tuple[int, float]:
    """Return how many differences are left out at either end, and the confidence of what is left."""
    if max(now, base) > _EXACT:
        spread = (now * base * (now + base + 1) / 12) ** 0.5
        cut = max(int(now * base / 2 + norm.ppf((1 - confidence) / 2) * spread) - 1, 0)
        return cut, confidence
    below = np.cumsum(_rank_counts(now, base))
    tail = below / below[-1]
    fits = np.flatnonzero(tail <= (1 - confidence) / 2)
    cut = int(fits[-1]) if fits.size else 0
    return cut, float(1 - 2 * tail[cut])


def _rank_counts(now: int, base: int) -> npt.NDArray[np.float64]:
    """Return how many orders of the values give each U = 0, 1, ...: the coefficients of a Gaussian binomial."""
    counts = np.ones(1)
    for step in range(1, now + 1):
        counts = _divided(np.convolve(counts, _one_minus(base + step)), step)
    return counts


def _one_minus(power: int) -> npt.NDArray[np.float64]:
    found = np.zeros(power + 1)
    found[0], found[power] = 1, -1
    return found


def _divided(counts: npt.NDArray[np.float64], step: int) -> npt.NDArray[np.float64]:
    """Return a polynomial divided by 1 - x^step, without remainder."""
    found = counts[:-step].copy()
    for place in range(step, len(found)):
        found[place] += found[place - step]
    return found
