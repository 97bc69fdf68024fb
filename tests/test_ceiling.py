"""The ceiling beside a trial: real fio on real storage, its cache, and nothing of it in the trial."""

import dataclasses
import json
import os
import time

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweep import config
from sweep.errors import ConfigError
from sweep.plan import Grid
from tasks import ceiling, fio
from tasks.device import Device, Devices
from tasks.mounts import mount_of
from tasks.spec import Ceiling
from tasks.storage import Volume
from tests.conftest import trial_config

KIB, MIB = 1 << 10, 1 << 20
PATTERN = [(0, 128 * KIB), (1024 * KIB, 64 * KIB), (20 << 20, 12 * KIB)]
FOUR = ("sequential_read", "sequential_write", "random_read", "random_write")


def asked(enabled=True, **changes):
    values = {f.name: f.default for f in dataclasses.fields(Ceiling)}
    return values | {"enabled": enabled, "seconds": 1, "file_size": "64MiB"} | changes


def measured_trial(run_here, ceiling_section, **changes):
    workload = {"kind": "pattern", "pattern": PATTERN}
    record, folder = run_here(trial_config(workload=workload, ceiling=ceiling_section, **changes))
    assert record["verdict"] == {"state": "valid", "reasons": []}
    return record, folder


# --- measured, kept, made again --------------------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.slow
def test_a_second_trial_of_the_same_storage_takes_the_first_ones_ceiling(run_here, left_behind):
    first, _ = measured_trial(run_here, asked())
    again, _ = measured_trial(run_here, asked())
    other, _ = measured_trial(run_here, asked(), storage={"queue": {"max_sectors_kb": 64, "read_ahead_kb": None}})
    states = [record["ceiling"]["state"] for record in (first, again, other)]
    assert states == ["measured", "cached", "measured"]
    top = first["ceiling"]
    for name in FOUR:
        one = top["measurements"][name]
        assert 0 < one["least_gib_s"] <= top[f"{name}_gib_s"] <= one["greatest_gib_s"]
        assert one["iops"] == pytest.approx(top[f"{name}_gib_s"] * 8192, rel=0.05)
    assert top["first_write_gib_s"] > 0
    assert (top["reason"], top["trouble"]) == (None, None)
    assert top["settings"]["file_bytes"] == 64 * MIB
    assert again["ceiling"] == {**top, "state": "cached"}
    assert not [entry for entry in left_behind() if "ceiling" in entry or "fio" in entry]


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.parametrize("fs", ["ext4", "xfs", "btrfs"])
def test_nothing_that_fio_did_is_in_the_trial(run_here, fs):
    without, _ = measured_trial(run_here, asked(enabled=False), fs=fs)
    record, folder = measured_trial(run_here, asked(), fs=fs)
    assert record["ceiling"]["state"] == "measured"
    assert record["bytes"]["traced"] == record["bytes"]["counted"]
    for op in ("read", "write", "discard"):
        assert abs(record["bytes"]["counted"][op] - without["bytes"]["counted"][op]) < MIB
    rows = pl.read_parquet(folder / "requests.parquet")
    assert "fio" not in set(rows["comm"].cast(pl.String))
    assert record["storage"]["free_bytes"] == without["storage"]["free_bytes"]


@pytest.mark.root
@pytest.mark.slow
def test_the_image_is_as_unwritten_as_before(run_here, monkeypatch):
    left = []
    scratch = fio._unwrite

    def look(mount_point, image):
        troubles = scratch(mount_point, image)
        left.append((troubles, image.stat().st_blocks * 512, image.stat().st_size, zeros(mount_point)))
        return troubles

    def zeros(mount_point):
        with open(Device.of_number(mount_of(mount_point).dev).node, "rb") as device:
            return sum(not any(block) for block in iter(lambda: device.read(MIB), b""))

    monkeypatch.setattr(fio, "_unwrite", look)
    measured_trial(run_here, asked(file_size="128MiB"), backing="disk")
    ((troubles, allocated, size, empty_mib),) = left
    assert troubles == []
    assert allocated >= size
    assert empty_mib > 384 - 64


