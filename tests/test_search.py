"""The search along an axis: its keys, bisection against brute force, and the plan that asks for its trials."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sweep import config
from sweep.adaptive import Adaptive, plan_of
from sweep.definition import Search
from sweep.errors import ConfigError
from sweep.plan import Grid
from sweep.repeats import Tally
from sweep.search import Path as Followed
from sweep.search import followed, lengths
from sweep.selection import Selection

WORKLOAD = {"kind": "command", "argv": ["true", "{n}"], "values": {"n": 1}}
SEARCH = {"axis": "workload.values.n", "values": [1, 2, 4, 8, 16], "metric": "read.d2c_p99_us", "at_most": 200}

UNTIL = {"until": "ci", "max": 5}


def write(folder: Path, **keys: Any) -> Path:
    file = folder / "s.yaml"
    file.write_text(yaml.safe_dump({"workload": WORKLOAD, **keys}, sort_keys=False))
    return file


def plan(folder: Path, words: Sequence[str] = (), **keys: Any) -> Adaptive:
    found = plan_of(config.load(str(write(folder, **{"search": SEARCH, **keys})), words))
    assert isinstance(found, Adaptive)
    return found


# --- the bisection ---------------------------------------------------------------------------------------------------


def run_alone(rule: Search, count: int, measure: Callable[[int], Tally]) -> tuple[Followed, Counter[int]]:
    """Follow a search to its end, every trial measured as it is asked for; return its path and the trials by value."""
    ended: list[list[Tally]] = [[] for _ in range(count)]
    while True:
        path = followed(rule, [str(place) for place in range(count)], ended)
        if path.border is not None:
            return path, Counter({place: len(own) for place, own in enumerate(ended) if own})
        for step in path.open:
            while len(ended[step.place]) < path.seen[step.place].ended + step.trials:
                ended[step.place].append(measure(step.place))


@given(st.integers(2, 70), st.data(), st.integers(1, 4), st.integers(0, 4))
def test_without_noise_it_finds_what_brute_force_finds(count: int, data: Any, confirm: int, more: int) -> None:
    border = data.draw(st.integers(-1, count - 1))
    rule = Search(at_most=100, confirm=confirm, max=confirm + more)
    values = [50.0 + place / count if place <= border else 150.0 + place for place in range(count)]
    path, trials = run_alone(rule, count, lambda place: Tally((values[place],)))
    assert path.border == border == sum(value <= 100 for value in values) - 1
    assert trials.total() <= count * confirm
    assert all(own <= confirm for own in trials.values())
    assert trials.total() <= lengths(rule, count)[1]
    sides = [place for place in (border, border + 1) if 0 <= place < count]
    assert [trials[place] for place in sides] == [confirm] * len(sides)


@given(st.integers(2, 40), st.data())
def test_values_that_cannot_run_do_not_meet_the_target(count: int, data: Any) -> None:
    border = data.draw(st.integers(-1, count - 1))
    path, trials = run_alone(
        Search(at_most=100, confirm=3, max=6),
        count,
        lambda place: Tally((10.0,)) if place <= border else Tally((), ("failed; out of memory",)),
    )
    assert path.border == border
    assert max([trials[place] for place in range(border + 1, count)], default=0) <= 2
    assert trials.total() <= count * 3


@settings(deadline=None)
@given(st.integers(2, 40), st.integers(0, 10**6), st.floats(0.01, 0.2))
def test_with_noise_it_ends_within_its_bound_and_is_right_beyond_the_noise(count: int, seed: int, noise: float) -> None:
    """Values are log-normal about a rising curve; the border found is that of brute force, or within the noise."""
    chance = random.Random(seed)
    rule = Search(at_most=100, confirm=3, max=6)
    curve = sorted(chance.uniform(20, 500) for _ in range(count))
    path, trials = run_alone(rule, count, lambda place: Tally((curve[place] * chance.lognormvariate(0, noise),)))
    assert path.border is not None
    assert max(trials.values()) <= rule.max
    assert trials.total() <= count * rule.max
    for place in (path.border, path.border + 1):
        if 0 <= place < count and curve[place] / 100 > 1 + 5 * noise:
            assert place > path.border
        if 0 <= place < count and curve[place] / 100 < 1 / (1 + 5 * noise):
            assert place <= path.border


def test_a_wrong_decision_on_the_way_is_put_right_beside_the_border() -> None:
    """The first trial of the value in the middle says that it fails; its repeats say that it does not."""
    answers: dict[int, list[float]] = {7: [900.0, 50.0, 51.0]}

    def measure(place: int) -> Tally:
        return Tally((answers[place].pop(0) if place in answers else 50.0 if place <= 10 else 150.0,))

    path, trials = run_alone(Search(at_most=100, confirm=3, max=6), 15, measure)
    assert path.border == 10
    assert trials[7] == 3
    assert [step.place for step in path.steps][:4] == [7, 3, 5, 6]


def test_a_value_whose_interval_holds_the_target_gets_more_trials_up_to_the_bound() -> None:
    values = iter([90, 112, 95, 97, 99, 108])
    measured = {0: lambda: 10.0, 1: lambda: float(next(values)), 2: lambda: 500.0}
    path, trials = run_alone(Search(at_most=100, confirm=3, max=6), 3, lambda place: Tally((measured[place](),)))
    assert path.border == 1  # by the median, 98
    assert trials == {1: 6, 2: 3}
    assert "its interval holds the target" in [step.why for step in path.steps]


def test_invalid_trials_say_nothing_of_their_value() -> None:
    """The first two trials of the value in the middle lose events; its next ones meet the target."""
    left = {7: ["invalid; lost 3 events"] * 2}

    def measure(place: int) -> Tally:
        bad = left.get(place) or []
        return Tally((), (bad.pop(),)) if bad else Tally((50.0 if place <= 7 else 150.0,))

    path, trials = run_alone(Search(at_most=100, confirm=3, max=6), 15, measure)
    assert path.border == 7
    assert trials[7] == 5


# --- the plan --------------------------------------------------------------------------------------------------------


def record(value: float | None = None, state: str = "valid", **more: Any) -> dict[str, Any]:
    verdict = {"state": state, "reasons": [] if state == "valid" else ["out of memory"]}
    return {
        "verdict": verdict,
        "warmup": False,
        **({"observed": {"value": value}} if value is not None else {}),
        **more,
    }


def driven(
    found: Adaptive, measure: Callable[[Any], Mapping[str, Any]], finished: dict[str, Any] | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Run a plan, one trial after the other; return the records and the ids in the order they ran."""
    finished, order = dict(finished or {}), []
    while new := found.next_trials(finished):
        for trial in new:
            if trial.id not in finished:
                order.append(trial.id)
                finished[trial.id] = measure(trial)
    return finished, order


