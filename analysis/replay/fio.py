"""A fio job and its iolog (fio(1), "Trace file format"), which issue a trial's requests again on any drive.

As fast as possible is iolog version 2, which every fio since 1.17 reads. Time-faithful is version 3 (fio 3.31), whose
lines begin with a time in µs (fio's iolog.c, `log_io_u` and `iolog_delay`). fio takes the time 0 for "none yet" and
drops the gap after it, so ours begin at 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from analysis.errors import AnalysisError
from analysis.files import replacing, write_bytes
from analysis.replay.source import CHUNK_BYTES, FLUSH, Source, Survey, data_and_flushes, kept, survey
from analysis.trace import Addressed
from analysis.units import (
    KIB,
    NS_PER_S,
    SECTOR_BYTES,
    UNKNOWN,
    bytes_text,
    count_text,
    duration_text,
    exact_bytes_text,
)

JOB, IOLOG = "replay.fio", "replay.iolog"
EXACT, FAST = TIMINGS = ("exact", "fast")

#: Stands for the target, which `replay_redirect` names; no such folder exists, so that forgetting it is an error.
_TARGET = "/no-replay_redirect/x"
_VERSION = {EXACT: 3, FAST: 2}
_FIRST_US = 1
_ACTIONS = np.array(["read", "write", "sync"])
_NS_PER_US = NS_PER_S // 1_000_000
#: fio keeps about 200 bytes per line of an iolog that it reads at once; longer ones it is told to read as it goes.
_READ_AT_ONCE = 1_000_000


@dataclass(frozen=True)
class Replay:
    """How the requests of a source are issued again. `depth` is how many may be in flight at once."""

    source: Source
    survey: Survey
    timing: str
    depth: int
    compact: bool

    @cached_property
    def _chunks(self) -> npt.NDArray[np.int64]:
        return self.survey.chunks

    def placed(self, offset_bytes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return where on the target requests at these offsets of the traced device go."""
        if not self.compact:
            return offset_bytes
        chunk = offset_bytes // CHUNK_BYTES
        return offset_bytes + (np.searchsorted(self._chunks, chunk) - chunk) * CHUNK_BYTES

    @property
    def target_bytes(self) -> int:
        """The size that the target needs."""
        return int(self.placed(np.array([self.survey.end_bytes - 1]))[0]) + 1


def export(
    source: Source, folder: Path, timing: str = EXACT, depth: int | None = None, compact: bool = False
) -> tuple[Path, Path]:
    """Write the fio job and the iolog that replay `source` into `folder`; return their paths.

    `depth` is fio's iodepth; without it, the most requests that were in flight at once. With `compact` the used parts
    of the device lie close together, in the same order. AnalysisError where there is nothing to replay, where the
    trace is of several devices, or where it cannot tell its depth.
    """
    found = _replayable(source)
    replay = Replay(source, found, timing, _depth(source, found, depth), compact)
    iolog, job = folder / IOLOG, folder / JOB
    with replacing(iolog) as temporary, temporary.open("wb") as file:
        for lines in _lines(replay):
            file.write(lines)
    write_bytes(job, job_text(replay).encode())
    return job, iolog


def _depth(source: Source, found: Survey, wanted: int | None) -> int:
    if wanted is not None:
        return wanted
    if found.depth is None:
        raise AnalysisError(f"{source.path}: recorded no completions, so its queue depth is unknown: give --iodepth N")
    return found.depth


def _replayable(source: Source) -> Survey:
    found = survey(source)
    if len(found.devices) > 1:
        told = ", ".join(f"{dev} ({count_text(count, 'request')})" for dev, count in found.devices.most_common())
        raise AnalysisError(
            f"{source.path}: requests of {len(found.devices)} devices, one job replays one: --dev {told}"
        )
    if not found.end_bytes:
        raise AnalysisError(f"{source.path}: no read and no write with data was issued, nothing to replay")
    return found


def _lines(replay: Replay) -> Iterator[bytes]:
    lead = f"{_FIRST_US} " if replay.timing == EXACT else ""
    yield f"fio version {_VERSION[replay.timing]} iolog\n{lead}{_TARGET} add\n{lead}{_TARGET} open\n".encode()
    for part in replay.source.pieces():
        yield _io_lines(replay, kept(part, data_and_flushes(part)))
    end = f"{_time_us(replay, np.array([replay.survey.last_ns]))[0]} " if lead else ""
    yield f"{end}{_TARGET} close\n".encode()


def _io_lines(replay: Replay, part: Addressed) -> bytes:
    flush = part.op == FLUSH
    columns = {"time": _time_us(replay, part.issue_ns)} if replay.timing == EXACT else {}
    columns |= {"action": _ACTIONS[part.op]}
    columns |= {"offset": np.where(flush, 0, replay.placed(part.sector * SECTOR_BYTES))}
    columns |= {"bytes": np.where(flush, 0, part.bytes)}
    frame = pl.DataFrame(columns)
    frame = frame.insert_column(frame.columns.index("action"), pl.lit(_TARGET).alias("file"))
    text: str = frame.write_csv(include_header=False, separator=" ", quote_style="never")
    return text.encode()


