"""Other processes on the traced device: seen, named, and in the way where they move more than a little."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tasks.bystanders import Bystanders
from tasks.lease import TOKEN_VARIABLE, process_start
from tests.conftest import OURS, trial_config

READER = """
import mmap, os, sys, time
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
page = mmap.mmap(-1, 1 << 20)
for n in range(200):
    os.preadv(fd, [page], n % 64 << 20)
    time.sleep(0.015)
"""


def stranger(*argv: object) -> int:
    """Start a process that is no descendant of this one once the shell between them has ended; return its pid."""
    command = ["sh", "-c", '"$@" >/dev/null 2>&1 & echo $!', "sh", *map(str, argv)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def wait_for(pid: int) -> None:
    while process_start(pid):
        time.sleep(0.05)


def test_threads_of_others_are_named_and_ours_are_not() -> None:
    ours, other = stranger("env", f"{TOKEN_VARIABLE}=mine", "sleep", "60"), stranger("sleep", "60")
    child = subprocess.Popen(["sleep", "60"])
    try:
        time.sleep(0.2)  # until env has become sleep
        seen = Bystanders("mine")
        seen.look()
        me = threading.get_native_id()
        moved = {ours: 10, other: 20, child.pid: 25, me: 30, 2: 40, 1 << 22: 50}
        assert seen.named(moved) == {f"sleep (pid {other})": 20}
    finally:
        for pid in (ours, other, child.pid):
            os.kill(pid, signal.SIGKILL)
        child.wait()


def test_a_descendant_is_ours_whatever_its_number() -> None:
    """Numbers start again at the largest one: a child's may be below its parent's."""
    seen = Bystanders("mine")
    seen._ours.add(900)
    assert seen._descends(7, {7: 30, 30: 900})
    assert not seen._descends(8, {7: 900, 8: 1, 1: 0})


def test_in_a_container_with_numbers_of_its_own_nobody_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "readlink", lambda path: "pid:[4026532999]")
    assert Bystanders("mine").named({1: 5}) is None


def mount_points() -> list[str]:
    return [line.split()[0] for line in Path("/proc/mounts").read_text().splitlines() if OURS in line]


@pytest.mark.root
def test_another_reader_of_the_device_is_named_and_makes_the_trial_invalid(run_here) -> None:
    readers: list[int] = []

    def read_meanwhile() -> None:
        time.sleep(1.5)  # by then the device has come to rest and the job sleeps
        readers.append(stranger(sys.executable, "-c", READER, mount_points()[0]))
        wait_for(readers[0])

    thread = threading.Thread(target=read_meanwhile)

    def announce(text: str) -> None:
        if text.startswith("starting tracer"):
            thread.start()

    record, _ = run_here(trial_config(workload={"kind": "command", "argv": ["sleep", "7"]}), announce)
    thread.join()
    others = record["tracer"]["others_bytes"]
    (name,) = others
    assert name.endswith(f"(pid {readers[0]})")
    assert others[name] == 200 << 20
    assert record["bytes"]["traced"] == record["bytes"]["counted"]
    assert record["verdict"]["state"] == "invalid"
    assert f"other processes moved 200 MiB on the traced device: {name} 200 MiB" in record["verdict"]["reasons"]


WRITER = """
import mmap, os, sys, time
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
page = mmap.mmap(-1, 1 << 20)
for n in range(200):
    os.pwritev(fd, [page], n % 32 << 20)
    time.sleep(0.015)
"""


@pytest.mark.root
def test_a_writer_on_the_drive_beneath_the_image_is_told_of(run_here, state: Path) -> None:
    def announce(text: str) -> None:
        if text.startswith("starting tracer"):
            thread.start()

    def write_meanwhile() -> None:
        time.sleep(1.5)
        wait_for(stranger(sys.executable, "-c", WRITER, state / "noise"))

    thread = threading.Thread(target=write_meanwhile)
    job = {"kind": "command", "argv": ["sh", "-c", QUIET_JOB, "{offload_dir}"]}
    config = trial_config(backing="disk", workload=job)
    record, _ = run_here(config, announce)
    thread.join()
    assert record["verdict"]["state"] == "valid", record["verdict"]
    assert record["device"]["drive_moved_bytes"]["write"] >= 200 << 20
    assert "on vda, the drive beneath, meanwhile" in record["trouble"].replace(record["device"]["drive"], "vda")
    assert "python" in record["trouble"]


QUIET_JOB = 'dd if=/dev/zero of="$0/file" bs=1M count=1 oflag=direct; sleep 6'


@pytest.mark.root
def test_a_trial_by_itself_has_no_bystanders(run_here) -> None:
    pattern = [(i % 64 * 65536, 65536) for i in range(40)]
    record, _ = run_here(trial_config(workload={"kind": "pattern", "pattern": pattern}))
    assert record["tracer"]["others_bytes"] == {}
    assert record["verdict"]["state"] == "valid"
