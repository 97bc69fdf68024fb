"""Sweeps over several nodes, each a host of its own: where trials run, and what becomes of them when hosts fail."""

import itertools
import json
import shutil
import sys
import threading
import time

import pytest

from tests import namespaces
from tests.machine import ROOT, Attempt, Machine, wait_for

pytestmark = [pytest.mark.root, pytest.mark.ray, pytest.mark.slow]

SWEEP = "tests/cluster.yaml"
PORT = 6379

#: Trials of a second.
SHORT = ["workload.values.size=8m", "workload.expect_write=8MiB"]


def head(host):
    """Return what the head runs as its service, as docs/cluster.md says."""
    return [sys.executable, "-m", "sweep.node", "--head", f"--node-ip={host.address}", *offered(host)]


def offered(host):
    return [f"--storage={host.fs}={host.offload}", f"--drive={host.name}s-drive"]


class Cluster:
    """A head and what joins it; sweeps are driven from the head."""

    def __init__(self, net):
        self.net, self.results = net, net.folder / "results"
        self.head = net.host("one", "ext4", head)
        wait_for(lambda: self.runs(self.head))
        self.two, self.three = self.join("two", "xfs"), self.join("three", "btrfs")
        wait_for(lambda: self.runs(self.two) and self.runs(self.three))

    def join(self, name, fs, instead=None):
        """Start a host that joins as a node; its token is copied from the head."""
        return self.net.host(name, fs, self._member, instead)

    def _member(self, host):
        shutil.copy2(self.head.state / "token", host.state / "token")
        address = f"{self.head.address}:{PORT}"
        return [sys.executable, "-m", "sweep.node", "--join", address, *offered(host)]

    @staticmethod
    def runs(host):
        assert "Traceback" not in host.said(), host.said()
        return " with token authentication" in host.said()

    def start(self, *arguments, sweep=SWEEP):
        address = f"{self.head.address}:{PORT}"
        # named: the disk beneath all hosts is offered by each, too
        path = f"storage.path={self.head.offload}"
        argv = [sys.executable, "-m", "sweep", sweep, path, *arguments]
        return self.head.start(*argv, "--address", address, "--results", str(self.results))

    def run(self, *arguments, limit_s=240):
        process = self.start(*arguments)
        out, err = process.communicate(timeout=limit_s)
        return process.returncode, out, err

    def latest(self, sweep="cluster"):
        return self.results / sweep / "latest"

    def records(self, sweep="cluster"):
        return [json.loads(p.read_text()) for p in self.latest(sweep).glob("trials/*/trial.json")]


@pytest.fixture(scope="module")
def cluster():
    """Three nodes, each with a filesystem of its own."""
    if why := namespaces.obstacle():
        pytest.skip(why)
    with namespaces.network() as net:
        yield Cluster(net)


def test_every_trial_runs_where_its_filesystem_is(cluster):
    code, out, err = cluster.run("repeats=2", *SHORT)
    print(out)
    assert (code, err) == (0, "")
    assert "6 trials: 6 valid" in out
    where = {(r["cell"]["fs"], r["node"]["hostname"], r["storage"]["fs"]) for r in cluster.records()}
    assert where == {("ext4", "one", "ext4"), ("xfs", "two", "xfs"), ("btrfs", "three", "btrfs")}


def test_faults(cluster):
    """A host dies, another is cut off for 90 s, a third one joins late: the sweep ends by itself, nothing run twice."""
    begin = time.monotonic()
    process = cluster.start()
    lines, errors = Lines(process.stdout), Lines(process.stderr)
    lines.wait_for("on two")
    lines.wait_for("on three")
    time.sleep(3)
    told(begin, "two dies, three is cut off for 90 s")
    cluster.two.power_off()
    cluster.three.cut_for(90)
    time.sleep(20)
    told(begin, "late joins")
    cluster.join("late", "xfs")
    code = process.wait(280)
    told(begin, "the sweep has ended")
    assert (code, errors.text()) == (0, "")
    assert "9 trials: 9 valid" in lines.text()
    check_each_once(cluster)


