"""Warm-ups: in the plan before the repeats of their cell, in the run's folder, and in nothing that is counted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from analysis import draw_run, load_run
from analysis.metrics import summarise
from analysis.store import RunStore
from analysis.summary import write_summary
from sweep import config
from sweep.errors import ConfigError
from sweep.plan import Grid
from tests.analysis.made_run import MIB, make_run

BASE = {"workload": {"kind": "tensor_io", "sizes": ["1MiB"]}, "storage": {"image_size": "1GiB"}, "figures": []}


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Any]:
    def loaded(*overrides: str, **keys: Any) -> Any:
        (tmp_path / "s.yaml").write_text(yaml.safe_dump(BASE | keys))
        return config.load(str(tmp_path / "s.yaml"), overrides)

    return loaded


@pytest.mark.parametrize("order", ["interleaved", "listed", "random"])
def test_they_come_right_before_the_first_repeat_of_their_cell(load: Any, order: str) -> None:
    sweep = load(grid={"storage.fs": ["ext4", "xfs"]}, repeats=3, warmups=2, order=order)
    trials = Grid(sweep).trials
    assert len(trials) == len({trial.slug for trial in trials}) == 2 * (3 + 2)
    for fs in ("ext4", "xfs"):
        own = [trial for trial in trials if trial.cell == {"fs": fs}]
        assert [(one.id, one.repeat) for one in own if one.warmup] == [(f"fs={fs},warmup={n}", n) for n in (1, 2)]
        assert [one.warmup for one in own] == [True, True, False, False, False]
        first = trials.index(own[0])
        assert trials[first : first + 3] == tuple(own[:3])


def test_without_them_the_plan_is_what_it_was(load: Any) -> None:
    keys = {"grid": {"storage.fs": ["ext4", "xfs"]}, "repeats": 4, "order": "random", "seed": 5}
    with_them = Grid(load(**keys, warmups=1)).trials
    assert [trial for trial in with_them if not trial.warmup] == list(Grid(load(**keys)).trials)


def test_a_scenario_has_its_own_number(load: Any) -> None:
    sweep = load("scenarios.b.warmups=3", scenarios={"a": {}, "b": {}}, warmups=1)
    ids = [trial.id for trial in Grid(sweep).trials if trial.warmup]
    assert ids == ["scenario=a,warmup=1", *(f"scenario=b,warmup={n}" for n in (1, 2, 3))]
    assert [part["warmups"] for part in yaml.safe_load(config.as_yaml(sweep))["scenarios"].values()] == [1, 3]


def test_written_out_the_sweep_has_them(load: Any, tmp_path: Path) -> None:
    sweep = load(warmups=2, cooldown_s=2.5, on_impossible="skip", scenarios={"a": {}, "b": {"warmups": 0}})
    assert (sweep.cooldown_s, sweep.on_impossible.name) == (2.5, "skip")
    (tmp_path / "again.yaml").write_text(config.as_yaml(sweep))
    again = config.load(str(tmp_path / "again.yaml"))
    assert Grid(again).trials == Grid(sweep).trials
    assert config.as_yaml(again) == config.as_yaml(sweep)
    assert (again.cooldown_s, again.on_impossible, again.warmups) == (2.5, sweep.on_impossible, 2)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"warmups": -1}, "warmups: must be 0 to 10000, not -1"),
        ({"warmups": 1.5}, "warmups: must be a whole number"),
        ({"cooldown_s": -1}, "cooldown_s: must be 0 to 86400 seconds, not -1.0"),
        ({"cooldown_s": float("nan")}, "cooldown_s: must be 0 to 86400 seconds, not nan"),
        ({"cooldown_s": "long"}, "cooldown_s: must be a number, not 'long'"),
        ({"on_impossible": "ignore"}, "on_impossible: must be one of error, skip, not 'ignore'"),
        ({"scenarios": {"a": {"cooldown_s": 1}}}, "scenarios.a.cooldown_s: belongs to the whole sweep"),
    ],
)
def test_what_makes_no_sense_is_refused(load: Any, keys: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(**keys)
    assert said in str(caught.value)


def test_an_axis_of_that_name_is_called_by_its_whole_key(load: Any) -> None:
    workload = {"kind": "command", "argv": ["ls", "{warmup}", "{rep}"], "values": {"warmup": 1, "rep": 1}}
    axes = {"workload.values.warmup": [1, 2], "workload.values.rep": [1]}
    ids = [trial.id for trial in Grid(load(workload=workload, grid=axes, warmups=1)).trials]
    assert ids[0] == "workload.values.rep=1,workload.values.warmup=1,warmup=1"
    assert len(set(ids)) == 4


# --- in a run --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run, and the same with two warm-ups, of which one failed: a hundred times as slow as what counts."""
    plain = make_run(tmp_path_factory.mktemp("plain"), sizes=(MIB,), repeats=1)
    warm = tmp_path_factory.mktemp("warm") / "run"
    shutil.copytree(plain, warm)
    record = json.loads((warm / "run.json").read_text())
    trial = load_run(warm).published[0]
    for number, state in ((1, "valid"), (2, "failed")):
        slug = f"warm-{number}"
        shutil.copytree(trial.path, warm / "trials" / slug)
        own = trial.record | {"id": f"warmup={number}", "slug": slug, "repeat": number, "warmup": True}
        own |= {"verdict": {"state": state, "reasons": []}, "metrics": {"only_of_a_warmup": 1.0}}
        (warm / "trials" / slug / "trial.json").write_text(json.dumps(own))
        record["plan"].insert(0, {"id": own["id"], "slug": slug, "cell": own["cell"], "repeat": 1, "warmup": True})
    record["plan"].append({"id": "warmup=9", "slug": "warm-9", "cell": {}, "repeat": 9, "warmup": True})
    record["skipped"] = [{"id": f"fs=f{n}", "reason": "too small"} for n in range(7)]
    (warm / "run.json").write_text(json.dumps(record))
    return plain, warm