def test_one_search_for_each_remaining_cell_with_the_ids_of_the_grid(tmp_path: Path) -> None:
    found = plan(tmp_path, grid={"storage.fs": ["ext4", "xfs"]})
    _, order = driven(found, lambda trial: record(trial.cell["n"] * (20 if trial.cell["fs"] == "xfs" else 60)))
    grid = write(tmp_path, grid={"storage.fs": ["ext4", "xfs"], "workload.values.n": [1, 2, 4, 8, 16]}, repeats=6)
    assert len(order) == len(set(order)) == 14
    assert set(order) <= {trial.id for trial in Grid(config.load(str(grid))).trials}
    first, second = found.outcome()["searches"]
    assert (first["cell"], first["answer"], first["beyond"], first["state"]) == ({"fs": "ext4"}, 2, 4, "found")
    assert (second["answer"], second["beyond"], second["trials"], second["grid"]) == (8, 16, 7, 15)
    assert found.told() == [
        "fs=ext4: largest n with read.d2c_p99_us <= 200: 2 (7 trials; the grid has 15)",
        "fs=xfs: largest n with read.d2c_p99_us <= 200: 8 (7 trials; the grid has 15)",
    ]
    assert not found.is_open


@pytest.mark.parametrize(
    ("factor", "keys", "told"),
    [
        (1, {}, "16, the last that there is: the border was not found"),
        (900, {}, "none, 1 does not meet it either"),
        (20, {"find": "smallest", "at_most": None, "at_least": 100}, "8"),
        (
            20,
            {"find": "smallest", "at_most": None, "at_least": 1},
            "1, the last that there is: the border was not found",
        ),
    ],
)
def test_every_end_is_told(tmp_path: Path, factor: int, keys: Any, told: str) -> None:
    found = plan(tmp_path, search={**SEARCH, **keys})
    driven(found, lambda trial: record(trial.cell["n"] * factor))
    (line,) = found.told()
    assert f": {told} (" in line


