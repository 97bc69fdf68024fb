"""The merge of all CPUs' pages into one stream, from made pages and, as root, from the kernel's own."""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.lease import Lease
from tasks.spec import Backing, Storage, Trace
from tasks.storage import volume
from tasks.tracers import Window, event_stream, ftrace
from tasks.tracers.event_stream import EventStream
from tasks.tracers.pairing import COMPLETE, ISSUE
from tasks.tracers.ring_buffer import EventFormat, page_length
from tasks.tracers.spool import Segment, Spool
from tests.block_devices import loop, mounted
from tests.conftest import trial_config
from tests.trace_pages import COMPLETE_FORMAT, ISSUE_FORMAT, MISSED, Page, record

FORMATS = {ISSUE: EventFormat.parse(ISSUE_FORMAT), COMPLETE: EventFormat.parse(COMPLETE_FORMAT)}


def in_memory(pages: list[tuple[int, bytes]]) -> Segment:
    """Return pages, each with its begin, as the spool keeps them."""
    segment = Segment(mmap.mmap(-1, max(1, sum(len(page) for _, page in pages))))
    for begin, page in pages:
        segment.where[segment.end : segment.end + len(page)] = page
        segment.add(begin, len(page))
    return segment


def on_disk(pages: list[tuple[int, bytes]], path: Path) -> Segment:
    segment = Segment(path)
    path.write_bytes(b"".join(page for _, page in pages))
    for begin, page in pages:
        segment.add(begin, len(page))
    return segment


def written(folder: Path, cpus: list[list[list[int]]], flags: int = 0) -> list[list[Segment]]:
    """Return two segments of pages for each CPU, in memory and on disk; an event's sector is its time."""
    found = []
    for cpu, pages in enumerate(cpus):
        encoded = []
        for times in pages:
            page = Page(times[0], flags=flags)
            for t in times:
                page.event(t, record(sector=t, pid=cpu))
            # Without the unused rest of the page.
            whole = page.encoded(times[0])
            encoded.append((times[0], whole[: page_length(whole[8:16])]))
        half = len(encoded) // 2
        found.append([in_memory(encoded[:half]), on_disk(encoded[half:], folder / f"cpu{cpu}.pages")])
    return found


@st.composite
def captures(draw: st.DrawFn) -> list[list[list[int]]]:
    cpus = []
    for _ in range(draw(st.integers(1, 3))):
        times = sorted(draw(st.lists(st.integers(1, 400), max_size=40)))
        size = draw(st.integers(1, 6))
        cpus.append([times[i : i + size] for i in range(0, len(times), size)])
    return cpus


