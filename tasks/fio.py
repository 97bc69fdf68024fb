"""fio, the one way it is run here: on one file of its own, past the page cache, its JSON read.

What a number means is fio's own documentation (fio(1), "JSON output"): bytes and requests by operation over the
runtime without the ramp, completion latencies in ns.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tasks.errors import FioError, StorageError
from tasks.process import child, exit_in_words, log_tail, tool
from tasks.storage import SPARE_BYTES, Volume, flush
from tasks.units import GIB, MIB, format_bytes

#: Asynchronous engines, the more usual one first; without either, every request in flight is a thread of its own.
_ENGINES = ("libaio", "io_uring")

#: Time at the load before a measurement begins: queues fill, the drive's own caches settle.
_RAMP_S = 0.25

#: How much longer than its runtime fio may take: it starts, and waits for what is in flight.
_GRACE_S = 30.0

#: Slowest drive whose file is still laid out, in bytes per second; below it the limit strikes.
_SLOWEST_BYTES_S = 20 * MIB

#: How long a deleted file's blocks may take to be free again.
_SPACE_LIMIT_S = 5.0

#: A file smaller than this many times what is in flight is no workload: requests would queue on the same blocks.
_FILE_ROUNDS = 4

_VERSION = re.compile(r"fio-(\d+)\.\S+")


@dataclass(frozen=True)
class Load:
    """What fio does: `rw` as fio names it (read, write, randread, randwrite), `depth` requests in flight per job."""

    rw: str
    block_bytes: int
    depth: int
    jobs: int = 1

    @property
    def op(self) -> str:
        """The operation of its requests: read or write."""
        return self.rw.removeprefix("rand")

    @property
    def in_flight_bytes(self) -> int:
        """Bytes in flight at once, over all jobs."""
        return self.block_bytes * self.depth * self.jobs


@dataclass(frozen=True)
class Result:
    """What one run measured. Latencies are completion latencies (clat), None where fio gives none."""

    bytes: int
    requests: int
    seconds: float
    p50_us: float | None
    p99_us: float | None

    @property
    def gib_s(self) -> float:
        """Bandwidth in GiB/s."""
        return self.bytes / GIB / self.seconds

    @property
    def iops(self) -> float:
        """Requests completed per second."""
        return self.requests / self.seconds

    @staticmethod
    def mean_gib_s(runs: Sequence[Result]) -> float:
        """Return the bandwidth of several runs together, in GiB/s: all bytes over all time."""
        return sum(r.bytes for r in runs) / GIB / sum(r.seconds for r in runs)


@dataclass(frozen=True)
class File:
    """A file that fio has written in full, for loads to read and overwrite; `first_write` is how fast that went."""

    path: Path
    size_bytes: int
    first_write: Result
    environment: Mapping[str, str]
    folder: Path
    #: What could not be left as it was found, in words, once the file is gone.
    troubles: list[str] = field(default_factory=list)


def obstacle() -> str | None:
    """Return why fio cannot be run on this machine, or None."""
    return None if shutil.which("fio") else "fio is not installed: apt-get install fio"


@cache
def version() -> str:
    """Return fio's version, such as `fio-3.33`; raise FioError where there is none, or one older than 3.0.

    Version 3 changed the latencies of the JSON output from µs to ns.
    """
    if (missing := obstacle()) is not None:
        raise FioError(missing)
    text = tool(["fio", "--version"], FioError).strip()
    match = _VERSION.match(text)
    if match is None or int(match[1]) < 3:
        raise FioError(f"{text} is too old: fio 3.0 or newer is needed")
    return text


@cache
def engine() -> str:
    """Return the I/O engine that loads use: an asynchronous one if fio was built with one, else psync."""
    offered = tool(["fio", "--enghelp"], FioError).split()
    return next((name for name in _ENGINES if name in offered), "psync")


@contextmanager
def scratch(
    found: Volume, wanted_bytes: int, load: Load, folder: Path, environment: Mapping[str, str]
) -> Iterator[File]:
    """Lay out a file on the filesystem under test, in a folder of our own; remove every trace of it afterwards.

    It has `wanted_bytes`, or half of what is free; FioError where that is too little for `load`. Afterwards the file's
    blocks are free, on the device, and as unwritten as before. fio's output goes to `folder`.
    """
    # Beside the job's folder, inside what this attempt made and removes.
    place = found.offload_dir.parent / "fio"
    size_bytes, free_bytes = _file_bytes(found, wanted_bytes, load), _free_bytes(found.offload_dir)
    folder.mkdir(parents=True, exist_ok=True)
    place.mkdir()
    troubles: list[str] = []
    try:
        path = place / "data"
        layout = Load("write", load.block_bytes, load.depth)
        first = _run(layout, path, size_bytes, None, environment, folder)
        yield File(path, size_bytes, first, environment, folder, troubles)
    finally:
        shutil.rmtree(place)
        _wait_for_space(found.offload_dir, free_bytes)
        if "image" in found.facts:
            troubles += _unwrite(found.mount.path, Path(found.facts["image"]))
        with suppress(StorageError):  # whoever else keeps it busy is the trial's to report
            found.devices.settle(limit_s=10.0)


def _file_bytes(found: Volume, wanted_bytes: int, load: Load) -> int:
    # Half: a copy-on-write filesystem keeps for a while what is overwritten. A disk of others keeps its spare room.
    free_bytes = shutil.disk_usage(found.offload_dir).free
    if "image" not in found.facts:
        free_bytes = max(free_bytes - SPARE_BYTES, 0)
    unit = load.block_bytes * load.jobs
    size_bytes = min(wanted_bytes, free_bytes // 2) // unit * unit
    least = max(_FILE_ROUNDS * load.in_flight_bytes, unit)
    if size_bytes < least:
        raise FioError(
            f"{format_bytes(free_bytes)} free on the filesystem under test are too few: "
            f"fio needs a file of {format_bytes(least)} or more in half of that"
        )
    return size_bytes


def _free_bytes(folder: Path) -> int:
    space = os.statvfs(folder)
    return space.f_bfree * space.f_frsize


def _wait_for_space(folder: Path, wanted_bytes: int) -> None:
    """Sync until about as much is free as there was: xfs gives the blocks of a deleted file back in the background."""
    end = time.monotonic() + _SPACE_LIMIT_S
    while True:
        flush(folder)
        if _free_bytes(folder) >= wanted_bytes - MIB or time.monotonic() > end:
            return
        time.sleep(0.05)


def _unwrite(mount_point: str, image: Path) -> list[str]:
    """Make the free blocks of a loop image what they were when it was made, allocated and never written; say if not.

    A block that was written before takes writes several times as fast as one that was not, so a trial that measured
    its ceiling would differ from one that found it in the cache.
    """
    try:
        tool(["fstrim", mount_point], StorageError)
        with image.open("r+b") as f:
            os.posix_fallocate(f.fileno(), 0, image.stat().st_size)
    except (StorageError, OSError) as e:
        return [f"blocks of the image that fio wrote stay written, and take the job's writes faster than new ones: {e}"]
    return []


def run(load: Load, file: File, seconds: float) -> Result:
    """Put `load` on the file for `seconds` after a short ramp, direct I/O, and return what fio measured."""
    return _run(load, file.path, file.size_bytes, seconds, file.environment, file.folder)


def _run(
    load: Load, path: Path, size_bytes: int, seconds: float | None, environment: Mapping[str, str], folder: Path
) -> Result:
    version()
    output, log = folder / "fio.json", folder / "fio.log"
    for stale in (output, log):
        stale.unlink(missing_ok=True)
    argv = arguments(load, path, size_bytes, seconds)
    limit_s = size_bytes / _SLOWEST_BYTES_S if seconds is None else seconds + _RAMP_S
    with child(argv, log, environment, output) as process:
        try:
            code = process.wait(limit_s + _GRACE_S)
        except subprocess.TimeoutExpired:
            raise FioError(f"fio ({load.rw}) did not end within {limit_s + _GRACE_S:.0f} s and was stopped") from None
    text = output.read_text(errors="replace")
    if code:
        raise FioError(f"fio ({load.rw}) ended with {exit_in_words(code)}: {_words(text, log)}")
    return parse(text, load.op)


def arguments(load: Load, path: Path, size_bytes: int, seconds: float | None) -> list[str]:
    """Return the argument list of one run over the file at `path`; once over it where `seconds` is None."""
    how = engine()
    jobs, depth = (load.jobs, load.depth) if how != "psync" else (load.jobs * load.depth, 1)
    share = size_bytes // jobs // load.block_bytes * load.block_bytes
    argv = ["fio", f"--name={load.rw}", f"--filename={path}", f"--rw={load.rw}", f"--bs={load.block_bytes}"]
    # Every job has a part of the file for itself, or sequential ones would read each other's blocks.
    argv += [f"--size={share}", f"--offset_increment={share}", f"--numjobs={jobs}", "--thread", "--group_reporting"]
    argv += [f"--ioengine={how}", f"--iodepth={depth}", "--direct=1", "--norandommap", "--fallocate=none"]
    if seconds is not None:
        argv += ["--time_based", f"--runtime={round(seconds * 1000)}ms", f"--ramp_time={round(_RAMP_S * 1000)}ms"]
    return [*argv, "--output-format=json"]


def _words(text: str, log: Path) -> str:
    """Return what fio said went wrong, in one line."""
    lines = [*log_tail(log, 5).splitlines(), *(line for line in text.splitlines() if line.startswith("fio:"))]
    return "; ".join(dict.fromkeys(line.strip() for line in lines if line.strip())) or "it gave no reason"


def parse(text: str, op: str) -> Result:
    """Return what fio's JSON says of `op` (read or write), summed over its jobs; raise FioError where it says nothing.

    fio prints warnings before the JSON, on the same stream. The percentiles are those of the first job: with
    `group_reporting` there is one.
    """
    try:
        value, _ = json.JSONDecoder().raw_decode(text[text.index("{") :])
        jobs = value["jobs"]
        errors = sorted({int(job["error"]) for job in jobs} - {0})
        sections = [job[op] for job in jobs]
        result = Result(
            bytes=sum(_whole(s["io_bytes"]) for s in sections),
            requests=sum(_whole(s["total_ios"]) for s in sections),
            seconds=max(_whole(s["runtime"]) for s in sections) / 1000,
            p50_us=_percentile_us(sections[0], 50),
            p99_us=_percentile_us(sections[0], 99),
        )
    except (ValueError, KeyError, TypeError, IndexError, RecursionError, AttributeError, OverflowError) as e:
        raise FioError(
            f"fio's output cannot be read ({type(e).__name__}: {str(e)[:80]}): {text.strip()[:120]!r}"
        ) from None
    if errors:
        raise FioError(f"fio failed with error {', '.join(map(str, errors))}")
    if not result.bytes or not result.seconds:
        raise FioError(f"fio did no {op}s in its time")
    return result


def _whole(value: Any) -> int:
    number = int(value)
    if number < 0:
        raise ValueError(f"{number} is below zero")
    return number


def _percentile_us(section: Mapping[str, Any], percent: int) -> float | None:
    value = section.get("clat_ns", {}).get("percentile", {}).get(f"{percent}.000000")
    if value is None:
        return None
    number = float(value) / 1000
    if not math.isfinite(number):
        raise ValueError(f"{value} is no latency")
    return number
