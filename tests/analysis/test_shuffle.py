"""The test of many measures at once: levels, what it can see, and its parts against their definitions."""

from __future__ import annotations

from itertools import combinations, product
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from analysis import shuffle
from analysis.ratio import shift
from analysis.shuffle import Rounds, Spread

NOTHING = Spread(1, 0.0)


def p_values(told: Rounds, between: Spread, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return shuffle.judged(told, between, 0.05, seed)[:2]


def rounds(
    seed: int, rows: int = 24, bases: int = 1, repeats: int = 5, noise: float = 0.02, night: float = 0.0
) -> Rounds:
    rng = np.random.default_rng(seed)
    runs = [night * rng.standard_normal() + noise * rng.standard_t(3, (rows, repeats)) for _ in range(bases + 1)]
    return Rounds(np.hstack(runs), np.repeat(np.arange(bases + 1), repeats), np.ones(rows, np.int64))


def between(told: Rounds, granted: float = 0.0) -> Spread:
    return shuffle.spread(shuffle.aligned(told)[1], shuffle.scales(told), 5, granted)


def test_of_equal_runs_at_most_the_level_raises_an_alarm() -> None:
    alarms = [min(p_values(rounds(seed), NOTHING, seed)[0].min(), 1) <= 0.1 for seed in range(300)]
    # of one side the level is half: 15 expected of 300, more than 27 once in a thousand times
    assert sum(alarms) <= 27


def test_one_slow_measure_of_many_is_seen_and_named() -> None:
    found = 0
    for seed in range(40):
        told = rounds(seed)
        told.values[3, :5] -= 0.11
        worse, better = p_values(told, NOTHING, seed)
        found += bool(worse[3] <= 0.05)
        assert not (better <= 0.01).any()
    assert found >= 34


def test_runs_that_differ_by_themselves_raise_no_alarm_where_several_bases_tell() -> None:
    alarms = {1: 0, 5: 0}
    for seed, bases in product(range(60), alarms):
        told = rounds(seed, rows=6, bases=bases, night=0.05)
        alarms[bases] += bool(p_values(told, between(told), seed)[0].min() <= 0.05)
    assert alarms[5] <= 7
    assert alarms[1] > 15  # one base cannot know, which is why the page says so


def test_the_spread_between_bases_is_found() -> None:
    seen = [between(rounds(seed, bases=8, night=0.05)).seen or 0 for seed in range(30)]
    assert np.mean(seen) == pytest.approx(0.05, abs=0.01)
    quiet = [between(rounds(seed, bases=8)) for seed in range(30)]
    assert max(one.seen or 0 for one in quiet) < 0.01
    assert between(rounds(1), granted=0.02) == Spread(1, 0.02)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.floats(-3, 3))
def test_units_and_the_order_of_rounds_do_not_matter(seed: int, unit: float) -> None:
    told = rounds(seed, rows=5)
    order = np.random.default_rng(seed).permutation(told.run.size)
    other = Rounds(told.values[:, order] + unit, told.run[order], told.family)
    for one, two in zip(p_values(told, NOTHING), p_values(other, NOTHING), strict=True):
        np.testing.assert_allclose(one, two)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.integers(0, 20))
def test_missing_rounds_leave_a_p_between_its_least_and_one(seed: int, gone: int) -> None:
    told = rounds(seed, rows=4)
    rng = np.random.default_rng(seed)
    told.values[rng.integers(0, 4, gone), rng.integers(0, 10, gone)] = np.nan
    for p in p_values(told, NOTHING):
        assert np.isfinite(p).all()
        assert ((p >= shuffle.least_p(5, 5) - 1e-12) & (p <= 1)).all()


@pytest.mark.parametrize(("place", "outlier"), [(7, 3.0), (2, -3.0)])
def test_an_outlier_beside_a_change_does_not_hide_it(place: int, outlier: float) -> None:
    told = rounds(1, noise=0.01)
    told.values[:, :5] -= 0.11
    told.values[:, place] += outlier
    assert (p_values(told, NOTHING)[0] <= 0.05).sum() >= 20


