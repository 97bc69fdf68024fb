"""Storage settings, really: queues, trimming, scratch devices and their three yeses, the filesystem verified."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sweep import config
from sweep.cluster import here
from sweep.errors import ConfigError
from sweep.placement import Node, Placement, needs, place, resources_of
from sweep.plan import Grid
from tasks import machine, node_config, scratch
from tasks.device import Device
from tasks.errors import StorageError
from tasks.lease import Lease, reap
from tasks.machine import Offer, Place
from tasks.node_config import NodeConfigError
from tasks.scratch import Scratch
from tasks.spec import QueueLimits, Storage, StorageKind
from tasks.storage import volume
from tests.block_devices import MIB, loop, mounted, partition, setting, sh
from tests.conftest import trial_config

ROOT = Path(__file__).parent.parent
PATTERN = {"kind": "pattern", "pattern": [(0, 128 << 10), (1 << 20, 64 << 10)]}

#: Takes storage in a process of its own and holds it until it is killed.
HOLD = """
import json, sys, time
from tasks.lease import Lease
from tasks.spec import storage_of
from tasks.storage import volume
with volume(storage_of({"storage": json.loads(sys.argv[2])}), Lease.take(sys.argv[1])) as found:
    print(json.dumps(found.facts), flush=True)
    time.sleep(60)
"""


def storage_section(**storage):
    return trial_config(storage=storage)["storage"]


@contextlib.contextmanager
def held_by_another(section):
    """Run a process that holds this storage; provide its facts; it is killed at the end, and cleans up nothing."""
    argv = [sys.executable, "-c", HOLD, f"t{os.getpid()}-killed", json.dumps(section)]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        line = process.stdout.readline()
        assert line, "the other process could not take the storage"
        yield json.loads(line)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


def is_mounted(node):
    return any(line.split()[0] == node for line in Path("/proc/mounts").read_text().splitlines())


@pytest.fixture
def listed(tmp_path, monkeypatch):
    """Return a function that lists devices as scratch in a node.yaml of this test's own."""
    file = tmp_path / "node.yaml"
    monkeypatch.setenv("OFFLOAD_SWEEP_NODE", str(file))

    def write(*nodes):
        file.write_text(json.dumps({"scratch": [str(n) for n in nodes]}))

    return write


@pytest.fixture
def drive(state):
    """A loop device that plays the scratch drive."""
    with loop() as node:
        yield node


# --- queue settings --------------------------------------------------------------------------------------------------


@pytest.mark.root
def test_a_scheduler_and_its_queue_are_set_read_back_and_given_back(run_here, drive):
    before = {name: setting(drive, name) for name in ("scheduler", "nr_requests", "max_sectors_kb", "read_ahead_kb")}
    other = "mq-deadline" if "[mq-deadline]" not in before["scheduler"] else "none"
    if other not in before["scheduler"]:
        pytest.skip("the kernel has one I/O scheduler only")
    queue = {"scheduler": other, "nr_requests": 32, "max_sectors_kb": 64, "read_ahead_kb": 16}
    with mounted("ext4", drive) as folder:
        place = {"kind": "directory", "path": str(folder), "queue": queue}
        record, _ = run_here(trial_config(fs="ext4", workload=PATTERN, storage=place))
    assert record["verdict"] == {"state": "valid", "reasons": []}
    in_force = record["storage"]["queue"]
    assert {name: in_force[name] for name in queue} == {name: str(value) for name, value in queue.items()}
    assert {name: setting(drive, name) for name in before} == before


