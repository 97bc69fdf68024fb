"""A machine as a node: what its owner says of it, the token, and Ray kept alive on it."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sweep import authentication, cli, cluster, doctor, node, raylet
from sweep.errors import ClusterError
from sweep.placement import Node, Placement, place, resources_of
from tasks import machine, node_config
from tasks.machine import Offer, Place
from tasks.node_config import NodeConfigError
from tasks.spec import Storage, StorageKind
from tasks.storage import base_dir
from tests.conftest import trial_config

ROOT = Path(__file__).parent.parent
ROOT_PLACE = Place("/", "ext4", ("vda",), 1 << 40, False, "rw")
NVME = Place("/mnt/nvme0", "xfs", ("nvme0n1",), 1 << 40, False, "rw")
GIB = 1 << 30


@pytest.fixture
def node_file(tmp_path, monkeypatch, state):
    """Return a function that writes this node's own configuration."""
    file = tmp_path / "node.yaml"
    monkeypatch.setenv("OFFLOAD_SWEEP_NODE", str(file))
    monkeypatch.delenv(node_config.FLAGS_VARIABLE, raising=False)
    machine.facts.cache_clear()
    yield file.write_text
    machine.facts.cache_clear()


def an_offer(**values):
    have = ["root", "loop", "fs:ext4", "fs:xfs", "engine:torch", "tracer:none", "tracer:ftrace", "memory_limit", "gpu"]
    given = {"facts": {"gpus": []}, "places": [ROOT_PLACE, NVME], "state_dir": "/var/lib/x", "capabilities": have}
    return Offer("box", **{**given, **values})


def in_directory(fs, **changes):
    section = {"kind": "directory", "fs": fs, "device": None, "allow_format": False, "trim": False}
    workload = {"kind": "tensor_io", "sizes": ["1MiB"], "apis": ["posix"]}
    return trial_config(storage=section, workload=workload, **changes)


def placed(config, offer):
    return place(config, Node(Offer.from_json(json.loads(json.dumps(offer.to_json())))))


# --- what the owner says ---------------------------------------------------------------------------------------------


def test_a_trial_without_a_path_works_in_the_nodes_folder_for_its_filesystem():
    offer = an_offer(storage={"xfs": "/mnt/nvme0"})
    found = placed(in_directory("xfs"), offer)
    assert isinstance(found, Placement)
    assert found.drives == ("nvme0n1",)
    assert placed(in_directory("auto"), offer).drives == ("nvme0n1",)
    assert placed(in_directory("ext4"), an_offer()).drives == ("vda",)  # the state folder's
    # the state folder is no drive that its owner wants measured
    assert placed(in_directory("ext4"), offer) == [
        "storage.fs: this node names no folder for ext4, only for xfs: say storage.path"
    ]


def test_a_folder_on_another_filesystem_than_it_is_named_for_is_refused():
    reasons = placed(in_directory("xfs"), an_offer(storage={"xfs": "/mnt/other"}))
    assert reasons == ["storage.fs: / is ext4, not xfs; storage.fs=auto takes it as it is"]


def test_the_trial_itself_works_where_it_was_placed(node_file, tmp_path):
    node_file(f"storage: {{xfs: {tmp_path}, loop: {tmp_path}/state}}")
    assert base_dir(Storage(kind=StorageKind.directory, fs="xfs")) == tmp_path
    with pytest.raises(NodeConfigError, match="names no folder for ext4, only for xfs"):
        base_dir(Storage(kind=StorageKind.directory, fs="ext4"))
    assert base_dir(Storage(fs="xfs")) == tmp_path / "state"


