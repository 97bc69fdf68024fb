"""A sweep whose driver is killed goes on; a change makes exactly those trials stale that it touches."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests import block_devices
from tests.machine import ROOT, Machine, wait_for

pytestmark = [pytest.mark.root, pytest.mark.ray, pytest.mark.slow]

DD = {
    "kind": "command",
    "argv": ["dd", "if=/dev/zero", "of={offload_dir}/x", "bs=64K", "count=64", "oflag=direct"],
    "space": "8MiB",
}
TENSORS = {"kind": "tensor_io", "sizes": ["1MiB"], "apis": ["posix"], "loops": 1, "tensor_devices": ["cpu"]}


class Copy(Machine):
    """A machine that runs sweeps from a copy of the code, in which a line can be changed."""

    def __init__(self, folder):
        self.tree = folder / "tree"
        for name in ("sweep", "tasks", "analysis", "bpftrace", "conf"):
            shutil.copytree(ROOT / name, self.tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "state").mkdir()
        super().__init__(folder / "state", folder / "results")
        self.environment["PYTHONPATH"] = str(self.tree)
        self.file = folder / "three.yaml"

    def start(self, *arguments, **options):
        argv = [sys.executable, "-m", "sweep", str(self.file), *arguments, "--results", str(self.results)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(argv, cwd=self.tree, env=self.environment, **pipes, **options)

    def define(self, loops=1, limit_kb=128, **storage):
        """Write the sweep: tensors, a command on an image, a command in a folder; two trials of each."""
        image = {"backing": "tmpfs", "image_size": "384MiB"}
        queue = {"max_sectors_kb": limit_kb}
        sweep = {
            "name": "three",
            "trace": {"tracer": "ftrace"},
            "ceiling": {"enabled": False},
            "figures": [],
            "repeats": 2,
            "scenarios": {
                "tensors": {"workload": TENSORS | {"loops": loops}, "storage": image | {"fs": "xfs"}},
                "image": {"workload": DD, "storage": image | {"fs": "ext4", "queue": queue}},
                "folder": {"workload": DD, "storage": {"kind": "directory", "fs": "ext4", **storage}},
            },
        }
        self.file.write_text(yaml.safe_dump(sweep))

    def published(self):
        """Return when each published trial was started, by id."""
        records = [json.loads(p.read_text()) for p in (self.results / "three/latest").glob("trials/*/trial.json")]
        return {record["id"]: record["started"] for record in records}

    def states(self, *words):
        """Return what a dry run says would become of each trial, with the reason."""
        code, out, err = self.run("--resume", "--dry-run", *words)
        assert (code, err) == (0, "")
        found = re.findall(r"^  (scenario=\S+) +(\w+) *(.*?)(?:; )?(?:on .*)?$", out, re.MULTILINE)
        assert len(found) == 6, out
        return {name: (state, reason) for name, state, reason in found}

    def stale(self, *words):
        """Return the reason of every stale trial; all others are reused."""
        states = self.states(*words)
        assert {state for state, _ in states.values()} <= {"stale", "reuse"}
        return {name: reason for name, (state, reason) in states.items() if state == "stale"}


@pytest.fixture
def scratch():
    """A filesystem on a block device of the test's own: its folder, and its node."""
    with block_devices.loop() as node, block_devices.mounted("ext4", node) as folder:
        yield folder, node


def of(scenario, reason):
    return {f"scenario={scenario},rep={n}": reason for n in (1, 2)}


def test_killed_resumed_and_changed(tmp_path, scratch):
    folder, node = scratch
    copy = Copy(tmp_path)
    copy.define(path=str(folder))
    kill_in_the_middle(copy)
    go_on(copy)
    changes = [
        an_engine_flag(copy, folder),
        a_queue_limit_of_the_sweep(copy, folder),
        a_queue_limit_of_the_node(copy, node),
        a_line_of_workload_code(copy),
    ]
    run_what_is_stale(copy, changes)


