"""The requests as comma-separated text: every column of ours, or the form of the MSR Cambridge block traces."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from analysis.files import replacing
from analysis.replay.source import READ, WRITE, Source, kept, nothing, survey
from analysis.trace import NEVER, Addressed
from analysis.units import NS_PER_S, SECTOR_BYTES

#: Ticks of a Windows filetime are 100 ns, counted from 1601-01-01 UTC; the Unix epoch lies this many after it.
_TICK_NS = 100
_UNIX_EPOCH_TICKS = 11_644_473_600 * (NS_PER_S // _TICK_NS)
_TO_UTC = "monotonic_to_utc_offset_ns"


def export_csv(source: Source, path: Path) -> Path:
    """Write every column of the requests to `path`, with a header, before them `issue_s` and `complete_s`.

    These are seconds since the begin of the traced window, or since the first issue where the trial states no window;
    the times in ns are as they were recorded. What was not recorded is empty.
    """
    begin = source.begin_ns if source.begin_ns is not None else survey(source).first_ns
    _write(path, source, True, lambda part: _every_column(part, begin or 0))
    return path


def _every_column(part: Addressed, begin_ns: int) -> pl.DataFrame:
    frame = pl.DataFrame(part.rows)
    since = [((pl.col(f"{what}_ns") - begin_ns) / NS_PER_S).alias(f"{what}_s") for what in ("issue", "complete")]
    return frame.select(*since, pl.all())


def export_snia(source: Source, path: Path) -> Path:
    """Write reads and writes that carry data to `path` as the MSR Cambridge traces have them, without a header.

    `Timestamp,Hostname,DiskNumber,Type,Offset,Size,ResponseTime`: the time of issue as a Windows filetime, Read or
    Write, bytes, and the time from issue to completion in units of 100 ns, empty where no completion was recorded
    (SNIA IOTTA repository, MSR Cambridge traces, README.txt; Narayanan et al., "Write Off-Loading", FAST 2008).
    DiskNumber counts the traced devices in the order of their numbers. Where the trial does not know UTC (`knows_utc`),
    times count from the begin of its window, or from the first issue where it states none.
    """
    found = survey(source)
    if knows_utc(source):
        offset_ns, ticks = int(source.trial.section("clock")[_TO_UTC]), _UNIX_EPOCH_TICKS
    else:
        offset_ns, ticks = -(source.begin_ns or found.first_ns or 0), 0
    host = str(source.trial.section("node").get("hostname") or "unknown").replace(",", "_").replace(" ", "_")
    disks = sorted(found.devices, key=lambda dev: [int(part) if part.isdigit() else 0 for part in dev.split(":")])
    _write(path, source, False, lambda part: _filetimes(part, offset_ns, ticks, host, disks))
    return path


def knows_utc(source: Source) -> bool:
    """Say whether the trial states how far its clock is from UTC."""
    return isinstance(source.trial.section("clock").get(_TO_UTC), int)


def _filetimes(part: Addressed, offset_ns: int, ticks: int, host: str, disks: list[str]) -> pl.DataFrame:
    part = kept(part, ((part.op == READ) | (part.op == WRITE)) & (part.bytes > 0) & (part.issue_ns != NEVER))
    number = np.array([disks.index(dev) if dev in disks else 0 for dev in part.devices] or [0])
    frame = pl.DataFrame(
        {
            "timestamp": (part.issue_ns + offset_ns) // _TICK_NS + ticks,
            "host": [host] * part.op.size,
            "disk": number[part.dev],
            "type": np.where(part.op == READ, "Read", "Write"),
            "offset": part.sector * SECTOR_BYTES,
            "size": part.bytes,
            "response": (part.complete_ns - part.issue_ns) // _TICK_NS,
        }
    )
    seen = pl.Series(part.complete_ns != NEVER)
    return frame.with_columns(pl.when(seen).then(pl.col("response")).alias("response"))


def _write(path: Path, source: Source, whole: bool, made: Callable[[Addressed], pl.DataFrame]) -> None:
    rows = 0
    with replacing(path) as temporary, temporary.open("wb") as file:
        for place, part in enumerate(source.pieces(whole)):
            frame = made(part)
            frame.write_csv(file, include_header=whole and place == 0, float_precision=9)
            rows += frame.height
        if not rows:
            raise nothing(source)
