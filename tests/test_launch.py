"""What is kept of supervisors on a node: a log that only its owner reads and that does not grow for ever."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from tasks import launch
from tasks.errors import TaskError
from tests.conftest import trial_config, trial_spec


def test_the_log_is_its_owners_and_bounded(state, monkeypatch):
    monkeypatch.setattr(launch, "_LOG_BYTES", 100)
    log = state / "supervisor.log"
    log.write_text("of an earlier version\n")
    log.chmod(0o644)
    for _ in range(50):
        with launch._log() as file:
            file.write("something went wrong\n")
    files = sorted(state.glob("supervisor.log*"))
    assert [path.name for path in files] == ["supervisor.log", "supervisor.log.1"]
    assert all(path.stat().st_size <= 130 and path.stat().st_mode & 0o777 == 0o600 for path in files)
    assert log.read_text().endswith("something went wrong\n")


@pytest.fixture
def attempt(own_supervisor, tmp_path):
    """Return a function that runs a trial that does nothing under a supervisor of the test's own."""
    config = trial_config("none", workload={"kind": "command", "argv": ["true"]})
    config["storage"] |= {"kind": "directory", "path": str(tmp_path), "fs": "auto"}

    def run():
        with launch.launched(trial_spec(config), lambda text: None) as outcome:
            return outcome.record["verdict"]["state"]

    return run


def test_what_a_trial_does_for_a_moment_is_not_told():
    told = []
    reader, writer = os.pipe()
    with open(reader, "rb") as events, open(writer, "wb", buffering=0) as says:

        def trial():
            says.write(b'{"event": "phase", "text": "preparing xfs"}\n{"event": "phase", "text": "load"}\n{"event"')
            time.sleep(0.3)
            finished = b'{"event": "finished", "record": {}, "folder": "/", "files": [], "log_tail": ""}\n'
            says.write(b': "phase", "text": "drain"}\n' + finished)

        with ThreadPoolExecutor() as pool:
            pool.submit(trial)
            assert launch._outcome(events, told.append).record == {}
    assert told == ["load"]


def supervisors(state):
    """Return the supervisors with this state folder: the first one forks the others."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            marked = f"OFFLOAD_SWEEP_STATE={state}".encode() in (folder / "environ").read_bytes()
            if marked and b"tasks.supervisor" in (folder / "cmdline").read_bytes():
                found.append((int((folder / "stat").read_text().rpartition(") ")[2].split()[19]), int(folder.name)))
    return [pid for _, pid in sorted(found)]


def settled(state, count):
    """Return the supervisors once there are so many."""
    end = time.monotonic() + 10
    while len(found := supervisors(state)) != count:
        assert time.monotonic() < end, f"{len(found)} supervisors instead of {count}"
        time.sleep(0.02)
    return found


def test_a_supervisor_killed_while_it_waits_is_replaced(state, attempt):
    assert attempt() == "valid"
    first, *spares = settled(state, 3)  # the one that forks, a supervisor, and the process of its trial
    for pid in spares:
        os.kill(pid, signal.SIGKILL)
    settled(state, 1)
    assert attempt() == "valid"
    first, _, trial = settled(state, 3)
    os.kill(trial, signal.SIGKILL)
    settled(state, 2)
    assert attempt() == "valid"
    settled(state, 3)
    os.kill(first, signal.SIGKILL)
    settled(state, 0)
    assert attempt() == "valid"


def test_two_trials_on_one_machine_take_turns(at_once, tmp_path):
    config = trial_config("none", workload={"kind": "command", "argv": ["sleep", "1"]})
    config["storage"] |= {"kind": "directory", "path": str(tmp_path), "fs": "auto"}
    records, told = at_once(config, config)
    assert [record["verdict"]["state"] for record in records] == ["valid", "valid"]
    first, second = sorted((record["tracer"]["begin_ns"], record["tracer"]["end_ns"]) for record in records)
    assert first[1] <= second[0]
    assert "waiting for another sweep's trial on this machine" in told


def test_no_supervisor_waits_for_a_process_that_is_gone(state, attempt):
    assert attempt() == "valid"
    settled(state, 3)
    launch._doors.pop().close()
    settled(state, 0)


def test_pandas_is_not_in_what_every_trial_is_forked_from():
    code = "import sys, tasks.supervisor as s; s._warm_up(); print('pandas' in sys.modules); import pandas"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "False\n"


def test_a_request_that_was_cut_short_spoils_no_later_one(state, attempt, monkeypatch):
    assert attempt() == "valid"
    whole = launch.Request.send

    def half(self, door):
        door.send((8).to_bytes(8))
        raise KeyboardInterrupt

    monkeypatch.setattr(launch.Request, "send", half)
    with pytest.raises(KeyboardInterrupt):
        attempt()
    monkeypatch.setattr(launch.Request, "send", whole)
    assert attempt() == "valid"


def test_a_supervisor_that_does_not_start_is_told_in_words(state, attempt, monkeypatch):
    monkeypatch.setattr(launch.sys, "executable", "/bin/false")
    with pytest.raises(TaskError, match=r"does not start: .*supervisor\.log says why"):
        attempt()