def test_drives_are_called_as_the_owner_says_and_share_a_name(node_file, state):
    real = machine.offer()
    drives = real.place_of(str(state)).drives
    if not drives:
        pytest.skip("the temporary folder lies on no drive")
    node_file(f"drives: {{nvme-a: [{state}]}}")
    renamed = machine.offer()
    assert renamed.place_of(str(state)).drives == ("nvme-a",)
    assert "drive:nvme-a" in resources_of(renamed)
    assert not {f"drive:{d}" for d in drives} & set(resources_of(renamed))
    node_file("drives: {nvme-b: []}")
    assert machine.offer().place_of(str(state)).drives == ("nvme-b",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("storage: {xfs: mnt}", r"storage: must map filesystems to folders"),
        ("storage: [xfs]", r"storage: must map filesystems to folders"),
        ("drives: {a: /mnt}", r"drives: must map names to lists"),
        ("drives: {a: [/nowhere/at/all]}", r"drives: a: /nowhere/at/all is no folder"),
        ("drives: {a: [/dev/nothing]}", r"drives: a: /dev/nothing is no block device"),
        ("drives: {a: [/proc]}", r"drives: a: /proc"),
        ("gpus: H100", r"gpus: must be a list of models"),
        ("memory: lots", r"memory: 'lots' is not a size"),
        ("name: a/b", r"name: must be letters"),
        ("without: gpu", r"without: must be a list of capabilities"),
        ("without: [tracer:bpf]", r"without: tracer:bpf is nothing that a node offers; did you mean tracer:bpftrace\?"),
        ("without: [gpus]", r"gpus is nothing that a node offers; did you mean gpu\? valid: root, loop, "),
    ],
)
def test_a_mistake_of_the_owner_is_one_message(node_file, text, words):
    node_file(text)
    with pytest.raises(NodeConfigError, match=words) as e:
        machine.offer()
    assert "\n" not in str(e.value)
    assert "node.yaml: " in str(e.value)


def test_what_the_owner_says_replaces_what_is_detected(node_file):
    node_file("{gpus: [NVIDIA H100], memory: 8GiB, name: gpu1, without: [tracer:bpftrace]}")
    offer = machine.offer()
    assert (offer.hostname, offer.facts["gpus"], offer.memory_bytes) == ("gpu1", ["NVIDIA H100"], 8 * GIB)
    assert "gpu" in offer.capabilities
    assert "told not to offer it" in offer.missing["tracer:bpftrace"]
    assert Offer.from_json(json.loads(json.dumps(offer.to_json()))) == offer


def test_flags_replace_keys_of_the_file_and_reach_what_ray_starts(node_file, monkeypatch, capsys):
    node_file("{memory: 8GiB, name: gpu1}")
    monkeypatch.setenv(node_config.FLAGS_VARIABLE, "{}")
    assert node.main(["--memory", "4GiB", "--gpu", "NVIDIA A100"]) == 0
    assert "gpu" not in json.loads(capsys.readouterr().out)  # Ray has a name of its own for it
    offer = machine.offer()
    assert (offer.memory_bytes, offer.hostname, offer.facts["gpus"]) == (4 * GIB, "gpu1", ["NVIDIA A100"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--storage", "xfs"], r"--storage xfs: write FS=FOLDER"),
        (["--storage", "nofs=/proc"], r"storage: nofs=/proc: /proc is proc, not nofs"),
        (["--storage", "xfs=/nowhere"], r"storage: xfs=/nowhere: no such folder"),
        (["--memory", "much"], r"memory: 'much' is not a size"),
        (["--join", "nowhere"], r"--join nowhere|route|no token"),
    ],
)
def test_a_mistake_on_the_command_line_ends_with_2_and_one_message(node_file, monkeypatch, capsys, arguments, words):
    monkeypatch.setenv(node_config.FLAGS_VARIABLE, "{}")
    role = [] if "--join" in arguments else ["--head"]
    assert node.main([*arguments, *role]) == 2
    err = capsys.readouterr().err
    assert re.search(words, err)
    assert "Traceback" not in err


def test_a_limit_above_the_nodes_memory_is_refused_and_one_below_is_not():
    offer = an_offer(memory_bytes=8 * GIB)
    reasons = placed(in_directory("ext4", limits={"memory": "9GiB"}), offer)
    assert reasons == ["limits.memory: 9 GiB are more than the 8 GiB that this node has"]
    assert isinstance(placed(in_directory("ext4", limits={"memory": "8GiB"}), offer), Placement)


