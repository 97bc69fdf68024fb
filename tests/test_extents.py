"""Which file lies where: what the kernel says of extents is where the bytes are, on the devices that are traced."""

import contextlib
import os
import re
import subprocess
import time
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from conftest import trial_config, trial_spec
from hypothesis import given
from hypothesis import strategies as st
from test_trial import KIB, PATTERN, data_requests, on_device, random_pattern

from analysis import schema
from analysis.roles import Owners, role_bytes
from tasks import addresses, extents, inotify, journal
from tasks.addresses import Stretch
from tasks.device import Device, Devices
from tasks.errors import StorageError
from tasks.extents import Watch
from tasks.fiemap import mapping
from tasks.lease import Lease
from tasks.mounts import device_number, mount_of
from tasks.spec import storage_of
from tasks.storage import Volume, volume
from tasks.workloads import flexgen

MIB = 1 << 20
FILESYSTEMS = ("ext4", "xfs", "btrfs")
root = pytest.mark.root


@pytest.fixture
def mounted(state):
    """Return a function that provides a filesystem of a kind on a loop device, until the test ends."""
    with contextlib.ExitStack() as held:

        def provide(fs):
            lease = Lease.take(trial_spec(trial_config()).token)
            return held.enter_context(volume(storage_of(trial_config(fs=fs)), lease))

        yield provide


def rows_of(watch, tmp_path):
    watch.write(tmp_path / "extents.parquet", {})
    return pl.read_parquet(tmp_path / "extents.parquet").with_columns(pl.col("role", "file", "dev").cast(pl.String))


def watched(found, tmp_path, body):
    """Return what a watch wrote of `body`, and its facts."""
    watch = Watch(found, lambda path: path.partition("-")[0])
    with watch.watching():
        body(found.offload_dir)
    rows = rows_of(watch, tmp_path)
    return rows, watch.facts


# --- in a trial ------------------------------------------------------------------------------------------------------


@root
@pytest.mark.parametrize(("fs", "backing"), [("ext4", "disk"), ("xfs", "tmpfs"), ("btrfs", "tmpfs")])
def test_direct_reads_of_a_file_show_up_where_its_extents_are(run_here, fs, backing):
    pattern = PATTERN + random_pattern(fs)
    options = {"mount_options": ["nodatacow"] if fs == "btrfs" else []}
    workload = {"kind": "pattern", "pattern": pattern}
    record, folder = run_here(trial_config("ftrace", fs, backing, workload, storage=options))
    assert record["verdict"] == {"state": "valid", "reasons": []}
    file = pq.ParquetFile(folder / "extents.parquet")
    assert file.schema_arrow.equals(schema.EXTENTS)
    rows = pl.read_parquet(folder / "extents.parquet").with_columns(pl.col("role", "file", "dev").cast(pl.String))
    assert rows["sector"].is_sorted()
    assert set(rows["dev"]) == {record["device"]["dev"]}
    own = rows.filter(pl.col("file") == "pattern").sort("logical_bytes")
    last = own.filter(pl.col("seen_to_ns") == pl.col("seen_to_ns").max())
    assert set(own["role"]) == {"file"}
    places = last.select("logical_bytes", pl.col("sector") * 512, pl.col("sectors") * 512).rows()
    loads, _ = data_requests(folder, "load", "read")
    assert loads == on_device(pattern, places)
    (moved,) = role_bytes(folder / "requests.parquet", Owners(file.read()), [(0, 2**62)])
    assert moved["file", "read"] == record["bytes"]["expected"]["read"]
    assert moved["file", "write"] >= 0.95 * record["bytes"]["traced"]["write"]
    window = record["tracer"]
    assert (rows["seen_from_ns"] <= rows["seen_to_ns"]).all()
    assert own["seen_from_ns"].min() > window["begin_ns"]
    assert own["seen_to_ns"].max() < window["end_ns"]
    facts = record["extents"]
    assert facts["looks"] >= 1
    assert facts["mappings"] == rows.height
    assert (facts["trouble"], facts["unmapped"], facts["cut_short"]) == (None, 0, 0)
    assert (rows.filter(role="journal").height > 0) == (fs != "btrfs")


@root
@pytest.mark.parametrize("fs", FILESYSTEMS)
def test_nearly_all_data_of_tensors_is_attributed(run_here, fs):
    workload = {"kind": "tensor_io", "sizes": ["16MiB"], "loops": 3, "tensor_devices": ["cpu"], "apis": ["posix"]}
    record, folder = run_here(trial_config(fs=fs, workload=workload))
    assert record["verdict"]["state"] == "valid"
    told = Owners(pq.read_table(folder / "extents.parquet"))
    (moved,) = role_bytes(folder / "requests.parquet", told, [(0, 2**62)])
    assert sum(moved.values()) == record["bytes"]["traced"]["read"] + record["bytes"]["traced"]["write"]
    data = {op: moved["tensor", op] / (moved["tensor", op] + moved.get(("other", op), 0)) for op in ("read", "write")}
    assert data["read"] >= 0.95
    # A tensor that is deleted as soon as it is on the device may be gone before anybody looks, on a busy machine
    assert data["write"] >= 0.3