def test_an_existing_folder_has_a_ceiling_too(run_here, tmp_path):
    queue = {"max_sectors_kb": None, "read_ahead_kb": None}
    storage = {"kind": "directory", "path": str(tmp_path), "fs": mount_of(tmp_path).fs, "queue": queue}
    before = sorted(os.listdir(tmp_path))
    record, _ = measured_trial(run_here, asked(), tracer="none", storage=storage)
    assert record["ceiling"]["state"] == "measured"
    assert record["ceiling"]["trouble"] is None
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.root
def test_turned_off_it_costs_nothing(run_here, state):
    record, _ = measured_trial(run_here, asked(enabled=False))
    assert record["ceiling"] == {"state": "off", "reason": "ceiling.enabled is false"}
    assert not (state / "ceilings").exists()


# --- what stands in the way ------------------------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.parametrize("enabled", [True, None])
def test_without_fio_the_trial_goes_on_and_says_so(run_here, monkeypatch, tmp_path, enabled):
    tools = tmp_path / "bin"
    tools.mkdir()
    for folder in os.environ["PATH"].split(":"):
        for name in os.listdir(folder) if os.path.isdir(folder) else ():
            if name != "fio" and not (tools / name).exists():
                (tools / name).symlink_to(os.path.join(folder, name))
    monkeypatch.setenv("PATH", str(tools))
    record, _ = measured_trial(run_here, asked(enabled=enabled))
    assert record["ceiling"] == {"state": "failed", "reason": "fio is not installed: apt-get install fio"}


@pytest.mark.root
def test_an_image_too_small_for_fio_says_so(run_here):
    big = asked(depth=1024, jobs=4)
    record, _ = measured_trial(run_here, big, fs="ext4", storage={"image_size": "128MiB"})
    assert record["ceiling"]["state"] == "failed"
    assert "fio needs a file of 2 GiB or more in half of that" in record["ceiling"]["reason"]


@pytest.mark.root
def test_what_fio_refuses_is_told_in_its_own_words(run_here, state):
    record, _ = measured_trial(run_here, asked(block_size=1000, file_size="32MiB"))
    assert record["ceiling"]["state"] == "failed"
    assert "fio (write) ended with exit code 1: fio:" in record["ceiling"]["reason"]
    assert "Invalid argument" in record["ceiling"]["reason"]
    assert not (state / "ceilings").exists()


# --- the cache -------------------------------------------------------------------------------------------------------


@pytest.fixture
def found(tmp_path):
    """Return storage that was not made for the test: the filesystem of its own folder."""
    mount = mount_of(tmp_path)
    device = next(d for d in sorted(os.listdir("/sys/block")) if os.path.exists(f"/sys/block/{d}/queue/scheduler"))
    return Volume(tmp_path, Devices((Device.of_name(device),)), mount, {"kind": "directory", "queue": {}})


ENTRY = {f"{name}_gib_s": 1.5 for name in FOUR}


def test_an_entry_comes_back_until_it_is_too_old_or_from_the_future(tmp_path, monkeypatch):
    entry, key = tmp_path / "ceilings" / "a.json", {"a": (1, 2)}
    ceiling._keep(entry, key, ENTRY)
    assert ceiling._cached(entry, key, 3600) == ENTRY
    assert ceiling._cached(entry, {"a": (1, 3)}, 3600) is None
    assert ceiling._cached(entry, key, 0) is None
    now = time.time()
    for shift_s, there in ((3500, True), (3700, False), (-30, True), (-3000, False)):
        monkeypatch.setattr(time, "time", lambda shift_s=shift_s: now + shift_s)
        assert (ceiling._cached(entry, key, 3600) is not None) == there
    assert [p.name for p in entry.parent.iterdir()] == ["a.json"]


