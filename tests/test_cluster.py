"""Sweeps over several nodes, each a host of its own: where trials run, and what becomes of them when hosts fail."""

import itertools
import json
import shutil
import signal
import sys
import threading
import time

import pytest

from tests import namespaces
from tests.machine import ROOT, Attempt, Machine, wait_for

pytestmark = [pytest.mark.root, pytest.mark.ray, pytest.mark.slow]

SWEEP = "tests/cluster.yaml"
PORT = 6379

#: Within so many seconds nothing of an attempt may be left on its node, whoever was killed.
LIMIT_S = 15

#: Trials of a second, and of three.
SHORT = ["workload.values.size=8m", "workload.expect_write=8MiB"]
FEW_SECONDS = ["workload.values.size=24m", "workload.expect_write=24MiB"]


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
        """Return how often the host has started Ray since it was switched on."""
        assert "Traceback" not in host.said(), host.said()
        return host.said().count(" with token authentication")

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


def test_two_sweeps_at_once_share_the_nodes(cluster):
    """Each drive has one trial at a time; the other sweep's waits."""
    processes = [
        cluster.start("grid.storage.fs=[xfs]", "repeats=2", f"name={name}", *FEW_SECONDS)
        for name in ("cluster", "other")
    ]
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


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, 137)])
def test_driver_ended(cluster, number, code):
    """The attempt on another node hears of it at once, not with its next word or its end."""
    process = cluster.start("limits.memory=256MiB", "grid.storage.fs=[xfs]", "workload.values.size=160m")
    attempt = measuring(cluster, cluster.two)
    assert len(cluster.head.kill(" sweep tests/cluster.yaml", number=number)) == 1
    seconds = attempt.gone_after_s()
    print(f"driver {number.name}, attempt on another node: nothing was left after {seconds:.1f} s")
    assert seconds < LIMIT_S / 3
    process.communicate(timeout=60)
    assert process.returncode % 256 in (code, 256 - number)


def test_raylet_killed(cluster):
    """The attempt on that node is gone within seconds; its Ray is started again, and the trial runs once more."""
    process = cluster.start("limits.memory=256MiB", "grid.storage.fs=[xfs]", "repeats=2", *FEW_SECONDS)
    lines, errors = Lines(process.stdout), Lines(process.stderr)
    attempt = measuring(cluster, cluster.two)
    assert cluster.two.kill("raylet/raylet ")
    seconds = attempt.gone_after_s()
    print(f"raylet SIGKILL: nothing was left after {seconds:.1f} s")
    assert seconds < LIMIT_S
    code = process.wait(120)
    assert (code, errors.text()) == (0, "")
    assert "2 trials: 2 valid" in lines.text()
    check_each_once(cluster, lines.text())


def measuring(cluster, host):
    """Wait until a trial's job runs on the host and return its attempt."""
    machine = Machine(host.state, cluster.results, host.first)
    wait_for(lambda: machine.measuring("--filename="))
    attempt = Attempt(machine, machine.attempts()[-1])
    assert attempt.held == {"folder", "cgroup", "ftrace"}
    return attempt


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
    assert "6 trials: 6 valid" in lines.text()
    check_each_once(cluster, lines.text())
    where = {r["id"]: (r["node"]["hostname"], r["attempt"]) for r in cluster.records()}
    assert where["fs=xfs,rep=1"] == ("late", 2)
    assert where["fs=xfs,rep=2"] == ("late", 1)
    assert where["fs=btrfs,rep=1"] == ("three", 2)
    assert where["fs=btrfs,rep=2"] == ("three", 1)


def test_the_head_is_lost_and_the_sweep_resumed(cluster):
    """The sweep ends by itself and says what is kept; the nodes clean up, join the new head, run what is missing."""
    arguments = ["grid.storage.fs=[btrfs]", "limits.memory=256MiB", "repeats=3", *FEW_SECONDS]
    process = cluster.start(*arguments)
    lines, errors = Lines(process.stdout), Lines(process.stderr)
    lines.wait_for("2/3")
    attempt = measuring(cluster, cluster.three)
    begin, started = time.monotonic(), [cluster.runs(host) for host in (cluster.head, cluster.three)]
    cluster.head.stop_service()
    cluster.head.kill("gcs_server", "raylet/raylet ", "sweep.node", "ray.scripts")
    told(begin, "the head's Ray is killed")
    code = process.wait(90)
    told(begin, f"the sweep has ended with {code}")
    print(errors.text())
    assert code == 3
    assert "1 of 3 trials are kept" in lines.text()
    (kept,) = cluster.records()
    cluster.head.start_service()
    attempt.gone_after_s(90)
    told(begin, "the node is clean")
    wait_for(lambda: cluster.runs(cluster.head) > started[0] and cluster.runs(cluster.three) > started[1], 120)
    told(begin, "head and node have Ray again")
    code, out, err = cluster.run(*arguments, "--resume")
    print(out, err)
    assert code == 0
    assert "3 trials: 3 valid" in out
    check_each_once(cluster, lines.text() + out)
    assert kept in cluster.records()


def check_each_once(cluster, said):
    """Every trial of the plan is valid and was finished once; what was given up before has published nothing."""
    records = cluster.records()
    plan = json.loads((cluster.latest() / "run.json").read_text())["plan"]
    assert sorted(r["id"] for r in records) == sorted(p["id"] for p in plan)
    for record in records:
        assert record["verdict"] == {"state": "valid", "reasons": []}
        assert record["storage"]["fs"] == record["cell"]["fs"]
        assert said.count(f"✓ {record['id']}\n") == 1
    given_up = [json.loads(p.read_text()) for p in cluster.latest().glob("superseded/*/trial.json")]
    assert all(r["verdict"]["state"] == "failed" and "gone" in r["verdict"]["reasons"][0] for r in given_up)
    assert not list(cluster.latest().glob("incoming/*"))


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