@root
@pytest.mark.slow
def test_weights_and_cache_on_disk_are_told_apart(run_here):
    shape = {"layers": 24, "hidden": 128, "heads": 2, "vocabulary": 512, "positions": 128}
    settings = {"model": None, "shape": shape, "percent": [0, 0, 0, 0, 100, 0], "batch_size": 8, "prompt_len": 64}
    own = {"kind": "flexgen", **vars(flexgen.Config(**settings, gen_len=4, least_share=0.0))}
    config = trial_config(workload=own, limits={"time_limit_s": 200})
    _, folder = run_here(config)
    told = Owners(pq.read_table(folder / "extents.parquet"))
    (moved,) = role_bytes(folder / "requests.parquet", told, [(0, 2**62)])
    assert moved["weights", "write"] > 0
    files = pl.read_parquet(folder / "extents.parquet").with_columns(pl.col("role", "file").cast(pl.String))
    assert all(file.startswith(f"{role}_t_") for role, file in files.drop_nulls("file").select("role", "file").rows())


@root
def test_without_a_tracer_nobody_looks(run_here):
    record, folder = run_here(trial_config("none", workload={"kind": "pattern", "pattern": PATTERN}))
    assert record["verdict"]["state"] == "valid"
    assert record["extents"] is None
    assert not (folder / "extents.parquet").exists()


def test_flexgen_names_tell_what_a_file_holds():
    told = flexgen.Workload(flexgen.Config())
    assert [told.role(name) for name in ("weights_t_12", "kv_t_40", "t_3")] == ["weights", "kv", "file"]


# --- looking ---------------------------------------------------------------------------------------------------------


def fill(path, size=MIB, sync=True, mode="wb"):
    with open(path, mode) as f:
        f.write(os.urandom(size))
        f.flush()
        if sync:
            os.fsync(f.fileno())


@root
@pytest.mark.parametrize("fs", FILESYSTEMS)
def test_files_that_come_and_go_are_seen_while_they_are_there(mounted, tmp_path, fs):
    def body(folder):
        (folder / "deep").mkdir()
        fill(folder / "kv-stays")
        fill(folder / "kv-grows")
        time.sleep(0.25)
        fill(folder / "kv-grows", mode="ab")
        fill(folder / "weights-goes")
        time.sleep(0.05)
        (folder / "weights-goes").unlink()
        fill(folder / "deep" / "file")
        os.truncate(folder / "kv-stays", 4096)
        os.symlink("/etc/hostname", folder / "link")
        os.mkfifo(folder / "pipe")
        time.sleep(0.2)

    rows, facts = watched(mounted(fs), tmp_path, body)
    own = rows.drop_nulls("file")
    assert set(own["file"]) == {"kv-stays", "kv-grows", "weights-goes", "deep/file"}
    assert set(own.filter(pl.col("file").str.contains("kv"))["role"]) == {"kv"}
    assert (facts["files"], facts["vanished"], facts["lost"], facts["trouble"]) == (4, 1, 0, None)
    last = own["seen_to_ns"].max()
    assert own.filter(file="weights-goes")["seen_to_ns"].max() < last
    stays = own.filter(file="kv-stays", seen_to_ns=last)
    assert stays["sectors"].sum() == 8
    assert own.filter(file="kv-grows", seen_to_ns=last)["sectors"].sum() == 2 * MIB // 512
    assert 0 < facts["cpu_seconds"] < 0.2
    assert facts["looks"] > 2


@root
@pytest.mark.parametrize("fs", FILESYSTEMS)
def test_what_has_no_place_yet_is_counted_not_guessed(mounted, tmp_path, fs):
    def body(folder):
        fill(folder / "file", sync=False)
        (folder / "empty").touch()

    rows, facts = watched(mounted(fs), tmp_path, body)
    assert rows.drop_nulls("file").is_empty()
    assert facts["placeless"] == {"pending": 1}


@root
def test_small_and_compressed_data_without_a_place_is_counted(mounted, tmp_path):
    def body(folder):
        (folder / "inline").write_bytes(b"x" * 100)
        subprocess.run(["btrfs", "property", "set", folder, "compression", "zstd"], check=True)
        (folder / "encoded").write_bytes(bytes(MIB))
        os.sync()

    rows, facts = watched(mounted("btrfs"), tmp_path, body)
    assert rows.is_empty()
    assert facts["placeless"]["inline"] == 1
    assert facts["placeless"]["encoded"] >= 1


