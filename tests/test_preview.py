"""The dry run of a resumed sweep: what would become of every trial, in what time; nothing started, nothing written."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sweep import durations
from sweep.config import load
from sweep.durations import Durations
from sweep.placement import Placement, Placements
from sweep.plan import Grid, Trial
from tests.test_decisions import World, node, sweep_file, world

__all__ = ["sweep_file", "world"]
ROOT = Path(__file__).parent.parent
TIMES = {"started": "2026-01-01T00:00:00.000+00:00", "ended": "2026-01-01T00:00:40.000+00:00"}


def dry(world: World, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "sweep", str(world.file), "--results", str(world.results), "--dry-run", *words]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_every_trial_has_a_state_a_place_a_time_and_room(world: World) -> None:
    if not Placements_here(world):
        pytest.skip("this folder is on no block device")
    world.finish(world.plan(), {"n=1,rep=1": "valid", "n=2,rep=1": "failed"}, **TIMES)
    before = everything(world.results)
    done = dry(world)
    assert (done.returncode, done.stderr) == (0, "")
    lines = re.findall(r"^  (n=\S+) +run +on (\S+) .*, 256 MiB of disk, (.*)$", done.stdout, re.MULTILINE)
    assert [(name, time) for name, _, time in lines] == [
        ("n=1,rep=1", "about 40 s"),
        ("n=2,rep=1", "unknown time"),
        ("n=1,rep=2", "about 40 s"),
        ("n=2,rep=2", "unknown time"),
    ]
    assert "expected: about 80 s for 2 trials, one trial at a time, and 2 trials of unknown time" in done.stdout
    assert everything(world.results) == before


def Placements_here(world: World) -> bool:
    from sweep.cluster import here

    return bool(Placements([here()]).of(world.plan().trials[0]))


def test_with_resume_the_states_are_told(world: World) -> None:
    if not Placements_here(world):
        pytest.skip("this folder is on no block device")
    from tasks.identity import identity, question

    plan = world.plan()
    world.halves["n1"] = identity(question(plan.trials[0].config))
    world.finish(plan, {"n=1,rep=1": "valid", "n=2,rep=1": "failed"}, **TIMES)
    before = everything(world.results)
    done = dry(world, "--resume")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^  n=1,rep=1  reuse$", done.stdout, re.MULTILINE)
    assert re.search(r"^  n=2,rep=1  run +was failed; it broke; on ", done.stdout, re.MULTILINE)
    assert re.search(r"^  n=1,rep=2  run +not finished; on ", done.stdout, re.MULTILINE)
    done = dry(world, "--resume", "--run", "run1", "limits.time_limit_s=5")
    assert re.search(r"^  n=1,rep=1  stale +limits.time_limit_s: 600 -> 5; on ", done.stdout, re.MULTILINE)
    assert everything(world.results) == before


def test_impossible_trials_are_all_listed_and_end_with_2(world: World) -> None:
    done = dry(world, "workload.space=4000TiB")
    assert done.returncode == 2
    assert len(re.findall(r"^  n=\d,rep=\d  impossible  \S+: storage.path: ", done.stdout, re.MULTILINE)) == 4
    assert "no node can run 4 of 4 trials" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_order_of_a_drawn_seed_can_be_had_again(world: World) -> None:
    def order(out: str) -> list[str]:
        return re.findall(r"^  (n=\S+)", out, re.MULTILINE)

    first = dry(world, "order=random", "repeats=9").stdout
    seed = re.search(r"^order: random; it is the same again with (seed=\d+)$", first, re.MULTILINE)
    assert seed
    again = dry(world, "order=random", "repeats=9", seed[1]).stdout
    assert len(order(first)) == 18
    assert order(again) == order(first)


def test_a_run_that_goes_on_is_refused(world: World) -> None:
    from sweep import lock

    world.finish(world.plan())
    with lock.held(world.folder):
        done = dry(world, "--resume")
    assert (done.returncode, done.stdout) == (2, "")
    assert "this run goes on: process " in done.stderr


# --- time ------------------------------------------------------------------------------------------------------------


class Made:
    """Runs of a sweep that took as long as they are told to."""

    def __init__(self, folder: Path, plan: Grid) -> None:
        self.folder, self.plan = folder, plan

    def run(self, name: str, seconds: dict[str, Any], state: str = "valid") -> None:
        for trial in self.plan.trials:
            if trial.id in seconds:
                place = self.folder / name / "trials" / trial.slug
                place.mkdir(parents=True)
                ended = f"2026-01-01T00:00:{seconds[trial.id]:02}+00:00"
                record = {"verdict": {"state": state}, "started": "2026-01-01T00:00:00+00:00", "ended": ended}
                (place / "trial.json").write_text(json.dumps(record))
        (self.folder / name / "run.json").write_text("{}")


@pytest.fixture
def made(sweep_file: Path, tmp_path: Path) -> Made:
    return Made(tmp_path / "runs", Grid(load(str(sweep_file), [])))


def known(made: Made) -> dict[str, float | None]:
    found = Durations(made.folder, made.plan.trials)
    return {trial.id: found.of(trial) for trial in made.plan.trials}


def test_a_trial_takes_the_median_of_its_cell(made: Made) -> None:
    made.run("a", {"n=1,rep=1": 10, "n=1,rep=2": 20})
    made.run("b", {"n=1,rep=1": 30})
    made.run("c", {"n=1,rep=1": 50, "n=2,rep=1": 50}, state="failed")
    assert known(made) == {"n=1,rep=1": 20, "n=1,rep=2": 20, "n=2,rep=1": None, "n=2,rep=2": None}


def test_nodes_work_side_by_side_and_cells_stay_together(made: Made) -> None:
    made.run("a", {"n=1,rep=1": 10, "n=2,rep=1": 20})
    found = Durations(made.folder, made.plan.trials)
    one, two = Placements([node()]), Placements([node(), node("n2", "r2")])
    assert found.total(made.plan.trials, one, 0) == 60
    assert found.total(made.plan.trials, two, 0) == 40
    assert found.total(made.plan.trials, one, 5) == 75


def test_nothing_rests_between_trials_in_memory(made: Made) -> None:
    class InMemory(Placements):
        def of(self, trial: Trial) -> list[Placement]:
            return [replace(placement, drives=()) for placement in super().of(trial)]

    made.run("a", {"n=1,rep=1": 10, "n=2,rep=1": 20})
    found = Durations(made.folder, made.plan.trials)
    assert found.total(made.plan.trials, InMemory([node()]), 5) == 60


def test_only_so_much_is_read(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durations, "_RECORDS", 1)
    made.run("a", {"n=1,rep=1": 10, "n=2,rep=1": 20})
    assert sum(value is not None for value in known(made).values()) == 2  # both repeats of one cell


def test_times_in_words() -> None:
    told = [durations.in_words(s) for s in (0.2, 8.4, 99, 150, 5400, 12_000, 90_000)]
    assert told == ["1 s", "8 s", "99 s", "2 min", "90 min", "3 h 20 min", "25 h 0 min"]
