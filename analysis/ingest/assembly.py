"""The parts of a trial, read from its files, as the record and the tables of a trial."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from analysis.ingest import commands, deepnvme, generation, kinds
from analysis.ingest.part import WALL, Part, PhaseRow, SampleRow
from analysis.ingest.skipped import Skipped
from analysis.ingest.tree import Group
from analysis.schema import PHASES, SAMPLES, SCHEMA_VERSION, described
from analysis.units import NS_PER_S, UNKNOWN

#: Logs up to this size are kept with the trial.
_LOG_BYTES = 16 << 20
_TABLES = {"phases": PHASES, "samples": SAMPLES}


#: What an axis of a job is only where the jobs of a run differ in it.
WHERE_VARYING = ("prompt_len", "gen_len", "percent", "memory")


def trials(group: Group, folder: Path) -> Iterator[tuple[dict[str, Any], list[Part]]]:
    """Read a group's files; yield cell and parts of each trial they make. Requests go to `folder`."""
    parts = [kinds.read(kind, source, folder) for kind, source in group.files]
    fs = {"fs": group.fs} if group.fs else {}
    if group.kinds == {deepnvme.KIND}:
        for repeat in _repeats(parts):
            yield {"job": "tensor_io", **fs}, repeat
        return
    told = _merged(parts, "workload")
    if "kind" in told:
        axes: dict[str, Any] = {
            name: told[name] for name in ("model", "batch_size", "prompt_len", "gen_len") if name in told
        }
        axes |= {"percent": " ".join(map(str, told["percent"]))} if "percent" in told else {}
        yield {"job": told["kind"], **axes, **_merged(parts, "limits"), **fs}, parts
    else:
        yield {"source": PurePath(group.files[0][1].name).stem}, parts


def write(folder: Path, parts: Sequence[Part], fs: str | None) -> dict[str, Any]:
    """Write a trial's tables and logs into `folder` and return its record, all but id, slug, cell and repeat."""
    placed = _Placed(parts)
    _write_tables(folder, placed)
    _keep_logs(folder, parts)
    skipped = Skipped()
    for part in parts:
        skipped.merge(part.skipped)
    notes = [note for part in parts for note in part.notes]
    notes += [*_missing(parts), *placed.alignment.values(), *skipped.sentences()]
    moved = next((part.moved for part in parts if part.moved), None)
    storage = {"fs": fs or UNKNOWN}
    return {
        "schema_version": SCHEMA_VERSION,
        "attempt": 1,
        "config": {"workload": _workload(parts), "limits": _merged(parts, "limits"), "storage": storage},
        "command": next((list(part.command) for part in parts if part.command), None),
        "node": {},
        "device": {},
        "storage": storage,
        "tracer": placed.tracer,
        "clock": {"boot_id": None, "monotonic_to_utc_offset_ns": None, "alignment": placed.alignment},
        "verdict": _verdict(parts),
        "bytes": {"expected": None, "traced": moved and {op: moved[op] for op in ("read", "write")}, "counted": None},
        "metrics": {name: {"value": value, "unit": unit} for name, (value, unit) in _metrics(parts).items()},
        "started": placed.started,
        "ended": placed.ended,
        "trouble": "; ".join(dict.fromkeys(notes)) or None,
        "import": _imported(parts, skipped),
    }


def _verdict(parts: Sequence[Part]) -> dict[str, Any]:
    failures = [text for part in parts for text in part.failures]
    reasons = [text for part in parts for text in part.reasons]
    state = "failed" if failures else "invalid" if reasons else "valid"
    return {"state": state, "reasons": [*failures, *reasons]}


def _imported(parts: Sequence[Part], skipped: Skipped) -> dict[str, Any]:
    """Return what was read, and what of it could not be used."""
    files = [
        {"name": part.source.name, "kind": part.kind, "bytes": part.source.path.stat().st_size, "lines": part.lines}
        for part in parts
    ]
    lines = sum(part.lines for part in parts)
    return {"files": files, "lines": lines, "skipped": dict(skipped.counts), "first": skipped.first}


def _missing(parts: Sequence[Part]) -> list[str]:
    """Return which files the commands wrote and nobody kept."""
    there = {PurePath(part.source.name).name for part in parts}
    logs = [part.source for part in parts if part.kind == commands.KIND]
    gone = sorted(name for source in logs for name in commands.outputs(source) - there)
    return [f"what the commands wrote to {', '.join(gone)} is not among the files"] if gone else []


def _repeats(parts: Sequence[Part]) -> list[list[Part]]:
    """Return the parts of tensors by repeat: the second file of the same tensor belongs to the second repeat."""
    seen: dict[tuple[str, ...], int] = {}
    repeats: list[list[Part]] = [[]]
    for part in parts:
        turn = 0
        for phase in part.phases:
            key = (phase.name, *(phase.attributes[name] for name in ("api", "tensor_device", "size_bytes")))
            turn = seen[key] = seen.get(key, -1) + 1
        while len(repeats) <= turn:
            repeats.append([])
        repeats[turn].append(part)
    return repeats


