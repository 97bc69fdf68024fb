"""A night: alone, compared with what it names, told in one page and one exit code."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from analysis import judgement, ledger, load_run
from analysis.files import DRIVER_LOCK, locked
from analysis.store import RunStore
from sweep import baseline, cli, cluster, night
from sweep.config import load
from sweep.errors import ConfigError, UserError
from sweep.options import Options
from sweep.plan import Grid
from tests.test_decisions import World, node, sweep_file, world
from tests.test_runs import set_record

__all__ = ["sweep_file", "world"]

ROOT = Path(__file__).parent.parent


# --- one at a time ---------------------------------------------------------------------------------------------------

HOLD = "from pathlib import Path; import sys, time; from sweep import night\n"
HOLD += "with night.alone(Path(sys.argv[1]), 0):\n    print('held', flush=True); time.sleep(60)\n"


@pytest.fixture
def other(tmp_path: Path) -> Any:
    """Another process, in the middle of a night of the sweep `s`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "s")], stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_night_is_refused_and_told_who_holds_it(tmp_path: Path, other: Any) -> None:
    begun = time.monotonic()
    with pytest.raises(UserError) as told, night.alone(tmp_path / "s", 0):
        pass
    assert time.monotonic() - begun < 10  # `other` holds it for much longer
    assert f"process {other.pid} of " in str(told.value)
    assert f" on {os.uname().nodename}, since 20" in str(told.value)
    assert "--wait" in str(told.value)
    with night.alone(tmp_path / "t", 0):
        pass  # of another sweep


def test_a_night_that_was_killed_blocks_nobody(tmp_path: Path, other: Any) -> None:
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    with night.alone(tmp_path / "s", 0):
        pass


def test_a_night_waits_for_as_long_as_it_was_told(
    tmp_path: Path, other: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"goes on after \d s"), night.alone(tmp_path / "s", 0.5):
        pass
    assert "waiting for another night of s: process" in capsys.readouterr().out
    subprocess.Popen(["sh", "-c", f"sleep 0.5; kill {other.pid}"])
    with night.alone(tmp_path / "s", 30):
        assert other.wait() != 0


