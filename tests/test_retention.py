"""Which runs go when there are too many or too much of them, and which never do."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from analysis import ledger, retention
from analysis.files import DRIVER_LOCK, STORE_LOCK, locked
from sweep.config import as_yaml, load
from sweep.definition import Retention
from sweep.errors import ConfigError
from tests.test_decisions import World, sweep_file, world

__all__ = ["sweep_file", "world"]


@pytest.fixture
def folder(world: World) -> Path:
    """Five finished nights of one sweep, night1 to night5."""
    for number in range(1, 6):
        made(world, number)
    return world.results / "s"


def made(world: World, number: int, **fields: Any) -> Path:
    world.folder = world.results / "s" / f"night{number}"
    started = f"2026-11-{number:02d}T02:00:00+00:00"
    world.finish(world.plan(), started=started, ended=started)
    file = world.folder / "run.json"
    told = {"run_id": world.folder.name, "started": started, "state": "finished"} | fields
    file.write_text(json.dumps(json.loads(file.read_text()) | told))
    (world.folder / "figures").mkdir()
    (world.folder / "figures" / "big").write_bytes(b"x" * (4 << 20))
    return world.folder


def going(folder: Path, runs: int | None = None, size: int | None = None, used: Any = ()) -> list[str]:
    return [one.run.name for one in retention.excess(folder, runs, size, used)]


def runs(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if (path / "run.json").exists() and not path.is_symlink())


def test_the_oldest_go_by_number_and_by_size(folder: Path) -> None:
    assert going(folder) == []
    assert going(folder, 5) == []
    assert going(folder, 3) == ["night1", "night2"]
    assert going(folder, size=14 << 20) == ["night1", "night2"]
    assert going(folder, 4, 10 << 20) == ["night1", "night2", "night3"]
    told = str(retention.excess(folder, 4, None)[0])
    assert "night1 (4.0" in told
    assert "there are 5 runs, 4 are kept" in told


def test_what_is_used_stays_and_the_next_goes_in_its_place(folder: Path) -> None:
    assert going(folder, 3, used=[folder / "night1"]) == ["night2", "night3"]
    (folder / "latest").unlink()
    (folder / "latest").symlink_to("night2")
    assert going(folder, 3) == ["night1", "night3"]
    assert going(folder, 1) == ["night1", "night3", "night4", "night5"]


@pytest.mark.parametrize("name", [DRIVER_LOCK, STORE_LOCK])
def test_a_run_that_is_driven_or_written_to_stays(folder: Path, name: str) -> None:
    with locked(folder / "night1" / name):
        assert going(folder, 4) == ["night2"]
        one = retention.Removal(folder / "night1", 1, "too many")
        assert list(retention.remove(folder, [one])) == ["run night1 stays: somebody has begun to use it"]
    assert len(runs(folder)) == 5


def test_an_unfinished_run_of_today_stays_and_one_of_last_week_goes(world: World, folder: Path) -> None:
    now = datetime.now(UTC)
    for number, ago in ((1, timedelta(hours=3)), (2, timedelta(days=7))):
        file = folder / f"night{number}" / "run.json"
        told = {"state": "interrupted", "started": (now - ago).isoformat()}
        file.write_text(json.dumps(json.loads(file.read_text()) | told))
    assert going(folder, 1) == ["night3", "night4", "night2"]
    file = folder / "night2" / "run.json"
    again = [{"started": (now - timedelta(hours=1)).isoformat()}]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"resumed": again}))
    assert going(folder, 1) == ["night3", "night4"]


def test_only_runs_that_the_sweep_made_go(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.move(folder / "night1", elsewhere)
    (folder / "night1").symlink_to(elsewhere)
    for number, fields in ((2, {"state": "merged"}), (3, {"sweep": "other"}), (4, {"schema_version": None})):
        file = folder / f"night{number}" / "run.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    (folder / "notes").mkdir()
    (folder / "notes" / "run.json").write_text("{")
    (folder / "history").mkdir()
    assert going(folder, 1) == []


def test_what_is_removed_is_in_the_ledger_and_nothing_of_it_is_left(folder: Path) -> None:
    lines = list(retention.remove(folder, retention.excess(folder, 3, None)))
    assert [line.partition(" (")[0] for line in lines] == ["removed run night1", "removed run night2"]
    assert runs(folder) == ["night3", "night4", "night5"]
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
    assert (folder / "latest").resolve().is_dir()
    frame = ledger.read(folder.parent / ledger.FILE)
    assert sorted(frame.run.unique()) == ["night1", "night2"]
    assert frame.drop_duplicates([*ledger.KEY]).shape[0] == 8


def test_what_cannot_be_entered_in_the_ledger_stays(folder: Path) -> None:
    trial = next((folder / "night1" / "trials").iterdir())
    (trial / "trial.json").write_text("{")
    lines = list(retention.remove(folder, retention.excess(folder, 3, None)))
    assert lines[0].startswith("run night1 stays: ")
    assert runs(folder) == ["night1", "night3", "night4", "night5"]
    (folder.parent / ledger.FILE).write_bytes(b"junk")
    lines = list(retention.remove(folder, retention.excess(folder, 2, None)))
    assert all("stays: " in line for line in lines)
    assert "the ledger cannot be read" in lines[1]
    assert len(runs(folder)) == 4


def test_a_removal_that_was_cut_short_is_ended_by_the_next(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(path: Path, **_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(retention.shutil, "rmtree", stopped)
        with pytest.raises(KeyboardInterrupt):
            list(retention.remove(folder, retention.excess(folder, 4, None)))
    assert runs(folder) == ["night2", "night3", "night4", "night5"]
    assert list(retention.remove(folder, [])) == []
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


# --- the keys --------------------------------------------------------------------------------------------------------


def test_the_keys_are_checked_and_kept(sweep_file: Path, tmp_path: Path) -> None:
    assert load(str(sweep_file)).retention == Retention(None, None)
    sweep = load(str(sweep_file), ["retention={runs: 30, size: 50GiB}"])
    assert sweep.retention == Retention(30, 50 << 30)
    again = tmp_path / "again.yaml"
    again.write_text(as_yaml(sweep))
    assert load(str(again)).retention == sweep.retention
    for words, said in (
        ("retention.runs=0", r"retention.runs: must be 1 or more"),
        ("retention.size=much", r"retention.size: 'much' is not a size"),
        ("retention.run=3", r"did you mean retention.runs"),
        ("retention=30", r"retention"),
    ):
        with pytest.raises(ConfigError, match=said):
            load(str(sweep_file), [words])