@pytest.mark.root
def test_queue_settings_return_after_a_sigkill(drive):
    names = ("scheduler", "nr_requests", "max_sectors_kb", "read_ahead_kb")
    before = {name: setting(drive, name) for name in names}
    queue = {"scheduler": "bfq", "nr_requests": 40, "max_sectors_kb": 64, "read_ahead_kb": 16}
    if "bfq" not in before["scheduler"]:
        pytest.skip("the kernel has no bfq")
    with mounted("xfs", drive) as folder:
        section = storage_section(kind="directory", path=str(folder), fs="xfs", queue=queue)
        with held_by_another(section) as facts:
            assert {name: facts["queue"][name] for name in queue} == {n: str(v) for n, v in queue.items()}
        assert "[bfq]" in setting(drive, "scheduler")
        assert reap() == []
        assert {name: setting(drive, name) for name in names} == before
        assert os.listdir(folder) == []


@pytest.mark.root
def test_read_ahead_of_btrfs_is_its_own(drive):
    limits = QueueLimits(read_ahead_kb=64)
    with mounted("btrfs", drive) as folder:
        storage = Storage(kind=StorageKind.directory, fs="btrfs", path=str(folder), queue=limits)
        (link,) = Path("/sys/fs/btrfs").glob(f"*/devices/{Path(drive).name}")
        own = link.parent.parent / "bdi" / "read_ahead_kb"
        before = own.read_text()
        with volume(storage, Lease.take("t-btrfs")) as found:
            assert own.read_text() == "64\n" != before
            assert found.facts["queue"]["read_ahead_kb"] == "64"
        assert own.read_text() == before
        with held_by_another(storage_section(kind="directory", path=str(folder), fs="btrfs", queue=vars(limits))):
            assert own.read_text() == "64\n"
        assert reap() == []
        assert own.read_text() == before


@pytest.mark.root
@pytest.mark.parametrize(
    ("queue", "words"),
    [
        ({"scheduler": "elevator"}, r"scheduler: loop\d+ does not take elevator: it has none"),
        ({"max_sectors_kb": 1 << 20}, r"max_sectors_kb: loop\d+ .* 1048576: at most \d+, the drive's own"),
        (
            {"scheduler": "none", "nr_requests": 100000},
            r"nr_requests: loop\d+ does not take 100000: with the scheduler",
        ),
    ],
)
def test_what_a_queue_does_not_take_is_refused_and_nothing_stays(drive, queue, words):
    before = {name: setting(drive, name) for name in ("scheduler", "nr_requests")}
    with mounted("ext4", drive) as folder:
        storage = Storage(kind=StorageKind.directory, path=str(folder), queue=QueueLimits(**queue))
        with pytest.raises(StorageError, match=words), volume(storage, Lease.take("t-queue")):
            pass
        assert {name: setting(drive, name) for name in before} == before


# --- images, trimming, mounts ----------------------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.parametrize("fs", ["ext4", "xfs", "btrfs"])
def test_an_image_has_all_its_blocks(state, fs):
    with volume(Storage(fs=fs, image_size="384MiB"), Lease.take("t-image")) as found:
        status = os.stat(found.facts["image"])
        assert status.st_size == 384 * MIB
        assert status.st_blocks * 512 >= status.st_size


@pytest.mark.root
def test_a_directory_is_trimmed_before_the_window(run_here, drive):
    with mounted("ext4", drive) as folder:
        (folder / "old").write_bytes(os.urandom(64 * MIB))
        sh("sync", "--file-system", folder)
        (folder / "old").unlink()
        sh("sync", "--file-system", folder)
        place = {"kind": "directory", "path": str(folder), "trim": True}
        record, _ = run_here(trial_config(fs="ext4", workload=PATTERN, storage=place))
    assert record["verdict"] == {"state": "valid", "reasons": []}
    assert record["storage"]["trimmed_bytes"] >= 64 * MIB
    assert record["bytes"]["counted"]["discard"] == 0
    assert record["bytes"]["traced"] == record["bytes"]["counted"]


