"""Which of many measures are lower in one run than in others, by shuffling whole rounds between the runs.

A round is one repeat of every cell. If nothing changed it does not matter which run a round is of, so the runs' labels
are exchanged between rounds, all cells and phases of a round together: however much they depend on one another, the
greatest statistic of all measures has the distribution that it is compared with, and the whole family is kept at its
level (max-T: Westfall and Young, Resampling-Based Multiple Testing, 1993, ch. 2). Five rounds against five have 252
labellings, however many cells there are; a rank test of each of 24 cells, corrected for all, could never say anything.

- Logarithms are compared, so a shift is a ratio. Outliers are clipped at Tukey's fences of all rounds of a measure,
  which do not depend on labels, and not within several times of what runs differ by: beside many bases a run holds few
  of the rounds, and what it shifted by would be clipped as if it were outliers.
- The scale of a measure is its standard deviation within runs, moderated by those of the others (Smyth, Linear models
  and empirical Bayes, 2004, section 6.2): of five and five values alone, the smallest of many scales is too small.
- Runs differ as a whole, by more than their repeats do. Of several bases that spread is estimated, of whole runs and of
  single measures, and drawn anew in each shuffle. One base knows nothing of it: a small spread is taken for granted, or
  as much as whole rounds of a run differ, where that is more.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
import numpy.typing as npt
from scipy.special import digamma, polygamma

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

#: As many labellings are drawn at random where there are more.
LABELLINGS = 2000
#: No measure repeats more exactly than this; of equal values the scale would be nothing.
_LEAST_SCALE = 1e-4
_FENCE = 1.5
#: A shift is left as it is up to so many standard deviations of what runs differ by: of two bases, t with two degrees
#: of freedom, 1.3 % lie beyond on either side; of more bases less.
_REACH = 6.0


@dataclass(frozen=True)
class Spread:
    """How much runs differ by themselves, beyond their repeats, as standard deviations of logarithms.

    `whole` is common to all measures of a run, `single` is each measure's own; `seen` is what `bases` showed of the
    first, None of one. What is taken for granted is all that is known of one base, and counts as one base of several.
    `bases` are those that the spread could be told of, which share measures.
    """

    bases: int
    whole: float
    single: float = 0.0
    seen: float | None = None


@dataclass(frozen=True)
class Rounds:
    """Measures (rows) by rounds (columns): logarithms, nan where a round has none; `run` of each round, 0 is the run
    under test, 1... the bases. `family` numbers the rows that are judged together."""

    values: Floats
    run: Ints
    family: Ints


def least_p(now: int, base: int) -> float:
    """Return the smallest p (of two sides) that so many repeats against so many can reach."""
    return 2 / comb(now + base, now) if now and base else 1.0


def repeats_needed(alpha: float) -> int:
    """Return how many repeats in each of two runs can reach a p of `alpha`."""
    return next(n for n in range(1, 64) if least_p(n, n) <= alpha)


def clipped(values: Floats, least: float = 0.0) -> Floats:
    """Return the rows with what lies beyond Tukey's fences moved to them; the fences know no labels.

    They are at least `least` away from the quartiles.
    """
    low, high = (np.nanquantile(values, share, axis=1, keepdims=True) for share in (0.25, 0.75))
    reach = np.maximum(_FENCE * (high - low), least)
    found: Floats = np.clip(values, low - reach, high + reach)
    return found


def together(values: Floats, members: npt.NDArray[np.bool_]) -> Floats:
    """Return a row for a group of rows: their mean in each round, less each one's own mean, the steady ones weighted
    more. The weights come from the spread over all rounds, which knows no labels."""
    own = values[members]
    centred = own - np.nanmean(own, axis=1, keepdims=True)
    weight = 1 / np.maximum(np.nanvar(own, axis=1, keepdims=True), _LEAST_SCALE**2)
    weight = np.where(np.isnan(own), 0.0, weight)
    total = weight.sum(axis=0)
    found: Floats = np.where(total > 0, np.nansum(weight * centred, axis=0) / np.where(total > 0, total, 1), np.nan)
    return found


def aligned(rounds: Rounds) -> tuple[Floats, Floats]:
    """Return the values with the means of base runs moved onto their common mean, and by how much each was moved.

    What is left is spread within runs, widened for the mean that was taken from it. Shapes: as `values`; rows by bases.
    """
    values, bases = rounds.values.copy(), [n for n in np.unique(rounds.run) if n > 0]
    if len(bases) < 2:
        return values, np.zeros((len(values), len(bases)))
    means = np.column_stack([_mean(values[:, rounds.run == n]) for n in bases])
    common = _mean(means)
    for place, number in enumerate(bases):
        mine = rounds.run == number
        count = np.maximum((~np.isnan(values[:, mine])).sum(axis=1, keepdims=True), 1)
        widened = np.sqrt(count / np.maximum(count - 1, 1))
        values[:, mine] = common[:, None] + widened * (values[:, mine] - means[:, place, None])
    return values, means - common[:, None]


def _mean(values: Floats) -> Floats:
    known = ~np.isnan(values)
    count = known.sum(axis=1)
    found: Floats = np.where(count > 0, np.where(known, values, 0).sum(axis=1) / np.maximum(count, 1), np.nan)
    return found


def spread(moved: Floats, scale: Floats, repeats: float, granted: float) -> Spread:
    """Return how much runs differ beyond what their repeats explain, by moments (DerSimonian and Laird, 1986).

    `moved`: rows by bases, of single measures; `scale`: their standard deviations within runs; `repeats` of each base;
    `granted`: the spread that is taken for granted. Of bases that share too few measures the others tell.
    """
    rows, chosen = _shared(~np.isnan(moved))
    bases = int(chosen.sum())
    if bases < 2:
        return Spread(1, granted)
    moved, noise = moved[np.ix_(rows, chosen)], scale[rows] ** 2 / repeats
    moved = moved - moved.mean(axis=1, keepdims=True)
    weight = (1 / noise) / (1 / noise).sum()
    whole = weight @ moved
    own = moved - whole
    single = 0.0
    if len(moved) > 1:
        single = float(weight @ ((own**2).sum(axis=1) / (bases - 1) - noise * (1 - weight)))
    seen = max(float((whole**2).sum() / (bases - 1)) - 1 / float((1 / noise).sum()), 0.0)
    both = (granted**2 + (bases - 1) * seen) / bases
    return Spread(bases, both**0.5, max(single, 0.0) ** 0.5, seen**0.5)


def _shared(known: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return rows that all of the chosen bases have, and which bases these are; at most one where none share any.

    The base without which most rows are shared goes first, until it is half of them: a night that was cut short does
    not take from the others what they tell.
    """
    chosen: npt.NDArray[np.bool_] = np.ones(known.shape[1], bool)
    least = known.any(axis=1).sum() / 2
    while (count := int(chosen.sum())) > 1:
        rows: npt.NDArray[np.bool_] = np.logical_and.reduce(known[:, chosen], axis=1)
        if rows.any() and (rows.sum() >= least or count == 2):
            return rows, chosen
        # rows that all others have; of several bases as good the one that has the fewest rows itself
        others = known[:, chosen].sum(axis=1, keepdims=True) - known == count - 1
        shared, own = others.sum(axis=0), known.sum(axis=0)
        chosen[max(np.flatnonzero(chosen), key=lambda n: (shared[n], -own[n]))] = False
    return np.zeros(len(known), bool), chosen


