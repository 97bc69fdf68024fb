"""A trial exported, replayed by fio on another raw device, and traced again: the same requests."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pytest

from analysis.replay import fio as replay_fio
from analysis.replay.__main__ import main
from tasks import tracers
from tasks.device import Device, Devices
from tasks.lease import Lease
from tasks.spec import Trace
from tasks.tracers import Window
from tests.block_devices import MIB, loop, mounted
from tests.conftest import trial_config

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.skipif(not shutil.which("fio"), reason="needs fio")]

IMAGE_BYTES = 384 * MIB
FIO = ["fio", "--name=job", "--directory={offload_dir}", "--size=48m", "--direct=1", "--ioengine=libaio", "--iodepth=8"]
JOB = [*FIO, "--rw=randrw", "--bsrange=4k-512k", "--fsync=32", "--randrepeat=1"]


@contextmanager
def queue(node: str, commands: list[str]) -> Iterator[None]:
    """Run the commands that set the queue of `node`, and put back what was there: it outlives the loop device."""
    folder = Path(f"/sys/block/{Path(node).name}/queue")
    names = ("max_sectors_kb", "nomerges", "scheduler")
    before = {name: (folder / name).read_text() for name in names}
    try:
        for command in commands:
            subprocess.run(["sh", "-ec", command], check=True, env=os.environ | {"target": Path(node).name})
        yield
    finally:
        for name, text in before.items():
            (folder / name).write_text(text.partition("[")[2].partition("]")[0] or text.strip())


def traced_replay(state: Path, node: str, job: Path, fio: str) -> pl.DataFrame:
    """Return the requests that `node` sees of a replay, traced without a fault."""
    devices, folder = Devices((Device.of_node(node),)), job.parent
    lease = Lease.take(f"{state.parent.name}-replay")
    try:
        tracer = tracers.make(Trace(tracer="ftrace", buffer_size="16MiB"), devices, lease, dict(os.environ))
        with tracer.recording():
            before, begin_ns = devices.settle(), time.monotonic_ns()
            environment = os.environ | {"target": Path(node).name}
            done = subprocess.run(["sh", "-ec", fio], cwd=folder, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
            after, end_ns = devices.settle(), time.monotonic_ns()
        capture = tracer.write(Window(begin_ns, end_ns), folder / "again.parquet")
    finally:
        lease.clean()
    assert not any(capture.faults.values())
    assert capture.bytes == after.since(before)
    return pl.read_parquet(folder / "again.parquet").with_columns(pl.col("op").cast(pl.String))


def head_commands(job: Path) -> tuple[list[str], str]:
    """Return the commands in the head of a job: those that set the queue, and the one that runs fio."""
    lines = [line.removeprefix("#").strip() for line in job.read_text().splitlines() if line.startswith("#     ")]
    assert lines[0] == "target=nvmeXn1"
    (fio,) = [line for line in lines if line.startswith("TARGET=")]
    return [line for line in lines if line.startswith("echo ")], fio


def data(rows: pl.DataFrame) -> Counter[tuple[str, int, int]]:
    moved = rows.filter(pl.col("op").is_in(["read", "write"]) & (pl.col("bytes") > 0))
    return Counter(moved.select("op", "sector", "bytes").iter_rows())


@pytest.fixture
def trial(run_here, tmp_path: Path) -> Path:
    """A real trial of direct I/O on a filesystem, with the requests of the filesystem itself among them."""
    workload = {"kind": "command", "argv": JOB, "space": "64MiB", "expect_read": "8MiB", "expect_write": "8MiB"}
    record, files = run_here(trial_config(workload=workload))
    assert record["verdict"] == {"state": "valid", "reasons": []}
    folder = tmp_path / "trial"
    shutil.copytree(files, folder)
    (folder / "trial.json").write_text(json.dumps(record))
    return folder


@pytest.mark.parametrize(("timing", "chunked"), [("exact", False), ("fast", False), ("exact", True)])
def test_a_replay_issues_the_same_requests(
    trial: Path, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timing: str, chunked: bool
) -> None:
    monkeypatch.setattr(replay_fio, "_READ_AT_ONCE", 10 if chunked else 1_000_000)
    original = pl.read_parquet(trial / "requests.parquet").with_columns(pl.col("op").cast(pl.String))
    out = tmp_path / "out"
    assert main([str(trial), "--timing", timing, "--out", str(out)]) == 0
    settings, fio = head_commands(out / "replay.fio")
    assert ("read_iolog_chunked=1" in (out / "replay.fio").read_text()) == chunked
    with loop(IMAGE_BYTES) as node, queue(node, settings):
        again = traced_replay(state, node, out / "replay.fio", fio)
    assert len(data(original)) > 100
    assert {op for op, _, _ in data(original)} == {"read", "write"}
    assert max(size for _, _, size in data(original)) == 128 << 10
    assert data(again) == data(original)
    flushes = {name: rows.filter(pl.col("op") == "flush").height for name, rows in (("1", original), ("2", again))}
    assert flushes["1"] == flushes["2"] > 0
    if timing == "exact":
        spans = [rows["issue_ns"].max() - rows["issue_ns"].min() for rows in (original, again)]  # type: ignore[operator]
        assert spans[1] >= spans[0] - 10_000_000


def test_a_compact_replay_of_one_phase_fits_a_small_device(trial: Path, state: Path, tmp_path: Path) -> None:
    original = pl.read_parquet(trial / "requests.parquet").with_columns(pl.col("op").cast(pl.String))
    out = tmp_path / "out"
    assert main([str(trial), "--phase", "job", "--compact", "--timing", "fast", "--out", str(out)]) == 0
    settings, fio = head_commands(out / "replay.fio")
    with loop(128 * MIB) as node, queue(node, settings):
        again = traced_replay(state, node, out / "replay.fio", fio)
    sizes = [Counter((op, size) for op, _, size in data(rows).elements()) for rows in (original, again)]
    assert sizes[1].total() > 100
    assert sizes[1] <= sizes[0]


def test_a_replay_without_a_target_or_on_a_mounted_one_does_nothing(trial: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main([str(trial), "--timing", "fast", "--out", str(out)]) == 0
    _, fio = head_commands(out / "replay.fio")

    def run(command: str, **variables: str) -> str:
        done = subprocess.run(
            ["sh", "-c", command], cwd=out, env=os.environ | variables, capture_output=True, text=True
        )
        return done.stdout + done.stderr

    assert "failed parsing filename=${TARGET}" in run("fio replay.fio")
    assert sorted(path.name for path in out.iterdir()) == ["replay.fio", "replay.iolog"]
    with loop(IMAGE_BYTES) as node, mounted("ext4", node) as folder:
        (folder / "kept").write_bytes(b"x" * MIB)
        os.sync()
        before = Device.of_node(node).counters()
        assert "appears mounted" in run(fio, target=Path(node).name)
        assert Device.of_node(node).counters().since(before)["write"] < MIB