@pytest.mark.parametrize("place", [2, 7])
def test_one_outlier_is_no_change(place: int) -> None:
    told = rounds(5, noise=0.01)
    told.values[:, place] -= 3.0
    assert min(p.min() for p in p_values(told, NOTHING)) > 0.05


def test_a_single_measure_is_tested_as_all_orders_of_its_rounds_say() -> None:
    told = rounds(4, rows=1)
    values = shuffle.clipped(told.values)[0]

    def statistic(chosen: tuple[int, ...]) -> float:
        own = values[list(chosen)]
        rest = np.delete(values, list(chosen))
        pooled = (own.var() * own.size + rest.var() * rest.size) / (values.size - 2)
        return -(own.mean() - rest.mean()) / np.sqrt(pooled * (1 / own.size + 1 / rest.size))

    seen = statistic((0, 1, 2, 3, 4))
    reached = [statistic(chosen) >= seen - 1e-9 for chosen in combinations(range(10), 5)]
    assert p_values(told, NOTHING)[0][0] == pytest.approx(min(2 * np.mean(reached), 1))


def test_what_it_takes_is_where_the_level_is_reached() -> None:
    told = rounds(8, noise=0.02)
    worse, _, least = shuffle.judged(told, Spread(1, 0.01), 0.05)
    assert (worse > 0.05).all()
    for more, expected in ((0.6, False), (1.6, True)):
        other = Rounds(told.values.copy(), told.run, told.family)
        other.values[:, :5] += np.nanmean(other.values[:, 5:], axis=1, keepdims=True)
        other.values[:, :5] -= np.nanmean(other.values[:, :5], axis=1, keepdims=True) + more * least[:, None]
        assert (shuffle.judged(other, Spread(1, 0.01), 0.05)[0].min() <= 0.05) == expected


@pytest.mark.parametrize(("alpha", "needed"), [(0.05, 4), (0.01, 5), (0.2, 3)])
def test_how_many_repeats_can_reach_a_level(alpha: float, needed: int) -> None:
    assert shuffle.repeats_needed(alpha) == needed
    assert 2 / comb(2 * needed, needed) <= alpha < 2 / comb(2 * needed - 2, needed - 1)


# --- the size of a change --------------------------------------------------------------------------------------------

numbers = st.lists(st.integers(-50, 50).map(float), min_size=2, max_size=7)


@given(numbers, numbers)
def test_the_estimate_is_the_median_of_all_differences(now: list[float], base: list[float]) -> None:
    told = shift(now, base)
    assert told.estimate == np.median([one - other for one in now for other in base])
    assert told.low <= told.estimate <= told.high


@settings(deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=10, max_size=14, unique=True), st.floats(-8, 8))
def test_the_interval_holds_what_the_rank_test_does_not_reject(values: list[float], moved: float) -> None:
    now, base = values[:5], values[5:]
    told = shift(now, base)
    differences = [one - other for one in now for other in base]
    if min(abs(moved - one) for one in differences) < 1e-6:
        return
    p = mannwhitneyu([one - moved for one in now], base, method="exact").pvalue
    assert (told.low < moved < told.high) == (p > 0.05)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    told = [shift(rng.standard_t(3, 5) + 1, rng.standard_t(3, 5)) for _ in range(600)]
    covered = np.mean([one.low <= 1 <= one.high for one in told])
    assert told[0].covered == pytest.approx(0.968, abs=0.001)
    assert covered == pytest.approx(told[0].covered, abs=0.025)


def test_many_values_have_a_normal_interval() -> None:
    rng = np.random.default_rng(6)
    told = shift(rng.standard_normal(60), rng.standard_normal(60))
    assert 0.25 < (told.high - told.low) / 2 < 0.5