def test_a_failed_value_is_told_and_none_beyond_the_border_is_tried(tmp_path: Path) -> None:
    found = plan(tmp_path)
    driven(found, lambda trial: record(state="failed") if trial.cell["n"] == 16 else record(10.0))
    assert found.told()[1:] == ["  16 did not run: failed; out of memory"]
    found = plan(tmp_path)
    values = {1: 10, 2: 10, 4: 300, 8: 20, 16: 500}
    seen, _ = driven(found, lambda trial: record(values[trial.cell["n"]]))
    assert found.outcome()["searches"][0]["answer"] == 2
    assert not [name for name in seen if name.startswith("n=8")]


def test_values_that_are_not_monotone_are_told(tmp_path: Path) -> None:
    """The repeats of both values beside the first border say the contrary of their first trials."""
    found = plan(tmp_path, search={**SEARCH, "values": [1, 2, 3, 4, 5, 6, 7]})
    first = {"n=3,rep=1": 20.0, "n=4,rep=1": 300.0}
    driven(found, lambda trial: record(first.get(trial.id, 20.0 if trial.cell["n"] in (1, 2, 4) else 300.0)))
    assert found.told()[0].startswith("largest n with read.d2c_p99_us <= 200: 4 (")
    assert found.told()[-1] == "  not monotone: 4 meets it although 3 does not"


def test_what_rests_on_few_valid_trials_is_told(tmp_path: Path) -> None:
    def measure(trial: Any) -> dict[str, Any]:
        if trial.cell["n"] == 8 or (trial.cell["n"] == 4 and trial.repeat > 1):
            return record(state="invalid")
        return record(trial.cell["n"] * 10.0)

    found = plan(tmp_path)
    driven(found, measure)
    assert found.told() == [
        "largest n with read.d2c_p99_us <= 200: 4 (12 trials; the grid has 15)",
        "  4 is uncertain: decided by the median of 1 valid trial",
        "  4 had 6 trials, of which 5 were not valid: invalid; out of memory",
        "  8 is uncertain: it has no valid trial",
        "  8 had 6 trials, of which 6 were not valid: invalid; out of memory",
    ]
    tried = {row["value"]: row["sure"] for row in found.outcome()["searches"][0]["tried"]}
    assert tried == {4: False, 8: False}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 12), st.sampled_from(["interleaved", "listed", "random"]))
def test_a_resumed_plan_goes_on_as_if_it_had_not_stopped(
    tmp_path_factory: pytest.TempPathFactory, seed: int, stop: int, order: str
) -> None:
    folder = tmp_path_factory.mktemp("resumed")
    keys: dict[str, Any] = {"grid": {"storage.fs": ["ext4", "xfs"]}, "order": order, "warmups": 1}
    keys |= {"seed": 3} if order == "random" else {}
    results: dict[str, dict[str, Any]] = {}
    chance = random.Random(seed)

    def measure(trial: Any) -> dict[str, Any]:
        value = trial.cell["n"] * 25 * chance.lognormvariate(0, 0.2)
        told = record(state="failed") if chance.random() < 0.1 else record(value)
        return results.setdefault(trial.id, told | {"warmup": trial.warmup})

    whole = plan(folder, **keys)
    finished, ran = driven(whole, measure)
    again = plan(folder, **keys)
    _, rest = driven(again, measure, {name: finished[name] for name in ran[:stop]})
    assert set(rest) == set(ran[stop:])
    assert again.outcome() == whole.outcome()
    first = {name.rpartition(",")[0]: ran.index(name) for name in reversed(ran) if "rep=" in name}
    warm = {name.rpartition(",")[0]: ran.index(name) for name in ran if "warmup=" in name}
    assert all(warm[cell] < first[cell] for cell in first)