@root
def test_limits_are_told(mounted, tmp_path, monkeypatch):
    monkeypatch.setattr(extents, "_MOST_FILES", 5)

    def body(folder):
        for n in range(20):
            fill(folder / f"file-{n}", 4096)

    _, facts = watched(mounted("ext4"), tmp_path, body)
    assert facts["cut_short"] > 0


@root
def test_what_goes_wrong_is_told_and_harms_nobody(mounted, tmp_path, monkeypatch):
    def broken(fd):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(extents, "mapping", broken)
    rows, facts = watched(mounted("xfs"), tmp_path, lambda folder: fill(folder / "file"))
    assert "Operation not supported" in facts["trouble"]
    assert set(rows["role"]) == {"journal"}


@root
def test_without_word_of_closed_files_looks_at_intervals_remain(mounted, tmp_path, monkeypatch):
    monkeypatch.setattr(inotify._LIBC, "inotify_init1", lambda flags: -1)

    def body(folder):
        fill(folder / "kv-file")
        time.sleep(0.3)
        (folder / "kv-file").unlink()

    rows, facts = watched(mounted("ext4"), tmp_path, body)
    assert "inotify" in facts["trouble"]
    assert set(rows.drop_nulls("file")["role"]) == {"kv"}


# --- where the bytes are ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def filesystem(tmp_path, mkfs, count=1, size=384 * MIB):
    """Provide a filesystem on loop devices over images in memory: its folder, the images and their devices."""
    images = [tmp_path / f"{n}.img" for n in range(count)]
    nodes = []
    folder = tmp_path / "mnt"
    folder.mkdir()
    with contextlib.ExitStack() as undo:
        for image in images:
            with image.open("wb") as f:
                f.truncate(size)
            done = subprocess.run(["losetup", "-f", "--show", image], capture_output=True, text=True, check=True)
            nodes.append(done.stdout.strip())
            undo.callback(subprocess.run, ["losetup", "-d", nodes[-1]], check=True)
        subprocess.run([*mkfs, *nodes], check=True, capture_output=True)
        subprocess.run(["mount", nodes[0], folder], check=True)
        undo.callback(subprocess.run, ["umount", folder], check=True)
        yield folder, images, [Device.of_node(node) for node in nodes]


@root
@pytest.mark.parametrize(
    ("mkfs", "count", "copies"),
    [
        (["mkfs.ext4", "-q", "-F"], 1, 1),
        (["mkfs.xfs", "-q", "-f"], 1, 1),
        (["mkfs.btrfs", "-q", "-f", "-d", "single"], 1, 1),
        (["mkfs.btrfs", "-q", "-f", "-d", "dup"], 1, 2),
        (["mkfs.btrfs", "-q", "-f", "-d", "single"], 2, 1),
        (["mkfs.btrfs", "-q", "-f", "-d", "raid1"], 2, 2),
        (["mkfs.btrfs", "-q", "-f", "-d", "raid0"], 3, 1),
        (["mkfs.btrfs", "-q", "-f", "-d", "raid10"], 4, 2),
    ],
    ids=lambda value: "-".join(value[0].split(".")[1:] + value[-1:]) if isinstance(value, list) else str(value),
)
def test_the_bytes_of_a_file_lie_where_its_rows_say(tmp_path, mkfs, count, copies):
    with filesystem(tmp_path, mkfs, count) as (folder, images, devices):
        content = os.urandom(5 * MIB + 12 * KIB)
        offload = folder / "offload"
        offload.mkdir()
        found = Volume(offload, Devices(tuple(devices)), mount_of(folder))

        def body(folder):
            (folder / "file").write_bytes(content)
            subprocess.run(["sync", "--file-system", folder], check=True)

        rows, facts = watched(found, tmp_path, body)
        # Extents that are being written may be told in other pieces
        own = rows.filter(file="file").filter(pl.col("seen_to_ns") == pl.col("seen_to_ns").max())
        assert (facts["unmapped"], facts["trouble"]) == (0, None)
        assert own["sectors"].sum() * 512 == copies * len(content)
        image_of = {device.dev: image for device, image in zip(devices, images, strict=True)}
        held = np.frombuffer(content, np.uint8).reshape(-1, 4096)
        blocks = {block.tobytes(): n for n, block in enumerate(held)}
        seen = []
        for row in own.iter_rows(named=True):
            with image_of[row["dev"]].open("rb") as f:
                f.seek(row["sector"] * 512)
                read = f.read(row["sectors"] * 512)
            numbers = [blocks[read[at : at + 4096]] for at in range(0, len(read), 4096)]
            assert numbers[0] == row["logical_bytes"] // 4096 or "raid" in mkfs[-1]
            seen += numbers
        assert sorted(seen) == sorted(list(range(len(held))) * copies)