@settings(deadline=None)
@given(cpus=captures(), chunk_bytes=st.integers(1, 900))
def test_events_come_in_time_order_however_the_pages_are_cut(
    cpus: list[list[list[int]]], chunk_bytes: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    segments = written(tmp_path_factory.mktemp("pages"), cpus)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(event_stream, "_CHUNK_BYTES", chunk_bytes)
        stream = EventStream(segments, FORMATS)
        chunks = list(stream.chunks())
    found = [(int(e["t_ns"]), int(e["pid"])) for chunk in chunks for e in chunk]
    assert sorted(found) == sorted((t, cpu) for cpu, pages in enumerate(cpus) for page in pages for t in page)
    assert [t for t, _ in found] == sorted(t for t, _ in found)
    assert (stream.gaps, stream.malformed, stream.out_of_order) == (0, 0, 0)


def test_time_that_goes_back_within_a_cpu_is_counted(tmp_path: Path) -> None:
    stream = EventStream(written(tmp_path, [[[10, 20], [15, 30]], [[5]]]), FORMATS)
    assert [int(t) for chunk in stream.chunks() for t in chunk["t_ns"]] == [5, 10, 15, 20, 30]
    assert stream.out_of_order == 1


def test_gaps_and_strange_events_are_counted(tmp_path: Path) -> None:
    segments = written(tmp_path, [[[1], [2]]], MISSED)
    page = Page(3)
    page.event(3, record(number=99))
    stream = EventStream([*segments, [in_memory([(3, page.encoded(3))])]], FORMATS)
    assert sum(map(len, stream.chunks())) == 2
    assert (stream.gaps, stream.malformed) == (2, 1)


def test_what_goes_wrong_while_decoding_ahead_reaches_the_reader(tmp_path: Path) -> None:
    stream = EventStream(written(tmp_path, [[[1, 2]]]), FORMATS)
    (tmp_path / "cpu0.pages").unlink()
    with pytest.raises(FileNotFoundError):
        list(stream.chunks())


def test_cpus_that_saw_nothing_take_no_memory_and_busy_ones_grow(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", 1 << 20)
    page = Page(7)
    page.event(7, record())
    for cpu in range(64):
        read, write = os.pipe()
        os.set_blocking(read, False)
        for _ in range(3 if cpu == 5 else 0):
            os.write(write, page.encoded(7))
        spool.take(f"cpu{cpu}", read, 4096, last=True)
        os.close(read)
        os.close(write)
    assert list(spool.cpus) == ["cpu5"]
    assert [len(s.begins_ns) for s in spool.cpus["cpu5"]] == [3]
    assert not (tmp_path / "spool").exists()
    assert sum(map(len, EventStream([*spool.cpus.values()], FORMATS).chunks())) == 3


def test_pages_behind_the_rest_of_one_that_was_being_written_are_not_left(tmp_path: Path) -> None:
    short, full = Page(1), Page(2)
    short.event(1, record())
    while len(full.data) < 3000:
        full.event(2, record())
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.write(write, short.encoded(1) + full.encoded(2) + short.encoded(3))
    spool = Spool(tmp_path / "spool", 1 << 20)
    spool.take("cpu0", read, 4096)
    assert [len(s.begins_ns) for s in spool.cpus["cpu0"]] == [3]
    os.close(read)
    os.close(write)


@pytest.mark.root
def test_what_does_not_fit_the_memory_goes_on_on_disk(run_here) -> None:
    pattern = [(i % 4096 * 4096, 4096) for i in range(3000)]
    config = trial_config(workload={"kind": "pattern", "pattern": pattern}, trace={"spool_memory": "1KiB"})
    record, _ = run_here(config)
    assert record["verdict"] == {"state": "valid", "reasons": []}
    assert record["tracer"]["spooled_to_disk_bytes"] > 3 * 60 * 3000
    assert run_here(trial_config())[0]["tracer"]["spooled_to_disk_bytes"] == 0


@pytest.mark.root
def test_every_event_that_the_buffer_lost_is_counted(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ftrace, "_DRAIN_INTERVAL_S", 0.5)
    lease = Lease.take("t-lost")
    try:
        with volume(Storage(fs="xfs", backing=Backing.tmpfs, image_size="384MiB"), lease) as found:
            tracer = ftrace.Tracer(Trace(buffer_size="64KiB"), found.devices, lease, {})
            found.devices.settle()
            with tracer.recording():
                before, begin_ns = found.devices.counters(), time.monotonic_ns()
                read_pages(found.devices.members[0].node, 20_000)
                after = found.devices.settle()
                window = Window(begin_ns, time.monotonic_ns())
            assert after.writes == before.writes
            seen = sum(map(len, EventStream([*tracer._spool.cpus.values()], ftrace._formats()).chunks()))
            capture = tracer.write(window, lease.folder / "requests.parquet")
    finally:
        lease.clean()
    control_reads = 2
    assert seen + capture.faults["lost"] == 2 * (after.reads - before.reads + control_reads)
    assert capture.faults["lost"] > 1000


def read_pages(node: str, count: int) -> None:
    """Read 4 KiB directly from the device, again and again."""
    fd = os.open(node, os.O_RDONLY | os.O_DIRECT)
    with mmap.mmap(-1, 4096) as page:
        for n in range(count):
            os.preadv(fd, [page], n % 1000 * 4096)
    os.close(fd)


@pytest.mark.root
def test_a_trace_that_went_to_the_drive_under_test_is_told_of(run_here, monkeypatch: pytest.MonkeyPatch) -> None:
    work = {"kind": "pattern", "pattern": [(i % 4096 * 4096, 4096) for i in range(3000)]}
    with loop() as node, mounted("ext4", node) as folder:
        monkeypatch.setenv("OFFLOAD_SWEEP_STATE", str(folder / "state"))
        storage = {"kind": "directory", "fs": "ext4", "path": str(folder), "queue": {}, "trim": False}
        for spool_memory, told in (("1KiB", True), ("64MiB", False)):
            record, _ = run_here(trial_config(workload=work, storage=storage, trace={"spool_memory": spool_memory}))
            trouble = record.get("trouble") or ""
            assert ("of raw trace went to" in trouble and "OFFLOAD_SWEEP_STATE" in trouble) == told, record["verdict"]
