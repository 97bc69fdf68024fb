"""A sweep writes to the state, the results and /tmp alone: it runs where everything else is read-only.

And where the head's disk fills up, it stops with what is needed, and goes on once there is room.
"""

import os
import subprocess
import sys

import pytest

from analysis import load_run
from tests.machine import ROOT

pytestmark = [pytest.mark.root, pytest.mark.ray, pytest.mark.slow]

#: Makes every mount read-only, in a namespace of its own, but for the folders named; then becomes the command.
_CONFINE = """
import ctypes, os, subprocess, sys
free, command = sys.argv[1].split(":"), sys.argv[2:]
libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, MS_REC_PRIVATE = 0x20000, 0x44000
if libc.unshare(CLONE_NEWNS) or libc.mount(None, b"/", None, MS_REC_PRIVATE, None):
    sys.exit("no mount namespace to be had")
points = [line.split()[4] for line in open("/proc/self/mountinfo")]
for folder in free:
    subprocess.run(["mount", "--bind", folder, folder], check=True)
kept = ("/proc", "/sys", "/dev", *free)
for point in dict.fromkeys(points):
    if not any(point == k or point.startswith(k + "/") for k in kept):
        subprocess.run(["mount", "-o", "remount,bind,ro", point], check=True)
try:
    open("/etc/offload-sweep-test", "w")
    sys.exit("the root can be written to")
except OSError:
    pass
os.execvp(command[0], command)
"""


def sweep(results, state, *arguments, confined_to=()):
    argv = [sys.executable, "-m", "sweep", *map(str, arguments), "--results", str(results)]
    if confined_to:
        argv = [sys.executable, "-c", _CONFINE, ":".join(map(str, confined_to)), *argv]
    environment = os.environ | {"OFFLOAD_SWEEP_STATE": str(state), "HOME": str(state), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def folders(tmp_path):
    for name in ("state", "results", "tmp"):
        (tmp_path / name).mkdir()
    return tmp_path


def test_a_sweep_writes_nowhere_but_where_it_may(folders):
    """With a loop image, a tracer, figures and a report: all else is read-only, and nothing of it was wanted."""
    may = [folders / "state", folders / "results", "/tmp"]
    small = [ROOT / "tests" / "small.yaml", "workload.apis=[posix]", "grid.storage.fs=[ext4]"]
    code, out, err = sweep(folders / "results", folders / "state", *small, confined_to=may)
    assert (code, err) == (0, ""), out
    assert "1 trial: 1 valid" in out


COMMAND = """
name: noisy
workload:
  kind: command
  argv: [python3, -c, "import sys; sys.stdout.write('x' * {size})"]
  values: {size: 10}
storage: {kind: directory, fs: auto, path: PATH}
trace: {tracer: none}
grid: {workload.values.size: [10, 60000000]}
order: listed
"""


def test_a_head_whose_disk_is_full_stops_with_what_it_needs_and_goes_on(folders):
    (folders / "noisy.yaml").write_text(COMMAND.replace("PATH", str(folders / "tmp")))
    results = folders / "results"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", str(results)], check=True)
    try:
        code, out, err = sweep(results, folders / "state", folders / "noisy.yaml")
        assert code == 3, out + err
        assert "stopped: the disk of" in out
        assert "needs 57.2 MiB" in out
        assert "Traceback" not in out + err
        run = load_run(results / "noisy")
        assert run.record["state"] == "broken"
        assert len(run.published) == 1
        subprocess.run(["mount", "-o", "remount,size=400m", str(results)], check=True)
        code, out, err = sweep(results, folders / "state", folders / "noisy.yaml", "--resume")
        assert (code, err) == (0, ""), out
        assert len(load_run(results / "noisy").published) == 2
    finally:
        subprocess.run(["umount", str(results)], check=True)
