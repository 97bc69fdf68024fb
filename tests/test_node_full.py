"""A node whose own disk is full says so, in the trial's verdict, and hands over what it has."""

import subprocess

import pytest

from tests.conftest import trial_config

pytestmark = pytest.mark.root


@pytest.fixture
def full_state(state):
    """A node's state folder on a filesystem of 1 MiB."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(state)], check=True)
    yield state
    subprocess.run(["umount", str(state)], check=True)


def test_a_job_whose_log_fills_the_nodes_disk(full_state, run_here, tmp_path):
    (tmp_path / "offload").mkdir()
    storage = {"kind": "directory", "fs": "auto", "path": str(tmp_path / "offload"), "queue": {}}
    argv = ["python3", "-c", "print('x' * 4_000_000)"]
    workload = {"kind": "command", "argv": argv, "values": {}, "env": {}, "space": "1MiB"}
    workload |= {"expect_read": None, "expect_write": None}
    record, _ = run_here(trial_config("none", workload=workload, storage=storage))
    assert record["verdict"]["state"] == "failed"
    assert "this node's disk" in " ".join(record["verdict"]["reasons"]), record["verdict"]
    assert record["ended"]
