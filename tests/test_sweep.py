"""Whole sweeps, as a user starts them: Ray, trials, report; interrupted and killed in the middle."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from sweep import session
from tests.machine import ROOT, Machine, wait_for

pytestmark = [pytest.mark.root, pytest.mark.ray, pytest.mark.slow]

SMALL = ["tests/small.yaml"]


@pytest.fixture
def machine(tmp_path):
    (tmp_path / "state").mkdir()
    return Machine(tmp_path / "state", tmp_path / "results")


def test_a_sweep_ends_with_figures_and_a_report(machine):
    code, out, err = machine.run(*SMALL, "repeats=2")
    assert (code, err) == (0, "")
    assert "4 trials: 4 valid" in out
    run = machine.latest()
    assert f"report:  {run.resolve() / 'report.html'}" in out
    records = [json.loads(p.read_text()) for p in run.glob("trials/*/trial.json")]
    assert sorted(r["id"] for r in records) == [f"fs={fs},rep={n}" for fs in ("ext4", "xfs") for n in (1, 2)]
    for record in records:
        assert record["verdict"] == {"state": "valid", "reasons": []}
        assert record["bytes"]["traced"] == record["bytes"]["counted"]
        assert record["bytes"]["expected"]["write"] <= record["bytes"]["traced"]["write"]
        assert record["storage"]["fs"] == record["cell"]["fs"]
        assert record["fingerprint"]["node"]["packages"]["torch"]
    summary = pl.read_parquet(run / "summary.parquet")
    assert summary.filter(pl.col("phase") == "load").height == 4 * 2 * 2
    assert summary.filter(pl.col("phase") == "load")["traced_read_bytes"].is_in([1 << 20, 8 << 20]).any()
    figures = {p.name for p in (run / "figures").iterdir()}
    assert {f"fig2.{kind}" for kind in ("html", "svg", "pdf", "png")} <= figures
    assert len([name for name in figures if name.startswith("timeline-") and name.endswith(".png")]) == 4
    assert "fs=ext4,rep=2" in (run / "report.html").read_text()
    assert json.loads((run / "run.json").read_text())["state"] == "finished"
    assert machine.left() == set()
    check_rerun(machine, run)


def check_rerun(machine, run):
    """The resolved sweep names the same trials, and the figures can be drawn again."""
    done = machine.run(str(run / "sweep.yaml"), "--dry-run")
    assert done[0] == 0
    assert "4 trials, 2 cells x 2 repeats" in done[1]
    (run / "report.html").unlink()
    argv = [sys.executable, "-m", "analysis", str(run)]
    assert subprocess.run(argv, cwd=ROOT, capture_output=True, timeout=120).returncode == 0
    assert (run / "report.html").exists()


def test_bpftrace_under_ray(machine):
    code, out, err = machine.run(*SMALL, "grid.storage.fs=[xfs]", "trace.tracer=bpftrace", "workload.sizes=[1MiB]")
    assert (code, err) == (0, "")
    assert "1 trial: 1 valid" in out


@pytest.fixture
def nothing_kept(machine):
    """Removes in the end what a test kept."""
    yield
    argv = [sys.executable, "-m", "tasks.kept", "--remove"]
    subprocess.run(argv, cwd=ROOT, check=True, env=machine.environment)


def test_some_trials_with_a_warmup_their_files_kept(machine, nothing_kept):
    """Of four cells two make no sense and one is not selected; the warm-up of the last is run and not counted."""
    sizes = "grid.storage.image_size=[384MiB,64MiB]"
    extra = ["warmups=1", "repeats=2", "on_impossible=skip", "--only", "fs == xfs and rep != 2", "--keep"]
    code, out, err = machine.run(*SMALL, sizes, *extra)
    assert (code, err) == (0, "")
    assert "1 trial: 1 valid\n1 warm-up, not counted: 1 valid" in out
    run = machine.latest()
    record = json.loads((run / "run.json").read_text())
    ids = [f"fs=xfs,image_size=384MiB,{which}=1" for which in ("warmup", "rep")]
    assert [entry["id"] for entry in record["plan"]] == ids
    assert [one["id"] for one in record["skipped"]] == [f"fs={fs},image_size=64MiB" for fs in ("ext4", "xfs")]
    assert record["selection"] == {"only": ["fs == xfs and rep != 2"], "trials": []}
    assert set(pl.read_parquet(run / "summary.parquet")["trial"]) == {ids[1]}
    assert "1 trial run first and not counted: 1 valid" in (run / "report.md").read_text()
    held = Path("/proc/mounts").read_text() + subprocess.run(["losetup", "-a"], capture_output=True, text=True).stdout
    assert "offload-sweep-kept-" not in held
    trials = [json.loads(path.read_text()) for path in run.glob("trials/*/trial.json")]
    folders = [Path(trial["kept"]["path"]) for trial in trials]
    assert len(folders) == 2
    for trial, folder in zip(trials, folders, strict=True):
        assert (folder / "disk.img").stat().st_size == 384 << 20
        argv = [sys.executable, *trial["kept"]["remove"][1:]]
        subprocess.run(argv, cwd=ROOT, check=True, env=machine.environment)
        assert not folder.exists()


def test_sigint_keeps_what_is_finished_and_leaves_nothing_behind(machine):
    process = machine.start(*SMALL, "repeats=3")
    published = machine.latest() / "trials"
    wait_for(lambda: list(published.glob("*/trial.json")) and machine.measuring())
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert machine.left(0) == set()
    kept = list(published.glob("*/trial.json"))
    assert kept
    assert f"interrupted; {len(kept)} of 6 trials are kept" in out
    assert json.loads((machine.latest() / "run.json").read_text())["state"] == "interrupted"


def test_what_a_killed_driver_leaves_is_cleared_by_the_next_sweep(machine):
    process = machine.start(*SMALL, "workload.loops=200", "grid.storage.fs=[xfs]")
    wait_for(machine.measuring)
    process.kill()
    process.communicate()
    code, _, err = machine.run(*SMALL, "grid.storage.fs=[xfs]")
    assert (code, err) == (0, "")
    assert machine.left() == set()


def test_what_a_killed_supervisor_leaves_is_cleared_by_the_next_sweep(machine):
    process = machine.start(*SMALL, "workload.loops=200", "grid.storage.fs=[xfs]")
    wait_for(machine.measuring)
    for line in machine.processes():
        if "tasks.supervisor" in line or "tensor_io.py" in line:
            os.kill(int(line.split()[0]), signal.SIGKILL)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 3
    assert "1 trial: 1 failed" in out
    machine.run(*SMALL, "grid.storage.fs=[xfs]")
    assert machine.left() == set()


def test_a_failure_is_shown_when_it_happens_and_the_sweep_goes_on(machine):
    code, out, _ = machine.run(*SMALL, "grid={limits.time_limit_s: [1, 60]}", "workload.loops=200")
    assert code == 3
    assert "2 trials: 1 valid, 1 failed" in out
    assert "✗ time_limit_s=1,rep=1 failed" in out
    assert "ran longer than limits.time_limit_s (1 s)" in out
    report = (machine.latest() / "report.html").read_text()
    assert "ran longer than limits.time_limit_s (1 s)" in report
    assert machine.left() == set()


def test_lost_events_are_tried_again_and_stay_invalid(machine):
    code, out, _ = machine.run(*SMALL, "grid.storage.fs=[xfs]", "trace.buffer_size=4KiB", "workload.loops=20")
    assert code == 3
    assert "invalid, trying again" in out
    assert "events were lost" in out
    record = json.loads(next(machine.latest().glob("trials/*/trial.json")).read_text())
    assert (record["attempt"], record["verdict"]["state"]) == (2, "invalid")
    assert len(list(machine.latest().glob("superseded/*/trial.json"))) == 1


@pytest.fixture
def cluster(machine, tmp_path_factory):
    """A Ray node of this machine's own resources, started as the README says; its address."""
    import ray

    offered = [sys.executable, "-m", "sweep.node"]
    resources = subprocess.run(offered, cwd=ROOT, capture_output=True, text=True, env=machine.environment).stdout
    argv = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--port=6399"]
    argv += ["--include-dashboard=false", f"--temp-dir=/tmp/osw-test-{os.getpid()}", f"--resources={resources}"]
    log = tmp_path_factory.mktemp("ray") / "log"
    with log.open("w") as out:
        process = subprocess.Popen(argv, cwd=ROOT, env=machine.environment, stdout=out, stderr=out)
    wait_for(lambda: "Ray runtime started" in log.read_text() or process.poll() is not None)
    assert process.poll() is None, log.read_text()
    yield f"{ray.util.get_node_ip_address()}:6399"
    process.terminate()
    process.wait(30)
    session.clear(Path(f"/tmp/osw-test-{os.getpid()}"))


