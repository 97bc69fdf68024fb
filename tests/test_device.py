"""Devices below a folder: partitions, filesystems of several devices, images on them, and what device-mapper makes."""

import os
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import device
from tasks.device import Device, leaf_drives, request_devices
from tasks.errors import StorageError, TracerError
from tasks.mounts import device_number, device_numbers, options_not_in_force, read_ahead_folder
from tests.block_devices import MIB, loop, mounted, partition, sh
from tests.conftest import trial_config

KIB = 1024
PATTERN = [(64 * KIB * 7, 4 * KIB), (0, 128 * KIB), (20 << 20, 12 * KIB), (0, 64 * KIB)]


def in_directory(path, fs, tracer="ftrace", **storage):
    workload = {"kind": "pattern", "pattern": PATTERN}
    settings = {"kind": "directory", "path": str(path), "fs": fs, "queue": {"max_sectors_kb": 64}} | storage
    return trial_config(tracer, workload=workload, storage=settings)


def name_of(node):
    return Path(node).name


@pytest.fixture
def two():
    with loop() as first, loop() as second:
        yield first, second


@pytest.mark.root
@pytest.mark.parametrize("profile", ["single", "raid0", "raid1"])
def test_every_device_of_a_btrfs_is_traced_and_counted(run_here, two, profile):
    # in chunks of the filesystem's own making, so each device must show some of it
    with mounted("btrfs", two[1], "nodatacow", mkfs=["-d", profile, "-m", "raid1", two[0]]) as folder:
        numbers = {Device.of_node(node).dev for node in two}
        assert set(device_numbers(folder)) == numbers
        assert device_number(folder) in numbers
        record, files = run_here(in_directory(folder, "btrfs"))
    names = sorted(map(name_of, two))
    assert record["verdict"] == {"state": "valid", "reasons": []}
    assert record["bytes"]["traced"] == record["bytes"]["counted"]
    assert record["bytes"]["traced"]["write"] > sum(n for _, n in PATTERN)
    assert record["device"]["name"] == ", ".join(names)
    assert record["storage"]["drives"] == names
    rows = pl.read_parquet(files / "requests.parquet").filter(pl.col("op").cast(pl.String) == "write")
    written = dict(rows.group_by(pl.col("dev").cast(pl.String)).agg(pl.col("bytes").sum()).iter_rows())
    assert set(written) == numbers
    assert max(rows["bytes"]) == 64 * KIB
    if profile == "raid1":
        assert min(written.values()) >= 32 << 20


@pytest.mark.root
def test_the_journal_of_ext4_on_a_device_of_its_own_is_traced_too(run_here, two):
    data, journal = two
    sh("mkfs.ext4", "-q", "-F", "-O", "journal_dev", "-b", 4096, journal)
    with mounted("ext4", data, mkfs=["-b", 4096, "-J", f"device={journal}"]) as folder:
        assert device_numbers(folder) == (Device.of_node(data).dev, Device.of_node(journal).dev)
        record, files = run_here(in_directory(folder, "ext4"))
    assert record["verdict"] == {"state": "valid", "reasons": []}
    assert record["bytes"]["traced"] == record["bytes"]["counted"]
    devices = set(pl.read_parquet(files / "requests.parquet")["dev"].cast(pl.String))
    assert devices == {Device.of_node(node).dev for node in two}


@pytest.mark.root
def test_the_log_of_xfs_on_a_device_of_its_own_is_traced_too(run_here, two):
    data, log = two
    with mounted("xfs", data, f"logdev={log}", mkfs=["-l", f"logdev={log}"]) as folder:
        assert device_numbers(folder) == (Device.of_node(data).dev, Device.of_node(log).dev)
        record, files = run_here(in_directory(folder, "xfs"))
    assert record["verdict"] == {"state": "valid", "reasons": []}
    assert record["bytes"]["traced"] == record["bytes"]["counted"]
    devices = set(pl.read_parquet(files / "requests.parquet")["dev"].cast(pl.String))
    assert devices == {Device.of_node(node).dev for node in two}


@pytest.mark.root
def test_requests_to_a_partition_are_those_of_its_disk(run_here):
    with loop(512 * MIB) as disk, partition(disk, 64 * MIB, 320 * MIB) as part, mounted("ext4", part) as folder:
        assert device_numbers(folder) == (Device.of_node(part).dev,)
        assert Device.of_node(part).name == name_of(part)
        assert request_devices(device_number(folder)).name == name_of(disk)
        assert leaf_drives(device_number(folder)) == (name_of(disk),)
        record, files = run_here(in_directory(folder, "ext4"))
        number = Device.of_node(disk).dev
    assert record["verdict"] == {"state": "valid", "reasons": []}
    assert record["bytes"]["traced"] == record["bytes"]["counted"]
    rows = pl.read_parquet(files / "requests.parquet")
    assert set(rows["dev"].cast(pl.String)) == {number}
    # sectors are the disk's; a flush has none
    assert rows.filter(pl.col("bytes") > 0)["sector"].min() >= 64 * MIB // 512


