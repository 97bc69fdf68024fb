"""Sweeps over several nodes, each a host of its own: where trials run, and what becomes of them when hosts fail."""

import json
import secrets
import sys
from pathlib import Path

import pytest

from tests import namespaces
from tests.machine import wait_for

pytestmark = [pytest.mark.root, pytest.mark.ray, pytest.mark.slow]

SWEEP = "tests/cluster.yaml"
PORT = 6379


def ray_node(head):
    """Return what a host runs as its service: Ray, started as the README says; `head` is None for the head itself."""

    def service(host):
        argv = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--num-cpus=1"]
        argv += [f"--address={head}:{PORT}"] if head else ["--head", f"--port={PORT}", "--include-dashboard=false"]
        argv += [f"--node-ip-address={host.address}", f"--temp-dir={host.folder / 'ray'}"]
        argv += ["--object-store-memory=100000000"]
        return ["bash", "-c", f'exec {" ".join(argv)} --resources="$({sys.executable} -m sweep.node)"']

    return service


class Cluster:
    """A head and what joins it; sweeps are driven from the head."""

    def __init__(self, net, results):
        self.net, self.results = net, results
        self.secure()
        self.head = net.host("one", "ext4", ray_node(None))
        wait_for(lambda: self.runs(self.head))
        self.two = self.join("two", "xfs")
        self.three = self.join("three", "btrfs")
        wait_for(lambda: self.runs(self.two) and self.runs(self.three))

    def secure(self):
        """Give all hosts one token of Ray's, as `sweep.node` does."""
        token = self.net.folder / "auth_token"
        token.write_text(secrets.token_hex(32))
        self.net.environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}

    def join(self, name, fs):
        return self.net.host(name, fs, ray_node(self.head.address))

    @staticmethod
    def runs(host):
        assert "Traceback" not in host.said(), host.said()
        return "Ray runtime started" in host.said()

    def start(self, *arguments, sweep=SWEEP):
        address = f"{self.head.address}:{PORT}"
        path = f"storage.path={self.head.offload}"
        argv = [sys.executable, "-m", "sweep", sweep, path, *arguments]
        return self.head.start(*argv, "--address", address, "--results", str(self.results))

    def run(self, *arguments, limit_s=240):
        process = self.start(*arguments)
        out, err = process.communicate(timeout=limit_s)
        return process.returncode, out, err

    def latest(self):
        return self.results / "cluster" / "latest"

    def records(self):
        return [json.loads(p.read_text()) for p in self.latest().glob("trials/*/trial.json")]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Three nodes, each with a filesystem of its own."""
    if why := namespaces.obstacle():
        pytest.skip(why)
    with namespaces.network() as net:
        yield Cluster(net, tmp_path_factory.mktemp("results"))


def test_every_trial_runs_where_its_filesystem_is(cluster):
    code, out, err = cluster.run("repeats=2", "workload.values.size=8m", "workload.expect_write=8MiB")
    print(out)
    assert (code, err) == (0, "")
    assert "6 trials: 6 valid" in out
    where = {(r["cell"]["fs"], r["node"]["hostname"], r["storage"]["fs"]) for r in cluster.records()}
    assert where == {("ext4", "one", "ext4"), ("xfs", "two", "xfs"), ("btrfs", "three", "btrfs")}