@pytest.mark.root
def test_mount_options_are_read_back(run_here, drive):
    made, _ = run_here(trial_config(fs="xfs", workload=PATTERN, storage={"mount_options": ["noatime", "logbsize=64k"]}))
    assert made["verdict"] == {"state": "valid", "reasons": []}
    assert {"noatime", "logbsize=64k"} <= set(made["storage"]["mount_options"].split(","))
    assert made["storage"]["block_bytes"] == 4096
    hidden, _ = run_here(trial_config(fs="ext4", workload=PATTERN, storage={"mount_options": ["commit=5"]}))
    assert hidden["verdict"]["state"] == "failed"
    assert "commit=5 not among the options in force" in hidden["verdict"]["reasons"][0]
    with mounted("ext4", drive) as folder:
        storage = {"kind": "directory", "path": str(folder), "mount_options": ["noatime"]}
        other, _ = run_here(trial_config(fs="ext4", workload=PATTERN, storage=storage))
    assert other["verdict"]["state"] == "failed"
    assert "storage.mount_options: noatime not among" in other["verdict"]["reasons"][0]


# --- scratch devices -------------------------------------------------------------------------------------------------


def on_device(node, fs="ext4", **storage):
    return {"kind": "device", "fs": fs, "device": str(node), "allow_format": True, **storage}


@pytest.mark.root
@pytest.mark.parametrize(("fs", "trim"), [("ext4", False), ("xfs", True), ("btrfs", True)])
def test_a_trial_on_a_scratch_device(run_here, listed, drive, left_behind, fs, trim):
    listed(drive)
    section = on_device(drive, fs, trim=trim, mount_options=["noatime"])
    record, folder = run_here(trial_config(fs=fs, workload=PATTERN, storage=section))
    assert record["verdict"] == {"state": "valid", "reasons": []}
    assert record["bytes"]["traced"] == record["bytes"]["counted"]
    assert record["device"]["name"] == record["device"]["drive"] == Path(drive).name
    assert record["device"]["ram_backed"]
    facts = record["storage"]
    assert (facts["kind"], facts["fs"], facts["device"], facts["source"]) == ("device", fs, drive, drive)
    assert facts.get("trimmed_bytes") == (384 * MIB if trim else None)
    assert "noatime" in facts["mount_options"].split(",")
    assert not is_mounted(drive)
    assert [entry for entry in left_behind() if folder.parent.name not in entry] == []
    assert scratch.obstacle(drive) is None


@pytest.mark.root
def test_a_partition_is_formatted_and_the_rest_of_its_disk_is_not(run_here, listed, state):
    with loop(512 * MIB) as disk, partition(disk, 64 * MIB, 320 * MIB) as part:
        mark = os.urandom(4096)
        with open(disk, "r+b") as f:
            f.seek(60 * MIB)
            f.write(mark)
        listed(part)
        record, _ = run_here(trial_config(fs="ext4", workload=PATTERN, storage=on_device(part)))
        assert record["verdict"] == {"state": "valid", "reasons": []}
        assert record["device"]["name"] == Path(disk).name
        with open(disk, "rb") as f:
            f.seek(60 * MIB)
            assert f.read(4096) == mark
        # the disk is not what was listed
        refused, _ = run_here(trial_config(fs="ext4", workload=PATTERN, storage=on_device(disk)))
        assert f"{disk} is no scratch device of this node" in refused["verdict"]["reasons"][0]
        # nor may it be formatted while a partition of it is mounted
        listed(disk)
        with mounted("xfs", part):
            refused, _ = run_here(trial_config(fs="ext4", workload=PATTERN, storage=on_device(disk)))
            assert f"{disk} is in use: {part} is mounted on" in refused["verdict"]["reasons"][0]