def _time_us(replay: Replay, times_ns: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    assert replay.survey.first_ns is not None
    return (times_ns - replay.survey.first_ns) // _NS_PER_US + _FIRST_US


def job_text(replay: Replay) -> str:
    """Return the fio job, with what a reader must know before running it in its head."""
    found = replay.survey
    head = [*_origin(replay), "", *_warning(replay), "", *_commands(replay), "", *_manner(replay)]
    lines = [f"# {line}".rstrip() for line in head]
    options = [
        "[replay]",
        f"read_iolog={IOLOG}",
        "ioengine=libaio",
        "direct=1",
        f"iodepth={replay.depth}",
        f"# room for the largest request from the start; each has its own size\nbs={found.largest_bytes}",
    ]
    if found.replayed > _READ_AT_ONCE:
        options.append("# read as it goes, not all of it into memory before\nread_iolog_chunked=1")
    return "\n".join([*lines, "", *options, ""])


def _origin(replay: Replay) -> list[str]:
    trial, found = replay.source.trial, replay.survey
    phase = f", phase {_line(replay.source.phase)} only" if replay.source.phase else ""
    device, node = trial.section("device"), trial.section("node")
    lines = [
        f"Replays the block requests of the trial {_line(trial.id)}{phase}.",
        f"Verdict: {trial.state}" + ("." if trial.state == "valid" else f": {_line('; '.join(trial.reasons))}"),
        f"Traced on {_line(node.get('hostname') or UNKNOWN)}, device {_line(device.get('name') or UNKNOWN)} of drive "
        f"{_line(device.get('drive_model') or UNKNOWN)}, by {_line(trial.tracer)}.",
    ]
    counts = {op: found.requests[op] for op in ("read", "write", "flush")}
    moved = [f"{count_text(counts[op], op)} of {exact_bytes_text(found.bytes[op])}" for op in ("read", "write")]
    lines.append(f"Requests: {', '.join(moved)}, {count_text(counts['flush'], 'flush', 'flushes')}.")
    if left := _left_out(found):
        lines.append(f"Left out: {'; '.join(left)}.")
    where = f"{exact_bytes_text(found.low_bytes)} to {exact_bytes_text(found.end_bytes)} of the traced device"
    return [*lines, f"They lie from {where}."]


def _left_out(found: Survey) -> list[str]:
    left = [
        f"{count_text(found.requests[op], one, many)} of {exact_bytes_text(found.bytes[op])}"
        for op, one, many in (("discard", "discard", "discards"), ("other", "other request", "other requests"))
        if found.requests[op]
    ]
    if found.unissued:
        left.append(f"{count_text(found.unissued, 'request')} whose issue was not seen")
    rest = sum(found.requests[op] for op in ("read", "write", "flush")) - found.replayed - found.unissued
    return [*left, f"{count_text(rest, 'request')} without data"] if rest > 0 else left


def _warning(replay: Replay) -> list[str]:
    found = replay.survey
    harm = "IT OVERWRITES THE TARGET with random bytes." if found.requests["write"] else "It only reads."
    need = f"{exact_bytes_text(replay.target_bytes)} ({bytes_text(replay.target_bytes)})"
    lines = [harm, f"The target must be a block device of at least {need}, with logical"]
    lines += [f"blocks of at most {exact_bytes_text(found.unit_bytes)}."]
    if replay.compact:
        lines.append(
            f"The used parts of the traced device were moved together, in pieces of {bytes_text(CHUNK_BYTES)}."
        )
    if not found.requests["write"]:
        lines.append("Blocks that were never written read faster on most drives: write the target in full before.")
    return lines


def _commands(replay: Replay) -> list[str]:
    queue = _queue(replay)
    largest = -(-replay.survey.largest_bytes // KIB)
    limit = queue.get("max_sectors_kb", "")
    told = ", ".join(
        f"{key} {queue.get(key, UNKNOWN)}" for key in ("max_sectors_kb", "nomerges", "scheduler", "nr_requests")
    )
    lines = [
        f"The queue of the traced device: {told}.",
        "The trace is of requests as they reached the driver, split, merged and ordered. So that each is issued once",
        "and whole, the target's queue must do none of that again (as root, in the folder of this file):",
        "",
        "    target=nvmeXn1",
    ]
    settings = {"scheduler": "none", "nomerges": "2"}
    settings["max_sectors_kb"] = str(max(int(limit), largest)) if limit.isdigit() else str(largest)
    lines += [f"    echo {value} > /sys/block/$target/queue/{key}" for key, value in settings.items()]
    lines += [f"    fio --replay_redirect=/dev/$target {JOB}", ""]
    return [
        *lines,
        "A target that refuses that max_sectors_kb splits larger requests: its max_hw_sectors_kb is smaller.",
    ]


def _queue(replay: Replay) -> Mapping[str, str]:
    told = replay.source.trial.section("storage").get("queue")
    return {key: _line(value) for key, value in told.items()} if isinstance(told, Mapping) else {}


def _manner(replay: Replay) -> list[str]:
    found = replay.survey
    assert found.first_ns is not None
    assert found.last_ns is not None
    lasted = duration_text((found.last_ns - found.first_ns) / NS_PER_S)
    if replay.timing == EXACT:
        lines = [
            f"Each request is issued as long after the one before as in the trace, {lasted} in all (needs fio 3.31). A",
            "slower target is late, and stays late. --replay_time_scale=200 is twice as fast, --replay_no_stall=1 does",
            "not wait at all.",
        ]
    else:
        lines = [f"Requests are issued in their order, as fast as the target takes them; the trace took {lasted}."]
    deepest = UNKNOWN if found.depth is None else f"{found.depth:,}"
    lines += [
        f"At most {replay.depth:,} are in flight (in the trace: {deepest}); change iodepth below for another depth.",
        "A flush is an fsync of the target.",
    ]
    if found.end_bytes and not replay.compact:
        lines += [
            "For a smaller target, export again with --compact; fio's own --replay_scale=N with",
            f"--replay_align={found.unit_bytes} divides offsets by N and lays places over each other.",
        ]
    return lines


def _line(value: object) -> str:
    """Return `value` as one line of a comment."""
    return " ".join(str(value).split())
