"""Sweeps as a user starts them, and a look at what they leave on the machine."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tasks.lease import TOKEN_VARIABLE, process_start

ROOT = Path(__file__).parent.parent


class Machine:
    """Sweeps with a state folder of their own, and a look at what they leave on the machine.

    `seen_by` is the pid of a process whose mounts are looked at, for hosts that have their own.
    """

    def __init__(self, state, results, seen_by="self"):
        self.state, self.results, self._view = state, results, Path(f"/proc/{seen_by}")
        self.environment = os.environ | {"OFFLOAD_SWEEP_STATE": str(state)}
        self.before = set(self.everything())

    def start(self, *arguments, **options):
        argv = [sys.executable, "-m", "sweep", *arguments, "--results", str(self.results)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(argv, cwd=ROOT, env=self.environment, **pipes, **options)

    def run(self, *arguments):
        process = self.start(*arguments)
        out, err = process.communicate(timeout=240)
        return process.returncode, out, err

    def latest(self, sweep="small"):
        return self.results / sweep / "latest"

    def everything(self):
        """Return all that sweeps make, but for results and what nodes keep."""
        found = self.resources() + [str(p) for p in (self.state / "attempts").glob("*")]
        return found + [str(p) for p in Path("/tmp").glob("osw-*")] + self.processes()

    def resources(self):
        """Return mounts, loop devices, cgroups, tracing instances, images and folders of attempts."""
        found = [line for line in (self._view / "mounts").read_text().splitlines() if "offload-sweep-" in line]
        found += subprocess.run(["losetup", "-a"], capture_output=True, text=True).stdout.splitlines()
        found += [str(p) for p in Path("/sys/kernel/tracing/instances").glob("offload-sweep-*")]
        # below the hierarchy of cgroup v2, or below that of each controller of v1
        found += [str(p) for level in ("", "*/") for p in Path("/sys/fs/cgroup").glob(f"{level}offload-sweep-*")]
        folders = (self._view / "root/dev/shm", self.state)
        return found + [str(p) for folder in folders for p in folder.glob("offload-sweep-*")]

    def processes(self):
        """Return the processes of our sweeps; Ray's rename themselves, which hides their environment."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                marked = f"OFFLOAD_SWEEP_STATE={self.state}".encode() in (folder / "environ").read_bytes()
            except OSError:
                continue
            if command and (marked or command.startswith("ray::")) and "multiprocessing" not in command:
                found.append(f"{folder.name} {command}")
        return found

    def left(self, limit_s=20):
        """Return what is on the machine that was not before, once that stands still."""
        end = time.monotonic() + limit_s
        while (new := set(self.everything()) - self.before) and time.monotonic() < end:
            time.sleep(0.2)
        return new

    def attempts(self):
        """Return the tokens of the attempts that run now, or have left something."""
        return sorted(p.name for p in (self.state / "attempts").glob("*"))

    def measuring(self, job="tensor_io.py"):
        """Say whether a trial's job is running."""
        return any(job in line for line in self.processes())


class Attempt:
    """One attempt that runs now, for a look at what is left of it later."""

    def __init__(self, machine, token):
        self.token, self._machine = token, machine
        lease = json.loads((machine.state / "attempts" / token / "lease.json").read_text())
        self.held = {entry["kind"] for entry in lease["held"]}
        supervisors = [int(line.split()[0]) for line in machine.processes() if "tasks.supervisor" in line]
        self._supervisors = [(pid, process_start(pid)) for pid in supervisors]
        assert self._supervisors

    def left(self):
        """Return everything of the attempt that is on the machine: what it holds, its processes, its supervisor."""
        found = [line for line in self._machine.resources() if self.token in line]
        found += [str(p) for p in (self._machine.state / "attempts").glob(f"{self.token}*")]
        found += [f"supervisor {pid}" for pid, start in self._supervisors if process_start(pid) == start]
        return found + [f"process {pid}" for pid in _carrying(f"{TOKEN_VARIABLE}={self.token}".encode())]

    def gone_after_s(self, limit_s=30):
        """Wait until nothing is left and return the seconds that took."""
        begin = time.monotonic()
        while left := self.left():
            assert time.monotonic() < begin + limit_s, f"after {limit_s} s these are left: {left}"
            time.sleep(0.05)
        return time.monotonic() - begin


def _carrying(variable):
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if variable in (folder / "environ").read_bytes().split(b"\0") and process_start(int(folder.name)):
                yield int(folder.name)
        except OSError:
            continue


def wait_for(condition, limit_s=90):
    """Wait until `condition` says something true, and return that."""
    end = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
    return found