@contextmanager
def mapped(kind, one, two):
    """Provide a device-mapper volume over two devices, one after the other or in stripes of 64 KiB."""
    sectors = 300 * MIB // 512
    tables = {
        "linear": f"0 {sectors} linear {one} 0\n{sectors} {sectors} linear {two} 0",
        "striped": f"0 {2 * sectors} striped 2 128 {one} 0 {two} 0",
    }
    name = f"offload-sweep-test-{os.getpid()}"
    subprocess.run(["dmsetup", "create", name], input=tables[kind], text=True, check=True)
    try:
        yield f"/dev/mapper/{name}"
    finally:
        sh("dmsetup", "remove", "--retry", name)


@contextmanager
def array(level, one, two):
    """Provide an md array of two devices."""
    node = f"/dev/md/offload-sweep-test-{os.getpid()}"
    options = ["--run", "--force", f"--level={level}", "--raid-devices=2", "--metadata=1.2"]
    sh("mdadm", "--create", node, *options, *(["--assume-clean"] if level == "raid1" else []), one, two)
    try:
        yield os.path.realpath(node)
    finally:
        sh("mdadm", "--stop", os.path.realpath(node))


def volume_over(kind, two):
    if kind in ("linear", "striped"):
        if "device-mapper" not in Path("/proc/misc").read_text() or not shutil.which("dmsetup"):
            pytest.skip("this kernel has no device-mapper, or dmsetup is not installed")
        return mapped(kind, *two)
    if not os.path.exists("/proc/mdstat") or not shutil.which("mdadm"):
        pytest.skip("this kernel has no md, or mdadm is not installed")
    return array(kind, *two)


@pytest.mark.root
@pytest.mark.parametrize("kind", ["linear", "striped", "raid0", "raid1"])
def test_every_device_of_a_volume_is_traced_and_counted(run_here, two, kind):
    with volume_over(kind, two) as node, mounted("xfs", node) as folder:
        assert leaf_drives(device_number(folder)) == tuple(sorted(map(name_of, two)))
        ahead = {"queue": {"max_sectors_kb": 64, "read_ahead_kb": 16}}
        record, _ = run_here(in_directory(folder, "xfs", **ahead))
        assert record["storage"]["queue"]["read_ahead_kb"] == "16"
    assert record["verdict"] == {"state": "valid", "reasons": []}
    assert record["bytes"]["traced"] == record["bytes"]["counted"]
    assert record["device"]["name"] == ", ".join(sorted(map(name_of, two)))


@pytest.mark.root
def test_an_image_on_a_btrfs_of_two_devices_ends_on_both(two):
    with mounted("btrfs", two[0], mkfs=[two[1]]) as folder:
        image = folder / "image"
        with image.open("wb") as f:
            f.truncate(16 * MIB)
        node = sh("losetup", "--find", "--show", image)
        try:
            above = Device.of_node(node).dev
            assert request_devices(above).name == name_of(node)
            assert leaf_drives(above) == tuple(sorted(map(name_of, two)))
        finally:
            sh("losetup", "--detach", node)


@pytest.mark.root
def test_a_loop_in_memory_is_no_disk():
    with loop(16 * MIB) as node:
        assert device.is_ram_backed(name_of(node))
    (root,) = leaf_drives(*device_numbers("/"))[:1] or (None,)
    if root is None:
        pytest.skip("/ is on no block device")
    assert not device.is_ram_backed(root)


@pytest.mark.root
def test_a_device_without_requests_is_not_traced_but_can_be_counted(run_here):
    control = Path("/sys/class/zram-control/hot_add")
    if not control.exists():
        pytest.skip("the kernel has no zram")
    number = control.read_text().strip()
    try:
        Path(f"/sys/block/zram{number}/disksize").write_text(str(128 * MIB))
        with mounted("ext4", f"/dev/zram{number}") as folder:
            storage = {"queue": {"max_sectors_kb": None}}
            record, _ = run_here(in_directory(folder, "ext4", **storage))
            assert record["verdict"]["state"] == "failed"
            assert f"zram{number} makes no block requests that could be recorded" in record["verdict"]["reasons"][0]
            counted, _ = run_here(in_directory(folder, "ext4", "diskstats", **storage))
            assert counted["verdict"]["state"] == "valid"
            assert counted["device"]["ram_backed"]
    finally:
        Path(f"/sys/block/zram{number}/reset").write_text("1")
        Path("/sys/class/zram-control/hot_remove").write_text(number)


