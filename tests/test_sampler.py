"""Samples over time: what the kernel's files say, at fixed times, in real trials and as anybody."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest

from analysis import schema
from tasks import counters, sampler
from tasks.cgroup import Hierarchy, MemoryLimit
from tasks.device import Device, Devices
from tasks.sampler import Sampler
from tests.conftest import trial_config

MIB = 1 << 20
PAGE = os.sysconf("SC_PAGE_SIZE")
S = 1_000_000_000

STAT = "cpu  100 20 50 800 30 5 5 10 0 0\ncpu0 100 20 50 800 30 5 5 10 0 0\nintr 5"
MEMINFO = (
    "MemTotal:       1000 kB\nMemFree: 1 kB\nMemAvailable:    600 kB\nCached:          300 kB\n"
    "Dirty:             8 kB\nWriteback:         4 kB\nAnonPages:       90 kB\nShmem:            70 kB"
)
VMSTAT = (
    "nr_free_pages 1\nworkingset_refault_anon 1\nworkingset_refault_file 100\nworkingset_restore_file 3\npswpin 4\n"
    "pswpout 5\npgmajfault 6\npgsteal_anon 1\npgsteal_file 10\npgscan_anon 2\npgscan_file 20"
)
PSI = "some avg10=0.00 avg60=0.00 avg300=0.00 total=1000000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=400000"
#: reads, merged, sectors, ms, writes, merged, sectors, ms, in flight, io ms, queue ms, 4 of discards, flushes, ms
DISK = "10 0 80 5 20 0 160 9 3 1000 4000 0 0 16 0 7 2"


def plant(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    files = {"proc/stat": STAT, "proc/meminfo": MEMINFO, "proc/vmstat": VMSTAT, "sys/dev/block/7:0/stat": DISK}
    plant(tmp_path, files | {f"proc/pressure/{name}": PSI for name in ("io", "memory")})
    return tmp_path


def values(opened: counters.Opened, t_ns: int) -> dict[str, float]:
    """Return what all sources say, by `source.name`."""
    return {
        f"{source.name}.{name}": value
        for source in opened.sources
        for (name, _), value in zip(source.columns, source.read(t_ns), strict=True)
    }


def test_gauges_are_of_now_and_counters_since_the_beginning(machine: Path) -> None:
    opened = counters.open_machine(["7:0"], [], machine)
    assert opened.absent == {}
    first = values(opened, S)
    assert first["memory.used"] == 400 * 1024
    assert first["memory.page_cache"] == 300 * 1024
    assert first["memory.dirty"] == 12 * 1024
    assert first["memory.shared"] == 70 * 1024
    assert first["device.in_flight"] == 3
    assert first["device.read_bytes"] == first["paging.refault_file_bytes"] == first["pressure.io_some_stalled"] == 0
    assert math.isnan(first["cpu.busy"])
    assert math.isnan(first["device.queue_depth"])
    plant(
        machine,
        {
            "proc/stat": STAT.replace("100 20 50 800 30 5 5 10", "130 30 60 820 50 7 8 10"),
            "proc/vmstat": VMSTAT.replace("refault_file 100", "refault_file 1100").replace(
                "pgscan_anon 2", "pgscan_anon 9"
            ),
            "proc/pressure/io": PSI.replace("1000000", "1250000"),
            "sys/dev/block/7:0/stat": "12 0 96 6 20 0 160 9 0 1500 6000 0 0 16 0 9 2",
        },
    )
    later = values(opened, 2 * S)
    assert later["paging.refault_file_bytes"] == 1000 * PAGE
    assert later["paging.scanned_bytes"] == 7 * PAGE
    assert later["pressure.io_some_stalled"] == 0.25
    assert later["pressure.io_full_stalled"] == 0
    assert (later["device.read_bytes"], later["device.reads"], later["device.flushes"]) == (16 * 512, 2, 2)
    assert later["device.read_time"] == pytest.approx(0.001)
    # iostat: 500 ms busy and 2000 ms of waiting requests in a second
    assert (later["device.utilisation"], later["device.queue_depth"]) == (50, 2)
    shares = [later[f"cpu.{name}"] for name in ("busy", "user", "system", "iowait", "irq", "steal")]
    assert shares == pytest.approx([100 * part / 95 for part in (55, 40, 10, 20, 5, 0)])


def test_nothing_is_said_of_less_time_than_the_kernel_counts_in(machine: Path) -> None:
    opened = counters.open_machine(["7:0"], [], machine)
    values(opened, S)
    plant(machine, {"proc/stat": STAT.replace("100 20", "101 20")})
    soon = values(opened, S + 1_000_000)
    assert math.isnan(soon["cpu.busy"])
    assert math.isnan(soon["device.queue_depth"])
    assert values(opened, S + 20_000_000)["cpu.busy"] == 100
    assert math.isnan(values(opened, S + 40_000_000)["cpu.busy"])


def test_several_devices_add_up_and_their_utilisation_is_a_mean(machine: Path) -> None:
    plant(machine, {"sys/dev/block/7:1/stat": DISK})
    opened = counters.open_machine(["7:0", "7:1"], [], machine)
    values(opened, S)
    plant(machine, {"sys/dev/block/7:1/stat": "11 0 88 5 20 0 160 9 4 2000 5000 0 0 16 0 7 2"})
    told = values(opened, 2 * S)
    assert (told["device.reads"], told["device.in_flight"]) == (1, 7)
    assert (told["device.utilisation"], told["device.queue_depth"]) == (50, 1)


def test_what_an_old_kernel_lacks_is_left_out(machine: Path) -> None:
    for name in ("io", "memory"):
        (machine / "proc/pressure" / name).unlink()
    plant(machine, {"proc/vmstat": "pgmajfault 1\npswpin 2", "sys/dev/block/7:0/stat": "1 0 8 5 20 0 160 9 0 1 2"})
    opened = counters.open_machine(["7:0"], ["gone"], machine)
    assert set(opened.absent) == {"drive", "pressure.io", "pressure.memory"}
    told = values(opened, S)
    assert [name for name in told if name.startswith("paging.")] == ["paging.swap_in_bytes", "paging.major_faults"]
    assert told["device.flushes"] == 0


V1 = {
    "memory.stat": "cache 4096\nrss 8192\nmapped_file 1\ndirty 2\nwriteback 3\nworkingset_refault_anon 0\n"
    "workingset_refault_file 5\npgmajfault 1\ntotal_cache 9",
    "memory.usage_in_bytes": "20480",
    "memory.failcnt": "7",
    "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 0",
}
V2 = {
    "memory.stat": "anon 8192\nfile 4096\nfile_mapped 1\nfile_dirty 2\nfile_writeback 3\nworkingset_refault_anon 0\n"
    "workingset_refault_file 5\nworkingset_restore_file 0\npgscan 3\npgsteal 2\npgmajfault 1",
    "memory.current": "20480",
    "memory.events": "low 0\nhigh 0\nmax 7\noom 0\noom_kill 0",
    "memory.pressure": PSI,
    "cpu.stat": "usage_usec 1500000\nuser_usec 1000000\nsystem_usec 500000",
    "io.stat": "254:0 rbytes=1 wbytes=2 rios=1 wios=1 dbytes=0 dios=0\n7:0 rbytes=4096 wbytes=512 rios=1 wios=1",
}


@pytest.mark.parametrize(("version", "files", "more"), [(1, V1, {}), (2, V2, {"scanned_bytes": 4 * PAGE})])
def test_a_cgroup_says_the_same_in_both_versions(
    tmp_path: Path, version: int, files: dict[str, str], more: dict[str, float]
) -> None:
    plant(tmp_path, files)
    opened = counters.open_cgroup(tmp_path, version, ["7:0"])
    stat = files["memory.stat"].replace("refault_file 5", "refault_file 15").replace("pgscan 3", "pgscan 7")
    plant(
        tmp_path,
        {"memory.stat": stat, "memory.failcnt": "9", "memory.events": "low 0\nhigh 0\nmax 9\noom 0\noom_kill 1"},
    )
    plant(tmp_path, {"memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1"})
    plant(tmp_path, {"cpu.stat": "usage_usec 3500000\nuser_usec 1000000\nsystem_usec 2500000"})
    told = {name.removeprefix("cgroup."): value for name, value in values(opened, S).items()}
    expected = {"used": 20480, "page_cache": 4096, "anonymous": 8192, "mapped_file": 1, "dirty": 5}
    expected |= {"refault_file_bytes": 10 * PAGE, "limit_hits": 2, "oom_kills": 1, "major_faults": 0}
    assert {name: told[name] for name in expected | more} == expected | more
    if version == 2:
        assert (told["read_bytes"], told["write_bytes"], told["memory_some_stalled"]) == (4096, 512, 0)
        assert told["cpu_time"] == 2
        assert set(opened.absent) == {"cgroup.io_pressure"}


def test_a_source_that_fails_is_given_up_and_the_others_go_on(machine: Path, tmp_path: Path) -> None:
    watch = Sampler(Devices((Device("loop0", "7:0"),)), 10, [], machine)
    with watch.sampling():
        time.sleep(0.05)
        plant(machine, {"proc/vmstat": "pgmajfault 1"})
        time.sleep(0.15)
    rows = written(watch, tmp_path)
    assert str(watch.trouble).startswith("paging could not be sampled to the end: ")
    last = dict(rows.group_by("source").agg(pl.col("t_ns").max()).iter_rows())
    assert last["paging"] < last["memory"]


def written(watch: Sampler, folder: Path) -> pl.DataFrame:
    watch.write(folder / "samples.parquet", {"trial": "x"})
    file = pq.ParquetFile(folder / "samples.parquet")
    assert file.schema_arrow.equals(schema.SAMPLES)
    assert schema.described(schema.SAMPLES, {"trial": "x"}).metadata == file.schema_arrow.metadata
    names = [pl.col(name).cast(pl.String) for name in ("source", "name", "unit", "process")]
    return pl.read_parquet(folder / "samples.parquet").with_columns(names)


def test_samples_are_written_by_time_whatever_the_size_of_a_row_group(
    machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Sampler(Devices((Device("loop0", "7:0"),)), 5, [], machine)
    with watch.sampling():
        time.sleep(0.2)
    whole = written(watch, tmp_path)
    monkeypatch.setattr(sampler, "_GROUP_VALUES", 50)
    pieces = written(watch, tmp_path)
    assert pq.ParquetFile(tmp_path / "samples.parquet").num_row_groups > 10
    assert pieces["t_ns"].is_sorted()
    assert pieces.rows() == whole.rows()
    assert not whole["value"].is_nan().any()


def test_a_sampler_that_never_ran_writes_an_empty_file(tmp_path: Path) -> None:
    watch = Sampler(Devices(()), 10, [])
    assert written(watch, tmp_path).height == 0
    assert watch.facts()["cost_cores"] is None


class Slow:
    """A source that takes its time."""

    name, columns = "slow", (("value", "1"),)

    def __init__(self, seconds: Sequence[float]) -> None:
        self.seconds = iter(seconds)
        self.begun: list[int] = []

    def read(self, t_ns: int) -> list[float]:
        self.begun.append(t_ns)
        time.sleep(next(self.seconds, 0))
        return [1.0]

    def close(self) -> None: ...


def test_times_are_fixed_and_missed_ones_are_counted() -> None:
    slow = Slow([0, 0, 0.52])
    ticker = sampler._Ticker("test", 200_000_000, [slow])
    with ticker.running():
        time.sleep(2.08)
    *times, _ = [(t_ns - slow.begun[0]) / 200_000_000 for t_ns in slow.begun]
    # the third sample lasts until after the fifth was due: 3 and 4 are missed, 5 is in time again
    assert [round(place) for place in times] == [0, 1, 2, 5, 6, 7, 8, 9, 10]
    assert max(abs(place - round(place)) for place in times) < 0.4
    facts = ticker.facts()
    assert (facts["samples"], facts["missed"]) == (len(slow.begun), 2)
    assert facts["longest_ms"] >= 520
    assert facts["cpu_s"] < 0.1


def test_what_a_sampler_costs_is_its_threads_cpu_time(machine: Path) -> None:
    watch = Sampler(Devices((Device("loop0", "7:0"),)), 20, [], machine)
    with watch.sampling():
        before = time.process_time()
        while time.process_time() - before < 0.3:
            pass  # this thread's work is not the sampler's
    facts = watch.facts()
    assert 0 < facts["cpu_s"] < 0.2
    assert 0 < facts["cost_cores"] < 0.5
    assert facts["cpu_s"] == pytest.approx(sum(one["cpu_s"] for one in facts["threads"].values()))


def test_a_cgroup_is_watched_while_it_is_there(machine: Path, tmp_path: Path) -> None:
    folder = tmp_path / "group"
    plant(folder, V2)
    watch = Sampler(Devices((Device("loop0", "7:0"),)), 10, [], machine)
    with watch.sampling():
        time.sleep(0.03)
        with watch.watching(MemoryLimit(folder, Hierarchy(tmp_path, 2), 1)):
            begin_ns = time.monotonic_ns()
            time.sleep(0.05)
            end_ns = time.monotonic_ns()
        for path in folder.iterdir():
            path.unlink()
        time.sleep(0.05)
    rows = written(watch, tmp_path)
    times = rows.filter(pl.col("source") == "cgroup")["t_ns"]
    assert watch.trouble is None
    assert times.min() >= begin_ns  # type: ignore[operator]
    assert 0 <= times.max() - end_ns < 40_000_000  # type: ignore[operator]
    assert rows.filter(pl.col("source") == "memory")["t_ns"].max() > times.max()  # type: ignore[operator]


@contextmanager
def as_nobody() -> Iterator[None]:
    before = os.geteuid()
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.mark.root
def test_nobody_may_sample_this_machine(tmp_path: Path) -> None:
    disk = next(name for name in sorted(os.listdir("/sys/block")) if not name.startswith(("ram", "zram")))
    with as_nobody():
        watch = Sampler(Devices((Device.of_name(disk),)), 10)
        with watch.sampling():
            time.sleep(0.1)
    assert watch.trouble is None
    rows = written(watch, tmp_path)
    assert {"device", "cpu", "memory", "paging"} <= set(rows["source"])


#: Writes 128 MiB through the page cache and reads them three times.
REREAD = """
import os
path = os.environ["DIR"] + "/f"
with open(path, "wb") as f:
    f.write(bytes(128 << 20))
    os.fsync(f.fileno())