def test_whoever_only_looks_keeps_no_night_from_starting(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    looking = (tmp_path / "s" / night.LOCK).open("a+")
    fcntl.flock(looking, fcntl.LOCK_SH)
    threading.Timer(0.2, looking.close).start()
    with night.alone(tmp_path / "s", 0):
        pass


def test_a_night_waits_as_long_as_a_look_takes_at_least(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def seen(path: Path, content: str = "", wait_s: float = 0.0) -> Any:
        asked.append(wait_s)
        return locked(path, content, wait_s)

    monkeypatch.setattr(night, "locked", seen)
    for wait_s in (0, 30):
        with night.alone(tmp_path / "s", wait_s):
            pass
    assert asked == [0.5, 30]


def test_times_to_wait() -> None:
    assert [night.seconds(text) for text in ("90s", "30m", "1.5h")] == [90, 1800, 5400]
    for text in ("", "5", "-1h", "2 h", "1d"):
        with pytest.raises(ValueError, match="must be a time such as"):
            night.seconds(text)


def test_the_exit_code_of_a_night() -> None:
    assert [night.exit_code(code, regressed) for code in (0, 3) for regressed in (False, True, None)] == [
        *(0, 4, 3),
        *(3, 4, 3),
    ]


# --- what it is compared with ----------------------------------------------------------------------------------------


def made(world: World, name: str, day: int, **fields: Any) -> Path:
    world.folder = world.results / "s" / name
    started = f"2026-11-{day:02d}T02:00:00+00:00"
    world.finish(world.plan(), started=started, ended=started)
    set_record(world, run_id=name, started=started, **{"state": "finished"} | fields)
    return world.folder


def found(world: World, *words: str, resumed: Path | None = None, sweep: Any = None) -> list[tuple[str, bool]]:
    sweep = sweep or load(str(world.file))
    told = baseline.find(world.results, sweep, Grid(sweep), words, resumed)
    return [(one.run, one.folder is not None) for one in told.bases]


def test_latest_is_the_newest_finished_whole_run(world: World) -> None:
    assert found(world, "latest") == []
    for day in (1, 2, 3):
        made(world, f"night{day}", day)
    made(world, "some", 4, selection={"only": ["n == 1"], "trial": []})
    made(world, "broken", 5, state="interrupted")
    made(world, "both", 6, state="merged")
    with locked(made(world, "now", 7) / DRIVER_LOCK):
        assert found(world, "latest") == [("night3", True)]
        assert found(world, "latest:2") == [("night2", True), ("night3", True)]
        assert found(world, "latest:9") == [("night1", True), ("night2", True), ("night3", True)]
        assert found(world, "night1", "latest") == [("night1", True), ("night3", True)]
        assert found(world, "latest:2", "night3") == [("night2", True), ("night3", True)]


def test_a_run_that_is_gone_on_with_is_compared_with_those_before_it(world: World) -> None:
    folders = [made(world, f"night{day}", day) for day in (1, 2, 3)]
    assert found(world, "latest:9", resumed=folders[1]) == [("night1", True)]
    with pytest.raises(ConfigError, match="cannot be its own base"):
        found(world, "night2", resumed=folders[1])


def test_a_run_that_was_removed_is_found_in_the_ledger(world: World) -> None:
    for day in (1, 2, 3):
        ledger.add(made(world, f"night{day}", day))
    for name in ("night1", "night3"):
        shutil.rmtree(world.results / "s" / name)
    assert found(world, "latest") == [("night3", False)]
    assert found(world, "latest:3") == [("night1", False), ("night2", True), ("night3", False)]
    assert found(world, "night1") == [("night1", False)]
    with pytest.raises(ConfigError, match=r"--baseline: night7 is no run of s\n  the runs of s: night2; or latest"):
        found(world, "night7")


def test_a_run_that_is_there_is_what_it_says_and_not_what_the_ledger_said_once(world: World) -> None:
    folders = [made(world, f"night{day}", day) for day in (1, 2, 3)]
    for folder in folders:
        ledger.add(folder)
    world.folder = folders[2]
    set_record(world, state="interrupted")  # gone on with, and told to stop
    assert found(world, "latest") == [("night2", True)]
    with locked(folders[1] / DRIVER_LOCK):
        assert found(world, "latest:9") == [("night1", True)]


def test_a_mistaken_baseline_is_refused(world: World, tmp_path: Path) -> None:
    folder = made(world, "night1", 1)
    sweep = load(str(world.file), ["name=other"])
    with pytest.raises(ConfigError, match="is a run of 's', not of 'other'"):
        found(world, str(folder), sweep=sweep)
    with pytest.raises(ConfigError, match=r"night2 is no run of s\n  the runs of s: night1; or latest"):
        found(world, "night2")
    with pytest.raises(ConfigError, match=r"no trial of .*night1 is in this sweep"):
        found(world, "night1", sweep=load(str(world.file), ["grid={workload.values.m: [1, 2]}"]))
    for word in ("latest:", "latest:0", "latest:x", "latest:999"):
        with pytest.raises(ConfigError, match="is no number of nights; write latest, or latest:N"):
            found(world, word)
    with locked(folder / DRIVER_LOCK), pytest.raises(ConfigError, match="night1 goes on"):
        found(world, "night1")


def test_a_mistake_on_the_command_line_starts_nothing(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = ["--results", str(world.results)]
    for words, said in (
        (["--baseline", "nowhere"], "nowhere is no run of s"),
        (["--baseline", "latest:0"], "is no number of nights"),
        (["--wait", "2h"], "--wait is for nights"),
        (["--baseline", "latest", "--wait", "long"], "must be a time such as"),
    ):
        try:
            code = cli.main([str(world.file), *results, *words])
        except SystemExit as e:
            code = int(str(e.code))
        assert (code, said in capsys.readouterr().err) == (2, True)
    assert not world.results.exists()


def test_a_dry_run_tells_of_baseline_and_retention(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    for day in (1, 2, 3):
        made(world, f"night{day}", day)
    words = ["--results", str(world.results), "--dry-run", "--baseline", "latest:2", "retention.runs=2"]
    assert cli.main([str(world.file), *words]) == 0
    out = capsys.readouterr().out
    assert "baseline: night2, night3\n" in out
    assert out.count("would be removed then: run night1 (") == 1
    assert "would be removed then: run night2" not in out  # it is the baseline
    assert not (world.results / "s" / night.LOCK).exists()


def test_a_dry_run_names_the_runs_that_would_go_with_numbers_as_they_will_be(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    for day in (1, 2, 3):
        made(world, f"night{day}", day)

    def gone(*more: str) -> list[str]:
        words = [str(world.file), "--results", str(world.results), "--dry-run", "retention.runs=1", *more]
        assert cli.main(words) == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if "would be removed" in line]
        return [line.partition("run ")[2].partition(" (")[0] + line.partition(";")[2] for line in lines]

    all_three = [f"night{n} there are {m} runs, 1 are kept)" for n, m in ((1, 4), (2, 3), (3, 2))]
    assert gone() == all_three  # night3 is latest now, and will not be then
    assert gone("--only", "n == 1") == all_three[:2]
    assert gone("--resume") == [f"night{n} there are {m} runs, 1 are kept)" for n, m in ((1, 3), (2, 2))]


def test_a_baseline_of_a_cluster_is_on_its_head(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    address = "203.0.113.9:6379"  # of nobody (RFC 5737)
    monkeypatch.setattr(cluster, "joined", lambda address: nullcontext([node()]))
    monkeypatch.setattr(cluster, "head_address", lambda: address)
    made(world, "night1", 1)
    words = [str(world.file), "--results", str(world.results), "--address", address]
    for more, said in (
        (["--dry-run", "--baseline", "latest"], f"--baseline: the results of a cluster are on its head, {address}"),
        (["--dry-run", "--baseline", "night9"], "night1; or latest; the results of a cluster are on its head"),
        (["--baseline", "night9"], "night1; or latest; the results of a cluster are on its head"),
    ):
        assert cli.main([*words, *more]) == 2
        assert said in capsys.readouterr().err


# --- judged ----------------------------------------------------------------------------------------------------------


def test_a_first_night_says_so(world: World) -> None:
    folder = made(world, "night1", 1)
    told = judgement.judge(folder, [])
    assert told["regressed"] is False
    assert told["text"].startswith(judgement.FIRST)
    assert "s, run night1: 4 trials: 4 valid\n" in told["text"]
    assert judgement.told(load_run(folder)) == told["text"].rstrip()


def test_what_a_run_came_to_is_forgotten_when_it_is_gone_on_with(world: World) -> None:
    base, folder = made(world, "night1", 1), made(world, "night2", 2)
    files = [folder / judgement.FILE, folder / judgement.JSON]
    judgement.judge(folder, [("night1", str(base))])
    assert all(file.is_file() for file in files)
    store = RunStore(str(folder))
    store.resume({"state": "running"}, "name: s\n", [])
    store._lock.close()
    assert not any(file.exists() for file in files)
    files[1].write_text("{}")
    judgement.judge(folder, [])
    assert not files[1].exists()


def test_a_base_of_the_ledger_is_as_good_as_its_folder(world: World) -> None:
    base, folder = made(world, "night1", 1), made(world, "night2", 2)
    ledger.add(base)
    whole = judgement.judge(folder, [("night1", str(base))])
    shutil.rmtree(base)
    assert judgement.judge(folder, [("night1", None)]) == whole
    assert "s/night2 against s/night1" in whole["text"]


class Remote:
    """A Ray actor of which each call is noted, and answered with nothing."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *arguments: self.calls.append((name, arguments)))


@pytest.mark.parametrize(("at", "states"), [("trials", ["interrupted"]), ("drawing", ["finished"])])
def test_a_run_that_has_finished_stays_so_when_its_drawing_is_interrupted(
    world: World, monkeypatch: pytest.MonkeyPatch, at: str, states: list[str]
) -> None:
    ray = pytest.importorskip("ray")
    from sweep import run as running

    def told_to_stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ray, "get", lambda call, timeout=None: call)
    monkeypatch.setattr(running.interrupt, "ignore", lambda: None)
    actor, sweep = Remote(), load(str(world.file))
    scheduler = SimpleNamespace(run=told_to_stop if at == "trials" else lambda: None, stop=lambda: None)
    scheduler.stopped_by, scheduler.records = None, {}
    view = SimpleNamespace(say=lambda text: told_to_stop() if text == "drawing the figures" else None)
    one = running._Run(sweep, Grid(sweep), Options(world.results), world.folder, "key")
    ended: Any = one._ended(scheduler, actor, view)  # type: ignore[arg-type]
    assert ended == 130
    assert [arguments[0]["state"] for name, arguments in actor.calls if name == "finish"] == states
    assert [name for name, _ in actor.calls][-1] == "enter"


def test_a_run_in_an_archive_that_is_gone_on_with_removes_none_beside_it(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ray = pytest.importorskip("ray")
    from sweep import run as running

    folders = [made(world, f"night{day}", day) for day in (1, 2)]
    archive = tmp_path / "archive" / "s"
    archive.parent.mkdir()
    shutil.copytree(world.results / "s", archive, symlinks=True)
    monkeypatch.setattr(ray, "get", lambda call, timeout=None: call)
    sweep = load(str(world.file), ["retention.runs=1"])
    ended = {"ruled_out": {}, "run": str(world.folder), "report": None, "judged": None}
    for folder, calls in ((folders[1], ["retire"]), (archive / "night2", [])):
        actor = Remote()
        one = running._Run(sweep, Grid(sweep), Options(world.results), folder, "key")
        one._concluded(SimpleNamespace(stopped_by=None, records={}), actor, ended)  # type: ignore[arg-type]
        assert [name for name, _ in actor.calls] == calls
        words = [str(world.file), "--results", str(world.results), "--dry-run", "--resume", "--run", str(folder)]
        assert cli.main([*words, "retention.runs=1"]) == 0
        assert ("would be removed" in capsys.readouterr().out) is bool(calls)


# --- a whole one -----------------------------------------------------------------------------------------------------


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sweep", *argv]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=180, check=False)


@pytest.mark.ray
@pytest.mark.slow
def test_nights_as_a_timer_runs_them(sweep_file: Path, tmp_path: Path, state: Path) -> None:
    results = tmp_path / "results"
    words = [str(sweep_file), "--results", str(results), "retention.runs=2"]
    first = run(*words, "--baseline", "latest:3")
    assert first.returncode == 0, first.stderr
    assert judgement.FIRST in first.stdout
    second = run(*words, "--baseline", "latest:3")
    assert second.returncode == 0, second.stderr
    known = ledger.read(results / ledger.FILE)
    assert known.run.nunique() == 2
    folder = (results / "s" / "latest").resolve()
    text = (folder / judgement.FILE).read_text()
    assert text in second.stdout
    assert text.splitlines()[0].startswith(f"s/{folder.name} against s/")
    assert "Against the nights before" in (folder / "report.html").read_text()
    assert "## Against the nights before" in (folder / "report.md").read_text()
    assert (results / "s" / "history.html").is_file()
    third = run(*words, "--baseline", "latest", "workload.argv=['false', '{n}', '{m}']")
    assert third.returncode == 3, third.stderr
    assert third.stdout.count("removed run ") == 1
    frame = ledger.read(results / ledger.FILE)
    assert frame.run.nunique() == 3
    assert json.dumps(sorted(frame.verdict.unique())) == '["failed", "valid"]'
    (results / ledger.FILE).write_bytes(b"junk")
    fourth = run(*words)
    assert fourth.returncode == 0, fourth.stderr
    assert "this run is not in the ledger: " in fourth.stderr
    assert "move it away" in fourth.stderr
    assert "stays: " in fourth.stdout  # what is not in the ledger is not removed
    assert (results / ledger.FILE).read_bytes() == b"junk"
    last = third.stdout.rstrip().splitlines()[-1]
    assert last.startswith("report:")


@pytest.mark.ray
@pytest.mark.slow
def test_what_an_interrupted_run_has_is_in_the_ledger_and_the_rest_once_it_is_gone_on_with(
    sweep_file: Path, tmp_path: Path, state: Path
) -> None:
    results = tmp_path / "results"
    slow = "workload.argv=['sh', '-c', 'sleep $0', '{n}', '{m}']"
    words = [str(sweep_file), "--results", str(results), slow, "grid.workload.values.n=[0.1,30]", "repeats=1"]
    process = subprocess.Popen([sys.executable, "-m", "sweep", *words, "--baseline", "latest"], cwd=ROOT)
    end_s = time.monotonic() + 120
    while not list(results.glob("s/2*/trials/*/trial.json")):
        assert time.monotonic() < end_s
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    frame = ledger.read(results / ledger.FILE)
    assert (frame.trial.nunique(), set(frame.run_state)) == (1, {"interrupted"})
    done = run(*words, "--resume", "limits.time_limit_s=5", "--baseline", "latest")
    assert done.returncode == 3, done.stdout + done.stderr
    assert judgement.FIRST in done.stdout
    told = ledger.read(results / ledger.FILE).drop_duplicates([*ledger.KEY])
    # the first trial twice, for another limit made it stale
    assert sorted(told.verdict) == ["failed", "valid", "valid"]