def test_a_metric_that_no_trial_has_ends_the_plan(tmp_path: Path) -> None:
    found = plan(tmp_path)
    missing = {"observed": {"missing": "no phase 'load'; phases: trial, job"}}
    _, order = driven(found, lambda trial: record(**missing))
    assert order == ["n=4,rep=1"]
    assert found.trouble == "n=4,rep=1 has no read.d2c_p99_us: no phase 'load'; phases: trial, job"


def test_a_metric_that_reused_trials_lack_ends_a_resumed_plan_at_once(tmp_path: Path) -> None:
    found = plan(tmp_path)
    had = {f"n={n},rep=1": record(observed={"missing": "no phase 'load'"}) for n in (2, 4)}
    _, order = driven(found, lambda trial: record(1.0), had)
    assert order == []
    assert found.trouble == "n=2,rep=1 has no read.d2c_p99_us: no phase 'load'"
    assert found.told() == ["largest n with read.d2c_p99_us <= 200: not found yet (0 trials; the grid has 15)"]


@pytest.mark.parametrize(("state", "searches", "stops"), [("failed", 1, 0), ("invalid", 1, 1), ("failed", 0, 1)])
def test_a_value_that_cannot_run_does_not_stop_the_run(tmp_path: Path, state: str, searches: int, stops: int) -> None:
    pytest.importorskip("ray")
    from sweep.placement import Placements
    from sweep.scheduler import Policy, Scheduler

    found = plan(tmp_path) if searches else Grid(config.load(str(write(tmp_path))))
    nothing: Any = None
    scheduler = Scheduler("s", "k", found, Placements([]), nothing, nothing, Policy(max_failures=1))
    scheduler._keep(found.trials[0], record(state=state))
    assert (scheduler.stopped_by is not None) == bool(stops)


def test_selected_trials_only(tmp_path: Path) -> None:
    sweep = config.load(str(write(tmp_path, search=SEARCH)))
    found = plan_of(sweep)
    assert isinstance(found, Adaptive)
    found.select(Selection(only=("n <= 4 and rep <= 2",)).of(found.trials, sweep))
    _, order = driven(found, lambda trial: record(trial.cell["n"] * 70))
    assert set(order) == {f"n={n},rep={k}" for n in (2, 4) for k in (1, 2)}


@pytest.mark.parametrize(
    ("names", "ran"),
    [
        (["n=4,warmup=1"], ["n=4,warmup=1"]),
        (["n=4,warmup=1", "n=8,rep=1"], ["n=4,warmup=1", "n=8,rep=1"]),
        (["n=4,warmup=1", "n=4,rep=1"], ["n=4,warmup=1", "n=4,rep=1"]),
    ],
)
@pytest.mark.parametrize("keys", [{}, {"search": None, "grid": {"workload.values.n": [4, 8]}, "repeats": UNTIL}])
def test_a_warmup_that_was_selected_runs(tmp_path: Path, names: list[str], ran: list[str], keys: Any) -> None:
    sweep = config.load(str(write(tmp_path, **{"search": SEARCH, "warmups": 2, **keys})))
    found = plan_of(sweep)
    assert isinstance(found, Adaptive)
    found.select(Selection(trials=tuple(names)).of(found.trials, sweep))
    assert [[trial.id for trial in trials] for trials in found.extent()] == [sorted(ran, key=_warmups_first)] * 2
    assert found.certain() == set(ran)
    _, order = driven(found, lambda trial: record(1.0, warmup=trial.warmup))
    assert sorted(order) == sorted(ran)
    assert order.index("n=4,warmup=1") == 0


def test_a_dry_run_of_a_warmup_alone_counts_it(tmp_path: Path) -> None:
    from sweep.preview import _size

    sweep = config.load(str(write(tmp_path, search=SEARCH, warmups=1)))
    found = plan_of(sweep)
    found.select(Selection(trials=("n=4,warmup=1",)).of(found.trials, sweep))
    assert _size(found).startswith("1 of 35 trials selected, 1 warm-up among them")


