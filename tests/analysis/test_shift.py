"""Steps in a series of nights: found on the right night, and none where there is none."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.shift import LEAST_NIGHTS, shifts


def series(seed: int, levels: list[tuple[int, float]], repeats: int = 5, noise: float = 0.02, night: float = 0.01):
    """Return values and their nights: so many nights at each level."""
    rng = np.random.default_rng(seed)
    values, groups = [], []
    for count, level in levels:
        for _ in range(count):
            base = level * np.exp(night * rng.standard_normal())
            values += list(base * np.exp(noise * rng.standard_t(3, repeats)))
            groups += [len(values)] * repeats
    return values, groups


def test_a_step_in_the_middle_of_two_weeks_is_on_the_right_night() -> None:
    found = [shifts(*series(seed, [(7, 2.0), (7, 1.8)])) for seed in range(40)]
    assert sum([one.index for one in told] == [7] for told in found) >= 36
    (step,) = found[0]
    assert step.before == pytest.approx(2.0, rel=0.03)
    assert step.after == pytest.approx(1.8, rel=0.03)
    assert step.change == pytest.approx(-0.1, abs=0.03)
    assert step.p <= 0.01


def test_steady_nights_have_no_step() -> None:
    assert sum(bool(shifts(*series(seed, [(30, 2.0)], night=0.1), threshold=0)) for seed in range(100)) <= 4


def test_two_steps_are_both_found() -> None:
    told = shifts(*series(3, [(12, 2.0), (12, 1.6), (12, 2.2)]))
    assert [one.index for one in told] == [12, 24]
    assert [round(one.after, 1) for one in told] == [1.6, 2.2]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 500), st.integers(0, 13), st.sampled_from([0.1, 0.5, 3.0, 50.0]))
def test_one_night_that_is_far_off_makes_no_step_and_hides_none(seed: int, place: int, factor: float) -> None:
    def spoilt(levels: list[tuple[int, float]]) -> list[int]:
        values, groups = series(seed, levels, noise=0.005, night=0.001)
        values[place * 5 : place * 5 + 5] = [factor * value for value in values[place * 5 : place * 5 + 5]]
        return [one.index for one in shifts(values, groups)]

    assert spoilt([(14, 2.0)]) == []
    found = spoilt([(7, 2.0), (7, 1.7)])
    # the night at the edge may go with either side
    assert all(abs(one - 7) <= 1 for one in found)


@pytest.mark.parametrize(("nights", "alpha", "found"), [(8, 0.01, False), (10, 0.01, True), (8, 0.05, True)])
def test_how_many_nights_can_reach_a_level(nights: int, alpha: float, found: bool) -> None:
    told = shifts(*series(1, [(nights // 2, 2.0), (nights // 2, 1.0)]), alpha=alpha)
    assert [one.index for one in told] == ([nights // 2] if found else [])


@pytest.mark.parametrize(("series_of", "enough"), [(24, 13), (100, 15)])
def test_how_many_nights_a_history_of_many_series_needs(series_of: int, enough: int) -> None:
    for nights in (enough - 1, enough):
        values, groups = series(1, [(nights // 2, 2.0), (nights - nights // 2, 1.0)], noise=0.005)
        reached = [bool(shifts(values, groups, alpha=0.05 / series_of, seed=seed)) for seed in range(10)]
        assert (sum(reached) >= 9) == (nights == enough), (nights, reached)


def test_a_clear_step_has_a_p_that_a_thousand_series_can_use() -> None:
    assert shifts(*series(1, [(15, 2.0), (15, 1.0)]))[0].p == pytest.approx(1 / 20_000)


def test_a_small_step_does_not_matter_however_sure() -> None:
    values, groups = series(1, [(15, 2.0), (15, 1.96)], noise=0.001, night=0.001)
    assert shifts(values, groups) == []
    assert [one.index for one in shifts(values, groups, threshold=0.01)] == [15]


def test_the_last_nights_alone_are_no_level_yet() -> None:
    assert shifts(*series(1, [(12, 2.0), (LEAST_NIGHTS - 1, 1.0)])) in ([],)
    assert [one.index for one in shifts(*series(1, [(12, 2.0), (LEAST_NIGHTS + 2, 1.0)]))] == [12]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.5, 2), max_size=24), st.floats(0.1, 10))
def test_units_do_not_matter_and_every_step_lies_inside(values: list[float], unit: float) -> None:
    found = shifts(values, alpha=0.2, threshold=0.1)
    other = shifts([unit * value for value in values], alpha=0.2, threshold=0.1)
    assert [one.index for one in found] == [one.index for one in other]
    for one in found:
        assert LEAST_NIGHTS <= one.index <= len(values) - LEAST_NIGHTS
        assert abs(one.change) >= 0.1
        assert 0 < one.p <= 0.2


def test_nights_without_a_value_keep_their_place() -> None:
    values, groups = series(2, [(8, 2.0), (8, 1.5)])
    for place in (3, 7, 10):
        values[place * 5 : place * 5 + 5] = [math.nan] * 5
    assert [one.index for one in shifts(values, groups)] == [8]


@pytest.mark.parametrize("values", [[], [1.0], [math.nan] * 9, [2.0] * 20, [0.0] * 20])
def test_nothing_to_see_is_no_step(values: list[float]) -> None:
    assert shifts(values) == []


def test_each_value_needs_its_night() -> None:
    with pytest.raises(ValueError, match="each needs its night"):
        shifts([1.0, 2.0], [1])