def test_entries_of_storage_long_gone_are_removed(tmp_path):
    old = tmp_path / "old.json"
    old.write_text("{}")
    os.utime(old, (1, 1))
    ceiling._keep(tmp_path / "new.json", {}, ENTRY)
    assert [p.name for p in tmp_path.iterdir()] == ["new.json"]


@given(st.binary(max_size=60) | st.sampled_from([b"null", b"[]", b'{"key": {}, "measured": 3, "measured_s": 0}']))
def test_a_broken_entry_is_no_entry(tmp_path_factory, content):
    entry = tmp_path_factory.mktemp("cache") / "a.json"
    entry.write_bytes(content)
    assert ceiling._cached(entry, {}, 1e12) is None


def test_the_key_changes_with_everything_a_ceiling_depends_on(found, monkeypatch, state):
    base = trial_config(ceiling=asked())

    def digest(volume=found, **sections):
        changed = {name: value if name == "storage" else base[name] | value for name, value in sections.items()}
        return ceiling._digest(ceiling.cache_key(base | changed, volume))

    plain = digest()
    assert digest() == plain
    assert digest(ceiling={"max_age_hours": 1}) == plain
    assert digest(limits={"time_limit_s": 5}) == plain
    others = [digest(ceiling={name: value}) for name, value in (("depth", 8), ("jobs", 2), ("block_size", "64KiB"))]
    others += [digest(ceiling={"seconds": 4}), digest(ceiling={"file_size": "2GiB"})]
    others += [digest(storage=base["storage"] | {"image_size": "1GiB"})]
    mount = dataclasses.replace(found.mount, options="rw,noatime,other")
    others += [digest(dataclasses.replace(found, mount=mount))]
    others += [digest(dataclasses.replace(found, facts=found.facts | {"queue": {"scheduler": "bfq"}}))]
    for name, value in (
        ("queue_facts", lambda devices, read_ahead: {"scheduler": "none", "nr_requests": "7"}),
        ("boot_id", lambda: "another"),
        ("disk_sequence", lambda name: "77"),
        ("drive_model", lambda name: "another"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(ceiling, name, value)
            others.append(digest())
    with monkeypatch.context() as patch:
        patch.setattr(fio, "version", lambda: "fio-9.9")
        others.append(digest())
    assert len({plain, *others}) == 1 + len(others)
    assert json.dumps(ceiling.cache_key(base, found))


# --- configuration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("ceiling.depth=0", "ceiling.depth: must be 1 or more, not 0"),
        ("ceiling.seconds=0", "ceiling.seconds: must be 1 or more"),
        ("ceiling.max_age_hours=-1", "ceiling.max_age_hours: must be 0 or more"),
        ("ceiling.block_size=1000", "ceiling.block_size: 1000 B is not a multiple of 512 B"),
        ("ceiling.file_size=much", "ceiling.file_size: 'much' is not a size"),
        ("ceiling.enabled=2", "ceiling.enabled: must be true, false or null"),
        ("ceiling.dept=8", "did you mean ceiling.depth?"),
        ("trace.measure_cost=1", "trace.measure_cost: must be true or false"),
    ],
)
def test_a_slip_is_refused_with_its_key(tmp_path, override, words):
    file = tmp_path / "s.yaml"
    file.write_text("workload: {kind: tensor_io}\n")
    with pytest.raises(ConfigError) as caught:
        Grid(config.load(str(file), [override]))
    assert words in str(caught.value)


def test_a_scenario_may_leave_the_ceiling_out(tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text("workload: {kind: tensor_io}\nscenarios: {a: {}, b: {ceiling: {enabled: false}}}\n")
    trials = Grid(config.load(str(file), ["ceiling.depth=8"])).trials
    assert [t.config["ceiling"]["enabled"] for t in trials] == [None, False]
    assert {t.config["ceiling"]["depth"] for t in trials} == {8}
