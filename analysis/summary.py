"""`summary.parquet`: one row per trial and measured phase, the union of all trials' columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.attribution import DATA, LATENCIES
from analysis.files import replacing
from analysis.metrics import summarise
from analysis.run import Run, load_run

#: Changes when the meaning of a metric does: older summaries are then computed again.
METRICS_VERSION = 4

_COLUMNS = {
    "trial": pa.string(),
    "slug": pa.string(),
    "repeat": pa.int64(),
    "attempt": pa.int64(),
    "verdict": pa.string(),
    "process": pa.string(),
    "phase": pa.string(),
    "step": pa.int64(),
    "begin_ns": pa.int64(),
    "end_ns": pa.int64(),
    "duration_s": pa.float64(),
    "bytes": pa.int64(),
    "bandwidth_gib_s": pa.float64(),
    "traced_read_bytes": pa.int64(),
    "traced_write_bytes": pa.int64(),
    "read_requests": pa.int64(),
    "write_requests": pa.int64(),
    **{f"{op}_{name}": pa.float64() for op in DATA for name in LATENCIES},
    "expected_read_bytes": pa.int64(),
    "expected_write_bytes": pa.int64(),
    "counted_read_bytes": pa.int64(),
    "counted_write_bytes": pa.int64(),
    "generation_s": pa.float64(),
    "generation_read_bytes": pa.int64(),
    "generation_write_bytes": pa.int64(),
    "ceiling_read_gib_s": pa.float64(),
    "ceiling_write_gib_s": pa.float64(),
    "ceiling_random_read_gib_s": pa.float64(),
    "ceiling_random_write_gib_s": pa.float64(),
    "ceiling_first_write_gib_s": pa.float64(),
    "read_ceiling_share": pa.float64(),
    "write_ceiling_share": pa.float64(),
    "generation_read_ceiling_share": pa.float64(),
    "generation_write_ceiling_share": pa.float64(),
}
_LEADING = 5


def summary_table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Return the rows of `metrics.summarise`, of any number of trials, as one table.

    A cell's axis keeps its type where all trials agree on it and is text otherwise; attributes are text, metrics
    numbers, what was read and written by role (`role.kv_read_bytes`) whole numbers.
    """
    rows = list(rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    axes = [name for name in names if name.startswith("cell.")]
    attributes = [name for name in names if name.startswith("attr.")]
    measured = [name for name in names if name.startswith("metric.")]
    roles = [name for name in names if name.startswith("role.")]
    fixed = list(_COLUMNS)
    arrays = {name: pa.array([row.get(name) for row in rows], _COLUMNS[name]) for name in fixed}
    arrays |= {name: axis_array([row.get(name) for row in rows]) for name in axes}
    arrays |= {name: pa.array([_text(row.get(name)) for row in rows], pa.string()) for name in attributes}
    arrays |= {name: pa.array([row.get(name) for row in rows], pa.float64()) for name in measured}
    arrays |= {name: pa.array([row.get(name) for row in rows], pa.int64()) for name in roles}
    ordered = [*fixed[:_LEADING], *axes, *fixed[_LEADING:], *roles, *attributes, *measured]
    table = pa.table({name: arrays[name] for name in ordered})
    return versioned(table)


def versioned(table: pa.Table) -> pa.Table:
    """Return a table of metrics that says of which version they are."""
    return table.replace_schema_metadata({"metrics_version": str(METRICS_VERSION)})


def write_rows(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write the rows of `metrics.summarise` to `path`, atomically."""
    with replacing(path) as temporary:
        pq.write_table(summary_table(rows), temporary, compression="zstd")


def write_summary(run_dir: str | Path) -> Path:
    """Compute `summary.parquet` of a run from all its published trials and return its path."""
    run = load_run(run_dir)
    path = run.path / "summary.parquet"
    write_rows([row for trial in run.published for row in summarise(trial.path)], path)
    return path


def read_summary(run: Run) -> pl.DataFrame:
    """Return the summary of a run, in plan order; trials that its file lacks are computed, the file is not changed."""
    stored = stored_rows(run.path / "summary.parquet", _COLUMNS)
    rows: list[Mapping[str, Any]] = []
    for trial in run.published:
        rows.extend(stored.get((trial.slug, trial.attempt)) or summarise(trial.path))
    frame = pl.from_arrow(summary_table(rows))
    assert isinstance(frame, pl.DataFrame)
    return frame


def stored_rows(path: Path, columns: Iterable[str]) -> dict[tuple[str, int], list[Mapping[str, Any]]]:
    """Return the rows of a table of metrics by trial and attempt; none where it is absent, broken or of old metrics."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException):
        return {}
    metadata = table.schema.metadata or {}
    if metadata.get(b"metrics_version") != str(METRICS_VERSION).encode() or not {*columns} <= {*table.column_names}:
        return {}
    found: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in table.to_pylist():
        found.setdefault((row["slug"], row["attempt"]), []).append(row)
    return found


def axis_array(values: list[Any]) -> pa.Array:
    """Return an axis as a column: of the type that all its values have, else as text."""
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) > 1 and kinds != {int, float}:
        values = [_text(value) for value in values]
    return pa.array([float(value) for value in values] if kinds == {int, float} else values)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
