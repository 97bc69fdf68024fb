"""`sweep.node` on hosts with networks of their own: folders named by filesystem, a host cut off, hosts kept out."""

import json
import re
import sys
import time

import pytest

from sweep import authentication
from tests import namespaces
from tests.machine import wait_for

pytestmark = [pytest.mark.root, pytest.mark.ray, pytest.mark.slow]

#: Trials of a second, in the folder that each node names for the filesystem.
SWEEP = ["tests/cluster.yaml", "workload.values.size=8m", "workload.expect_write=8MiB", "repeats=1"]


class Cluster:
    """Two hosts that run `sweep.node`; sweeps are driven from the head."""

    def __init__(self, net, results):
        self.net, self.results = net, results
        self.head = net.host("one", "ext4", self.service("--head", storage="ext4"))
        wait_for(lambda: "to run a sweep on the cluster" in self.head.said())
        self.address = f"{self.head.address}:6379"
        self.two = self.join("two", "xfs")
        wait_for(lambda: "joined" in self.two.said())

    def service(self, *role, storage, token=None):
        def command(host):
            own = ["--node-ip", host.address, "--storage", f"{storage}={host.offload}"]
            admitted = ["--token-file", str(token)] if token else []
            return [sys.executable, "-m", "sweep.node", *role, *own, *admitted]

        return command

    def join(self, name, fs, storage=None, token=None):
        token = token or self.head.state / "token"
        return self.net.host(name, fs, self.service("--join", self.address, storage=storage or fs, token=token))

    def run(self, *arguments, limit_s=120):
        argv = [sys.executable, "-m", "sweep", *SWEEP, *arguments, "--address", self.address]
        process = self.head.start(*argv, "--results", str(self.results))
        out, err = process.communicate(timeout=limit_s)
        return process.returncode, out, err

    def where(self):
        """Return filesystem, node and mounted filesystem of each trial of the latest run."""
        records = [json.loads(p.read_text()) for p in (self.results / "cluster" / "latest").glob("trials/*/trial.json")]
        return {(r["cell"]["fs"], r["node"]["hostname"], r["storage"]["fs"]) for r in records}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A head with ext4 and a node with xfs."""
    if why := namespaces.obstacle():
        pytest.skip(why)
    with namespaces.network() as net:
        yield Cluster(net, tmp_path_factory.mktemp("results"))


def test_trials_work_in_the_folder_that_the_node_names_for_their_filesystem(cluster):
    code, out, err = cluster.run("grid.storage.fs=[ext4, xfs]")
    assert (code, err) == (0, ""), out
    assert cluster.where() == {("ext4", "one", "ext4"), ("xfs", "two", "xfs")}


def test_a_folder_on_another_filesystem_and_a_wrong_token_are_refused(cluster):
    lying = cluster.join("lying", "btrfs", storage="xfs")
    wait_for(lambda: re.search(r"storage: xfs=\S+: \S+ is btrfs, not xfs", lying.said()))
    wrong = authentication.make_token(cluster.net.folder / "wrong")
    stranger = cluster.join("stranger", "ext4", token=wrong)
    wait_for(lambda: "refuses this machine" in stranger.said())
    for host in (lying, stranger):
        assert "Traceback" not in host.said()
        host.power_off()


def test_a_node_that_was_cut_off_joins_again_by_itself(cluster):
    """Its Ray hears only from the head that it was given up, and then ends."""
    begin_s = time.monotonic()
    cluster.two.cut()
    wait_for(lambda: cluster.run("grid.storage.fs=[xfs]", "--dry-run")[0] == 2, 150)
    dead_s = time.monotonic() - begin_s
    cluster.two.mend()
    mended_s = time.monotonic()
    wait_for(lambda: cluster.two.said().count("sweep.node: joined") == 2, 150)
    print(f"cut: given up after {dead_s:.0f} s; mended: it had joined after {time.monotonic() - mended_s:.0f} s")
    print(cluster.two.said())
    assert "Ray has ended here" in cluster.two.said()
    code, out, err = cluster.run("grid.storage.fs=[xfs]")
    assert (code, err) == (0, ""), out
    assert cluster.where() == {("xfs", "two", "xfs")}


def test_when_the_head_comes_back_its_nodes_do(cluster):
    said = cluster.two.said().count("sweep.node: joined")
    cluster.head.kill("gcs/gcs_server")
    wait_for(lambda: cluster.head.said().count("to run a sweep on the cluster") == 2, 60)
    wait_for(lambda: cluster.two.said().count("sweep.node: joined") > said, 150)
    code, out, err = cluster.run("grid.storage.fs=[ext4, xfs]")
    assert (code, err) == (0, ""), out
    assert cluster.where() == {("ext4", "one", "ext4"), ("xfs", "two", "xfs")}
