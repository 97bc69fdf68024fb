"""The tables of a run's trials as one, with the trial's id and cell on every row, unread until collected."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from analysis.errors import AnalysisError, nearest
from analysis.metrics import Phase, phases
from analysis.run import Run, Trial
from analysis.schema import OPERATIONS, PHASES, REQUESTS, SAMPLES
from analysis.selection import AXIS_PREFIX, Span, cell_text, inside, phases_like, spans_of, trials_where

SCHEMAS = {"requests": REQUESTS, "phases": PHASES, "samples": SAMPLES}
_ID = "trial"


def requests(
    run: Run,
    trial: str | Trial | None,
    op: str | Sequence[str] | None,
    phase: str | None,
    verdict: str | None,
    axes: Mapping[str, Any],
) -> pl.LazyFrame:
    """Return block requests; `phase` keeps those issued in it (see `Run.requests`)."""
    chosen = _with_table(_chosen(run, trial, verdict, axes), "requests")
    ops = None if op is None else _known("operation", op, OPERATIONS)
    spans = _phases_of(chosen, phase)

    def kept(one: Trial, frame: pl.LazyFrame) -> pl.LazyFrame:
        if ops is not None:
            frame = frame.filter(pl.col("op").cast(pl.String).is_in(ops))
        return frame if spans is None else frame.filter(_issued_in("issue_ns", spans_of(spans[one.slug])))

    return _joined(chosen, "requests", kept)


def phase_rows(
    run: Run, trial: str | Trial | None, phase: str | None, verdict: str | None, axes: Mapping[str, Any]
) -> pl.LazyFrame:
    """Return phases; `phase` keeps those that it describes (see `Run.phases`)."""
    chosen = _with_table(_chosen(run, trial, verdict, axes), "phases")
    told = _phases_of(chosen, phase)

    def kept(one: Trial, frame: pl.LazyFrame) -> pl.LazyFrame:
        if told is None:
            return frame
        keys = [(found.process, found.name, found.begin_ns) for found in told[one.slug]]
        columns = ("process", "name", "begin_ns")
        wanted = pl.LazyFrame(
            keys, schema=dict(zip(columns, (pl.String, pl.String, pl.Int64), strict=True)), orient="row"
        )
        return frame.join(wanted.unique(), on=columns, how="semi", maintain_order="left")

    return _joined(chosen, "phases", kept)


def samples(
    run: Run,
    trial: str | Trial | None,
    source: str | Sequence[str] | None,
    name: str | Sequence[str] | None,
    phase: str | None,
    verdict: str | None,
    axes: Mapping[str, Any],
) -> pl.LazyFrame:
    """Return samples; `phase` keeps those taken in it (see `Run.samples`)."""
    chosen = _with_table(_chosen(run, trial, verdict, axes), "samples")
    spans = _phases_of(chosen, phase)
    wanted = {
        column: _known(column, value, _values(chosen, column))
        for column, value in (("source", source), ("name", name))
        if value is not None
    }

    def kept(one: Trial, frame: pl.LazyFrame) -> pl.LazyFrame:
        for column, values in wanted.items():
            frame = frame.filter(pl.col(column).cast(pl.String).is_in(values))
        return frame if spans is None else frame.filter(_issued_in("t_ns", spans_of(spans[one.slug])))

    return _joined(chosen, "samples", kept)


def _chosen(run: Run, trial: str | Trial | None, verdict: str | None, axes: Mapping[str, Any]) -> list[Trial]:
    if trial is None:
        return trials_where(run, verdict, axes)
    if axes:
        raise AnalysisError(f"a trial by name is one already: leave out {', '.join(axes)}, or the name")
    return [run.trial(trial)]


def _with_table(chosen: list[Trial], name: str) -> list[Trial]:
    """Return the trials that have the table; warn of the others, and raise where none has it."""
    without = [trial for trial in chosen if trial.table(name) is None]
    if len(without) == len(chosen):
        told = chosen[0]
        others = f", nor have the {len(chosen) - 1} others" if len(chosen) > 1 else ""
        raise AnalysisError(f"trial {told.id} has no {name}.parquet (tracer: {told.tracer}){others}")
    if without:
        told_of = "; ".join(trial.id for trial in without)
        warnings.warn(f"left out, without {name}.parquet: {told_of}", stacklevel=4)
    return [trial for trial in chosen if trial.table(name) is not None]


def _known(what: str, asked: str | Sequence[str], valid: Iterable[str]) -> list[str]:
    names, known = [asked] if isinstance(asked, str) else list(asked), list(valid)
    for name in names:
        if name not in known:
            raise AnalysisError(f"no {what} is called {name!r}; {nearest(name, known)}")
    return names


def _values(chosen: Sequence[Trial], column: str) -> list[str]:
    scans = [pl.scan_parquet(trial.path / "samples.parquet").select(pl.col(column).cast(pl.String)) for trial in chosen]
    return pl.concat(scans).unique().sort(column).collect(engine="streaming")[column].to_list()


def _phases_of(chosen: Sequence[Trial], phase: str | None) -> dict[str, list[Phase]] | None:
    """Return by slug the phases that `phase` describes, none where a trial has no such; it is an error if none has."""
    if phase is None:
        return None
    told = {trial.slug: phases(trial.path) for trial in chosen}
    found = phases_like([one for own in told.values() for one in own], phase)
    return {slug: [one for one in own if any(one is other for other in found)] for slug, own in told.items()}


def _issued_in(column: str, spans: Sequence[Span]) -> pl.Expr:
    if not spans:
        return pl.lit(False)

    def within(times: pl.Series) -> pl.Series:
        return pl.Series(times.name, inside(times.fill_null(-1).to_numpy(), spans))

    return pl.col(column).map_batches(within, return_dtype=pl.Boolean, is_elementwise=True)


def _joined(chosen: Sequence[Trial], name: str, kept: Callable[[Trial, pl.LazyFrame], pl.LazyFrame]) -> pl.LazyFrame:
    labels = _labels(chosen, name)
    return pl.concat(
        [
            kept(trial, pl.scan_parquet(trial.path / f"{name}.parquet")).select(*own, pl.all())
            for trial, own in zip(chosen, labels, strict=True)
        ]
    )


def _labels(chosen: Sequence[Trial], name: str) -> list[list[pl.Expr]]:
    """Return each trial's own columns: its id, and each axis (`cell.<axis>` where that name is taken)."""
    axes = list(dict.fromkeys(axis for trial in chosen for axis in trial.cell))
    columns = {_ID: [trial.id for trial in chosen]}
    for axis in axes:
        column = f"{AXIS_PREFIX}{axis}" if axis in {_ID, *SCHEMAS[name].names} else axis
        columns[column] = _alike([trial.cell.get(axis) for trial in chosen])
    typed = {column: _dtype(values) for column, values in columns.items()}
    return [
        [pl.lit(values[place], dtype=typed[column]).alias(column) for column, values in columns.items()]
        for place in range(len(chosen))
    ]


def _alike(values: list[Any]) -> list[Any]:
    """Return an axis' values as they are where one type holds them all, else as text."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} or kinds in ({bool}, {str}):
        return values
    return [None if value is None else cell_text(value) for value in values]


def _dtype(values: Sequence[Any]) -> pl.DataType:
    known = [value for value in values if value is not None]
    if all(isinstance(value, str) for value in known):
        return pl.Enum(list(dict.fromkeys(known)))
    if all(isinstance(value, bool) for value in known):
        return pl.Boolean()
    return pl.Int64() if all(isinstance(value, int) for value in known) else pl.Float64()
