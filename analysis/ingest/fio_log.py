"""What fio writes: logs of single I/Os, iologs, and JSON reports.

- `--write_lat_log` without `log_avg_msec`: a line for each I/O when it completed, `ms, latency ns, direction, bytes
  [, offset][, 0xpriority]` (fio(1), LOG FILE FORMATS). I/Os of the job, not of the block layer; completion to the ms.
- `--write_iolog`, version 3: `ms file read|write offset bytes`: issues, and no completions.
- `--output-format=json`: numbers, no I/O.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analysis.ingest import text
from analysis.ingest.part import BOOT, Part, Source
from analysis.ingest.request_file import RequestFile
from analysis.units import KIB, NS_PER_MS, NS_PER_S, SECTOR_BYTES, count_text

KIND = "fio"
ABOUT = "fio's logs of single I/Os (--write_lat_log without log_avg_msec), iologs of version 3, JSON reports"

_ENTRY = re.compile(
    r"\s*(\d{1,12}),\s*(\d{1,18}),\s*([0-2]),\s*(\d{1,15})(?:,\s*(\d{1,18}))?(?:,\s*0x[0-9a-fA-F]+)?(?:,\s*\d+)?\s*"
)
_ACTION = re.compile(r"(\d{1,12}) (\S+) (read|write|trim) (\d{1,18}) (\d{1,15})")
_OTHER_ACTION = re.compile(r"(?:\d{1,15} )?\S+ (?:add|open|close|wait|sync|datasync)(?: \d+)?(?: \d+)?")
_VERSION = re.compile(rb"\s*fio version (\d) iolog")
_REPORT = re.compile(rb"\s*(?:[^{\n]*\n)*?\{\s*\"fio version\"")
_NAME = re.compile(r"_(bw|iops|slat|clat|lat)(?:\.\d+)?\.log$")
_WORDS = {"0": "R", "1": "W", "2": "D", "read": "R", "write": "W", "trim": "D"}
_BATCH = 1 << 16
#: Times of a log begin here: an I/O that completed in the first millisecond may have been issued before it.
_ORIGIN_NS = 3600 * NS_PER_S
_BAD = "a line that is no entry of the log"
_MEAN = "an entry that stands for several I/Os (log_avg_msec was set)"


def recognises(head: bytes) -> bool:
    """Say whether a file that begins with `head` is one of fio's."""
    if _VERSION.match(head) or _REPORT.match(head):
        return True
    lines = head.decode("utf-8", errors="replace").splitlines()[:50]
    return any(_ENTRY.fullmatch(line) for line in lines)


def unusable(name: str, names: Collection[str]) -> str | None:
    """Return why no requests can be made of a log with this name, None where they can; `names` lie beside it.

    The entries of all logs look alike: fio tells them apart by name only (`_lat.1.log`).
    """
    found = _NAME.search(name)
    if found is None or found[1] == "lat":
        return None
    if found[1] != "clat":
        return f"fio's {found[1]} log has no latencies: requests are made of lat and clat logs"
    better = f"{name[: found.start()]}_lat{name[found.end(1) :]}"
    return f"{better} has the same I/Os" if better in names else None


def read(source: Source, folder: Path) -> Part:
    """Return what the file tells; requests, where it has any, go to `requests.parquet` in `folder`."""
    part = Part(source, KIND)
    with source.path.open("rb") as file:
        head = file.read(4096)
    if _REPORT.match(head):
        _report(part)
    elif version := _VERSION.match(head):
        _iolog(part, folder, int(version[1]))
    else:
        _latencies(part, folder)
    return part


def _latencies(part: Part, folder: Path) -> None:
    offsets = 0

    def rows(out: RequestFile) -> Iterator[list[int]]:
        nonlocal offsets
        for number, line in text.lines(part):
            found = _ENTRY.fullmatch(line)
            if found is None or int(found[2]) > _ORIGIN_NS or int(found[5] or 0) >= 1 << 62:
                part.skipped.add(_BAD, part.source.name, number)
            elif found[4] == "0":
                part.skipped.add(_MEAN, part.source.name, number)
            else:
                done = _ORIGIN_NS + int(found[1]) * NS_PER_MS
                offsets += int(found[5] or 0) >= SECTOR_BYTES  # smaller: a priority, or the first I/O
                yield [
                    done - int(found[2]),
                    done,
                    out.code("rwbs", _WORDS[found[3]]),
                    int(found[5] or 0),
                    int(found[4]),
                ]

    _write(part, folder, ("issue_ns", "complete_ns"), rows)
    part.notes.append(
        "I/Os as fio saw them, not requests of the block layer; completions are told to the millisecond, latencies "
        "exactly"
    )
    if not offsets:
        part.notes.append("the log has no offsets (fio's log_offset=1): every I/O stands at sector 0")
    else:
        part.notes.append("sectors are offsets in fio's file, not places on the device")


