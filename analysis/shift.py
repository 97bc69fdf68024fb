"""Steps in a series of nights: when a measure moved to another level and stayed there.

Nights are compared by ranks, each pair by the shares of their repeats that lie above one another; a night's rank sum is
what it has over all others. There is a step where the running sum of rank sums is far from nothing for its place
(Pettitt, A non-parametric approach to the change-point problem, 1979, with repeats), and its p is how often shuffled
nights reach as far. It is on the night that leaves the least distances to the levels on both sides, where a night that
is far off counts no more than any other that is off. The series is then cut there and each part looked at by itself (as
in Matteson and James, A nonparametric approach for multiple change point analysis, 2014). Whole nights are shuffled, so
that what the repeats of one night have in common makes no step, and neither does one night that is far off.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

#: Fewer nights are no level: on either side of a step there are as many.
LEAST_NIGHTS = 3
#: So many shuffles at a time, until so many have reached as far: a small p is as sure as a large one (Besag and
#: Clifford, Sequential Monte Carlo p-values, 1991).
_SHUFFLES, MOST_SHUFFLES, _REACHED = 1999, 19_999, 50
#: So many standard deviations from its level a night is off, and no more.
_FAR = 3.0


@dataclass(frozen=True)
class Shift:
    """A step: `index` is the first night of the new level, `before` and `after` are the medians of both levels, each
    up to the next step; `p` is the share of shuffled series with a step as clear."""

    index: int
    before: float
    after: float
    p: float

    @property
    def change(self) -> float:
        """The new level over the old one, less one."""
        return self.after / self.before - 1 if self.before else math.copysign(math.inf, self.after)


def shifts(
    values: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    *,
    threshold: float = 0.05,
    alpha: float = 0.01,
    seed: int = 0,
) -> list[Shift]:
    """Return the steps in a series, in order: of at least `threshold` of the level before, with p of at most `alpha`.

    `values` are in the order of time. `groups` says which night each is of, repeats of a night side by side; without it
    each value is a night. `Shift.index` counts nights. Values that are not known (nan) are left out, and so are nights
    that have no other. `alpha` is for one series: of a hundred unchanged ones, one has a step. Ten nights can reach one
    percent, eight cannot; `seed` is that of the shuffles: series that are judged together have one each.
    """
    nights = _nights(values, groups)
    places = [place for place, own in enumerate(nights) if own.size]
    known = [nights[place] for place in places]
    if not known:
        return []
    rng = np.random.default_rng(seed)
    found = sorted(_steps(known, 0, alpha, rng))
    found = _settled(known, found, threshold)
    edges = [0, *(at for at, _ in found), len(known)]
    levels = [_level(known[begin:end]) for begin, end in itertools.pairwise(edges)]
    return [Shift(places[at], levels[n], levels[n + 1], p) for n, (at, p) in enumerate(found)]


def _nights(values: Sequence[float], groups: Sequence[Hashable] | None) -> list[Floats]:
    if groups is not None and len(groups) != len(values):
        raise ValueError(f"{len(values)} values are of {len(groups)} groups; each needs its night")
    held: dict[Hashable, list[float]] = {}
    for place, value in enumerate(values):
        night = held.setdefault(place if groups is None else groups[place], [])
        if not math.isnan(value):
            night.append(value)
    return [np.array(own, float) for own in held.values()]


def _level(nights: Sequence[Floats]) -> float:
    return float(np.median([np.median(own) for own in nights]))


def _steps(nights: Sequence[Floats], first: int, alpha: float, rng: np.random.Generator) -> Iterator[tuple[int, float]]:
    """Yield the places and p of the steps in these nights, of which the first one has this number."""
    if len(nights) < 2 * LEAST_NIGHTS:
        return
    sums = _rank_sums(nights)
    heights = _heights(sums[None, :])[0]
    p = _p(sums, float(heights.max()), rng)
    if p > alpha:
        return
    at = _place(np.array([np.median(own) for own in nights]))
    yield first + at, p
    yield from _steps(nights[:at], first, alpha, rng)
    yield from _steps(nights[at:], first + at, alpha, rng)


def _p(sums: Floats, height: float, rng: np.random.Generator) -> float:
    """Return how often shuffled nights reach as far as these."""
    reached = drawn = 0
    while drawn < MOST_SHUFFLES and reached < _REACHED:
        count = min(_SHUFFLES, MOST_SHUFFLES - drawn)
        shuffled = _heights(rng.permuted(np.tile(sums, (count, 1)), axis=1)).max(axis=1)
        reached, drawn = reached + int((shuffled >= height - 1e-9).sum()), drawn + count
    return (1 + reached) / (1 + drawn)


def _rank_sums(nights: Sequence[Floats]) -> Floats:
    """Return for each night by how much its repeats lie above those of the others: +1 for a night wholly below it."""
    found = np.zeros(len(nights))
    for one, own in enumerate(nights):
        for other in range(one):
            above = float(np.sign(np.subtract.outer(own, nights[other])).mean())
            found[one] += above
            found[other] -= above
    return found


def _heights(sums: Floats) -> Floats:
    """Return for each place of a step how far the running sums before it are from nothing, for their place."""
    count = sums.shape[1]
    before = np.arange(LEAST_NIGHTS, count - LEAST_NIGHTS + 1)
    running = np.cumsum(sums, axis=1)[:, before - 1]
    found: Floats = np.abs(running) / np.sqrt(before * (count - before))
    return found


def _place(values: Floats) -> int:
    """Return where the step in a series is: the number of the first night of the new level."""
    scale = 1.4826 * float(np.median(np.abs(np.diff(values)))) / math.sqrt(2)  # of steady nights a standard deviation
    most = _FAR * scale if scale else math.inf

    def distance(part: Floats) -> float:
        return float(np.minimum(np.abs(part - np.median(part)), most).sum())

    places = range(LEAST_NIGHTS, len(values) - LEAST_NIGHTS + 1)
    return min(places, key=lambda at: distance(values[:at]) + distance(values[at:]))


def _settled(nights: Sequence[Floats], found: list[tuple[int, float]], threshold: float) -> list[tuple[int, float]]:
    """Return the steps that matter, the smallest of the others taken away first: levels on both sides then join."""
    while found:
        edges = [0, *(at for at, _ in found), len(nights)]
        levels = [_level(nights[begin:end]) for begin, end in itertools.pairwise(edges)]
        sizes = [abs(Shift(0, one, two, 0).change) for one, two in itertools.pairwise(levels)]
        least = int(np.argmin(sizes))
        if sizes[least] >= threshold:
            break
        found = found[:least] + found[least + 1 :]
    return found