@pytest.mark.parametrize(
    ("gpus", "reasons"),
    [
        (["NVIDIA H100 80GB HBM3"] * 2, None),
        (["NVIDIA A100"], ["node.gpu: this node has NVIDIA A100, not h100"]),
        (["NVIDIA H100", "NVIDIA A100"], ["node.gpu: this node has NVIDIA H100, NVIDIA A100, not h100"]),
    ],
)
def test_a_sweep_may_ask_for_a_gpus_model(gpus, reasons):
    config = in_directory("ext4") | {"node": {"gpu": "h100", "name": None}}
    found = placed(config, an_offer(facts={"gpus": gpus}))
    assert found == reasons if reasons else found.gpus == 1


def test_a_sweep_may_ask_for_a_node():
    config = in_directory("ext4") | {"node": {"gpu": None, "name": "other"}}
    assert placed(config, an_offer()) == ["node.name: this node is box, not other"]


# --- the token -------------------------------------------------------------------------------------------------------


def test_a_token_is_made_once_for_its_owner_only(tmp_path):
    file = authentication.make_token(tmp_path / "token")
    text = file.read_text()
    assert (file.stat().st_mode & 0o777, len(text)) == (0o600, 64)
    assert authentication.make_token(file).read_text() == text


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [(None, 0, "no token of the cluster in"), ("x", 0o644, "chmod 600"), (" \n", 0o600, "is empty")],
)
def test_an_unusable_token_is_refused(tmp_path, text, mode, words):
    file = tmp_path / "token"
    if text is not None:
        file.write_text(text)
        file.chmod(mode)
    with pytest.raises(ClusterError, match=words):
        authentication.checked(file)


@pytest.mark.parametrize("address", ["10.0.0.1:6379", "auto"])
def test_a_driver_uses_no_token_that_others_may_read(tmp_path, monkeypatch, address):
    token = authentication.make_token(tmp_path / "token")
    token.chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    monkeypatch.setattr(authentication, "_asked", lambda *told: "taken")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # which auto is then
    monkeypatch.setattr(cluster, "check_reachable", lambda address: None)
    with pytest.raises(ClusterError, match="others than its owner may read"), cluster.connected(address):
        pytest.fail("it is used")


def test_the_token_is_in_no_command_line(tmp_path, state):
    token = authentication.make_token(tmp_path / "token")
    offer = an_offer(facts={"gpus": ["NVIDIA H100 80GB HBM3"], "kernel": "6.18.0-1 #2", "cpu": "x (R) y"})
    role = raylet.Role(offer, "10.0.0.1:6379", False, "10.0.0.2", 20000, token)
    argv, environment = role.argv(tmp_path), role.environment()
    assert token.read_text() not in " ".join([*argv, *environment.values()])
    assert (environment["RAY_AUTH_MODE"], environment["RAY_AUTH_TOKEN_PATH"]) == ("token", str(token))
    labels = next(a for a in argv if a.startswith("--labels=")).removeprefix("--labels=").split(",")
    assert all(re.fullmatch(r"[a-z-]+=[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", label) for label in labels)
    ports = [int(a.rpartition("=")[2]) for a in argv if "-port=" in a]
    assert len(set(ports)) == len(ports)
    assert all(20000 <= port < 21000 for port in ports)


# --- the documentation -----------------------------------------------------------------------------------------------


def test_every_command_of_the_guide_is_understood():
    text = (ROOT / "docs" / "cluster.md").read_text() + (ROOT / "README.md").read_text()
    for module, made in (("sweep.node", node.parser()), ("sweep.doctor", doctor.parser()), ("sweep", cli.parser())):
        found = re.findall(rf"^    (?:sweep.node:   )?python -m {module} (.*)$", text, re.MULTILINE)
        for line in found:
            made.parse_args(shlex.split(line.partition("  #")[0]))
        assert found


