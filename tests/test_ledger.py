"""The ledger: every trial once, for good; nothing in it is changed or lost, whatever happens to whoever adds to it."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import ledger
from analysis.errors import AnalysisError
from analysis.files import locked
from analysis.run import load_run
from analysis.store import RunStore
from sweep import past
from tests import nights
from tests.crashing import killed_at
from tests.test_decisions import World, sweep_file, world
from tests.test_runs import set_record

__all__ = ["sweep_file", "world"]


def file_of(world: World) -> Path:
    return world.results / ledger.FILE


def attempts(file: Path) -> list[tuple[str, str, int, str]]:
    frame = ledger.read(file).drop_duplicates([*ledger.KEY])
    return [(row.run, row.trial, row.attempt, row.verdict) for row in frame.itertuples()]


# --- from runs -------------------------------------------------------------------------------------------------------


def test_a_runs_trials_are_entered_once_whatever_their_verdict(world: World) -> None:
    world.finish(world.plan("warmups=1"), {"n=1,rep=1": "valid", "n=2,rep=1": "invalid", "n=1,rep=2": "failed"})
    assert ledger.add(world.folder) == 3
    told = {trial: verdict for _, trial, _, verdict in attempts(file_of(world))}
    assert told == {"n=1,rep=1": "valid", "n=2,rep=1": "invalid", "n=1,rep=2": "failed"}
    before = file_of(world).read_bytes()
    assert ledger.add(world.folder) == 0
    assert file_of(world).read_bytes() == before
    assert ledger.complete(world.folder)


def test_a_run_that_was_gone_on_with_adds_what_is_new_and_keeps_what_was_set_aside(world: World) -> None:
    plan = world.plan()
    world.finish(plan, {"n=1,rep=1": "valid", "n=2,rep=1": "failed"}, started="2026-11-20T22:00:00+00:00")
    ledger.add(world.folder)
    failed = next(trial for trial in plan.trials if trial.id == "n=2,rep=1")
    store = RunStore(str(world.folder))
    store.resume({"state": "running"}, "name: s\n", [failed.slug])
    for trial in plan.trials:
        if trial.id != "n=1,rep=1":
            world.publish(store, trial, "valid", "n1", started="2026-11-21T22:00:00+00:00")
    store.finish({"state": "finished"})
    store._lock.close()
    assert not ledger.complete(world.folder)
    assert ledger.add(world.folder) == 3  # the same trial with the same number of attempt, at another time, is another
    assert ledger.add(world.folder) == 0
    frame = ledger.read(file_of(world))
    assert sorted(frame[frame.trial == "n=2,rep=1"].verdict.unique()) == ["failed", "valid"]
    assert set(ledger.results(frame)[frame.columns].verdict) == {"valid"}
    shutil.rmtree(world.results / "s")
    assert len(attempts(file_of(world))) == 5


def test_an_attempt_that_was_superseded_before_the_run_ended_is_entered_too(world: World) -> None:
    plan = world.plan()
    world.finish(plan, {"n=1,rep=1": "valid"}, started="2026-11-20T22:00:00+00:00")
    trial = plan.trials[0]
    (world.folder / "superseded").mkdir()
    (world.folder / "trials" / trial.slug).rename(world.folder / "superseded" / f"{trial.slug}-t-1")
    assert ledger.add(world.folder) == 1
    assert [run for run, *_ in attempts(file_of(world))] == ["run1"]


def set_aside(world: World, slug: str) -> None:
    (world.folder / "superseded").mkdir(exist_ok=True)
    (world.folder / "trials" / slug).rename(world.folder / "superseded" / f"{slug}-t-1")


def again(world: World, trial: Any) -> None:
    store = RunStore(str(world.folder))
    store.resume({"state": "running"}, "name: s\n", [])
    world.publish(store, trial, "valid", "n1", started="2026-11-20T23:00:00+00:00")
    store.finish({"state": "finished"})
    store._lock.close()


def test_an_attempt_whose_worker_was_lost_is_not_the_result_for_it_knows_no_time(world: World) -> None:
    plan = world.plan()
    world.finish(plan, {"n=1,rep=1": "failed"}, started=None)
    set_aside(world, plan.trials[0].slug)
    again(world, plan.trials[0])
    assert ledger.add(world.folder) == 2
    rows = ledger.read(file_of(world))
    assert set(rows.verdict) == {"failed", "valid"}
    assert set(ledger.results(rows).verdict) == {"valid"}


def test_an_axis_of_numbers_and_words_is_entered_with_what_was_set_aside_too(world: World) -> None:
    words = "grid={workload.values.n: [8, auto]}"
    plan = world.plan(words)
    world.finish(plan, {"n=8,rep=1": "failed", "n=auto,rep=1": "valid"}, started="2026-11-20T22:00:00+00:00")
    set_aside(world, plan.trials[0].slug)
    again(world, plan.trials[0])
    assert ledger.add(world.folder) == 3
    assert set(ledger.read(file_of(world))["cell.n"]) == {"8", "auto"}


def test_what_a_ledger_cannot_hold_is_a_clear_error(tmp_path: Path) -> None:
    rows = nights.night(0)
    rows["odd"] = [1, "a"] * (len(rows) // 2)
    with pytest.raises(AnalysisError, match="cannot hold what is to be added"):
        ledger.append(tmp_path / ledger.FILE, rows)


def test_a_run_is_the_same_by_a_link_to_it(world: World) -> None:
    world.finish(world.plan())
    link = world.folder.with_name("latest")
    link.unlink(missing_ok=True)
    link.symlink_to(world.folder.name)
    assert ledger.add(link) == 4
    assert ledger.add(world.folder) == 0
    assert ledger.complete(link)
    assert {run for run, *_ in attempts(file_of(world))} == {"run1"}


def test_a_sweeps_folder_that_is_a_link_has_the_ledger_beside_the_link(world: World, tmp_path: Path) -> None:
    world.finish(world.plan())
    far = tmp_path / "far" / "s"
    far.parent.mkdir()
    (world.results / "s").rename(far)
    (world.results / "s").symlink_to(far)
    link = world.results / "s" / "newest"
    link.symlink_to("run1")
    assert ledger.add(link) == 4
    assert past.find(world.results, "s", "run1") == world.folder
    assert past.find(world.results, "s", None) == world.folder
    assert load_run(world.results / "s").path == world.folder
    assert file_of(world).is_file()
    assert not (far.parent / ledger.FILE).exists()


def test_a_run_that_is_being_removed_is_no_run(world: World) -> None:
    world.finish(world.plan())
    world.folder.rename(world.folder.with_name(".removed-run1"))
    assert ledger.runs_in(world.results) == []


def test_merged_runs_are_not_entered_for_their_trials_are_those_of_others(world: World) -> None:
    world.finish(world.plan())
    set_record(world, state="merged", merged=[{"run_id": "other"}])
    assert ledger.add(world.folder) == 0
    assert ledger.complete(world.folder)


def test_nothing_secret_gets_in(world: World) -> None:
    world.finish(world.plan("workload.env={API_TOKEN: hunter2xyz}"))
    ledger.add(world.folder)
    frame = ledger.read(file_of(world))
    assert "API_TOKEN" in frame.configuration.iloc[0]
    assert not frame.astype(str).apply(lambda column: column.str.contains("hunter2xyz")).any().any()


# --- what it holds ---------------------------------------------------------------------------------------------------


def test_a_new_column_is_null_in_older_rows_and_those_stay_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / ledger.FILE
    first, second = nights.night(0), nights.night(1, **{"metrics.tokens_per_s": 3.5, "cell.storage.fs": 7})
    assert ledger.append(file, first) == 20
    before = ledger.read(file)
    assert ledger.append(file, second) == 20
    after = ledger.read(file)
    pd.testing.assert_frame_equal(after.iloc[: len(before)][before.columns], before, check_dtype=False)
    assert after["metrics.tokens_per_s"].isna().sum() == len(before)
    assert set(after["cell.storage.fs"]) == {"ext4", "xfs", "7"}


def test_one_sweep_is_read_of_many(tmp_path: Path) -> None:
    file = tmp_path / ledger.FILE
    ledger.append(file, nights.night(0, sweep="a"))
    ledger.append(file, nights.night(0, sweep="b"))
    assert set(ledger.read(file, "b").sweep) == {"b"}
    assert ledger.read(file, "c").empty
    assert ledger.read(tmp_path / "nowhere.parquet").empty


def test_some_columns_are_read_of_many_and_long_texts_are_categories(tmp_path: Path) -> None:
    file = tmp_path / ledger.FILE
    ledger.append(file, nights.night(0))
    ledger.append(file, nights.night(1, environment='{"kernel": "6.19"}'))
    frame = ledger.read(file, "s", ["run_state", "environment", "nowhere"])
    assert {*frame.columns} == {*ledger.KEY, "run_state", "environment"}
    assert str(frame.environment.dtype) == str(ledger.read(file).configuration.dtype) == "category"
    assert frame.groupby("run", sort=False).environment.last().nunique() == 2
    assert [*ledger.read(tmp_path / "none.parquet", columns=["verdict"]).columns] == [*ledger.KEY, "verdict"]


VALUES = st.one_of(
    st.integers(-(2**40), 2**40), st.floats(allow_nan=False, width=32), st.text(max_size=5), st.booleans()
)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.dictionaries(st.sampled_from("xyz"), VALUES, max_size=2)), max_size=6))
def test_whatever_is_appended_is_there_once_and_stays(tmp_path_factory: Any, added: Any) -> None:
    file = tmp_path_factory.mktemp("l") / ledger.FILE
    expected: dict[int, dict[str, Any]] = {}
    for number, columns in added:
        rows = nights.night(number, cells=nights.CELLS[:1], repeats=1, **columns)
        assert ledger.append(file, rows) == (number not in expected)
        expected.setdefault(number, columns)
        frame = ledger.read(file)
        assert list(dict.fromkeys(frame.run)) == [nights.night(one).run.iloc[0] for one in expected]
        for one, told in expected.items():
            own = frame[frame.run == nights.night(one).run.iloc[0]]
            assert len(own) == 6
            for name, value in told.items():
                assert all(same(held, value) for held in own[name])


def same(held: Any, value: Any) -> bool:
    """Say whether a ledger holds a value, be it as text or as another kind of number."""
    if str(held) in (str(value), json.dumps(value)):
        return True
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(held) == value if number and isinstance(held, str) else bool(held == value)


# --- what happens to it ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("harm", ["cut", "flipped", "emptied", "other"])
def test_a_damaged_ledger_is_left_as_it_is_and_said_so(tmp_path: Path, harm: str) -> None:
    file = tmp_path / ledger.FILE
    ledger.append(file, nights.night(0))
    content = bytearray(file.read_bytes())
    if harm == "flipped":
        content[len(content) // 4] ^= 0xFF
    harmed = {"cut": content[:-20], "flipped": content, "emptied": b"", "other": b"no ledger at all"}[harm]
    file.write_bytes(harmed)
    with pytest.raises(AnalysisError, match=r"ledger.*cannot be read.*move it away") as told:
        ledger.append(file, nights.night(1))
    assert "\n" not in str(told.value)
    assert file.read_bytes() == harmed
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def _append(file: Path, begin: Any) -> None:
    begin()
    ledger.append(file, nights.night(1))


@pytest.mark.slow
def test_whoever_is_killed_at_any_point_leaves_the_old_ledger_or_the_new(tmp_path: Path) -> None:
    file = tmp_path / ledger.FILE
    ledger.append(file, nights.night(0))
    old, seen = file.read_bytes(), set()
    for step in range(60):
        file.write_bytes(old)
        killed = killed_at(step, _append, file)
        seen.add(ledger.read(file).run.nunique())
        if not killed:
            break
        ledger.append(file, nights.night(2))
        assert not list(tmp_path.glob(".*"))
    assert not killed
    assert step > 5
    assert seen == {1, 2}


def _add_one(told: tuple[Path, int]) -> int:
    return ledger.append(told[0], nights.night(told[1]))


def test_several_add_at_once(tmp_path: Path) -> None:
    from multiprocessing import get_context

    file = tmp_path / ledger.FILE
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        assert sum(pool.map(_add_one, [(file, number) for number in (0, 1, 2, 0, 1)])) == 60
    assert ledger.read(file).run.nunique() == 3


def test_a_ledger_that_others_hold_is_waited_for_and_then_given_up(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(ledger, "_WAIT_S", 0.2)
    with locked(tmp_path / ledger.LOCK), pytest.raises(AnalysisError, match="another process has held the ledger"):
        ledger.append(tmp_path / ledger.FILE, nights.night(0))


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_enters_what_is_missing_and_lists(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.finish(world.plan(), started="2026-11-20T22:00:00+00:00")
    assert ledger.main([str(world.results)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "entered: 4 trials of s/run1"
    assert lines[1:3] == ["SWEEP RUNS TRIALS VALID FIRST LAST", "s 1 4 4 2026-11-20 22:00 2026-11-20 22:00"]
    assert ledger.main([str(world.results)]) == 0
    assert "entered" not in capsys.readouterr().out


def test_the_command_says_what_is_wrong(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ledger.main([str(tmp_path / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err
    world.finish(world.plan())
    trial = next((world.folder / "trials").iterdir())
    (trial / "trial.json").write_text("{")
    assert ledger.main([str(world.results)]) == 1
    assert "not entered: " in capsys.readouterr().err
    file_of(world).write_bytes(b"junk")
    assert ledger.main([str(world.results)]) == 2
    assert file_of(world).read_bytes() == b"junk"
