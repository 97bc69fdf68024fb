"""Reads what jobs write with `tasks/jobs/phase_log.py`: phases, metrics, and whether the job reached its end."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from analysis import schema
from tasks.units import format_bytes
from tasks.workloads import Span


@dataclass
class Report:
    """Everything a job reported."""

    spans: list[Span] = field(default_factory=list)
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    done: bool = False
    malformed: int = 0

    def doubts(self) -> list[str]:
        """Return reasons why the report of a job that said it was done cannot be used."""
        unfinished = [s.name for s in self.spans if s.end_ns is None]
        found = [f"{self.malformed} lines of the job's phase log could not be read"] if self.malformed else []
        return found + ([f"the job never ended its phase {', '.join(unfinished)}"] if unfinished else [])


def read(path: Path, process: str) -> Report:
    """Return what the job `process` wrote to `path`. Lines that are no event are counted, never fatal."""
    report = Report()
    begun: dict[object, dict[str, Any]] = {}
    ended: dict[object, dict[str, Any]] = {}
    for line in _lines(path):
        try:
            event = json.loads(line)
            _take(event, report, begun, ended)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            report.malformed += 1
    for number, event in begun.items():
        try:
            report.spans.append(_span(process, event, ended.get(number, {})))
        except (ValueError, TypeError, OverflowError):
            report.malformed += 1
    report.spans.sort(key=lambda s: s.begin_ns)
    return report


def _lines(path: Path) -> Iterable[str]:
    # Not splitlines(): JSON text may hold U+2028 and others that it would take for an end of line.
    return filter(None, path.read_text(errors="replace").split("\n")) if path.exists() else ()


def _take(event: dict[str, Any], report: Report, begun: dict[object, Any], ended: dict[object, Any]) -> None:
    kind = event["event"]
    if kind == "begin":
        begun[event["id"]] = {"name": event["name"], "t_ns": event["t_ns"], **event}
    elif kind == "end":
        ended[event["id"]] = {"t_ns": event["t_ns"], **event}
    elif kind == "metric":
        report.metrics[event["name"]] = {"value": event["value"], "unit": event["unit"]}
    elif kind == "error":
        report.errors.append(str(event["reason"]))
    elif kind == "done":
        report.done = True
    else:
        report.malformed += 1


def _span(process: str, begin: dict[str, Any], end: dict[str, Any]) -> Span:
    attributes = {**(begin.get("attributes") or {}), **(end.get("attributes") or {})}
    size_bytes, step = begin.get("bytes"), begin.get("step")
    return Span(
        process=process,
        name=str(begin["name"]),
        begin_ns=_whole(begin["t_ns"]),
        end_ns=_whole(end["t_ns"]) if end else None,
        size_bytes=None if size_bytes is None else _whole(size_bytes),
        step=None if step is None else _whole(step, 31),
        attributes={str(k): str(v) for k, v in attributes.items()},
    )


def _whole(value: Any, bits: int = 63) -> int:
    """Return a number that its column can hold."""
    number = int(value)
    if abs(number) >> bits:
        raise OverflowError(f"{number} does not fit")
    return number


def write(spans: Iterable[Span], path: Path, provenance: dict[str, object]) -> None:
    """Write `spans` as `analysis.schema.PHASES`, by begin."""
    rows = [
        {
            "process": s.process,
            "name": s.name,
            "step": s.step,
            "attributes": list(s.attributes.items()),
            "begin_ns": s.begin_ns,
            "end_ns": s.end_ns,
            "bytes": s.size_bytes,
        }
        for s in sorted(spans, key=lambda s: s.begin_ns)
    ]
    described = schema.described(schema.PHASES, provenance)
    pq.write_table(pa.Table.from_pylist(rows, schema=described), path, compression="zstd")


class Follower:
    """Tells, while the job runs, which phase it is in."""

    def __init__(self, path: Path) -> None:
        """Follow the events written to `path`."""
        self._path = path
        self._position = 0

    def latest(self) -> str | None:
        """Return the phase begun last since the call before, in words, or None."""
        if not self._path.exists() or self._path.stat().st_size == self._position:
            return None
        with self._path.open("rb") as f:
            f.seek(self._position)
            whole, newline, _ = f.read().rpartition(b"\n")
        self._position += len(whole) + len(newline)
        texts = [text for line in whole.splitlines() if (text := _begun(line)) is not None]
        return texts[-1] if texts else None


def _begun(line: bytes) -> str | None:
    try:
        event = json.loads(line)
        if event["event"] != "begin":
            return None
        attributes = event.get("attributes") or {}
        facts = [str(attributes[k]) for k in ("api", "tensor_device") if k in attributes]
        size = [format_bytes(event["bytes"])] if event.get("bytes") else []
        step = [f"step {event['step']}"] if event.get("step") is not None else []
        return " ".join([str(event["name"]), *facts, *size, *step])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
