"""`sweep.node` on hosts with networks of their own: folders named by filesystem, a host cut off, hosts kept out."""

import json
import re
import sys
import time

import pytest

from sweep import authentication
from tests import namespaces
from tests.machine import wait_for
from tests.test_cluster import with_another_line

pytestmark = [pytest.mark.root, pytest.mark.ray, pytest.mark.slow]

#: Trials of a second, in the folder that each node names for the filesystem.
SWEEP = ["tests/cluster.yaml", "workload.values.size=8m", "workload.expect_write=8MiB", "repeats=1"]


class Cluster:
    """Two hosts that run `sweep.node`; sweeps are driven from the head."""

    def __init__(self, net):
        self.net, self.results = net, net.folder / "results"
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
def cluster():
    """A head with ext4 and a node with xfs."""
    if why := namespaces.obstacle():
        pytest.skip(why)
    with namespaces.network() as net:
        yield Cluster(net)


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


def test_the_doctor_has_a_row_for_a_node_with_other_code(cluster):
    other = cluster.net.host(
        "other",
        "xfs",
        cluster.service("--join", cluster.address, storage="xfs", token=cluster.head.state / "token"),
        with_another_line(cluster.net),
    )
    wait_for(lambda: "joined" in other.said())
    process = cluster.head.start(sys.executable, "-m", "sweep.doctor", "--address", cluster.address)
    out, err = process.communicate(timeout=90)
    print(out)
    other.shut_down()
    assert (process.returncode, err) == (3, "")
    assert max(map(len, out.splitlines())) <= 100
    assert re.search(r"^one .* of \d+ sweeps$", out, re.MULTILINE)
    assert re.search(r"^two .* of \d+ sweeps$", out, re.MULTILINE)
    assert re.search(r"problem +node other \(10\.77\.0\.\d\) has other code", out)


def test_a_node_that_was_cut_off_joins_again_by_itself(cluster):
    """Its Ray hears only from the head that it was given up, and then ends."""
    cluster.two.cut()
    time.sleep(90)  # of 20 s nobody takes notice
    code, _, err = cluster.run("grid.storage.fs=[xfs]", "--dry-run")
    assert code == 2, err
    cluster.two.mend()
    mended_s = time.monotonic()
    wait_for(lambda: cluster.two.said().count("sweep.node: joined") == 2, 150)
    print(f"cut for 90 s; it had joined {time.monotonic() - mended_s:.0f} s after the link was back")
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