@pytest.mark.root
def test_what_is_in_use_is_never_formatted(listed, state):
    with loop() as one, loop() as two:
        listed(one, two)
        storage = Storage(kind=StorageKind.device, fs="ext4", device=two, allow_format=True)

        def refusal():
            with pytest.raises(StorageError) as e, volume(storage, Lease.take(f"t-{time.monotonic_ns()}")):
                pass
            return str(e.value)

        with mounted("ext4", two) as folder:
            assert refusal() == f"storage.device: {two} is in use: {two} is mounted on {folder}"
        with mounted("btrfs", one, mkfs=["-d", "raid0", two]) as folder:
            assert f"mounted on {folder}" in refusal()
        sh("mkfs.ext4", "-q", "-F", "-O", "journal_dev", "-b", 4096, two)
        with mounted("ext4", one, mkfs=["-b", 4096, "-J", f"device={two}"]) as folder:
            assert f"{two} is in use: {one} is mounted on {folder}" in refusal()
        fd = os.open(two, os.O_RDONLY | os.O_EXCL)
        try:
            assert f"{two} is in use: the kernel or another program holds it" in refusal()
        finally:
            os.close(fd)
        sh("mkswap", two)
        sh("swapon", two)
        try:
            assert refusal() == f"storage.device: {two} is in use: this node swaps to {two}"
        finally:
            sh("swapoff", two)
        sh("blockdev", "--setro", two)
        try:
            assert f"{two} is write-protected" in refusal()
        finally:
            sh("blockdev", "--setrw", two)
        with volume(storage, Lease.take("t-free")) as found:
            assert found.mount.fs == "ext4"


@pytest.mark.root
def test_a_loop_device_over_a_scratch_drive_uses_it(listed, drive):
    listed(drive)
    assert scratch.obstacle(drive) is None
    above = sh("losetup", "--find", "--show", "--offset", 1 << 20, drive)
    try:
        assert scratch.obstacle(drive) == f"{drive} is in use: {above.removeprefix('/dev/')} lies on it"
    finally:
        sh("losetup", "--detach", above)
    assert scratch.obstacle(drive) is None


@pytest.mark.root
def test_a_node_that_is_another_device_is_not_formatted(listed, drive, state):
    name = drive.removeprefix("/dev/")
    with loop() as other:
        stranger = Device(name, Device.of_node(other).dev)
        with pytest.raises(StorageError, match=f"{drive} is not the device .* that the kernel calls {name}"):
            scratch.check_node(stranger)
    scratch.check_node(Device.of_node(drive))


@pytest.mark.root
def test_all_three_yeses_are_asked_on_the_node_too(listed, drive, tmp_path):
    def refusal(**changes):
        settings = {"device": drive, "allow_format": True} | changes
        storage = Storage(kind=StorageKind.device, fs="ext4", **settings)
        with pytest.raises(StorageError) as e, volume(storage, Lease.take(f"t-{time.monotonic_ns()}")):
            pass
        return str(e.value)

    assert f"{drive} is no scratch device of this node, whose node.yaml lists no device" in refusal()
    listed("/dev/no-such-drive")
    assert "lists only /dev/no-such-drive under scratch:" in refusal()
    assert "No such file or directory" in refusal(device="/dev/no-such-drive")
    listed(drive)
    assert refusal(allow_format=False) == "storage.allow_format: not true, so no device is formatted"
    listed("/dev/null")
    assert refusal(device="/dev/null") == "storage.device: /dev/null is no block device"


@pytest.mark.root
def test_the_disk_of_the_root_filesystem_is_never_scratch(listed, state):
    source = sh("findmnt", "--noheadings", "--output", "SOURCE", "/")
    if not source.startswith("/dev/"):
        pytest.skip("/ is on no block device")
    assert scratch._under_root(source).endswith("the disk of this node's root filesystem")
    listed(source)
    (found,) = scratch.offered()
    assert f"{source} is in use: " in found.obstacle


@pytest.mark.root
def test_a_killed_trial_lets_go_of_its_scratch_device(listed, drive, state):
    listed(drive)
    with held_by_another(storage_section(**on_device(drive, "xfs"))) as facts:
        assert is_mounted(drive)
        assert facts["mkfs"] == ["mkfs.xfs", "-q", "-f", "-K"]
        # another sweep waits for that trial; it is not told that the drive cannot be had
        assert scratch.offered()[0].obstacle is None
        assert scratch.obstacle(drive) is not None
    assert is_mounted(drive)
    assert reap() == []
    assert not is_mounted(drive)
    assert [n for n in os.listdir(state) if n.startswith("offload-sweep-")] == []