def test_two_sweeps_at_once_share_the_nodes(cluster):
    """Each drive has one trial at a time; the other sweep's waits."""
    processes = [cluster.start("grid.storage.fs=[xfs]", "repeats=2", f"name={name}") for name in ("cluster", "other")]
    for process in processes:
        out, err = process.communicate(timeout=120)
        print(out)
        assert (process.returncode, err) == (0, "")
        assert "2 trials: 2 valid" in out
    windows = sorted((r["started"], r["ended"]) for name in ("cluster", "other") for r in cluster.records(name))
    assert len(windows) == 4
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(windows))


def test_a_node_with_other_code_is_left_out(cluster):
    other = cluster.join("other", "xfs", with_another_line(cluster.net))
    wait_for(lambda: cluster.runs(other))
    code, out, err = cluster.run("grid.storage.fs=[xfs]", "repeats=1", *SHORT)
    print(out, err)
    other.shut_down()
    assert code == 0
    assert "1 trial: 1 valid" in out
    assert "left out: node other (10.77.0.4) has other code" in err
    assert len(err.splitlines()) == 1


def with_another_line(net):
    """Return a copy of the code that runs trials, with one line more."""
    folder = net.folder / "changed"
    shutil.copytree(ROOT / "tasks", folder, ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / "trial.py").open("a") as f:
        f.write("\n_LINE = 'one more'\n")
    return {"tasks": folder}


def test_raylet_killed(cluster):
    """The attempt on that node is gone within seconds; its Ray is started again, and the trial runs once more."""
    process = cluster.start("limits.memory=256MiB", "grid.storage.fs=[xfs]", "repeats=2")
    lines, errors = Lines(process.stdout), Lines(process.stderr)
    host = Machine(cluster.two.state, cluster.results, cluster.two.first)
    wait_for(lambda: host.measuring("--filename="))
    attempt = Attempt(host, host.attempts()[-1])
    assert attempt.held == {"folder", "cgroup", "ftrace"}
    assert cluster.two.kill("raylet/raylet ")
    print(f"raylet SIGKILL: nothing was left after {attempt.gone_after_s():.1f} s")
    code = process.wait(120)
    assert (code, errors.text()) == (0, "")
    assert "2 trials: 2 valid" in lines.text()
    check_each_once(cluster)


@pytest.mark.parametrize("programs", [["gcs_server"], ["gcs_server", "raylet/raylet "]])
def test_the_head_is_lost(cluster, programs):
    """The sweep ends by itself and says what is kept; the nodes clean up."""
    process = cluster.start("grid.storage.fs=[xfs]", "limits.memory=256MiB", "repeats=4")
    lines, errors = Lines(process.stdout), Lines(process.stderr)
    host = Machine(cluster.two.state, cluster.results, cluster.two.first)
    lines.wait_for("2/4")
    wait_for(lambda: host.measuring("--filename="))
    attempt = Attempt(host, host.attempts()[-1])
    begin = time.monotonic()
    cluster.head.stop_service()
    cluster.head.kill(*programs)
    told(begin, f"{programs} killed")
    code = process.wait(200)
    told(begin, f"the sweep has ended with {code}")
    attempt.gone_after_s(120)
    told(begin, "the node is clean")
    print(errors.text())
    assert code == 3
    assert "1 of 4 trials are kept" in lines.text()
    assert [r["verdict"]["state"] for r in cluster.records()] == ["valid"]


def check_each_once(cluster):
    records = cluster.records()
    plan = json.loads((cluster.latest() / "run.json").read_text())["plan"]
    assert sorted(r["id"] for r in records) == sorted(p["id"] for p in plan)
    for record in records:
        assert record["verdict"] == {"state": "valid", "reasons": []}
        assert record["storage"]["fs"] == record["cell"]["fs"]


def told(begin, what):
    print(f"{time.monotonic() - begin:5.1f} s: {what}")


class Lines:
    """What a process prints, read as it comes."""

    def __init__(self, stream):
        self._lines = []
        threading.Thread(target=self._read, args=(stream,), daemon=True).start()

    def _read(self, stream):
        for line in stream:
            print(f"  | {line}", end="")
            self._lines.append(line)

    def text(self):
        return "".join(self._lines)

    def wait_for(self, words, limit_s=90):
        wait_for(lambda: words in self.text(), limit_s)