def labellings(now: int, base: int, rng: np.random.Generator) -> Floats:
    """Return 0/1 columns that say which rounds are taken for the run under test; the first column is how it was."""
    if comb(now + base, now) <= LABELLINGS:
        chosen = np.array(list(combinations(range(now + base), now)))
    else:
        chosen = np.argsort(rng.random((LABELLINGS, now + base)), axis=1)[:, :now]
        chosen[0] = np.arange(now)
    found = np.zeros((now + base, len(chosen)))
    found[chosen.T, np.arange(len(chosen))] = 1
    return found


def moderated(variance: Floats, freedom: Floats) -> Floats:
    """Return variances drawn towards their common value, as far as they are alike (Smyth 2004, section 6.2).

    `variance` and `freedom` are rows by labellings; the first labelling tells how alike they are.
    """
    least = _LEAST_SCALE**2
    variance = np.maximum(variance, least)
    first, own = variance[:, 0], np.maximum(freedom[:, 0], 1)
    if len(first) < 3:
        return variance
    told = np.log(first) - digamma(own / 2) + np.log(own / 2)
    excess = float(np.var(told, ddof=1) - np.mean(polygamma(1, own / 2)))
    if excess <= 0:
        return np.full_like(variance, np.exp(told.mean()))
    prior = 2 * _inverse_trigamma(excess)
    common = np.exp(told.mean() + digamma(prior / 2) - np.log(prior / 2))
    found: Floats = (prior * common + freedom * variance) / (prior + freedom)
    return found


