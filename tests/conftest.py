"""What tests share: a machine state of their own, and trials that run in this process."""

import functools
import os
import shutil
import subprocess
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tasks import launch, workloads
from tasks.lease import Lease
from tasks.spec import Trace, TrialSpec

#: How the tokens of this process's trials begin, and what they leave on the machine.
TOKENS = f"t{os.getpid()}"
OURS = f"offload-sweep-{TOKENS}-"


#: What the processes of `make test` tell the one that deals out tests: which of them need the machine to themselves.
_OF_MACHINE = "lanes/machine"


def uses_machine(item):
    """Say whether a test mounts, traces or starts Ray: what another of its kind would disturb."""
    return any(item.get_closest_marker(name) for name in ("root", "ray", "gpu"))


def pytest_collection_modifyitems(config, items):
    """Skip what this machine does not allow, and say why."""
    if hasattr(config, "workerinput"):
        config.cache.set(_OF_MACHINE, [item.nodeid for item in items if uses_machine(item)])
    for item in items:
        if item.get_closest_marker("root") and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root"))
        if item.get_closest_marker("gpu") and not shutil.which("nvidia-smi"):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Give all tests that use the machine to one of `make test`'s processes, and the others file by file to either."""
    from xdist.scheduler import LoadScopeScheduling

    class Lanes(LoadScopeScheduling):
        @functools.cached_property
        def _of_machine(self):
            return frozenset(config.cache.get(_OF_MACHINE, ()))

        def _split_scope(self, nodeid):
            return "machine" if nodeid in self._of_machine else nodeid.split("::")[0]

    return Lanes(config, log)


def pytest_runtest_setup(item):
    """Where two processes run tests, those that measure go first on the processors."""
    if "PYTEST_XDIST_WORKER" in os.environ and os.geteuid() == 0:
        os.setpriority(os.PRIO_PROCESS, 0, 0 if uses_machine(item) else 10)


@pytest.fixture
def state(tmp_path, monkeypatch):
    """A state folder of the test's own, so that no sweep's leases and locks are touched."""
    folder = tmp_path / "state"
    folder.mkdir()
    monkeypatch.setenv("OFFLOAD_SWEEP_STATE", str(folder))
    return folder


@pytest.fixture
def left_behind(state):
    """Return what this test's trials have left on the machine: mounts, loop devices, tracing instances, files."""

    def look():
        loops = subprocess.run(["losetup", "-a"], capture_output=True, text=True).stdout
        lines = Path("/proc/mounts").read_text().splitlines() + loops.splitlines()
        ours = [line for line in lines if str(state) in line or OURS in line]
        instances = [n for n in os.listdir("/sys/kernel/tracing/instances") if n.startswith(OURS)]
        attempts = os.listdir(state / "attempts") if (state / "attempts").exists() else []
        images = [n for n in [*os.listdir(state), *os.listdir("/dev/shm")] if n.startswith(OURS)]
        return ours + instances + attempts + images

    return look


def trial_config(tracer="ftrace", fs="xfs", backing="tmpfs", workload=None, **changes):
    """Return a trial's resolved configuration, small unless changed."""
    storage = {
        "kind": "loop",
        "fs": fs,
        "path": None,
        "backing": backing,
        "image_size": "384MiB",
        "mkfs_options": [],
        "mount_options": [],
        "queue": {"max_sectors_kb": 128, "read_ahead_kb": None},
    }
    config = {
        "workload": workload or {"kind": "pattern"},
        "storage": storage | changes.pop("storage", {}),
        "trace": vars(Trace(tracer=tracer, sample_interval_ms=50)) | changes.pop("trace", {}),
        "ceiling": {"enabled": False} | changes.pop("ceiling", {}),
        "limits": {"time_limit_s": 60, "memory": None} | changes.pop("limits", {}),
    }
    assert not changes
    return config


def trial_spec(config, **fields):
    """Return the specification of a trial with this configuration."""
    token = f"{TOKENS}-{uuid.uuid4().hex[:8]}"
    return TrialSpec("test", "a=1,rep=1", "a-1_rep-1-000000", {"a": 1}, 1, 1, token, config, {"plan": "x"}, **fields)


@pytest.fixture
def own_supervisor(state, monkeypatch):
    """Attempts that this test launches have a supervisor of their own, which ends with the test."""
    doors = []
    monkeypatch.setattr(launch, "_doors", doors)
    yield
    for door in doors:
        door.close()


@pytest.fixture
def at_once(own_supervisor):
    """Return a function that runs trials at the same time, as several sweeps do; it returns records and words told."""

    def run(*configs):
        told = []

        def one(config):
            with launch.launched(trial_spec(config), told.append) as outcome:
                return outcome.record

        with ThreadPoolExecutor() as pool:
            return list(pool.map(one, configs)), told

    return run


@pytest.fixture
def run_here(state, monkeypatch):
    """Return a function that runs a trial in this process and returns its record and its folder of files."""
    from tasks.trial import run_trial, spool_of

    monkeypatch.setitem(workloads.WORKLOADS, "pattern", "tests.pattern_workload")

    def run(config, announce=lambda text: None):
        spec = trial_spec(config)
        lease = Lease.take(spec.token)
        return run_trial(spec, lease, announce), spool_of(lease)

    return run
