"""What a report tells of a run that was gone on with: its commands, its time without the pause, what was set aside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from analysis import load_run
from analysis.report.content import Content, gathered
from analysis.report.nodes import tables
from tests.analysis.made_run import MIB, make_run

LATER = {
    "argv": ["python", "-m", "sweep", "--resume", "latest", "conf/quickstart.yaml", "storage.fs=[xfs]"],
    "started": "2026-11-20T12:00:00+00:00",
    "host": "bench-01",
    "reused": 1,
    "aside": 1,
    "before": {"state": "stopped", "ended": "2026-11-20T10:34:48+00:00"},
}


def told(run: Path, **changes: Any) -> Content:
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, **changes}))
    return gathered(load_run(run), [])


def facts(content: Content) -> dict[str, str]:
    return {fact.label: fact.text for fact in content.facts}


def test_each_session_tells_its_command_and_the_pause_is_no_part_of_the_time(tmp_path: Path) -> None:
    run = make_run(tmp_path, sizes=(MIB,), repeats=1)
    found = facts(told(run, resumed=[LATER], ended="2026-11-20T12:00:30+00:00"))
    assert found["Begun with"] == "python -m sweep conf/quickstart.yaml repeats=2"
    assert found["Gone on with"].startswith("python -m sweep --resume latest conf/quickstart.yaml")
    assert found["Then"] == "2026-11-20 12:00:00 UTC on bench-01: 1 trial kept, 1 set aside"
    assert found["Took"] == "1 min 30 s in 2 sessions"
    killed = LATER | {"before": {"state": "running", "ended": None}}
    assert facts(told(run, resumed=[killed]))["Took"] == "30 s in 2 sessions, of which 1 did not tell when it ended"


def test_a_trial_that_was_set_aside_is_told_where_one_is_missing(tmp_path: Path) -> None:
    run = make_run(tmp_path, sizes=(MIB,), repeats=1)
    content = told(run)
    assert content.tally["missing"] == 1
    trial = load_run(run).published[0]
    (run / "superseded").mkdir()
    trial.path.rename(run / "superseded" / f"{trial.slug}-earlier-1")
    row = next(row for row in told(run).trials.rows if row.cells[0].text == trial.id)
    wanted = f"planned, no result; its valid one of an earlier session is in superseded/{trial.slug}-earlier-1"
    assert row.cells[1].hint == wanted


def test_a_run_that_lacks_no_trial_says_nothing_of_missing_ones(tmp_path: Path) -> None:
    run = make_run(tmp_path, sizes=(MIB,), repeats=1)
    plan = [entry for entry in load_run(run).plan if entry not in load_run(run).missing]
    assert "missing" not in told(run, plan=plan).tally


def test_mounts_of_namespaces_and_of_jobs_are_no_drives(tmp_path: Path) -> None:
    run = make_run(tmp_path, sizes=(MIB,), repeats=1)
    places = [("vda", "/", 1 << 30), ("vda", "/run/netns", 1 << 30), ("vda", "/etc/hosts", 1 << 30)]
    places += [("loop1", "/dev/shm/mount-22709-f0650afe", 1 << 20), ("vdb", "/data", 2 << 30)]
    drives = [{"name": name, "path": path, "free_bytes": free} for name, path, free in places]
    content = told(run, nodes=[{"hostname": "bench-01", "drives": drives}])
    (row,) = tables(content.run)[0].rows
    assert "vda / (1 GiB free); vdb /data (2 GiB free)" in [cell.text for cell in row.cells]