def _inverse_trigamma(value: float) -> float:
    """Return x with trigamma(x) = value, by Newton's method (Smyth 2004, appendix)."""
    x = 0.5 + 1 / value
    for _ in range(50):
        first = float(polygamma(1, x))
        step = first * (1 - first / value) / float(polygamma(2, x))
        x += step
        if -step / x < 1e-8:
            break
    return x


def scales(rounds: Rounds) -> Floats:
    """Return the standard deviation of each row within its runs."""
    values, _ = aligned(rounds)
    label = (rounds.run == 0).astype(float)[:, None]
    _, variance, _, _ = _statistics(values, label)
    return np.sqrt(np.maximum(variance[:, 0], _LEAST_SCALE**2))


def judged(rounds: Rounds, between: Spread, alpha: float, seed: int = 0) -> tuple[Floats, Floats, Floats]:
    """Return for each row the p of being lower, and of being higher, in the run under test than in the bases, and how
    much lower it must be for a p of `alpha` (a logarithm).

    Each p is adjusted for all rows of the row's family, and doubled, for there are two families and two sides to keep.
    """
    rng = np.random.default_rng(seed)
    order = np.argsort(rounds.run, kind="stable")
    now = int((rounds.run == 0).sum())
    apart = float(np.hypot(between.whole, between.single))
    values = clipped(aligned(rounds)[0][:, order], _REACH * apart)
    labels = labellings(now, len(order) - now, rng)
    if between.whole or between.single:
        labels = labels[:, np.concatenate(([0], rng.integers(0, labels.shape[1], LABELLINGS - 1)))]
    shift, variance, per, freedom = _statistics(values, labels)
    bases = [~np.isnan(rounds.values[:, rounds.run == n]).all(axis=1) for n in np.unique(rounds.run) if n > 0]
    more = 1 + 1 / np.maximum(np.sum(bases, axis=0), 1)[:, None]
    scale = np.sqrt(moderated(variance, freedom) * per + apart**2 * more)
    drift = _drift(rng, shift.shape, between, more)
    found = []
    for sign in (-1.0, 1.0):
        statistic = sign * (shift + drift) / scale
        statistic[:, 0] = sign * shift[:, 0] / scale[:, 0]
        found.append(_adjusted(statistic, rounds.family, alpha))
    (worse, least), (better, _) = found
    return worse, better, least * scale[:, 0]


def _drift(rng: np.random.Generator, shape: tuple[int, int], between: Spread, more: Floats) -> Floats:
    """Return what runs would differ by themselves in each labelling: as a whole, and each measure by its own.

    `more`, of each row: the run's own part, and that of the mean of its bases.
    """
    whole = rng.standard_normal(shape[1]) if between.bases < 2 else rng.standard_t(between.bases, shape[1])
    found: Floats = between.whole * more**0.5 * whole + between.single * more**0.5 * rng.standard_normal(shape)
    return found


def _statistics(values: Floats, labels: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Return, rows by labellings, the shift of means, the variance within, 1/n + 1/m and the degrees of freedom."""
    known = ~np.isnan(values)
    held = np.where(known, values - _mean(values)[:, None], 0.0)
    count, weight = known.astype(float), held**2
    first, all_of = count @ labels, count.sum(axis=1, keepdims=True)
    second = all_of - first
    with np.errstate(divide="ignore", invalid="ignore"):
        sum_first, total = held @ labels, held.sum(axis=1, keepdims=True)
        mean_first, mean_second = sum_first / first, (total - sum_first) / second
        within = weight.sum(axis=1, keepdims=True) - first * mean_first**2 - second * mean_second**2
        freedom = np.maximum(all_of - 2, 1) * np.ones_like(first)
        per = 1 / first + 1 / second
        shift = np.where((first > 0) & (second > 0), mean_first - mean_second, 0.0)
    per = np.where(np.isfinite(per), per, 2.0)
    return shift, np.nan_to_num(np.maximum(within, 0) / freedom), per, freedom


def _adjusted(statistic: Floats, family: Ints, alpha: float) -> tuple[Floats, Floats]:
    """Return the p of each row, adjusted for its family, and the statistic that has a p of `alpha` there."""
    found, least = np.ones(len(statistic)), np.zeros(len(statistic))
    for number in np.unique(family):
        mine = family == number
        greatest = statistic[mine].max(axis=0)
        # the first labelling is what was seen: it counts among those that reach its own statistic
        reached = greatest[None, :] >= statistic[mine][:, :1] - 1e-12
        found[mine] = np.minimum(2 * reached.mean(axis=1), 1)
        least[mine] = np.quantile(greatest, 1 - alpha / 2)
    return found, least
