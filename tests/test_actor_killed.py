"""The process that holds the run on the head is killed in mid-sweep: what is published stays, and the run goes on."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from analysis import load_run
from analysis.files import STORE_LOCK
from tests.machine import ROOT, Machine

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SMALL = str(ROOT / "tests" / "small.yaml")


def holders(file):
    """Return the processes that have a file open."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if any(os.readlink(link) == str(file) for link in (folder / "fd").iterdir()):
                found.append(int(folder.name))
    return found


def test_a_run_whose_writer_is_killed_keeps_what_it_has_and_resumes(tmp_path):
    for name in ("state", "files"):
        (tmp_path / name).mkdir()
    machine = Machine(tmp_path / "state", tmp_path / "results")
    changes = ["workload.apis=[posix]", "trace.tracer=none", "storage.kind=directory", "storage.fs=auto"]
    changes += [f"storage.path={tmp_path}/files", "grid={workload.loops: [1, 2]}", "storage.queue.max_sectors_kb=null"]
    changes.append("repeats=4")
    process = machine.start(SMALL, *changes)
    run, end = machine.latest(), time.monotonic() + 120
    while len(list(run.glob("trials/*/trial.json"))) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
    (writer,) = holders(run.resolve() / STORE_LOCK)
    os.kill(writer, signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 3, out + err
    assert "stopped: " in out
    assert "--resume" in out
    assert "Traceback" not in out + err
    kept = {trial.slug: trial.record["ended"] for trial in load_run(run).published}
    assert len(kept) >= 2
    code, out, err = machine.run(SMALL, *changes, "--resume")
    assert (code, err) == (0, ""), out
    finished = load_run(run).published
    assert [trial.state for trial in finished] == ["valid"] * 8
    for trial in finished:
        assert kept.get(trial.slug, trial.record["ended"]) == trial.record["ended"]
    assert not (run / "superseded").exists()
    assert not (run / "incoming").exists()