@root
def test_a_partition_begins_where_it_begins(tmp_path):
    image = tmp_path / "disk.img"
    with image.open("wb") as f:
        f.truncate(64 * MIB)
    done = subprocess.run(["losetup", "-f", "--show", image], capture_output=True, text=True, check=True)
    node = done.stdout.strip()
    try:
        disk = Device.of_node(node)
        subprocess.run(["addpart", node, "2", "81920", "40960"], check=True)
        part = Path(f"/sys/block/{disk.name}/{disk.name}p2/dev").read_text().strip()
        ends = (np.array([0, 512]), np.array([512, 8192]))
        (place,) = addresses.on_disks(part, *ends, {disk.dev})
        assert place.dev == disk.dev
        assert place.begin.tolist() == [81920 * 512, 81920 * 512 + 512]
        assert place.end.tolist() == [81920 * 512 + 512, 81920 * 512 + 8192]
        assert list(addresses.on_disks(disk.dev, *ends, {"1:1"})) == []
    finally:
        subprocess.run(["delpart", node, "2"], check=True)
        subprocess.run(["losetup", "-d", node], check=True)


def test_device_mapper_tables():
    found = addresses.parse_table("0 8 linear 7:1 2048\n8 16 striped 2 4 7:2 0 7:3 100\n24 8 crypt aes 0 0 7:4 0\n")
    assert found == [
        Stretch(0, 4096, "7:1", 2048 * 512),
        Stretch(4096, 8192, "7:2", 0, 2048, 2, 0),
        Stretch(4096, 8192, "7:3", 51200, 2048, 2, 1),
    ]


@given(
    begin=st.integers(0, 50), length=st.integers(1, 200), unit=st.integers(1, 9), of=st.integers(1, 4),
    ends=st.tuples(st.integers(0, 260), st.integers(0, 260)).map(sorted),
)  # fmt: skip
def test_every_byte_of_a_striped_stretch_is_on_one_device(begin, length, unit, of, ends):
    low, high = ends
    wanted = [[] for _ in range(of)]
    for byte in range(max(low, begin), min(high, begin + length)):
        row, rest = divmod(byte - begin, unit * of)
        wanted[rest // unit].append(1000 + row * unit + rest % unit)
    for place in range(of):
        stretch = Stretch(begin, length, "7:0", 1000, unit, of, place)
        first, last = stretch.located(np.array([low]), np.array([high]))
        assert list(range(first[0], last[0])) == wanted[place]


@root
@pytest.mark.parametrize("fs", ["ext4", "xfs"])
def test_the_journal_is_where_the_filesystems_tools_say(mounted, fs):
    found = mounted(fs)
    (device,) = found.devices
    parts, words = journal.journal(fs, device.dev)
    assert words == "located"
    if fs == "ext4":
        told = subprocess.run(["debugfs", "-R", "stat <8>", device.node], capture_output=True, text=True).stdout
        size = subprocess.run(["dumpe2fs", "-h", device.node], capture_output=True, text=True).stdout
        block = int(re.search(r"Block size: +(\d+)", size)[1])
        spans = re.findall(r"\(\d+-\d+\):(\d+)-(\d+)", told)
        assert parts == [(int(a) * block, (int(b) - int(a) + 1) * block) for a, b in spans]
    else:
        ask = ["xfs_db", "-r", "-c", "sb 0", "-c", "p logstart logblocks blocksize", device.node]
        told = subprocess.run(ask, capture_output=True, text=True).stdout
        start, blocks, block = (int(line.split()[-1]) for line in told.splitlines())
        ask = ["xfs_db", "-r", "-c", f"convert fsblock {start} daddr", device.node]
        told = subprocess.run(ask, capture_output=True, text=True).stdout
        assert parts == [(int(re.search(r"\((\d+)\)", told)[1]) * 512, blocks * block)]


@root
def test_a_journal_that_cannot_be_found_is_unknown(mounted):
    (device,) = mounted("xfs").devices
    assert journal.journal("btrfs", device.dev)[1].startswith("none")
    assert journal.journal("ext4", device.dev) == ([], "unknown: no ext4 superblock on the device")
    assert journal.journal("nilfs2", device.dev)[1].startswith("unknown")


def test_what_is_no_block_device_is_one_clear_error():
    with pytest.raises(StorageError, match="no block device"):
        list(addresses.on_disks("0:9999", np.array([0]), np.array([1]), set()))


def test_extents_of_an_ordinary_file_need_no_root(tmp_path):
    fill(tmp_path / "file")
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        found = mapping(fd)
    except OSError as e:  # tmpfs and others have none
        pytest.skip(f"{device_number(tmp_path)}: {e}")
    finally:
        os.close(fd)
    assert found.length.sum() >= MIB
    assert found.settled