for _ in range(3):
    with open(path, "rb", buffering=0) as f:
        while f.read(1 << 20):
            pass
"""


def reread(memory: str | None, backing: str) -> dict[str, Any]:
    program = REREAD.replace("{", "{{").replace("}", "}}")
    workload = {"kind": "command", "argv": [sys.executable, "-c", program], "env": {"DIR": "{offload_dir}"}}
    limits, trace = {"memory": memory}, {"sample_interval_ms": 10}
    return trial_config("none", backing=backing, workload=workload, limits=limits, trace=trace)


def last_of(rows: pl.DataFrame, source: str, name: str) -> float:
    return float(rows.filter((pl.col("source") == source) & (pl.col("name") == name)).sort("t_ns")["value"][-1])


@pytest.mark.root
def test_a_trial_shows_the_page_cache_thrash(run_here) -> None:  # type: ignore[no-untyped-def]
    record, folder = run_here(reread("64MiB", "disk"))
    assert record["verdict"]["state"] == "valid"
    rows = pl.read_parquet(folder / "samples.parquet").with_columns(pl.col("source", "name").cast(pl.String))
    window = record["tracer"]
    assert rows["t_ns"].min() >= window["begin_ns"]
    assert rows["t_ns"].max() <= window["end_ns"]
    assert {"device", "drive", "cpu", "memory", "paging", "cgroup"} <= set(rows["source"])
    # of 384 MiB read again with 64 MiB of memory, most pages had been there a short while ago
    assert last_of(rows, "cgroup", "refault_file_bytes") > 64 * MIB
    assert last_of(rows, "paging", "refault_file_bytes") >= last_of(rows, "cgroup", "refault_file_bytes")
    assert last_of(rows, "paging", "reclaimed_bytes") > 64 * MIB
    used = rows.filter((pl.col("source") == "cgroup") & (pl.col("name") == "used"))["value"]
    assert 32 * MIB < used.max() <= 64 * MIB  # type: ignore[operator]
    assert last_of(rows, "cgroup", "limit_hits") > 0
    # the closing sample has all that the device did, and the drive below it did as much
    counted = record["bytes"]["counted"]
    assert last_of(rows, "device", "read_bytes") == counted["read"] >= 256 * MIB
    assert last_of(rows, "drive", "read_bytes") >= 0.9 * counted["read"]
    depth = rows.filter((pl.col("source") == "device") & (pl.col("name") == "queue_depth"))["value"]
    assert depth.max() > 0  # type: ignore[operator]
    facts = record["sampler"]
    assert facts["interval_ms"] == 10
    assert facts["samples"] > 10
    assert facts["missed"] >= 0
    assert 0 < facts["cost_cores"] < 0.5


@pytest.mark.root
def test_with_memory_enough_nothing_comes_back_twice(run_here) -> None:  # type: ignore[no-untyped-def]
    record, folder = run_here(reread(None, "tmpfs"))
    rows = pl.read_parquet(folder / "samples.parquet").with_columns(pl.col("source", "name").cast(pl.String))
    assert "cgroup" not in set(rows["source"])
    assert "drive" not in set(rows["source"])
    assert last_of(rows, "paging", "refault_file_bytes") < 64 * MIB
    assert record["sampler"]["absent"].keys() <= {"pressure.io", "pressure.memory"}