def test_the_example_of_node_yaml_is_understood(node_file):
    text = (ROOT / "docs" / "cluster.md").read_text()
    node_file(text.partition("```yaml\n")[2].partition("```")[0])
    said = node_config.load()
    assert said.storage == {"xfs": "/mnt/nvme0", "loop": "/mnt/nvme0"}
    assert said.memory == 64 * GIB
    node_file(node_config.__doc__.partition("\n\n")[2])
    assert node_config.load().gpus == ("NVIDIA H100 80GB HBM3",)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_the_service_is_one_that_systemd_takes(tmp_path):
    text = (ROOT / "docs" / "offload-sweep-node.service").read_text()
    assert "/opt/offload-sweep/bin/python -m sweep.node $ROLE" in text
    unit = tmp_path / "offload-sweep-node.service"
    unit.write_text(text.replace("/opt/offload-sweep/bin/python", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60)
    about_it = [line for line in (done.stdout + done.stderr).splitlines() if unit.name in line]
    assert (done.returncode, about_it) == (0, [])
    unit.write_text(unit.read_text().replace("KillMode=mixed", "KillMode=kindly"))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60)
    assert "kindly" in done.stderr  # it looks at all


# --- real nodes ------------------------------------------------------------------------------------------------------


class Running:
    """A sweep.node with a state folder of its own, and what it has said."""

    def __init__(self, folder, *arguments):
        self.state, self.log = folder / "state", folder / "log"
        self.state.mkdir(parents=True)
        self.environment = os.environ | {"OFFLOAD_SWEEP_STATE": str(self.state), "PYTHONPATH": str(ROOT)}
        self.environment.pop(node_config.FLAGS_VARIABLE, None)
        argv = [sys.executable, "-m", "sweep.node", *arguments]
        with self.log.open("w") as out:
            self.process = subprocess.Popen(argv, cwd=ROOT, env=self.environment, stdout=out, stderr=out)

    def wait_for(self, words, count=1, limit_s=90):
        end_s = time.monotonic() + limit_s
        while self.log.read_text().count(words) < count:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end_s, self.log.read_text()
            time.sleep(0.1)

    def raylet(self):
        """Return the pid of this node's raylet."""
        for comm in Path("/proc").glob("[0-9]*/comm"):
            try:
                mine = f"OFFLOAD_SWEEP_STATE={self.state}".encode() in (comm.parent / "environ").read_bytes()
                if mine and comm.read_text().strip() == "raylet":
                    return int(comm.parent.name)
            except OSError:
                continue
        raise AssertionError(f"no raylet: {self.log.read_text()}")

    def sweep(self, *arguments, **environment):
        argv = [sys.executable, "-m", "sweep", *arguments]
        env = self.environment | environment
        return subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)

    def doctor(self, address):
        argv = [sys.executable, "-m", "sweep.doctor", "--address", address, "--json"]
        done = subprocess.run(argv, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=120)
        return done.returncode, {found["name"]: found for found in json.loads(done.stdout)}

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0


@pytest.fixture
def two_nodes(tmp_path):
    """A head and a node that joined it, on this machine: every address of 127/8 is its own."""
    port = 6400 + os.getpid() % 500
    head = Running(tmp_path / "head", "--head", "--node-ip", "127.0.0.2", "--port", str(port), "--name", "one")
    nodes = [head]
    try:
        token = ["--token-file", str(authentication.make_token(head.state / "token"))]
        # started at once: a node waits for its head
        join = ["--join", f"127.0.0.2:{port}", "--node-ip", "127.0.0.3", "--name", "two"]
        nodes.append(Running(tmp_path / "two", *join, *token))
        nodes[1].wait_for("joined")
        head.address = f"127.0.0.2:{port}"
        yield nodes
    finally:
        for running in reversed(nodes):
            running.end()


