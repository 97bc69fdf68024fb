"""The cells of a run beside each other: bandwidth, tokens and GPU while generating, a row for each cell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import altair as alt
import polars as pl

from analysis.ceiling import percent
from analysis.errors import AnalysisError
from analysis.figures import theme
from analysis.figures.cells import label, left_out, varying
from analysis.metrics import GENERATION, WHOLE, phases
from analysis.run import Run, Trial
from analysis.samples import CPU, IOWAIT, utilisation
from analysis.summary import read_summary
from analysis.units import GIB, MIB, number_text

_ROW, _GAP = 26, 26
#: Below this a bandwidth is told in MiB/s.
_FEW = GIB / 10
#: Small numbers have long labels: some are left out rather than run into each other.
_AXIS = alt.Axis(tickCount=3, labelFlush=False, labelOverlap="greedy", labelSeparation=8)
#: Of a number at its bar: size, distance from the bar and, about, the width of a character, in pixels.
_FONT, _BESIDE, _CHARACTER = 11, 7, 6


@dataclass(frozen=True)
class _Column:
    """One measure of all trials: its name with unit, its colour, a value by slug (None: not measured).

    `shares` are those of the ceiling, where there is one.
    """

    title: str
    colour: str
    values: dict[str, float | None]
    shares: dict[str, float] = field(default_factory=dict)


def chart(run: Run, trials: Sequence[Trial], title: str) -> alt.TopLevelMixin | None:
    """Return the comparison of the valid ones of `trials`, None where they are of one cell or nothing was measured."""
    axes = varying(trials)
    valid = [trial for trial in trials if trial.state == "valid"]
    columns = [column for column in _columns(run, valid) if any(v is not None for v in column.values.values())]
    if not axes or not columns:
        return None
    names = {trial.slug: label(trial.cell, axes) for trial in trials}
    width = (theme.WIDTH - _GAP * (len(columns) - 1)) // len(columns)
    drawn = [_dots(column, names, width, first=column is columns[0]) for column in columns]
    lines = [line for line in (_repeats([names[trial.slug] for trial in valid]), left_out(run, trials)) if line]
    return theme.finished(alt.hconcat(*drawn, spacing=_GAP), f"{title}: by cell", lines)


def _repeats(cells: Sequence[str]) -> str:
    """Return what is shown of how many repeats; `cells` names the cell of each."""
    counts = sorted(Counter(cells).values())
    n = f"{counts[0]}" if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"
    spread = (
        f"bars: mean of n = {n} repeats; dots: each of them" if counts[-1] > 1 else "one repeat (n = 1), so no spread"
    )
    return f"From the first prefill to the end of the last decode step; {spread}."


def _columns(run: Run, trials: Sequence[Trial]) -> list[_Column]:
    whole = {row["slug"]: row for row in read_summary(run).filter(pl.col("phase") == WHOLE).to_dicts()}
    columns = []
    for op, colour in theme.OPERATIONS.items():
        speed = {trial.slug: _speed(whole[trial.slug], op) for trial in trials}
        unit, factor = ("MiB/s", MIB) if max([v or 0 for v in speed.values()], default=0) < _FEW else ("GiB/s", GIB)
        scaled = {slug: None if value is None else value / factor for slug, value in speed.items()}
        told = {trial.slug: whole[trial.slug][f"generation_{op}_ceiling_share"] for trial in trials}
        shares = {slug: share for slug, share in told.items() if share is not None}
        title = f"{op.capitalize()} ({unit}{', % of ceiling' if shares else ''})"
        columns.append(_Column(title, colour, scaled, shares))
    tokens = {trial.slug: whole[trial.slug].get("metric.tokens_per_s") for trial in trials}
    columns.append(_Column("Generated (tokens/s)", theme.GREEN, tokens))
    columns.append(_Column("GPU utilisation (%)", theme.BLACK, {trial.slug: _gpu(trial) for trial in trials}))
    return columns


def _speed(row: dict[str, Any], op: str) -> float | None:
    """Return bytes per second while generating."""
    moved, seconds = row[f"generation_{op}_bytes"], row["generation_s"]
    return moved / seconds if moved is not None and seconds else None


def _gpu(trial: Trial) -> float | None:
    """Return the mean utilisation of the GPUs while generating, in %."""
    try:
        steps = [phase for phase in phases(trial.path) if phase.name in GENERATION and phase.end_ns is not None]
        told = utilisation(trial.path).filter(~pl.col("source").is_in((CPU, IOWAIT)))
    except AnalysisError:
        return None
    if not steps:
        return None
    begin, end = min(step.begin_ns for step in steps), max(step.end_ns or 0 for step in steps)
    mean = told.filter(pl.col("t_ns").is_between(begin, end))["percent"].mean()
    return None if mean is None else float(mean)  # type: ignore[arg-type]


def _dots(column: _Column, names: dict[str, str], width: int, first: bool) -> alt.LayerChart:
    rows = list(dict.fromkeys(names.values()))
    single: list[dict[str, Any]] = [
        {"cell": names[slug], "value": value} for slug, value in column.values.items() if value is not None
    ]
    means: list[dict[str, Any]] = []
    for row in rows:
        if own := [float(one["value"]) for one in single if one["cell"] == row]:
            mean = sum(own) / len(own)
            reached = [share for slug, share in column.shares.items() if names[slug] == row]
            of_ceiling = f" ({percent(sum(reached) / len(reached))})" if len(reached) == len(own) else ""
            means.append({"cell": row, "mean": mean, "text": number_text(mean) + of_ceiling, "end": max(own)})
    top = max(one["end"] * width / max(width - _BESIDE - _CHARACTER * len(one["text"]), width / 4) for one in means)
    scale = alt.Scale(domain=[0, top or 1.0], nice=False)
    axis = alt.Axis(labelLimit=300, ticks=False, domain=False) if first else None
    y = alt.Y("cell:N", title=None, sort=rows, scale=alt.Scale(domain=rows), axis=axis)
    x = alt.X("mean:Q", title=column.title, scale=scale, axis=_AXIS)
    base = alt.Chart(alt.InlineData(values=means)).encode(y=y)
    dots = alt.Chart(alt.InlineData(values=single)).encode(x=alt.X("value:Q", scale=scale), y=y)
    layers = [
        base.mark_bar(height=12, opacity=0.35, color=column.colour).encode(x=x),
        dots.mark_point(filled=True, size=26, opacity=0.9, color=column.colour),
        base.mark_text(align="left", dx=_BESIDE, fontSize=_FONT).encode(x=alt.X("end:Q", scale=scale), text="text:N"),
    ]
    return alt.LayerChart(layer=layers).properties(width=width, height=_ROW * len(rows))