# --- the node's own configuration ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("scrath: [/dev/sdb]", "scrath: unknown key; valid: scratch"),
        (
            "scratch: /dev/sdb",
            r"scratch: must be a list of devices, such as \[/dev/disk/by-id/nvme-\.\.\.\], not '/dev/sdb'",
        ),
        ("scratch: [sdb]", r"not \['sdb'\]"),
        ("scratch: [1]", "must be a list of devices"),
        ("[/dev/sdb]", "must be a mapping with the keys scratch"),
        ("scratch: [", "is no valid YAML"),
    ],
)
def test_a_node_file_with_a_mistake_is_refused_in_one_message(tmp_path, monkeypatch, text, words):
    file = tmp_path / "node.yaml"
    file.write_text(text)
    monkeypatch.setenv("OFFLOAD_SWEEP_NODE", str(file))
    with pytest.raises(NodeConfigError, match=words) as e:
        node_config.load()
    assert str(e.value).startswith(f"{file}: ")
    assert "\n" not in str(e.value)
    # not taken as if it said nothing: trials would work on another drive than the owner meant
    with pytest.raises(NodeConfigError, match=words):
        machine.offer()


@pytest.mark.parametrize("text", [None, "", "scratch:\n", "scratch: []\n"])
def test_a_node_without_scratch_devices_says_so(tmp_path, monkeypatch, text):
    file = tmp_path / "node.yaml"
    if text is not None:
        file.write_text(text)
    monkeypatch.setenv("OFFLOAD_SWEEP_NODE", str(file))
    assert node_config.load().scratch == ()
    assert machine.offer().missing["scratch"] == f"this node has no scratch device: {file} lists none under scratch:"


# --- before anything starts ------------------------------------------------------------------------------------------

WORKLOAD = "workload: {kind: tensor_io, sizes: [1MiB], apis: [posix]}\n"


@pytest.fixture
def cell(tmp_path):
    """Return a function that gives the configuration of a sweep's only cell, from its storage section as YAML."""

    def resolve(storage):
        file = tmp_path / "c.yaml"
        file.write_text(f"{WORKLOAD}trace: {{tracer: none}}\nstorage: {storage}\n")
        return Grid(config.load(str(file))).trials[0].config

    return resolve


DEVICE = "kind: device, device: /dev/nvme1n1, allow_format: true"


@pytest.mark.parametrize(
    ("storage", "words"),
    [
        ("{kind: device}", r"storage\.device: must name the drive or partition to format"),
        ("{kind: device, device: nvme1n1, allow_format: true}", r"storage\.device: must name .* not 'nvme1n1'"),
        ("{kind: device, device: /dev/../etc/x, allow_format: true}", r"storage\.device: must name"),
        ("{kind: device, device: /dev/nvme1n1}", r"storage\.allow_format: must be true for storage\.kind=device"),
        (f"{{{DEVICE}, path: /mnt}}", r"storage\.path: would not be used"),
        (f"{{{DEVICE}, fs: zfs}}", r"storage\.fs: cannot make 'zfs'"),
        (f"{{{DEVICE}, mkfs_options: [-J, device=/dev/sda]}}", r"storage\.mkfs_options: .* may name another device"),
        ("{device: /dev/nvme1n1, allow_format: true}", r"storage\.device: would not be used: storage\.kind is loop"),
        ("{trim: true}", r"storage\.trim: a trial makes a new loop image, with nothing to trim"),
        ("{kind: directory, path: /tmp, mkfs_options: [-q]}", r"storage\.mkfs_options: nothing is made in an existing"),
        ("{queue: {nr_requests: 3}}", r"storage\.queue\.nr_requests: must be 4 or more, not 3"),
        ("{queue: {scheduler: '[none]'}}", r"storage\.queue\.scheduler: '\[none\]' is no scheduler"),
        ("{queue: {scheduler: ''}}", r"storage\.queue\.scheduler: '' is no scheduler"),
    ],
)
def test_settings_that_make_no_sense_are_refused(cell, storage, words):
    with pytest.raises(ConfigError, match=words):
        cell(storage)