def _iolog(part: Part, folder: Path, version: int) -> None:
    def rows(out: RequestFile) -> Iterator[list[int]]:
        for number, line in text.lines(part):
            found = _ACTION.fullmatch(line)
            if found is not None:
                out_dev = out.code("dev", found[2])
                word = out.code("rwbs", _WORDS[found[3]])
                yield [int(found[1]) * NS_PER_MS, word, int(found[4]), int(found[5]), out_dev]
            elif number > 1 and not _OTHER_ACTION.fullmatch(line):
                part.skipped.add(_BAD, part.source.name, number)

    if version != 3:
        part.failures.append(
            f"{part.source.name} is an iolog of version {version}, which has no times; fio 3.31 and later write 3"
        )
        part.skipped.add("an iolog without times", part.source.name)
        return
    _write(part, folder, ("issue_ns",), rows, ("dev",))
    part.notes.append(
        "an iolog has when I/Os were issued, to the millisecond, and no completions: no latency, no depth"
    )


def _write(part: Part, folder: Path, times: Sequence[str], rows: Any, more: Sequence[str] = ()) -> None:
    """Write the rows that `rows` yields: times, code of rwbs, offset and size in bytes, then the columns `more`."""
    columns = (*times, "rwbs", "sector", "bytes", *more)
    recorded = ["issue", "completion"][: len(times)]
    part.clock = BOOT
    with RequestFile(
        folder / "requests.parquet", {"importer": KIND, "file": part.source.name}, recorded, columns
    ) as out:
        batch: list[list[int]] = []
        for row in rows(out):
            batch.append(row)
            if len(batch) >= _BATCH:
                _add(out, columns, batch)
                batch = []
        _add(out, columns, batch)
    malformed = part.skipped.counts[_BAD]
    part.tracer = {"name": "fio", "requests": out.rows, "malformed": malformed}
    part.tracer |= {"begin_ns": out.begin_ns, "end_ns": out.end_ns}
    part.moved = out.moved
    if malformed:
        part.reasons.append(f"{count_text(malformed, 'line')} of the log could not be read")
    if not out.rows:
        part.failures.append(f"{part.source.name} holds no single I/O")


def _add(out: RequestFile, columns: Sequence[str], batch: list[list[int]]) -> None:
    if batch:
        rows = dict(zip(columns, np.array(batch, np.int64).T.copy(), strict=True))
        rows["sector"] //= SECTOR_BYTES
        out.add(rows)


def _report(part: Part) -> None:
    """Take the numbers of each job: bandwidth, IOPS, and latencies by operation."""
    content = "\n".join(line for _, line in text.lines(part))
    try:
        jobs = json.loads(content[content.index("{") :])["jobs"]
        for job in jobs:
            for op in ("read", "write"):
                part.metrics |= _numbers(str(job["jobname"]), op, job[op])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        part.skipped.add("a JSON report that is cut off or has no jobs", part.source.name)
        part.failures.append(f"{part.source.name} cannot be read as fio's JSON ({type(error).__name__})")


def _numbers(job: str, op: str, told: dict[str, Any]) -> dict[str, tuple[float, str]]:
    if not told["io_bytes"]:
        return {}
    start = f"{job}.{op}_"
    found = {
        f"{start}bytes": (told["io_bytes"], "B"),
        f"{start}bandwidth_gib_s": (told["bw"] * KIB / (1 << 30), "GiB/s"),
        f"{start}iops": (told["iops"], "1/s"),
    }
    latency = told.get("clat_ns", {})
    if "mean" in latency:
        found[f"{start}clat_mean_us"] = (latency["mean"] / 1000, "µs")
    shares = latency.get("percentile", {})
    found |= {
        f"{start}clat_p{float(share):g}_us": (ns / 1000, "µs")
        for share, ns in shares.items()
        if float(share) in (50, 99, 99.9)
    }
    return found
