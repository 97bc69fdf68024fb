"""A memory limit for a whole job: real cgroups, real page cache, a real OOM kill."""

import os
import sys

import pytest

from sweep import config
from sweep.errors import ConfigError
from sweep.placement import Node, place
from sweep.plan import Grid
from tasks import cgroup
from tasks.lease import Lease, reap
from tasks.machine import Offer, Place
from tests.conftest import OURS, TOKENS, trial_config

MIB = 1 << 20

#: Writes 128 MiB through the page cache and reads them twice.
REREAD = """
import os
path = os.environ["DIR"] + "/f"
with open(path, "wb") as f:
    f.write(bytes(128 << 20))
    os.fsync(f.fileno())
for _ in range(2):
    with open(path, "rb", buffering=0) as f:
        while f.read(1 << 20):
            pass
"""
HOG = "x = [bytes(1 << 20).replace(b'\\0', b'1') for _ in range(4096)]"


def limited(memory, program):
    workload = {"kind": "command", "argv": [sys.executable, "-c", program], "env": {"DIR": "{offload_dir}"}}
    workload["argv"][2] = program.replace("{", "{{").replace("}", "}}")
    return trial_config(workload=workload, limits={"memory": memory})


def metric(record, name):
    return record["metrics"][name]["value"]


def our_cgroups():
    root = cgroup.find().root
    return [p.name for p in root.glob(f"{OURS}*")]


@pytest.mark.root
def test_under_a_limit_the_page_cache_cannot_answer_for_the_drive(run_here):
    record, _ = run_here(limited(None, REREAD))
    assert record["bytes"]["counted"]["read"] < 16 * MIB
    record, _ = run_here(limited("64MiB", REREAD))
    assert record["verdict"] == {"state": "valid", "reasons": []}
    assert record["bytes"]["counted"]["read"] >= 128 * MIB
    assert metric(record, "memory_limit_bytes") == 64 * MIB
    assert 32 * MIB < metric(record, "memory_peak_bytes") <= 64 * MIB
    assert metric(record, "oom_kills") == 0
    assert our_cgroups() == []


@pytest.mark.root
def test_an_oom_kill_is_told_as_what_it_was(run_here):
    record, _ = run_here(limited("64MiB", HOG))
    reason = "the kernel killed the job: out of memory at limits.memory (64 MiB)"
    assert record["verdict"] == {"state": "failed", "reasons": [reason]}
    assert metric(record, "oom_kills") >= 1
    assert our_cgroups() == []


@pytest.mark.root
def test_the_cgroup_of_a_dead_attempt_goes_with_what_is_in_it(state):
    child = os.fork()
    if child == 0:
        lease = Lease.take(f"{TOKENS}-dead")
        with cgroup.memory_limited(64 * MIB, lease) as limit:
            if os.fork() == 0:
                limit.procs.write_text("0")
                os.execvp("sleep", ["sleep", "60"])
            while not limit.procs.read_text().split():
                pass
            os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    assert our_cgroups() == [f"{OURS}dead"]
    assert reap() == []
    assert our_cgroups() == []


def test_where_no_limit_can_be_set_the_trial_is_refused(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("workload: {kind: tensor_io, apis: [posix]}\nlimits: {memory: 1GiB}\n")
    trial = Grid(config.load(str(file))).trials[0]
    ground = Place("/", "ext4", ("vda",), 1 << 40, False)
    have = ["root", "loop", "fs:ext4", "engine:torch", "tracer:none"]
    node = Node(Offer("bare", {}, [ground], "/var/lib/offload-sweep", have, {"memory_limit": "no memory cgroup"}))
    assert place(trial.config, node) == ["limits.memory: no memory cgroup"]


@pytest.mark.parametrize("memory", ["lots", "0", "1MiB"])
def test_a_limit_that_makes_no_sense_is_refused(tmp_path, memory):
    file = tmp_path / "c.yaml"
    file.write_text(f"workload: {{kind: tensor_io}}\nlimits: {{memory: {memory}}}\n")
    with pytest.raises(ConfigError, match=r"limits\.memory"):
        Grid(config.load(str(file)))
