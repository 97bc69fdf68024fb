"""A search on a real drive, against the grid of the same trials.

The drive is a loop device on tmpfs that a cgroup holds to a rate that this machine reaches whatever else it does: how
long reads take then depends on how many wait, and hardly on the machine's two processors.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis import load_run
from tests import drive
from tests.machine import Machine

pytestmark = [pytest.mark.root, pytest.mark.ray, pytest.mark.slow]

MIB = 1 << 20
#: What the drive does, in bytes per second.
RATE = 64 * MIB
DEPTHS = [1, 2, 4, 8, 16, 32, 64, 128]
REPEATS = 2


@pytest.fixture
def slow_drive(tmp_path: Path) -> Iterator[drive.Drive]:
    if not drive.throttles():
        pytest.skip("this machine has no cgroup v1 blkio, by which a drive is slowed down")
    with drive.made(tmp_path, 1 << 30) as found:
        found.slow_down(RATE, RATE)
        yield found


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    (tmp_path / "state").mkdir()
    return Machine(tmp_path / "state", tmp_path / "results")


def latencies(run: Path) -> pd.Series:
    """Return the median 99th percentile of each depth, in µs."""
    frame = load_run(run).metrics()
    own = frame[(frame.op == "read") & (frame.phase == "trial") & (frame.verdict == "valid")]
    return own.groupby("cell.depth").d2c_p99_us.median().sort_index()


def patiently(machine: Machine, *arguments: str) -> tuple[int, str, str]:
    """Run a sweep of more trials than `Machine.run` has the patience for."""
    process = machine.start(*arguments)
    out, err = process.communicate(timeout=500)
    return process.returncode, out, err


@pytest.mark.timeout(1100)
def test_a_search_finds_what_the_grid_finds_in_fewer_trials(
    slow_drive: drive.Drive, machine: Machine, tmp_path: Path
) -> None:
    place = [f"storage.path={slow_drive.folder}", "figures=[]", "trace.tracer=ftrace"]
    grid = tmp_path / "grid.yaml"
    grid.write_text("extends: search.yaml\nsearch: {axis: null}\n")
    (tmp_path / "search.yaml").write_text(Path("conf/search.yaml").read_text())
    code, _, err = patiently(machine, str(grid), *place, f"grid.workload.values.depth={DEPTHS}", f"repeats={REPEATS}")
    assert (code, err) == (0, "")
    whole = (machine.results / "grid" / "latest").resolve()
    measured = latencies(whole)
    print(measured)
    # Halfway, as ratios go, between the two depths that are furthest apart: what noise there is does not decide.
    steps = (measured / measured.shift()).iloc[2:]
    beyond = steps.idxmax()
    target = float((measured[beyond] * measured[measured.index[measured.index.get_loc(beyond) - 1]]) ** 0.5)
    target = float(round(target))
    code, out, err = patiently(
        machine, "conf/search.yaml", *place, f"search.at_most={target}", f"search.confirm={REPEATS}"
    )
    assert (code, err) == (0, "")
    print(out)
    run = (machine.results / "search" / "latest").resolve()
    record = json.loads((run / "run.json").read_text())
    (found,) = record["adaptive"]["searches"]
    largest = max(depth for depth in measured.index if (measured[measured.index <= depth] <= target).all())
    assert (found["answer"], found["beyond"]) == (largest, beyond)
    assert found["trials"] == len(record["plan"]) < found["grid"] == len(DEPTHS) * REPEATS
    # Values beside the border have more repeats than asked for where those few do not tell.
    tried = {entry["id"] for entry in record["plan"] if entry["repeat"] <= REPEATS}
    assert tried < set(load_run(whole).trials().id)
    counts = f"{found['trials']} trials; the grid has {found['grid']}"
    assert f"largest depth with read.d2c_p99_us <= {target:.15g}: {largest} ({counts})" in out
    check_report(run)


def check_report(run: Path) -> None:
    text = (run / "report.html").read_text()
    for words in ("Search: Largest depth with read.d2c_p99_us", "Why it was tried", 'id="figure-search-1"'):
        assert words in text
    assert (run / "figures" / "search-1.png").is_file()
    assert "(planned, no result)" not in text


REPEATED: dict[str, Any] = {"until": "ci", "rel": 0.5, "min": 2, "max": 4}


def test_repeats_go_on_until_the_mean_is_known_and_are_resumed(machine: Machine) -> None:
    """A bound that two trials nearly always meet; then one that they never do, on the same run."""
    text = json.dumps(REPEATED)
    code, out, err = machine.run("tests/small.yaml", "grid.storage.fs=[xfs]", f"repeats={text}")
    assert (code, err) == (0, "")
    assert "known as well as asked for" in out
    before = len(list(machine.latest().glob("trials/*")))
    assert 2 <= before <= 4
    tighter = json.dumps(REPEATED | {"rel": 0.000001})
    code, out, err = machine.run("tests/small.yaml", "grid.storage.fs=[xfs]", f"repeats={tighter}", "--resume")
    assert (code, err) == (0, "")
    assert f"reused: {before} trial" in out
    assert "repeats: 4 of 1 cell; 0 known as well as asked for" in out
    assert len(json.loads((machine.latest() / "run.json").read_text())["plan"]) == 4


def test_a_metric_that_the_trials_do_not_have_is_told_and_they_are_kept(machine: Machine) -> None:
    words = ["grid.storage.fs=[xfs]", "repeats={until: ci, metric: lode/read.d2c_p99_us}"]
    code, out, err = machine.run("tests/small.yaml", *words)
    assert (code, err) == (3, "")
    assert "stopped: fs=xfs,rep=1 has no lode/read.d2c_p99_us: no phase 'lode'; " in out
    assert "load aio cpu 1 MiB" in out
    assert "1 trial: 1 valid" in out
    code, out, _ = machine.run(
        "tests/small.yaml", words[0], "repeats={until: ci, rel: 0.9, min: 2, max: 3}", "--resume"
    )
    assert code == 0
    assert "reused: 1 trial" in out
