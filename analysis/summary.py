"""`summary.parquet`: one row per trial and measured phase, the union of all trials' columns."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.attribution import DATA, LATENCIES
from analysis.errors import AnalysisError
from analysis.files import replacing
from analysis.metrics import WHOLE, identity, summarise
from analysis.run import Run, Trial, load_run
from analysis.trace import check, check_parquet

#: Changes when the meaning of a metric does: older summaries are then computed again.
METRICS_VERSION = 6

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
    "unreadable": pa.string(),
}
_LEADING = 5
_VERSION = {"metrics_version": str(METRICS_VERSION)}

#: A run's summary is written every so many seconds at most, and for no more than this share of the time; sooner where
#: more than these rows wait for it.
_REFRESH_S, _REFRESH_SHARE, _MOST_ROWS = 5.0, 0.02, 20_000


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
    arrays = {name: pa.array([row.get(name) for row in rows], kind) for name, kind in _COLUMNS.items()}
    arrays |= {name: axis_array([row.get(name) for row in rows]) for name in axes}
    arrays |= {name: pa.array([_text(row.get(name)) for row in rows], pa.string()) for name in attributes}
    arrays |= {name: pa.array([row.get(name) for row in rows], pa.float64()) for name in measured}
    arrays |= {name: pa.array([row.get(name) for row in rows], pa.int64()) for name in roles}
    return versioned(pa.table({name: arrays[name] for name in _ordered(names)}))


def _ordered(names: Iterable[str]) -> list[str]:
    """Return the columns of a summary in their order: `names`, and those that every summary has."""
    parts: dict[str, list[str]] = {"cell": [], "role": [], "attr": [], "metric": []}
    for name in names:
        if (part := name.partition(".")[0]) in parts:
            parts[part].append(name)
    fixed = list(_COLUMNS)
    return [*fixed[:_LEADING], *parts["cell"], *fixed[_LEADING:], *parts["role"], *parts["attr"], *parts["metric"]]


def versioned(table: pa.Table) -> pa.Table:
    """Return a table of metrics that says of which version they are."""
    return table.replace_schema_metadata(_VERSION)


def write_rows(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write the rows of `metrics.summarise` to `path`, atomically, without those of trials that cannot be read."""
    with replacing(path) as temporary:
        pq.write_table(summary_table(readable(rows)), temporary, compression="zstd")


