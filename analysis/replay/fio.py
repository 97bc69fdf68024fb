"""A fio job and its iolog (fio(1), "Trace file format v2"), which issue a trial's requests again on any drive.

Time is kept by `wait` lines. fio's manual has them count µs from the one before; its code (iolog.c, `read_iolog_get`;
axboe/fio issue 756) has always counted ms from its start, and so do ours. Version 3 of the format has a time in µs on
every line, but fio then waits from when it issued the request before: it is later with each, and never catches up.
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
from analysis.replay.source import CHUNK_BYTES, FLUSH, Array, Source, Survey, data_and_flushes, kept, survey
from analysis.trace import Addressed
from analysis.units import (
    KIB,
    NS_PER_MS,
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

#: Stands for the target, which `replay_redirect` names.
_TARGET = "/no/target"
_ACTIONS = np.array(["read", "write", "sync", "wait"])
_WAIT = 3
#: fio's clock begins before it has read the iolog.
_LEAD_MS = 1000
#: What fio reads of an iolog in a small part of the lead; longer ones it is told to read as it goes.
_READ_AT_ONCE = 200_000


@dataclass(frozen=True)
class Replay:
    """How the requests of a source are issued again. `depth` is how many may be in flight at once."""

    source: Source
    survey: Survey
    timing: str
    depth: int
    compact: bool

    @cached_property
    def _chunks(self) -> Array:
        return self.survey.chunks

    def placed(self, offset_bytes: Array) -> Array:
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
    yield f"fio version 2 iolog\n{_TARGET} add\n{_TARGET} open\n".encode()
    last_ms = -1
    for part in replay.source.pieces():
        part = kept(part, data_and_flushes(part))
        if part.op.size:
            since_ms = (part.issue_ns - (replay.survey.first_ns or 0)) // NS_PER_MS
            yield _io_lines(replay, part, since_ms, np.diff(since_ms, prepend=last_ms) > 0)
            last_ms = int(since_ms[-1])
    yield f"{_TARGET} close\n".encode()


def _io_lines(replay: Replay, part: Addressed, since_ms: Array, later: npt.NDArray[np.bool_]) -> bytes:
    """Return a line for each request, and before those that are `later` than the one before a wait."""
    waiting = np.zeros(part.op.size, dtype=bool) if replay.timing == FAST else later
    place = np.arange(part.op.size) + np.cumsum(waiting)
    action = np.full(place[-1] + 1, _WAIT)
    offset, size = np.zeros_like(action), np.zeros_like(action)
    flush = part.op == FLUSH
    action[place] = part.op
    offset[place] = np.where(flush, 0, replay.placed(part.sector * SECTOR_BYTES))
    size[place] = np.where(flush, 0, part.bytes)
    offset[place[waiting] - 1] = since_ms[waiting] + _LEAD_MS
    frame = pl.DataFrame({"action": _ACTIONS[action], "offset": offset, "bytes": size})
    frame = frame.insert_column(0, pl.lit(_TARGET).alias("file"))
    text: str = frame.write_csv(include_header=False, separator=" ", quote_style="never")
    return text.encode()


def job_text(replay: Replay) -> str:
    """Return the fio job, with what a reader must know before running it in its head."""
    found = replay.survey
    head = [*_origin(replay), "", *_warning(replay), "", *_commands(replay), "", *_manner(replay)]
    lines = [f"# {line}".rstrip() for line in head]
    options = [
        "[replay]",
        "filename=${TARGET}",
        "replay_redirect=${TARGET}",
        f"read_iolog={IOLOG}",
        f"rw={_direction(found)}",
        "ioengine=libaio",
        "direct=1",
        f"iodepth={replay.depth}",
        f"# room for the largest request from the start; each has its own size\nbs={found.largest_bytes}",
    ]
    if found.replayed > _READ_AT_ONCE:
        options.append("# read as it goes, not all of it into memory before\nread_iolog_chunked=1")
    return "\n".join([*lines, "", *options, ""])


def _direction(found: Survey) -> str:
    # The iolog says which request is what. This makes fio refuse to write to a target that is mounted.
    return "randrw" if found.requests["write"] else "randread"


def _origin(replay: Replay) -> list[str]:
    trial, found = replay.source.trial, replay.survey
    phase = f", phase {_line(replay.source.phase)} only" if replay.source.phase else ""
    device, node = trial.section("device"), trial.section("node")
    lines = [
        f"Replays the block requests of the trial {_line(trial.id)}{phase}.",
        f"Verdict: {trial.state}" + ("." if trial.state == "valid" else f": {_line('; '.join(trial.reasons))}"),
        f"Traced on {_line(node.get('hostname') or UNKNOWN)}, device {_line(device.get('name') or UNKNOWN)} of drive "
        f"{_line(device.get('drive_model') or device.get('drive') or UNKNOWN)}, by {_line(trial.tracer)}.",
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
        "    lsblk -o NAME,SIZE,MODEL,FSTYPE,MOUNTPOINT /dev/$target",
    ]
    settings = {"scheduler": "none", "nomerges": "2"}
    settings["max_sectors_kb"] = str(max(int(limit), largest)) if limit.isdigit() else str(largest)
    lines += [f"    echo {value} > /sys/block/$target/queue/{key}" for key, value in settings.items()]
    lines += [f"    TARGET=/dev/$target fio {JOB}", ""]
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
            f"Requests are issued at their times in the trace, {lasted} in all after {_LEAD_MS} ms of lead: those of",
            "one millisecond at its begin, in their order, as fast as fio can. A target that is too slow is late until",
            "it has caught up. fio sees completions only when it issues something, so the latencies that it prints",
            "hold its own waits: trace the target for latencies. --replay_no_stall=1 does not wait at all.",
        ]
    else:
        lines = [f"Requests are issued in their order, as fast as the target takes them; the trace took {lasted}."]
    deepest = UNKNOWN if found.depth is None else f"{found.depth:,}"
    lines += [
        f"At most {replay.depth:,} are in flight (in the trace: {deepest}); change iodepth below for another depth.",
        "A flush is an fsync of the target, during which fio issues nothing.",
    ]
    if found.end_bytes and not replay.compact:
        lines += [
            "For a smaller target, export again with --compact. fio's own --replay_scale=N with",
            f"--replay_align={found.unit_bytes} divides offsets by N and lays places over each other.",
        ]
    return lines


def _line(value: object) -> str:
    """Return `value` as one line of a comment."""
    return " ".join(str(value).split())