def kill_in_the_middle(copy):
    process = copy.start()
    wait_for(lambda: len(copy.published()) >= 2 and copy.attempts())
    process.kill()
    process.communicate()
    assert 2 <= len(copy.published()) < 6


def go_on(copy):
    """Only what was not finished runs, in the same folder; nothing of the killed driver is left."""
    before, run = copy.published(), (copy.results / "three/latest").resolve()
    states = copy.states()
    assert {name for name, (state, _) in states.items() if state == "reuse"} == set(before)
    assert {why for name, (state, why) in states.items() if state == "run"} == {"not finished"}
    code, out, err = copy.run("--resume")
    assert (code, err) == (0, "")
    assert f"reused: {len(before)} trials" in out
    assert "6 trials: 6 valid" in out
    after = copy.published()
    assert {name: after[name] for name in before} == before
    assert len(after) == 6
    assert (copy.results / "three/latest").resolve() == run
    record = json.loads((run / "run.json").read_text())
    assert (record["state"], len(record["resumed"]), record["resumed"][0]["reused"]) == ("finished", 1, len(before))
    assert record["resumed"][0]["before"]["state"] == "running"
    assert f": {len(before)} trials kept" in (run / "report.html").read_text()
    assert copy.attempts() == []
    assert copy.stale() == {}


def an_engine_flag(copy, folder):
    copy.define(loops=2, path=str(folder))
    stale = copy.stale()
    assert stale == of("tensors", "workload.loops: 1 -> 2")
    return stale


def a_queue_limit_of_the_sweep(copy, folder):
    copy.define(limit_kb=64, path=str(folder))
    stale = copy.stale()
    assert stale == of("image", "storage.queue.max_sectors_kb: 128 -> 64")
    copy.define(path=str(folder))
    return stale


def a_queue_limit_of_the_node(copy, node):
    limit = Path(f"/sys/block/{Path(node).name}/queue/max_sectors_kb")
    before = limit.read_text().strip()
    limit.write_text("64")
    stale = copy.stale()
    assert stale == of("folder", f"node: storage.queue.max_sectors_kb: {before} -> 64")
    limit.write_text(before)
    assert copy.stale() == {}
    return stale


def a_line_of_workload_code(copy):
    job = copy.tree / "tasks/jobs/tensor_io.py"
    job.write_text(job.read_text() + "\n# one line more\n")
    stale = copy.stale()
    assert set(stale) == set(of("tensors", ""))
    assert all(re.fullmatch(r"code of tasks/jobs/tensor_io.py: \w{8} -> \w{8}", why) for why in stale.values())
    return stale


def run_what_is_stale(copy, changes):
    """What is stale runs again, the rest does not, and what the run had of it is kept aside."""
    before, run = copy.published(), copy.results / "three/latest"
    code, out, err = copy.run("--resume")
    assert (code, err) == (0, "")
    assert "reused: 4 trials" in out
    assert "stale: 2 trials (scenario=tensors,rep=1, scenario=tensors,rep=2): code of tasks/jobs/tensor_io.py: " in out
    after = copy.published()
    assert {name for name in before if after[name] != before[name]} == set(changes[-1])
    kept = [json.loads(p.read_text())["started"] for p in run.glob("superseded/*/trial.json")]
    assert sorted(kept) == sorted(before[name] for name in changes[-1])
    assert copy.stale() == {}
    assert copy.attempts() == []


def test_a_run_whose_driver_lives_is_not_gone_on_with(tmp_path, scratch):
    folder, _ = scratch
    copy = Copy(tmp_path)
    copy.define(path=str(folder))
    process = copy.start()
    wait_for(copy.published)
    code, out, err = copy.run("--resume")
    assert (code, out) == (2, "")
    assert f"this run goes on: process {process.pid} of " in err
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "6 trials: 6 valid" in out
