"""CSV of `nvidia-smi --query-gpu=timestamp,utilization.gpu --format=csv -lms N`: a line for each GPU and reading.

The times are the machine's wall clock without a time zone. Columns are found by the header.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime

import numpy as np

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
#: The columns that tell GPUs apart, the surest first; the last two, its name, may be those of several.
_GPUS = ("index", "uuid", "gpu_uuid", "pci.bus_id", "gpu_bus_id", "name", "gpu_name")
#: GPUs that no column tells apart.
_ALL = "gpus"
#: Lines of one reading are this much closer than readings are to each other, at most.
_CLOSE = 0.1
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
#: A last reading that ends with its unit has lost nothing.
_WHOLE = re.compile(r"(?:%|MiB|\])\s*$")
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
    gpus: dict[str, str] = {}
    for number, line in text.lines(part, _WHOLE):
        fields = _fields(line)
        if found := _header(fields):
            header = found
        elif header and len(fields) == len(header):
            _sample(part, dict(zip(header, fields, strict=True)), gpus, number)
        else:
            part.skipped.add(_BAD_LINE, source.name, number)
    part.samples.sort(key=lambda row: row.t_ns)
    merged = set() if set(header) & set(_GPUS[:-2]) else _merge(part)
    named = {told: gpu for told, gpu in gpus.items() if told and not told.isdecimal() and gpu not in merged}
    part.notes += [f"{gpu} is {told}" for told, gpu in named.items()]
    part.metrics |= {
        f"{_ALL if gpu in merged else gpu}_utilisation_mean": mean for gpu, mean in _means(part.samples).items()
    }
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


def _sample(part: Part, fields: Mapping[str, str], gpus: dict[str, str], line: int) -> None:
    t_ns = wall_ns(fields["timestamp"])
    if t_ns is None:
        part.skipped.add(_BAD_TIME, part.source.name, line)
        return
    told = next((fields[name] for name in _GPUS if fields.get(name)), "")
    gpu = gpus.setdefault(told, f"gpu{told if told.isdecimal() else len(gpus)}")
    for column, (name, unit, factor) in _COLUMNS.items():
        if column not in fields:
            continue
        found = _NUMBER.match(fields[column])
        if found:
            part.samples.append(SampleRow(t_ns, gpu, name, float(found[0]) * factor, unit))
        else:
            part.skipped.add(_BAD_VALUE, part.source.name, line)


def _merge(part: Part) -> set[str]:
    """Make one reading, the mean, of several that stand in one moment: of GPUs that nothing tells apart.

    Returns the sources that were.
    """
    times: dict[str, list[int]] = {}
    for row in part.samples:
        if row.name == "utilisation":
            times.setdefault(row.source, []).append(row.t_ns)
    merged = {gpu for gpu, found in times.items() if _several(found)}
    if not merged:
        return merged
    kept = [row for row in part.samples if row.source not in merged]
    part.samples = sorted([*kept, *_readings(part.samples, merged)], key=lambda row: row.t_ns)
    part.notes.append(
        f"{part.source.name} has several lines a reading, and no column (index, uuid, pci.bus_id) tells its GPUs "
        f"apart: {', '.join(sorted(merged))} stands for the mean of all of them"
    )
    return merged


def _readings(samples: Sequence[SampleRow], sources: Collection[str]) -> Iterator[SampleRow]:
    """Yield the mean of each reading of these sources, at its first time."""
    series: dict[tuple[str, str], list[SampleRow]] = {}
    for row in samples:
        if row.source in sources:
            series.setdefault((row.source, row.name), []).append(row)
    for rows in series.values():
        gaps = np.diff([row.t_ns for row in rows])
        begins = np.flatnonzero(gaps > np.quantile(gaps, 0.95) / 2) + 1 if gaps.size else np.empty(0, np.intp)
        for group in np.split(np.arange(len(rows)), begins):
            first = rows[group[0]]
            mean = float(np.mean([rows[place].value for place in group]))
            yield SampleRow(first.t_ns, first.source, first.name, mean, first.unit)


def _several(times: Sequence[int]) -> bool:
    """Say whether sorted times come in groups: at least a quarter of the gaps is much shorter than most others."""
    if len(times) < 2:
        return False
    short, long = np.quantile(np.diff(times), [0.25, 0.95])
    return bool(short == 0 or short < _CLOSE * long)


def _means(samples: Sequence[SampleRow]) -> dict[str, tuple[float, str]]:
    values: dict[str, list[float]] = {}
    for row in samples:
        if row.name == "utilisation":
            values.setdefault(row.source, []).append(row.value)
    return {gpu: (sum(found) / len(found), "%") for gpu, found in values.items()}
