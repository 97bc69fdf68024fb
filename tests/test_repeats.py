"""Repeats until a mean is known: the keys, the rule and its coverage, the plan that asks for them."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.intervals import interval
from sweep import adaptive, config, repeats
from sweep.adaptive import Adaptive, plan_of
from sweep.definition import Until
from sweep.errors import ConfigError
from sweep.placement import Placements
from sweep.repeats import Tally
from tests.test_search import driven, record

RULE = {"until": "ci", "rel": 0.05, "max": 10}


def plan(folder: Path, words: list[str] | None = None, **keys: Any) -> Adaptive:
    base = {"workload": {"kind": "command", "argv": ["true"]}, "grid": {"storage.fs": ["ext4", "xfs", "btrfs"]}}
    (folder / "s.yaml").write_text(yaml.safe_dump({**base, "repeats": RULE, **keys}, sort_keys=False))
    found = plan_of(config.load(str(folder / "s.yaml"), words or []))
    assert isinstance(found, Adaptive)
    return found


@given(st.lists(st.floats(0.001, 1e6), min_size=2, max_size=10), st.floats(0.001, 0.5))
def test_the_rule_is_the_interval(values: list[float], rel: float) -> None:
    ends = interval(values)
    assert ends is not None
    mean = sum(values) / len(values)
    reached = repeats.spread(Until(rel=rel), Tally(tuple(values)))
    assert reached == pytest.approx((ends[1] - ends[0]) / 2 / mean, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(("noise", "least"), [(0.01, 0.93), (0.03, 0.88), (0.06, 0.85)])
def test_how_often_the_interval_holds_the_mean(noise: float, least: float) -> None:
    """Stopping when the repeats happen to agree costs some of the 95 %; docs/search.md tells these numbers."""
    chance, rule, held, taken = random.Random(7), Until(rel=0.05, max=10), 0, 0
    for _ in range(4000):
        own = Tally()
        while (count := repeats.wanted(rule, own)) > own.ended:
            own = Tally((*own.values, *(chance.gauss(1, noise) for _ in range(count - own.ended))))
        ends = own.interval()
        assert ends is not None
        held += ends[0] <= 1 <= ends[1]
        taken += own.ended
    assert held / 4000 >= least
    assert 3 <= taken / 4000 <= 10


@given(st.lists(st.one_of(st.none(), st.floats(1, 100)), max_size=14), st.integers(2, 5), st.integers(0, 7))
def test_it_ends_at_its_bound_whatever_comes(outcomes: list[float | None], least: int, more: int) -> None:
    rule = Until(min=least, max=least + more)
    own, left = Tally(), [*outcomes, *[None] * rule.max]
    while (count := repeats.wanted(rule, own)) > own.ended:
        value = left.pop(0)
        own = Tally((*own.values, value), own.bad) if value is not None else Tally(own.values, (*own.bad, "failed"))
        assert count <= rule.max
    assert own.ended == rule.max or repeats.is_known(rule, own)


def test_cells_get_as_many_as_they_need_in_rounds(tmp_path: Path) -> None:
    found = plan(tmp_path)
    chance = random.Random(1)
    noise = {"ext4": 0.0001, "xfs": 0.04, "btrfs": 0.5}

    def measure(trial: Any) -> dict[str, Any]:
        return record(chance.gauss(10, 10 * noise[trial.cell["fs"]]))

    _, order = driven(found, measure)
    counts = {fs: sum(f"fs={fs}," in name for name in order) for fs in noise}
    assert counts["ext4"] == 3
    assert counts["ext4"] < counts["xfs"] < counts["btrfs"] == 10
    assert order[:9] == [f"fs={fs},rep={n}" for n in (1, 2, 3) for fs in ("ext4", "xfs", "btrfs")]
    assert order[9:13] == ["fs=xfs,rep=4", "fs=btrfs,rep=4", "fs=xfs,rep=5", "fs=btrfs,rep=5"]
    told = {cell["cell"]["fs"]: (cell["trials"], cell["known"]) for cell in found.outcome()["repeats"]}
    assert told["ext4"] == (3, True)
    assert told["btrfs"] == (10, False)
    assert found.told()[0] == "repeats: 3 to 10 of 3 cells; 2 known as well as asked for"
    assert found.told()[1].startswith("  fs=btrfs: duration_s ±")


def test_a_broken_cell_ends_at_the_bound(tmp_path: Path) -> None:
    found = plan(tmp_path, grid={})
    _, order = driven(found, lambda trial: record(state="failed"))
    assert len(order) == 10


def test_a_metric_that_reused_trials_lack_is_no_observation_of_them(tmp_path: Path) -> None:
    found = plan(tmp_path, grid={})
    _, order = driven(found, lambda trial: record(1.0), {"rep=2": record(observed={"missing": "no reads"})})
    assert (order, found.trouble) == ([], "rep=2 has no duration_s: no reads")
    assert [cell["trials"] for cell in found.outcome()["repeats"]] == [0]


def test_a_trial_that_ends_has_only_its_own_cell_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells, asked = 300, Counter[str]()
    for name in ("wanted", "is_open", "outcome"):
        own = getattr(adaptive._Repeated, name)

        def counted(unit: Any, finished: Any, name: str = name, own: Any = own) -> Any:
            asked[name] += 1
            return own(unit, finished)

        monkeypatch.setattr(adaptive._Repeated, name, counted)
    found = plan(tmp_path, grid={"limits.time_limit_s": list(range(1, cells + 1))})
    chance, finished = random.Random(1), dict[str, Any]()
    waiting = [*found.next_trials({})]
    while waiting:
        finished[waiting.pop(0).id] = record(chance.gauss(10, 0.5))
        waiting += found.next_trials(finished)
        assert found.least >= len(finished)
        assert len(found.outcome()["repeats"]) == cells
    assert len(finished) > 3 * cells
    # is_open asks for what is wanted by itself
    assert asked["wanted"] <= 2 * (cells + len(finished))
    assert max(asked["is_open"], asked["outcome"]) <= cells + len(finished)


def test_what_a_plan_chose_is_written_now_and_then_and_whole_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    from sweep import scheduler as driving

    written: list[tuple[list[Any], Any]] = []
    actor = SimpleNamespace(plan=SimpleNamespace(remote=lambda entries, outcome: written.append((entries, outcome))))
    view = SimpleNamespace(planned=lambda total, more: None)
    found = plan(tmp_path)
    scheduler: Any = driving.Scheduler("s", "k", found, Placements([]), actor, view)  # type: ignore[arg-type]
    scheduler._backlog = SimpleNamespace(push=lambda trial, turn: None)
    chance = random.Random(1)
    while scheduler._goes_on() and (left := [one for one in found.planned if one.id not in scheduler.records]):
        scheduler.records[left[0].id] = record(chance.gauss(10, 3))
    assert len(written) == 1
    monkeypatch.setattr(driving, "_TELL_S", 0.0)
    scheduler._goes_on()
    scheduler.stop()
    assert len(written) == 2
    assert [entry["id"] for entries, _ in written for entry in entries] == [trial.id for trial in found.planned]
    assert written[-1][1] == found.outcome()


def test_finished_trials_are_looked_at_all_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    from sweep.scheduler import Scheduler

    waits: list[Any] = []
    monkeypatch.setattr(ray, "get", lambda refs: waits.append(refs) or [{"value": float(len(slug))} for slug in refs])
    actor = SimpleNamespace(observe=SimpleNamespace(remote=lambda slug, metric: f"{slug} {metric}"))
    said: list[str] = []
    found = plan(tmp_path)
    records = {trial.id: record(state="failed" if trial.repeat == 2 else "valid") for trial in found.trials}
    view = SimpleNamespace(say=said.append)
    scheduler = Scheduler("s", "k", found, Placements([]), actor, view, finished=records)  # type: ignore[arg-type]
    scheduler._observe_finished()
    slugs = {trial.id: f"{trial.slug} duration_s" for trial in found.trials if trial.repeat != 2}
    assert waits == [list(slugs.values())]
    assert said == ["looking at 27 finished trials"]
    told = {name: one["observed"]["value"] for name, one in scheduler.records.items() if "observed" in one}
    assert told == {name: len(slug) for name, slug in slugs.items()}


def test_before_anything_ran_its_size_is_told(tmp_path: Path) -> None:
    found = plan(tmp_path, warmups=1)
    assert found.size == "at least 12 trials"
    assert [len(trials) for trials in found.extent()] == [12, 33]
    assert len(found.certain()) == 12
    text = "3 to 10 repeats of each cell, until the 95 % confidence interval of duration_s is within 5 % of its mean"
    assert found.rules() == [text]


def test_a_plan_of_which_nothing_is_left_has_no_trials(tmp_path: Path) -> None:
    found = plan(tmp_path)
    found.select([])
    assert (found.next_trials({}), found.size, found.told()) == ((), "0 trials", [])


def test_scenarios_have_their_own(tmp_path: Path) -> None:
    parts = {"a": {}, "b": {"repeats": 2}, "c": {"repeats": {"rel": 0.5, "metric": "all.iops"}}}
    found = plan(tmp_path, grid={}, scenarios=parts)
    _, order = driven(found, lambda trial: record(10.0))
    assert sorted(order) == sorted(
        f"scenario={s},rep={n}" for s, count in (("a", 3), ("b", 2), ("c", 3)) for n in range(1, count + 1)
    )
    metrics = {trial.cell["scenario"]: found.metric(trial) for trial in found.trials}
    assert metrics == {"a": "duration_s", "b": None, "c": "all.iops"}


def test_what_was_run_runs_it_again(tmp_path: Path) -> None:
    found = config.load(str(_file(tmp_path)))
    (tmp_path / "again.yaml").write_text(config.as_yaml(found))
    again = config.load(str(tmp_path / "again.yaml"))
    assert (again.until, again.repeats) == (found.until, 10)


def _file(folder: Path) -> Path:
    plan(folder)
    return folder / "s.yaml"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["repeats.rel=0"], r"repeats\.rel: must be more than 0 and less than 1, not 0\.0"),
        (["repeats.max=2"], r"repeats\.max: must be repeats\.min, which is 3, to 10000, not 2"),
        (["repeats.min=1"], r"repeats\.min: must be 2 or more, not 1: one trial has no interval"),
        (["repeats.confidence=95"], r"repeats\.confidence: must be more than 0 and less than 1"),
        (["repeats.until=sd"], r"repeats\.until: must be one of ci, not 'sd'"),
        (["repeats={max: 3}"], r"repeats\.until: is missing"),
        (
            ["repeats.metric=duration"],
            r"repeats\.metric: no measure 'duration'; did you mean read.duration_s or duration_s",
        ),
        (["repeats.metric=reed.iops"], r"repeats\.metric: no operation 'reed'; did you mean read\.iops"),
        (["repeats.maximum=3"], r"repeats\.maximum: unknown key\n.*valid: until, metric, rel"),
        (["repeats=many"], r"repeats: must be a whole number"),
    ],
)
def test_a_mistake_is_one_clear_message(tmp_path: Path, words: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        plan(tmp_path, words)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 25))
def test_a_resumed_plan_counts_what_it_has(tmp_path_factory: pytest.TempPathFactory, seed: int, stop: int) -> None:
    folder, results, chance = tmp_path_factory.mktemp("resumed"), dict[str, Any](), random.Random(seed)

    def measure(trial: Any) -> dict[str, Any]:
        told = record(state="failed") if chance.random() < 0.1 else record(chance.gauss(10, 0.5))
        return results.setdefault(trial.id, told)

    whole, again = plan(folder), plan(folder)
    finished, ran = driven(whole, measure)
    _, rest = driven(again, measure, {name: finished[name] for name in ran[:stop]})
    assert set(rest) == set(ran[stop:])
    assert again.outcome() == whole.outcome()


def test_a_dry_run_says_from_how_many_to_how_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sweep.cli import main

    storage = {"kind": "directory", "path": str(tmp_path), "fs": "auto"}
    keys = {"workload": {"kind": "command", "argv": ["true"]}, "storage": storage, "trace": {"tracer": "diskstats"}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**keys, "ceiling": {"enabled": False}, "repeats": RULE}))
    assert main([str(tmp_path / "s.yaml"), "--dry-run", "--results", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    for line in (
        "s: 3 to 10 trials of 10 trials that could be, 1 cell",
        "3 to 10 repeats of each cell, until the 95 % confidence interval of duration_s is within 5 % of its mean",
        "  and of these cells up to 7 further repeats, as far as they are needed",
    ):
        assert line in out.splitlines(), out
