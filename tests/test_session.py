"""The folder of a Ray that a sweep or a node started: what is ended with it, and what is not."""

import os
import subprocess
import sys
import time

import pytest

from sweep import session
from tasks.lease import MARKER

_HOLD = "import sys, time; f = open(sys.argv[1], 'w'); print('open', flush=True); time.sleep(60)"


@pytest.fixture
def holder(tmp_path):
    """Return a function that starts a process of our interpreter, under a title, with a file of the folder open."""
    started = []

    def start(title, folder):
        file = folder / f"{len(started)}.log"
        process = subprocess.Popen(
            [title, "-c", _HOLD, str(file)], executable=sys.executable, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "open\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_rays_processes_end_with_their_folder_and_a_driver_does_not(tmp_path, holder):
    folder = tmp_path / "osw-1-1"
    folder.mkdir()
    worker = holder("ray::IDLE", folder)
    agent = holder("/x/site-packages/ray/_private/log_monitor.py", folder)
    driver = holder("python", folder)
    elsewhere = holder("ray::IDLE", tmp_path)
    session.clear(folder)
    assert [worker.wait(10), agent.wait(10)] == [-9, -9]
    time.sleep(0.2)
    assert (driver.poll(), elsewhere.poll()) == (None, None)
    assert not folder.exists()


def test_only_what_a_dead_process_of_this_pid_space_left_is_abandoned(tmp_path, monkeypatch):
    monkeypatch.setattr(session, "_PARENT", tmp_path)
    names = {"osw-1-1": None, "osw-2147483647-1": None, "osw-2147483646-1": "pid:[1]", f"osw-{os.getpid()}-x": None}
    for name, space in names.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / MARKER).write_text(space or session._pid_space())
    session.clear_abandoned()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["osw-2147483646-1", f"osw-{os.getpid()}-x"])


def test_a_folder_is_there_while_it_is_needed(tmp_path, monkeypatch):
    monkeypatch.setattr(session, "_PARENT", tmp_path)
    with session.folder() as folder:
        assert (folder / MARKER).read_text() == os.readlink("/proc/self/ns/pid")
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not folder.exists()
