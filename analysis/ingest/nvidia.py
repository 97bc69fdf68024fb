"""CSV of `nvidia-smi --query-gpu=timestamp,utilization.gpu --format=csv -lms N`: a line for each GPU and reading.

The times are the machine's wall clock without a time zone. Columns are found by the header.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from analysis.ingest import text
from analysis.ingest.part import WALL, Part, SampleRow, Source
from analysis.units import NS_PER_S

KIND = "nvidia_smi"
ABOUT = "CSV of nvidia-smi --query-gpu=timestamp,utilization.gpu,..."

#: nvidia-smi's columns as samples are called, with unit and factor.
_COLUMNS = {
    "utilization.gpu": ("utilisation", "%", 1),
    "utilization.memory": ("memory_utilisation", "%", 1),
    "memory.used": ("memory_used_bytes", "B", 1 << 20),
}
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_BAD_LINE = "a line that has not the columns of the header"
_BAD_TIME = "a line whose time cannot be read"
_BAD_VALUE = "a value that is no number"


def recognises(head: bytes) -> bool:
    """Say whether a file that begins with `head` is such a CSV."""
    return any(_header(_fields(line)) for line in head.decode("utf-8", errors="replace").splitlines()[:20])


def read(source: Source) -> Part:
    """Return the samples in the file; `metrics` has the mean utilisation of each GPU over all its lines."""
    part = Part(source, KIND, clock=WALL)
    header: list[str] = []
    for number, line in text.lines(part):
        fields = _fields(line)
        if found := _header(fields):
            header = found
        elif header and len(fields) == len(header):
            _sample(part, dict(zip(header, fields, strict=True)), number)
        else:
            part.skipped.add(_BAD_LINE, source.name, number)
    part.samples.sort(key=lambda row: row.t_ns)
    part.metrics |= _means(part.samples)
    return part


def _fields(line: str) -> list[str]:
    return [field.strip() for field in line.split(",")]


def _header(fields: Sequence[str]) -> list[str]:
    """Return the names of the columns; empty where the line is no header."""
    names = [field.partition(" ")[0] for field in fields]
    return names if {"timestamp", "utilization.gpu"} <= set(names) else []


def wall_ns(stamp: str) -> int | None:
    """Return a time such as `2025/01/21 01:31:52.978` in ns, as if it were UTC; None where it is none."""
    try:
        moment = datetime.fromisoformat(stamp.replace("/", "-").replace(",", ".")).replace(tzinfo=UTC)
    except ValueError:
        return None
    return int(moment.timestamp()) * NS_PER_S + moment.microsecond * 1000


def _sample(part: Part, fields: Mapping[str, str], line: int) -> None:
    t_ns = wall_ns(fields["timestamp"])
    if t_ns is None:
        part.skipped.add(_BAD_TIME, part.source.name, line)
        return
    gpu = f"gpu{fields['index']}" if fields.get("index", "").isdecimal() else "gpu0"
    for column, (name, unit, factor) in _COLUMNS.items():
        if column not in fields:
            continue
        found = _NUMBER.match(fields[column])
        if found:
            part.samples.append(SampleRow(t_ns, gpu, name, float(found[0]) * factor, unit))
        else:
            part.skipped.add(_BAD_VALUE, part.source.name, line)


def _means(samples: Sequence[SampleRow]) -> dict[str, tuple[float, str]]:
    values: dict[str, list[float]] = {}
    for row in samples:
        if row.name == "utilisation":
            values.setdefault(row.source, []).append(row.value)
    return {f"{gpu}_utilisation_mean": (sum(found) / len(found), "%") for gpu, found in values.items()}