def test_they_are_in_the_folder_and_in_no_table(runs: tuple[Path, Path]) -> None:
    plain, warm = (load_run(folder) for folder in runs)
    assert [trial.id for trial in warm.warmups] == ["warmup=2", "warmup=1"]
    assert warm.trial("warmup=1").warmup
    assert [trial.id for trial in warm.published] == [trial.id for trial in plain.published]
    assert warm.missing == plain.missing
    write_summary(warm.path)
    write_summary(plain.path)
    for name in ("summary", "metrics", "trials"):
        ours, theirs = getattr(warm, name)(), getattr(plain, name)()
        assert ours.equals(theirs), name
    assert warm.requests().collect().equals(plain.requests().collect())


def test_figures_and_report_leave_them_out_and_say_so(runs: tuple[Path, Path]) -> None:
    plain, warm = runs
    drawn = [draw_run(folder)["figures"] for folder in (plain, warm)]
    assert {*drawn[0]} == {*drawn[1]}
    told = (warm / "report.md").read_text()
    assert "2 trials run first and not counted: 1 valid, 1 failed" in told
    assert "only_of_a_warmup" not in told
    assert "7 cells as impossible: fs=f0 (too small); fs=f1 (too small)" in told.replace("\\", "")
    assert "; and 2 more" in told
    ours = [line for line in told.splitlines() if "Warm-ups" not in line and "Left out" not in line]
    theirs = (plain / "report.md").read_text().splitlines()
    assert len(ours) == len(theirs)


def test_a_published_one_is_in_no_summary(tmp_path: Path, runs: tuple[Path, Path]) -> None:
    """Also while the run goes on: the store writes a summary after each trial."""
    store = RunStore(str(tmp_path / "run"))
    store.create({"schema_version": 1, "sweep": "s", "plan": []}, "")
    for trial in (load_run(runs[1]).warmups[1], load_run(runs[1]).published[0]):
        store.expect(trial.slug, "t-1")
        store.publish(trial.slug, "t-1", trial.record, [])
    assert {row["trial"] for row in load_run(tmp_path / "run").summary().to_dict("records")} == {
        load_run(runs[1]).published[0].id
    }
    assert summarise(tmp_path / "run" / "trials" / "warm-1")  # it is there, to look at by hand