class _Placed:
    """Phases and samples of a trial on the clock of its requests, or where it has none on one that begins at 0.

    Files that tell time by clocks of their own are laid beside each other only where a reader cannot take it for more
    than it is; `alignment` says how, by table.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        trace = next((part for part in parts if part.tracer is not None and part.tracer["begin_ns"] is not None), None)
        self.phases: list[PhaseRow] = []
        self.samples: list[SampleRow] = []
        self.alignment: dict[str, str] = {}
        self.started, self.ended = _wall_span(parts)
        wall = [t for part in parts if part.clock == WALL for t in _times(part)]
        sampled = [row.t_ns for part in parts for row in part.samples]
        if trace is not None:
            self._beside(trace, parts, sampled)
        elif wall:
            self._by_wall_clock(parts, min(wall), bool(sampled))
        else:
            self._one_after_another(parts)
        ends = [row.t_ns for row in self.samples] + [row.end_ns for row in self.phases]
        given = next((part.tracer for part in parts if part.tracer is not None), None)
        self.tracer = given or {"name": "none", "begin_ns": 0, "end_ns": max(ends, default=0) + 1}

    def _beside(self, trace: Part, parts: Sequence[Part], sampled: Sequence[int]) -> None:
        assert trace.tracer is not None
        if sampled:
            shift = trace.tracer["begin_ns"] - min(sampled)
            self.samples = [_moved_sample(row, shift) for part in parts for row in part.samples]
            self.alignment["samples"] = (
                "samples tell the wall clock and requests the time since boot, and nothing ties them: the first sample "
                "is assumed to be as old as the first request"
            )
        if any(part.phases for part in parts):
            self.alignment["phases"] = (
                "the engine's passes are not on the clock of the requests: in the metrics, not among the phases"
            )

    def _by_wall_clock(self, parts: Sequence[Part], begin: int, sampled: bool) -> None:
        for part in parts:
            if part.clock == WALL:
                self.samples += [_moved_sample(row, -begin) for row in part.samples]
                self.phases += [_moved_phase(row, -begin) for row in part.phases]
            elif part.phases:
                self.alignment["phases"] = (
                    "the engine's passes have no place on the samples' clock: not among the phases"
                )
        if self.phases and sampled:
            self.alignment["phases"] = "passes and samples are told by the same wall clock"

    def _one_after_another(self, parts: Sequence[Part]) -> None:
        end = 0
        for part in parts:
            self.phases += [_moved_phase(row, end) for row in part.phases]
            end = max([end, *(row.end_ns for row in self.phases)])
        if self.phases:
            self.alignment["phases"] = (
                "durations were recorded, and no times: the phases stand one after the other from 0 on"
            )


def _moved_sample(row: SampleRow, shift: int) -> SampleRow:
    return SampleRow(row.t_ns + shift, row.source, row.name, row.value, row.unit)


def _moved_phase(row: PhaseRow, shift: int) -> PhaseRow:
    return PhaseRow(row.name, row.begin_ns + shift, row.end_ns + shift, row.step, row.bytes, row.attributes)


def _times(part: Part) -> list[int]:
    return [row.t_ns for row in part.samples] + [t for row in part.phases for t in (row.begin_ns, row.end_ns)]


def _wall_span(parts: Sequence[Part]) -> tuple[str | None, str | None]:
    """Return the first and last time on the wall clock, which has no time zone."""
    times = [t for part in parts if part.clock == WALL for t in _times(part)]
    if not times:
        return None, None
    first, last = (datetime.fromtimestamp(t / NS_PER_S, UTC).replace(tzinfo=None) for t in (min(times), max(times)))
    return first.isoformat(timespec="milliseconds"), last.isoformat(timespec="milliseconds")


def _workload(parts: Sequence[Part]) -> dict[str, Any]:
    told = _merged(parts, "workload")
    sizes = {int(row.attributes["size_bytes"]) for part in parts if part.kind == deepnvme.KIND for row in part.phases}
    return told | ({"sizes_bytes": sorted(sizes)} if sizes else {})


def _merged(parts: Sequence[Part], name: str) -> dict[str, Any]:
    """Return a section as the parts tell it together; what command lines say stands above what logs do."""
    merged: dict[str, Any] = {}
    for part in sorted(parts, key=lambda part: part.kind == "commands"):
        merged |= getattr(part, name)
    return merged


def _metrics(parts: Sequence[Part]) -> dict[str, tuple[float, str]]:
    found = {name: value for part in parts for name, value in part.metrics.items()}
    told = _merged(parts, "workload")
    if {"batch_size", "gen_len"} <= set(told) and "total_latency_s" in found:
        found["generated_tokens"] = (told["batch_size"] * told.get("num_batches", 1) * told["gen_len"], "tokens")
    return found


def _write_tables(folder: Path, placed: _Placed) -> None:
    rows: dict[str, list[dict[str, Any]]] = {
        "phases": [
            {
                "process": "engine",
                "name": row.name,
                "step": row.step,
                "attributes": list(row.attributes.items()),
                "begin_ns": row.begin_ns,
                "end_ns": row.end_ns,
                "bytes": row.bytes,
            }
            for row in placed.phases
        ],
        "samples": [vars(row) | {"process": None} for row in placed.samples],
    }
    for name, schema in _TABLES.items():
        if rows[name]:
            table = pa.Table.from_pylist(rows[name], schema=described(schema, {"importer": "analysis.ingest"}))
            pq.write_table(table, folder / f"{name}.parquet", compression="zstd")


def _keep_logs(folder: Path, parts: Sequence[Part]) -> None:
    for part in parts:
        if part.kind == generation.KIND and part.source.path.stat().st_size <= _LOG_BYTES:
            (folder / "logs").mkdir(exist_ok=True)
            (folder / "logs" / "engine.log").write_bytes(part.source.path.read_bytes())