def a_node(scratch_devices=(), places=(), missing=None, lacks=()):
    have = {"root", "loop", "fs:ext4", "fs:xfs", "engine:torch", "tracer:none", "scratch"} - set(lacks)
    offer = Offer("big", {}, list(places), "/var/lib/x", sorted(have), missing or {}, list(scratch_devices))
    return Node(Offer.from_json(json.loads(json.dumps(offer.to_json()))))


BY_ID = "/dev/disk/by-id/nvme-SAMSUNG_1"
FREE = Scratch("/dev/nvme1n1", ("/dev/nvme1n1", BY_ID), 1 << 40, ("nvme1n1",), True, None)


def changed(**values):
    return Scratch(**{**vars(FREE), **values})


@pytest.mark.parametrize("name", ["/dev/nvme1n1", BY_ID])
def test_a_device_trial_is_placed_on_the_drive_it_formats(cell, name):
    settings = cell(f"{{kind: device, device: {name}, allow_format: true, fs: xfs, trim: true}}")
    assert set(needs(settings)) >= {"root", "scratch", "fs:xfs"}
    node = a_node([FREE])
    found = place(settings, node)
    assert isinstance(found, Placement)
    assert found.drives == ("nvme1n1",)
    assert found.resources["drive:nvme1n1"] == 1.0
    announced = resources_of(node.offer)
    assert all(announced[name] >= share for name, share in found.resources.items())


@pytest.mark.parametrize(
    ("devices", "words"),
    [
        ([], "storage.device: /dev/nvme1n1 is no scratch device of this node, whose node.yaml lists no device under"),
        ([changed(path="/dev/x", names=("/dev/x",))], "lists only /dev/x under scratch:"),
        ([changed(obstacle="/dev/nvme1n1 is in use: x")], "storage.device: /dev/nvme1n1 is in use: x"),
        ([changed(discards=False)], "storage.trim: /dev/nvme1n1 takes no discards"),
        ([changed(size_bytes=64 << 20)], "storage.device: 64 MiB are too small: ext4 and"),
    ],
)
def test_a_device_that_cannot_be_formatted_is_refused_before_launch(cell, devices, words):
    (reason,) = place(cell(f"{{{DEVICE}, trim: true}}"), a_node(devices))
    assert words in reason


def test_a_node_without_scratch_devices_is_refused_in_one_line(cell):
    node = a_node(missing={"scratch": "this node has no scratch device"}, lacks=["scratch"])
    assert place(cell(f"{{{DEVICE}}}"), node) == ["storage.device: this node has no scratch device"]


def test_a_directory_is_refused_for_its_mount_and_for_trimming(cell):
    ground = Place("/nowhere", "ext4", ("vda",), 1 << 40, False, "rw,relatime,rw", False)
    settings = cell("{kind: directory, path: /nowhere/x, fs: ext4, mount_options: [noatime, rw], trim: true}")
    options, trim = place(settings, a_node(places=[ground]))
    assert options.startswith("storage.mount_options: /nowhere is mounted without noatime (rw,relatime,rw)")
    assert trim.startswith("storage.trim: the device under /nowhere takes no discards")


@pytest.mark.root
def test_this_machine_offers_its_scratch_devices(cell, listed, drive):
    listed(drive)
    found = place(cell(f"{{kind: device, device: {drive}, allow_format: true}}"), here())
    assert isinstance(found, Placement)
    assert found.drives == (Path(drive).name,)
    assert f"drive:{Path(drive).name}" in resources_of(here().offer)
    with mounted("ext4", drive) as folder:
        (reason,) = place(cell(f"{{kind: device, device: {drive}, allow_format: true}}"), here())
    assert reason == f"storage.device: {drive} is in use: {drive} is mounted on {folder}"
