"""What a trial's trace says: totals by phase, bandwidth over time, request sizes.

Everything here reads one published trial folder and streams over its requests.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from analysis import ceiling, samples
from analysis.attribution import DATA, LATENCIES, attribute
from analysis.errors import AnalysisError, CannotDraw
from analysis.latency import Latencies
from analysis.roles import owners, role_bytes
from analysis.run import Trial, load_trial
from analysis.schema import OPERATIONS
from analysis.trace import NEVER, batches, events, time_column, time_range
from analysis.units import GIB, NS_PER_S

#: The tracer that reads the device's counters over time, and records no single requests.
COUNTERS = "diskstats"
#: The name of the summary's row for the whole traced window.
WHOLE = "trial"
MOST_BINS = 600
#: The phases in which an engine generates tokens.
GENERATION = ("prefill", "decode")
_LATENCIES = tuple(f"{op}_{name}" for op in DATA for name in LATENCIES)


@dataclass(frozen=True)
class Phase:
    """One row of `phases.parquet`; `end_ns` is None where the process died inside."""

    process: str
    name: str
    step: int | None
    attributes: dict[str, str]
    begin_ns: int
    end_ns: int | None
    bytes: int | None


def phases(trial_dir: str | Path) -> list[Phase]:
    """Return the phases of a trial in order of their begin; none where the trial recorded none."""
    path = Path(trial_dir) / "phases.parquet"
    if not path.is_file():
        return []
    try:
        rows = pq.read_table(path).to_pylist()
        found = [Phase(**(row | {"attributes": dict(row["attributes"] or ())})) for row in rows]
    except (pa.ArrowException, OSError, TypeError, KeyError) as error:
        raise AnalysisError(f"{path}: cannot be read as phases ({str(error).splitlines()[0]})") from None
    return sorted(found, key=lambda phase: phase.begin_ns)


def summarise(trial_dir: str | Path) -> list[dict[str, Any]]:
    """Return one row per measured phase (one that states its bytes), after a row for the whole traced window.

    Requests belong to the phase in which they were issued. Times are monotonic ns, latencies (issue to
    completion) µs, bandwidth GiB/s of the phase's own bytes. What was not measured is None. The first row has what
    the node and the engine measured too, and what was traced from the first prefill to the last decode step. Where the
    trial knows which file lay where, there are columns such as `role.kv_read_bytes` for the roles that occur. Shares
    are of what fio reached on the same storage (`analysis.ceiling`).
    """
    trial = load_trial(trial_dir)
    told = phases(trial_dir)
    measured = [phase for phase in told if phase.bytes is not None]
    begin, end = trial.window or (None, None)
    generation = generation_span(told)
    spans = [(begin, end), *((phase.begin_ns, phase.end_ns) for phase in measured), generation]
    whole = identity(trial) | _span_columns("", WHOLE, None, begin, end, None) | _stated(trial)
    rows = [whole]
    for phase in measured:
        own = _span_columns(phase.process, phase.name, phase.step, phase.begin_ns, phase.end_ns, phase.bytes)
        rows.append(identity(trial) | own | {f"attr.{key}": value for key, value in phase.attributes.items()})
    *traced, generated = _traced(trial, spans)
    whole["generation_s"] = _seconds(*generation)
    whole |= {f"generation_{op}_bytes": generated[f"traced_{op}_bytes"] for op in DATA}
    top = ceiling.ceiling_of(trial)
    reached = ceiling.shares(generated | {"duration_s": whole["generation_s"]}, top)
    whole |= {f"generation_{name}": value for name, value in reached.items()}
    roles = _roles(trial, spans[:-1])
    joined = [row | own | held for row, own, held in zip(rows, traced, roles, strict=True)]
    return [row | ceiling.columns(top, row is joined[0]) | ceiling.shares(row, top) for row in joined]


def bandwidth_over_time(trial_dir: str | Path, bin_ns: int | None = None) -> pl.DataFrame:
    """Return the bytes moved in each bin of the traced window, for reads and writes, empty bins included.

    Columns: `op`, `begin_s` (bin begin, seconds since the window's begin), `bytes`, `gib_s` (bytes / bin width).
    Bytes count when they completed, or when they were issued where completion was not recorded; those of the device's
    counters spread evenly between two readings. Without `bin_ns` the bin is the roundest that gives at most 600.
    """
    begin, end = extent(trial_dir)
    width = bin_ns or round_bin(end - begin)
    if load_trial(trial_dir).tracer == COUNTERS:
        return _counted_over_time(trial_dir, begin, end, width)
    path = requests_path(trial_dir)
    column = time_column(path)
    place = ((pl.col(column) - begin) // width).cast(pl.Int64).alias("bin")
    moved = (
        pl.scan_parquet(path)
        .select(pl.col("op").cast(pl.String), place, "bytes")
        .filter(pl.col("op").is_in(DATA) & pl.col("bin").is_not_null())
        .group_by("op", "bin")
        .agg(pl.col("bytes").sum())
        .collect(engine="streaming")
    )
    bins = max((end - begin - 1) // width + 1, int(moved["bin"].max() or 0) + 1)  # type: ignore[arg-type]
    grid = pl.DataFrame({"op": DATA}).join(pl.DataFrame({"bin": range(bins)}), how="cross")
    return _per_bin(grid.join(moved, on=("op", "bin"), how="left"), width)


def _counted_over_time(trial_dir: str | Path, begin: int, end: int, width: int) -> pl.DataFrame:
    counted = samples.counted_bytes(trial_dir)
    edges = np.append(np.arange(begin, end, width), end)
    parts = []
    for op in DATA:
        own = counted.filter(pl.col("op") == op)
        if own.is_empty():
            raise CannotDraw("the device's counters were not sampled")
        # Before the first reading and after the last nothing moved: the device was at rest there.
        total = np.rint(np.interp(edges, own["t_ns"].to_numpy(), own["bytes"].to_numpy())).astype(np.int64)
        parts.append(pl.DataFrame({"op": op, "bin": np.arange(len(edges) - 1), "bytes": np.diff(total)}))
    return _per_bin(pl.concat(parts), width)


def _per_bin(moved: pl.DataFrame, width: int) -> pl.DataFrame:
    """Return bytes by operation and bin with the bin's begin and the bandwidth in it, sorted."""
    return moved.sort("op", "bin").select(
        "op",
        (pl.col("bin") * (width / NS_PER_S)).alias("begin_s"),
        pl.col("bytes").fill_null(0),
        (pl.col("bytes").fill_null(0) / (width / NS_PER_S * GIB)).alias("gib_s"),
    )


def request_sizes(trial_dir: str | Path) -> pl.DataFrame:
    """Return how many requests each operation made of each size: `op`, `bytes`, `count`, sorted."""
    return (
        pl.scan_parquet(requests_path(trial_dir))
        .select(pl.col("op").cast(pl.String), "bytes")
        .group_by("op", "bytes")
        .agg(pl.len().cast(pl.Int64).alias("count"))
        .sort("op", "bytes")
        .collect(engine="streaming")
    )


def latencies(trial_dir: str | Path) -> dict[str, Latencies]:
    """Return the times from issue to completion (ns) of all reads and of all writes of a trial that have both.

    Raises CannotDraw where there are no single requests, or where not both events were recorded.
    """
    path = requests_path(trial_dir)
    if missing := {"issue", "completion"} - {*events(path)}:
        raise CannotDraw(f"the trace holds no {' and no '.join(sorted(missing))} events, so nobody knows latencies")
    found = {op: Latencies() for op in DATA}
    for batch in batches(path):
        for op, own in found.items():
            timed = (batch.op == OPERATIONS.index(op)) & (batch.issue_ns != NEVER) & (batch.complete_ns != NEVER)
            own.add(batch.complete_ns[timed] - batch.issue_ns[timed])
    return found


def requests_path(trial_dir: str | Path) -> Path:
    """Return the trial's `requests.parquet`; where its tracer writes none, say which tracer that was."""
    trial = load_trial(trial_dir)
    path = trial.table("requests")
    if path is not None:
        return path
    if trial.tracer in ("none", COUNTERS):
        raise CannotDraw(f"the tracer of this trial, {trial.tracer}, records no single requests")
    raise CannotDraw(f"the trial has no requests.parquet (tracer: {trial.tracer}, verdict: {trial.state})")


def extent(trial_dir: str | Path) -> tuple[int, int]:
    """Return the span that holds the traced window and every request in the trace (monotonic ns)."""
    trial = load_trial(trial_dir)
    window, path = trial.window, trial.table("requests")
    if path is None and trial.tracer not in (COUNTERS, "none"):
        path = requests_path(trial_dir)
    traced = None if path is None else time_range(path, time_column(path))
    spans = [span for span in (window, None if traced is None else (traced[0], traced[1] + 1)) if span is not None]
    if not spans:
        raise CannotDraw("the trace is empty and the trial states no traced window")
    return min(begin for begin, _ in spans), max(end for _, end in spans)


def round_bin(duration_ns: int, most: int = MOST_BINS) -> int:
    """Return the smallest 1, 2 or 5 x 10^k ns, at least 10 ms, that cuts `duration_ns` into at most `most` bins.

    Completions come in batches: in a bin of 1 ms a batch looks like ten times what the drive can do.
    """
    width = 10_000_000
    while True:
        for factor in (1, 2, 5):
            if -(-duration_ns // (width * factor)) <= most:
                return width * factor
        width *= 10


def identity(trial: Trial) -> dict[str, Any]:
    """Return the columns that say which trial a row is of."""
    row: dict[str, Any] = {
        "trial": trial.id,
        "slug": trial.slug,
        "repeat": trial.repeat,
        "attempt": trial.attempt,
        "verdict": trial.state,
    }
    return row | {f"cell.{axis}": _plain(value) for axis, value in trial.cell.items()}


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, (str, int, float, bool)) else json.dumps(value)


def _seconds(begin: int | None, end: int | None) -> float | None:
    return None if begin is None or end is None else (end - begin) / NS_PER_S


def _span_columns(
    process: str, name: str, step: int | None, begin: int | None, end: int | None, moved: int | None
) -> dict[str, Any]:
    seconds = _seconds(begin, end)
    return {
        "process": process or None,
        "phase": name,
        "step": step,
        "begin_ns": begin,
        "end_ns": end,
        "duration_s": seconds,
        "bytes": moved,
        "bandwidth_gib_s": None if moved is None or not seconds else moved / GIB / seconds,
    }


def _stated(trial: Trial) -> dict[str, Any]:
    """Return the columns of what `trial.json` states in numbers: bytes expected and counted, and metrics."""
    row: dict[str, Any] = {
        f"{kind}_{op}_bytes": trial.byte_count(kind, op) for kind in ("expected", "counted") for op in DATA
    }
    return row | {f"metric.{name}": float(value) for name, (value, _) in trial.measured.items()}


def generation_span(told: Sequence[Phase]) -> tuple[int | None, int | None]:
    """Return the span from the first prefill to the end of the last decode step, None where there is none."""
    steps = [phase for phase in told if phase.name in GENERATION]
    ends = [phase.end_ns for phase in steps if phase.end_ns is not None]
    return (min(phase.begin_ns for phase in steps), max(ends)) if ends else (None, None)


def _roles(trial: Trial, spans: Sequence[tuple[int | None, int | None]]) -> list[dict[str, int | None]]:
    """Return the bytes read and written by role in each span; no columns where nobody knows the roles."""
    path = trial.table("requests")
    whole = [(place, (begin, end)) for place, (begin, end) in enumerate(spans) if begin is not None and end is not None]
    if path is None or trial.table("extents") is None or not whole:
        return [{} for _ in spans]
    found = role_bytes(path, owners(trial.path), [span for _, span in whole])
    known = {place: held for (place, _), held in zip(whole, found, strict=True)}
    names = {label: f"role.{label[0]}_{label[1]}_bytes" for label in found[0]}
    return [{name: known.get(place, {}).get(label) for label, name in names.items()} for place in range(len(spans))]


def _traced(trial: Trial, spans: Sequence[tuple[int | None, int | None]]) -> list[dict[str, Any]]:
    """Return the traced columns of each span; None where the trial has no requests or a span has no end."""
    nothing = dict.fromkeys([f"traced_{op}_bytes" for op in DATA] + [f"{op}_requests" for op in DATA] + [*_LATENCIES])
    path = trial.table("requests")
    whole = [(place, (begin, end)) for place, (begin, end) in enumerate(spans) if begin is not None and end is not None]
    if path is None or not whole:
        return [nothing] * len(spans)
    attribution = attribute(path, [span for _, span in whole])
    known = {place: attribution.totals(span) for span, (place, _) in enumerate(whole)}
    return [known.get(place, nothing) for place in range(len(spans))]
