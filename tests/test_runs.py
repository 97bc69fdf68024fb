"""Runs listed and merged, made as drivers leave them; the figures of a merged one are drawn in test_resume."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from analysis.store import RunStore
from sweep import lock, runs
from sweep.merge import merged, taken
from sweep.past import Past
from tests.test_decisions import HALF, World, sweep_file, world

__all__ = ["sweep_file", "world"]


@pytest.fixture
def two(world: World, sweep_file: Path) -> tuple[World, World]:
    """Two runs of one sweep, a night apart."""
    other = World(sweep_file, world.results)
    other.folder = world.results / "s" / "run2"
    return world, other


def finish(world: World, started: str, states: dict[str, str] | None = None, **changes: Any) -> None:
    world.finish(world.plan(), states, started=started, ended=started, **changes)
    set_record(world, run_id=world.folder.name, started=started, host=f"of-{world.folder.name}", state="finished")


def set_record(world: World, **fields: Any) -> None:
    file = world.folder / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def listed(world: World, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[str], str]:
    code = runs.main([*words, "--results", str(world.results)])
    printed = capsys.readouterr()
    return code, [" ".join(line.split()) for line in printed.out.splitlines()], printed.err


# --- the list --------------------------------------------------------------------------------------------------------


def test_runs_are_listed_with_their_verdicts(two: tuple[World, World], capsys: pytest.CaptureFixture[str]) -> None:
    first, second = two
    finish(first, "2026-11-20T22:00:00+00:00", {"n=1,rep=1": "valid", "n=2,rep=1": "failed", "n=1,rep=2": "invalid"})
    finish(second, "2026-11-21T22:00:00+00:00")
    (second.folder / "trials" / "broken").mkdir()
    (second.folder / "trials" / "broken" / "trial.json").write_text("{")
    code, lines, _ = listed(first, capsys)
    assert (code, lines[0]) == (0, "RUN SWEEP STATE STARTED TRIALS SIZE HOST")
    assert lines[1].startswith("run1 s finished 2026-11-20 22:00 1 valid, 1 invalid, 1 failed, 1 unfinished ")
    assert lines[2].startswith("run2* s finished 2026-11-21 22:00 4 valid, 1 unreadable ")
    assert lines[2].endswith(" of-run2")
    assert listed(first, capsys, "s")[1] == lines


def test_warm_ups_are_not_counted(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.finish(world.plan("warmups=1"))
    assert "4 valid " in listed(world, capsys)[1][1]


def test_a_driver_that_died_is_told_from_one_that_lives(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.finish(world.plan())
    assert " died " in listed(world, capsys)[1][1]
    with lock.held(world.folder):
        assert " running " in listed(world, capsys)[1][1]


def test_no_runs_and_unknown_sweeps(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = listed(world, capsys)
    assert (code, "cannot be read: No such file" in err) == (2, True)
    world.finish(world.plan())
    code, _, err = listed(world, capsys, "other")
    assert (code, "sweeps there: s" in err) == (2, True)
    assert runs.main(["--nonsense"]) == 2
    assert "More: python -m sweep.runs --help" in capsys.readouterr().err


# --- merging ---------------------------------------------------------------------------------------------------------


def sources(path: Path) -> dict[str, str]:
    """Return the host that each trial of a run was made on."""
    return {name: finished.hostname for name, finished in Past(path).trials.items()}


def test_trials_are_linked_and_nothing_is_moved(two: tuple[World, World]) -> None:
    first, second = two
    finish(first, "2026-11-20T22:00:00+00:00", {"n=1,rep=1": "valid", "n=2,rep=1": "failed"})
    finish(second, "2026-11-21T22:00:00+00:00", {"n=2,rep=1": "valid", "n=2,rep=2": "valid"})
    before = {p for world in two for p in world.folder.rglob("*")}
    found = taken([second.folder, first.folder])
    path = merged(found, None, ["merge"])
    assert path == second.folder.parent / "run2-merged"
    assert {name: one.state for name, one in Past(path).trials.items()} == dict.fromkeys(
        ("n=1,rep=1", "n=2,rep=1", "n=2,rep=2"), "valid"
    )
    assert {p for world in two for p in world.folder.rglob("*")} == before
    slug = Past(path).trials["n=1,rep=1"].slug
    assert os.path.samefile(path / "trials" / slug / "trial.json", first.folder / "trials" / slug / "trial.json")
    record = json.loads((path / "run.json").read_text())
    assert (record["state"], record["run_id"]) == ("merged", "run2-merged")
    assert (record["started"], [one["trials"] for one in record["merged"]]) == ("2026-11-20T22:00:00+00:00", [1, 2])
    assert len(record["plan"]) == 4
    assert any("valid in one run and not in another" in note for note in found.notes)


def test_where_files_cannot_be_linked_they_are_copied(
    two: tuple[World, World], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two
    finish(first, "2026-11-20T22:00:00+00:00", {"n=1,rep=1": "valid"})
    finish(second, "2026-11-21T22:00:00+00:00", {"n=2,rep=1": "valid"})

    def elsewhere(*_: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", elsewhere)
    path = merged(taken([first.folder, second.folder]), None, [])
    for source in two:
        for file in source.folder.glob("trials/*/trial.json"):
            copy = path / file.relative_to(source.folder)
            assert copy.read_bytes() == file.read_bytes()
            assert not os.path.samefile(copy, file)


def test_of_two_valid_ones_that_are_the_same_the_newest_is_taken(two: tuple[World, World]) -> None:
    first, second = two
    second.halves["n2"] = HALF
    finish(first, "2026-11-20T22:00:00+00:00")
    finish(second, "2026-11-21T22:00:00+00:00", {"n=1,rep=1": "valid"}, host="n2")
    found = taken([first.folder, second.folder])
    assert sources(merged(found, "both", [])) == {
        "n=1,rep=1": "n2",
        "n=1,rep=2": "n1",
        "n=2,rep=1": "n1",
        "n=2,rep=2": "n1",
    }
    assert found.notes == ("1 trial in more than one run: the newest is taken",)


def refusal(world: World, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    before = set(world.results.rglob("*"))
    assert runs.main(["merge", *words, "--results", str(world.results)]) == 2
    assert set(world.results.rglob("*")) == before
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Traceback" not in printed.err
    return printed.err


def test_two_valid_ones_that_differ_are_refused(two: tuple[World, World], capsys: pytest.CaptureFixture[str]) -> None:
    first, second = two
    second.halves["n1"] = {**HALF, "kernel": "6.2"}
    finish(first, "2026-11-20T22:00:00+00:00")
    finish(second, "2026-11-21T22:00:00+00:00")
    told = refusal(first, capsys, "run1", "run2")
    assert "is valid in run1 and in run2, and not the same there" in told
    assert "node: kernel: 6.1 -> 6.2" in told


def test_what_cannot_be_merged_is_refused(two: tuple[World, World], capsys: pytest.CaptureFixture[str]) -> None:
    first, second = two
    finish(first, "2026-11-20T22:00:00+00:00")
    finish(second, "2026-11-21T22:00:00+00:00")
    assert "name two runs or more" in refusal(first, capsys, "run1")
    assert "two runs or more: these are all the same one" in refusal(first, capsys, "run1", str(first.folder))
    assert "run9 is no run" in refusal(first, capsys, "run1", "run9")
    assert "--into run2: " in refusal(first, capsys, "run1", "s/run2", "--into", "run2")
    assert "--into ../x" in refusal(first, capsys, "run1", "run2", "--into", "../x")
    with lock.held(second.folder):
        assert "this run goes on: process" in refusal(first, capsys, "run1", "latest")
    set_record(second, sweep="other")
    assert "run1 is of s, run2 is of other" in refusal(first, capsys, "run1", "run2")


def test_a_name_that_several_sweeps_have_must_be_made_clear(
    two: tuple[World, World], capsys: pytest.CaptureFixture[str]
) -> None:
    first, _ = two
    finish(first, "2026-11-20T22:00:00+00:00")
    other = first.results / "t" / "run1"
    other.mkdir(parents=True)
    (other / "run.json").write_text("{}")
    assert "run1 could be any of" in refusal(first, capsys, "run1", "run1")


def test_a_merge_that_fails_leaves_nothing(two: tuple[World, World], monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = two
    finish(first, "2026-11-20T22:00:00+00:00")
    finish(second, "2026-11-21T22:00:00+00:00", {})
    before = set(first.results.rglob("*"))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.link", full)
    monkeypatch.setattr("shutil.copy2", full)
    with pytest.raises(OSError, match="No space left"):
        merged(taken([first.folder, second.folder]), None, [])
    assert set(first.results.rglob("*")) == before


def test_a_merged_run_has_summary_and_report(two: tuple[World, World], capsys: pytest.CaptureFixture[str]) -> None:
    first, second = two
    finish(first, "2026-11-20T22:00:00+00:00", {"n=1,rep=1": "valid"})
    finish(second, "2026-11-21T22:00:00+00:00", {"n=2,rep=1": "valid"})
    code, lines, err = listed(first, capsys, "merge", "run1", "run2", "--into", "both")
    assert (code, err) == (0, "")
    path = first.results / "s" / "both"
    assert lines[-1] == f"report: {path / 'report.html'}"
    assert (path / "summary.parquet").is_file()
    page = (path / "report.html").read_text()
    assert "n=1,rep=1" in page
    assert "run1 (1 trial), run2 (1 trial)" in page


def test_runs_of_other_code_or_kernels_are_merged_with_a_word(
    two: tuple[World, World], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = two
    second.halves["n1"] = {**HALF, "kernel": "6.2", "packages": {"torch": "2"}}
    finish(first, "2026-11-20T22:00:00+00:00", {"n=1,rep=1": "valid"})
    finish(second, "2026-11-21T22:00:00+00:00", {"n=2,rep=1": "valid"})
    table = json.loads((second.folder / "run.json").read_text())["code"]
    ((digest, files),) = table.items()
    set_record(second, code={"other": files | {"tasks/storage.py": "12345678"}})
    for file in second.folder.glob("trials/*/trial.json"):
        file.write_text(file.read_text().replace(digest, "other"))
    assert runs.main(["merge", "run1", "run2", "--into", "both", "--results", str(first.results)]) == 0
    own = files["tasks/storage.py"]
    told = [f"code of tasks/storage.py: {own} in run1, 12345678 in run2", "node: kernel: 6.1 in run1, 6.2 in run2"]
    assert f"note: the runs are not of the same: {'; '.join(told)}\n" in capsys.readouterr().out
    path = first.folder.parent / "both"
    assert json.loads((path / "run.json").read_text())["differences"] == told
    assert told[1] in (path / "report.html").read_text()


def test_a_run_on_some_of_the_same_nodes_is_no_other(two: tuple[World, World]) -> None:
    first, second = two
    first.halves["n2"] = second.halves["n2"] = {**HALF, "cpu": "slow"}
    plan = first.plan()
    finish(first, "2026-11-20T22:00:00+00:00", {"n=1,rep=1": "valid"})
    store = RunStore(str(first.folder))
    first.publish(store, next(t for t in plan.trials if t.id == "n=1,rep=2"), "valid", "n2")
    finish(second, "2026-11-21T22:00:00+00:00", {"n=2,rep=1": "valid"}, host="n2")
    assert taken([first.folder, second.folder]).differences == ()


# --- runs that change, or that somebody else wrote -------------------------------------------------------------------


def test_a_file_that_goes_while_it_is_counted_is_not_counted(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    world.finish(world.plan())
    before = runs._size_bytes(world.folder)

    def walk(top: Any, *_: Any) -> Any:
        yield from [(at, folders, [*names, "gone"]) for at, folders, names in os_walk(top)]

    os_walk = os.walk
    monkeypatch.setattr("os.walk", walk)
    assert runs._size_bytes(world.folder) == before
    assert listed(world, capsys)[0] == 0


@pytest.mark.parametrize("fields", [{"plan": ["x"]}, {"plan": 5}, {"nodes": [1]}, {"code": []}])
def test_one_strange_run_hides_no_other(
    two: tuple[World, World], capsys: pytest.CaptureFixture[str], fields: dict[str, Any]
) -> None:
    for one in two:
        finish(one, "2026-11-20T22:00:00+00:00")
    set_record(two[0], **fields)
    code, lines, _ = listed(two[0], capsys)
    assert (code, len(lines)) == (0, 3)
    assert lines[1].startswith("run1 s unreadable ")