@pytest.mark.root
@pytest.mark.ray
@pytest.mark.slow
def test_nodes_join_come_back_and_let_nobody_else_in(two_nodes, tmp_path):
    head, other = two_nodes
    shown = head.sweep("tests/small.yaml", "--address", head.address, "--dry-run", "grid={node.name: [one, two]}")
    assert shown.returncode == 0, shown.stderr
    assert re.search(r"name=one,rep=1 .*on one ", shown.stdout)
    assert re.search(r"name=two,rep=1 .*on two ", shown.stdout)

    code, found = head.doctor(head.address)
    assert (code, set(found)) == (0, {"one", "two"})
    assert found["two"]["offer"]["state_dir"] == str(other.state)
    assert not [text for text in found["two"]["advice"] if "clock" in text]

    wrong = tmp_path / "wrong"
    authentication.make_token(wrong)
    begin_s = time.monotonic()
    refused = head.sweep("tests/small.yaml", "--address", head.address, "--dry-run", RAY_AUTH_TOKEN_PATH=str(wrong))
    assert time.monotonic() - begin_s < 15
    assert refused.returncode == 2
    assert f"the token in {wrong} is not its own" in refused.stderr
    assert "Traceback" not in refused.stderr

    os.kill(other.raylet(), signal.SIGKILL)
    other.wait_for("joined", count=2)
    assert "Ray has ended here (raylet [exit code=-9" in other.log.read_text()
    again = head.sweep("tests/small.yaml", "--address", head.address, "--dry-run", "node.name=two")
    assert (again.returncode, again.stderr) == (0, "")

    assert Running(tmp_path / "three", "--join", head.address).process.wait(30) == 2  # there is no token

    secret = (head.state / "token").read_text()
    assert secret not in head.log.read_text() + other.log.read_text()
    second = subprocess.run(
        [sys.executable, "-m", "sweep.node", "--head", "--port", "6398", "--node-ip", "127.0.0.2"],
        cwd=ROOT,
        env=head.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert second.returncode == 2
    assert "a sweep.node runs already with the state folder" in second.stderr


_LISTENING = """
import os
from pathlib import Path
from sweep import cluster

def sockets():
    found = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":  # LISTEN
                found[fields[9]] = fields[1].rpartition(":")[0]
    return found

before = set(sockets())
with cluster.local(cluster.here()):
    mine = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"OFFLOAD_SWEEP_STATE={os.environ['OFFLOAD_SWEEP_STATE']}".encode() in (folder / "environ").read_bytes():
                mine |= {os.readlink(fd)[8:-1] for fd in (folder / "fd").iterdir() if fd.is_symlink()}
        except OSError:
            pass
    print([address for inode, address in sockets().items() if inode in mine and inode not in before])
    print(oct(os.stat(os.environ["RAY_AUTH_TOKEN_PATH"]).st_mode & 0o777), os.environ["RAY_AUTH_MODE"])
"""


@pytest.mark.ray
@pytest.mark.slow
def test_a_local_ray_listens_on_loopback_only_and_wants_a_token(state):
    done = subprocess.run([sys.executable, "-c", _LISTENING], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    addresses, token = done.stdout.splitlines()
    listening = json.loads(addresses.replace("'", '"'))
    assert len(listening) >= 4  # the head's store, the raylet's two, the driver's
    # as the kernel prints 127.0.0.1, and that in IPv6's form
    assert set(listening) <= {"0100007F", "0000000000000000FFFF00000100007F"}
    assert token == "0o600 token"


@pytest.mark.parametrize("host", ["a..b", "x" * 64, "."])
def test_an_address_that_can_be_no_name_is_refused_in_words(host, state, capsys):
    address = f"{host}:6389"
    assert node.main(["--join", address]) == 2
    assert node.main(["--join", address, "--node-ip", "127.0.0.1"]) == 2
    assert doctor.main(["--address", address]) == 2
    assert cli.main(["tests/small.yaml", "--dry-run", "--address", address]) == 2
    assert capsys.readouterr().err.count("sweep") >= 4


def test_a_state_folder_that_cannot_be_written_is_told(monkeypatch, capsys):
    monkeypatch.setenv("OFFLOAD_SWEEP_STATE", "/sys")
    assert doctor.main([]) == 2
    assert node.main(["--head"]) == 2
    assert cli.main(["tests/small.yaml", "--dry-run"]) == 2
    assert cli.main(["tests/small.yaml"]) == 2
    err = capsys.readouterr().err
    assert err.count("cannot write to the folder /sys") == 4
    assert err.count("OFFLOAD_SWEEP_STATE names another") == 4