def _warmups_first(name: str) -> bool:
    return "warmup" not in name


def test_a_scenario_searches_below_a_sweep_that_repeats(tmp_path: Path) -> None:
    part = {"a": {"repeats": 1, "search": SEARCH}, "b": {}}
    found = plan(tmp_path, search={"axis": None}, scenarios=part, repeats=5)
    counts = Counter(trial.cell["scenario"] for trial in found.trials)
    assert counts == {"a": 5 * 6, "b": 5}


def test_what_was_run_runs_it_again(tmp_path: Path) -> None:
    keys = {"grid": {"storage.fs": ["ext4", "xfs"]}, "search": {**SEARCH, "values": {"from": 1, "to": 16, "factor": 2}}}
    sweep = config.load(str(write(tmp_path, **keys)))
    (tmp_path / "again.yaml").write_text(config.as_yaml(sweep))
    again = config.load(str(tmp_path / "again.yaml"))
    assert again.search == sweep.search
    assert [trial.id for trial in Grid(again).trials] == [trial.id for trial in Grid(sweep).trials]
    assert sweep.search is not None
    assert sweep.search.values == [1, 2, 4, 8, 16]


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "words", "told"),
    [
        ({}, ["search.axis=workload.value.n"], r"search\.axis: no such key.*\n.*did you mean|workload\.values\.n"),
        ({"grid": {"workload.values.n": [1, 2]}}, [], r"search\.axis: workload\.values\.n is an axis of grid already"),
        ({}, ["search.metric=read.d2c_p9_us"], r"search\.metric: .*did you mean read\.d2c_p9"),
        ({}, ["search.metric=null"], r"search\.metric: is missing"),
        ({}, ["search.at_least=3"], r"search\.at_most: state one of at_most and at_least"),
        ({}, ["search.at_most=null"], r"search\.at_most: state one of"),
        ({}, ["search.at_most=low"], r"search\.at_most: must be a number, not 'low'"),
        ({}, ["search.at_most=.nan"], r"search\.at_most: must be a number, not nan"),
        ({}, ["search.values={from: .inf, to: 8, step: 1}"], r"search\.values\.from: must be a whole number"),
        ({}, ["search.values=[1]"], r"search\.values: must be a list of two values or more"),
        ({}, ["search.values=[4,2,8]"], r"search\.values: must be in ascending order.*\n.*\[2, 4, 8\]"),
        ({}, ["search.values=[4,4,8]"], r"search\.values: lists 4 twice; search\.max says"),
        ({}, ["search.values=[1MiB,1024KiB]"], r"search\.values: lists a value twice"),
        ({}, ["search.values=[slow,fast,slow]"], r"search\.values: lists 'slow' twice"),
        ({"repeats": 5, "scenarios": {"a": {}}}, [], r"scenarios\.a: repeats: would not .*\n.*write repeats: 1"),
        ({}, ["search.values={from: 1, to: 8}"], r"search\.values: a range has from, to, and one of step and factor"),
        (
            {},
            ["search.values={from: 1, to: 8, facto: 2}"],
            r"search\.values\.facto: unknown key\n.*did you mean factor",
        ),
        ({}, ["search.values={from: 0, to: 8, factor: 2}"], r"search\.values: does not ascend"),
        ({}, ["search.confirm=0"], r"search\.confirm: must be 1 or more"),
        ({}, ["search.max=2"], r"search\.max: must be search\.confirm, which is 3, to"),
        ({}, ["search.find=biggest"], r"search\.find: must be one of largest, smallest"),
        ({}, ["search.confrim=3"], r"search\.confrim: unknown key\n.*did you mean search\.confirm"),
        ({}, ["repeats=3"], r"repeats: would not be used: search\.confirm"),
        ({}, ["workload.values.n=3"], r"is an axis of this sweep\n.*search\.values=\[3\]"),
        ({"search": {"values": [1, 2]}}, [], r"search\.axis: is missing"),
        ({"search": 5}, [], r"search: must hold keys, not 5"),
    ],
)
def test_a_mistake_is_one_clear_message(tmp_path: Path, keys: Any, words: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        plan(tmp_path, words, **keys)