def test_a_running_cluster_is_used_and_left_running(machine, cluster):
    for _ in range(2):
        code, out, err = machine.run(*SMALL, "grid.storage.fs=[xfs]", "--address", cluster)
        assert (code, err) == (0, "")
        assert "1 trial: 1 valid" in out
    more = [*SMALL, "grid.storage.fs=[xfs]", "repeats=2", "--address", cluster, "--resume"]
    code, out, err = machine.run(*more, "--dry-run")
    assert (code, err) == (0, "")
    assert re.search(r"^  fs=xfs,rep=1  reuse$", out, re.MULTILINE)
    assert re.search(r"^  fs=xfs,rep=2  run +not finished; on ", out, re.MULTILINE)
    code, out, err = machine.run(*more)
    assert (code, err) == (0, "")
    assert "reused: 1 trial\n" in out
    assert "2 trials: 2 valid" in out
    code, out, err = machine.run(*SMALL, "--address", cluster, "--dry-run")
    assert (code, err) == (0, "")
    assert f"on {os.uname().nodename}" in out


def test_a_cluster_that_is_not_there(machine):
    code, _, err = machine.run(*SMALL, "--address", "127.0.0.1:6398")
    assert code == 2
    assert "--address 127.0.0.1:6398: no Ray cluster answers" in err
    assert "Traceback" not in err