class Growing:
    """The summary of a run that goes on. Rows gather here and reach the file seldom enough to cost next to nothing.

    What the file lacks when a run ends badly is computed by whoever reads it (`read_summary`): nothing is lost.
    """

    def __init__(self, path: Path) -> None:
        """Add to the summary at `path`, which need not be there."""
        self._path = path
        self._rows: dict[str, Sequence[Mapping[str, Any]]] = {}
        self._next_s = time.monotonic()

    def add(self, slug: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take the rows of the trial `slug`, in place of any that it had; write them when that is due."""
        self._rows[slug] = rows
        if time.monotonic() >= self._next_s or sum(map(len, self._rows.values())) > _MOST_ROWS:
            self.write()

    def write(self) -> None:
        """Write what has gathered. The file is copied as a stream: memory does not grow with the run."""
        begin_s = time.monotonic()
        rows, self._rows = self._rows, {}
        self._next_s = begin_s + _REFRESH_S  # where it cannot be written, too: what is lost is computed by readers
        if rows:
            _append(self._path, rows)
        took_s = time.monotonic() - begin_s
        self._next_s = begin_s + max(_REFRESH_S, took_s / _REFRESH_SHARE)


def _append(path: Path, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Put the rows of some trials, by slug, in place of those that the summary at `path` has of them."""
    fresh = pl.from_arrow(summary_table(readable(row for own in rows.values() for row in own)))
    assert isinstance(fresh, pl.DataFrame)
    if _usable(path, _COLUMNS):
        kept = pl.scan_parquet(path).filter(~pl.col("slug").is_in(list(rows)))
        try:
            _write(path, pl.concat(_agreeing(kept, fresh.lazy()), how="diagonal_relaxed"))
            return
        except pl.exceptions.PolarsError:
            pass  # what the file held is computed again by whoever reads it
    _write(path, fresh.lazy())


def _write(path: Path, rows: pl.LazyFrame) -> None:
    ordered = rows.select(_ordered(rows.collect_schema().names()))
    with replacing(path) as temporary:
        ordered.sink_parquet(temporary, compression="zstd", metadata=_VERSION, maintain_order=True)


def forget(path: Path, slugs: Sequence[str]) -> None:
    """Take the rows of these trials out of a table of metrics: a later attempt at one may carry the same number."""
    try:
        version = (pq.read_metadata(path).metadata or {}).get(b"metrics_version", b"").decode()
    except (OSError, pa.ArrowException):
        return  # there is none, or it is made anew by whoever reads it
    kept = pl.scan_parquet(path).filter(~pl.col("slug").is_in(slugs))
    with replacing(path) as temporary:
        kept.sink_parquet(temporary, compression="zstd", metadata={"metrics_version": version}, maintain_order=True)


def _agreeing(kept: pl.LazyFrame, fresh: pl.LazyFrame) -> list[pl.LazyFrame]:
    """Return two parts of a summary, an axis as text in both where they do not agree on its type."""
    first, second = kept.collect_schema(), fresh.collect_schema()
    words = {True: "True", False: "False"}
    texts = []
    for name in (name for name in first if name.startswith("cell.") and name in second):
        kinds = {kind for kind in (first[name], second[name]) if kind != pl.Null}
        if len(kinds) > 1 and not all(kind.is_numeric() for kind in kinds):
            texts.append(name)
    return [
        part.with_columns(
            pl.col(name).replace_strict(words, return_dtype=pl.String)
            if schema[name] == pl.Boolean
            else pl.col(name).cast(pl.String)
            for name in texts
        )
        for part, schema in ((kept, first), (fresh, second))
    ]


def summary_rows(trial: Trial, known: Sequence[Mapping[str, Any]] | None = None) -> Sequence[Mapping[str, Any]]:
    """Return the rows of `metrics.summarise`, or the `known` ones; see `tried`."""
    return tried(trial, lambda: known or summarise(trial.path), ({"phase": WHOLE},))


def tried(
    trial: Trial, rows: Callable[[], Sequence[Mapping[str, Any]]], blank: Iterable[Mapping[str, Any]]
) -> Sequence[Mapping[str, Any]]:
    """Return the rows of a trial; where one of its tables cannot be read, the `blank` ones, which say in `unreadable`
    what is wrong with it and leave everything else unknown."""
    try:
        for name in ("phases", "samples", "extents"):
            if path := trial.table(name):
                check_parquet(path)
        if path := trial.table("requests"):
            check(path)
        return rows()
    except AnalysisError as error:
        return [identity(trial) | {**row, "unreadable": str(error)} for row in blank]


def readable(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the rows without those that only say what is wrong: they must not be kept as if they were known."""
    return [row for row in rows if row.get("unreadable") is None]


def unreadable(*frames: pl.DataFrame) -> dict[str, str]:
    """Return what is wrong with the trials that cannot be read, by slug, as summary and profile tell."""
    told = [frame.select("slug", "unreadable").drop_nulls() for frame in frames if "unreadable" in frame.columns]
    return dict(row for frame in reversed(told) for row in frame.iter_rows())


def write_summary(run_dir: str | Path, sources: Mapping[Path, Collection[str]] | None = None) -> Path:
    """Compute `summary.parquet` of a run from all its published trials and return its path.

    `sources` are runs, each with the slugs of the trials that were copied from it: their rows are taken from there.
    """
    run = load_run(run_dir)
    path = run.path / "summary.parquet"
    known: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for source, slugs in (sources or {}).items():
        stored = stored_rows(source / "summary.parquet", _COLUMNS)
        known |= {key: rows for key, rows in stored.items() if key[0] in slugs}
    write_rows([row for t in run.published for row in summary_rows(t, known.get((t.slug, t.attempt)))], path)
    return path


def read_summary(run: Run) -> pl.DataFrame:
    """Return the summary of a run, in plan order; trials that its file lacks are computed, the file is not changed."""
    stored = stored_rows(run.path / "summary.parquet", _COLUMNS)
    rows: list[Mapping[str, Any]] = []
    for trial in run.published:
        rows.extend(summary_rows(trial, stored.get((trial.slug, trial.attempt))))
    frame = pl.from_arrow(summary_table(rows))
    assert isinstance(frame, pl.DataFrame)
    return frame


def stored_rows(path: Path, columns: Iterable[str]) -> dict[tuple[str, int], list[Mapping[str, Any]]]:
    """Return the rows of a table of metrics by trial and attempt; none where it is absent, broken or of old metrics."""
    if not _usable(path, columns):
        return {}
    found: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    try:
        for row in pq.read_table(path).to_pylist():
            found.setdefault((row["slug"], row["attempt"]), []).append(row)
    except (OSError, pa.ArrowException):
        return {}
    return found


def _usable(path: Path, columns: Iterable[str]) -> bool:
    """Say whether there is a table of metrics at `path`, of this version and with these columns at least."""
    try:
        told = pq.read_metadata(path)
    except (OSError, pa.ArrowException):
        return False
    version = (told.metadata or {}).get(b"metrics_version")
    return version == str(METRICS_VERSION).encode() and {*columns} <= {*told.schema.to_arrow_schema().names}


def axis_array(values: list[Any]) -> pa.Array:
    """Return an axis as a column: of the type that all its values have, else as text."""
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) > 1 and kinds != {int, float}:
        values = [_text(value) for value in values]
    return pa.array([float(value) for value in values] if kinds == {int, float} else values)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