# --- what this kernel may not have: a made-up /sys -------------------------------------------------------------------


@pytest.fixture
def sysfs(tmp_path, monkeypatch):
    """A /sys of the test's own: `disk(name, number, below=())` and `part(disk, name, number)` put devices into it."""
    monkeypatch.setattr(device, "_SYS_DEV", tmp_path / "dev")
    monkeypatch.setattr(device, "_SYS_BLOCK", tmp_path / "block")
    (tmp_path / "dev").mkdir()
    folders = {}

    def add(folder, number):
        folder.mkdir(parents=True)
        (folder / "dev").write_text(f"{number}\n")
        (tmp_path / "dev" / number).symlink_to(folder)
        folders[folder.name] = folder

    class Sys:
        def disk(self, name, number, below=(), mq=True):
            add(tmp_path / "block" / name, number)
            (folders[name] / "slaves").mkdir()
            for slave in below:
                (folders[name] / "slaves" / slave).symlink_to(folders[slave])
            if mq and not below:
                (folders[name] / "mq").mkdir()

        def part(self, disk, name, number):
            add(folders[disk] / name, number)
            (folders[name] / "partition").write_text("1")

    return Sys()


def test_volumes_on_md_on_partitions_end_on_all_disks(sysfs):
    sysfs.disk("nvme0n1", "259:0")
    sysfs.part("nvme0n1", "nvme0n1p2", "259:2")
    sysfs.disk("nvme1n1", "259:3")
    sysfs.part("nvme1n1", "nvme1n1p2", "259:5")
    sysfs.disk("md0", "9:0", ["nvme0n1p2", "nvme1n1p2"])
    sysfs.part("md0", "md0p1", "259:9")
    sysfs.disk("dm-0", "253:0", ["md0p1"])
    sysfs.disk("sda", "8:0")
    sysfs.disk("dm-1", "253:1", ["dm-0", "sda"])
    both = ("nvme0n1", "nvme1n1")
    for number in ("9:0", "259:9", "253:0"):
        assert tuple(d.name for d in request_devices(number)) == both
        assert leaf_drives(number) == both
    assert leaf_drives("253:1") == (*both, "sda")
    assert request_devices("259:2", "253:1").name == "nvme0n1, nvme1n1, sda"
    with pytest.raises(StorageError, match="is no block device"):
        request_devices("0:44")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nvme0n1", r"multipath NVMe device; boot with nvme_core\.multipath=N"),
        ("pmem0", r"set trace\.tracer=diskstats"),
    ],
)
def test_devices_that_take_bios_are_told_apart(sysfs, name, words):
    sysfs.disk(name, "259:0", mq=False)
    with pytest.raises(TracerError, match=words):
        device.check_traceable(request_devices("259:0"))


# --- mount options ---------------------------------------------------------------------------------------------------

ASKED = (
    *("noatime", "defaults", "compress=zstd", "compress", "allocsize=64m", "commit=30", "nodatacow", "logbsize=32768"),
    *("noatime,commit=30", "x-systemd.requires=a", "dev", "", "nofail"),
)
NOT_SHOWN = ("discard", "commit=5", "compress=lzo", "atime", "strictatime", "allocsize=1m", "z=zst")
SHOWN = "rw,noatime,ro=not,rw,compress=zstd:3,allocsize=65536k,commit=30,nodatasum,nodatacow,logbsize=32k"


@pytest.mark.parametrize("asked", ASKED)
def test_options_in_force_are_seen(asked):
    assert options_not_in_force([asked], SHOWN) == []


@pytest.mark.parametrize("asked", NOT_SHOWN)
def test_options_that_are_not_in_force_are_named(asked):
    assert options_not_in_force(["noatime", asked], SHOWN) == [asked]


@given(st.lists(st.text("abc=019k:", min_size=1), min_size=1, unique=True))
def test_what_is_shown_is_in_force(shown):
    assert options_not_in_force(shown, ",".join(["rw", *shown])) == []


@pytest.mark.root
@pytest.mark.parametrize("fs", ["ext4", "xfs", "btrfs"])
def test_read_ahead_is_ruled_by_the_filesystems_own_device_info(fs):
    with loop() as node, mounted(fs, node) as folder:
        found = read_ahead_folder(folder)
        assert found is not None
        assert (found / "read_ahead_kb").is_file()
        assert found.name.startswith("btrfs-") if fs == "btrfs" else found.name == Device.of_node(node).dev


def test_nothing_reads_ahead_where_there_is_no_device():
    assert read_ahead_folder("/proc") is None
