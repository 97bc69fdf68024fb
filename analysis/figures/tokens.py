"""What one token costs: time of each decode step and the bytes read and written in it, cells beside each other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import altair as alt
import polars as pl

from analysis.errors import CannotDraw
from analysis.figures import theme
from analysis.figures.cells import label, left_out, repeats_text, varying
from analysis.figures.panel import Panel, Tried, ruled_out
from analysis.figures.table import table
from analysis.run import Run, Trial
from analysis.steps import steps
from analysis.units import GIB, KIB, MIB, UNKNOWN, bytes_text, duration_text

NAME = "tokens"
TITLE = "Time and I/O of each token"

#: More steps than this are drawn in bins of steps.
MOST_POINTS = 240
#: Cells in one chart; colours beyond could not be told apart.
MOST_CELLS = len(theme.CELLS)
_HEIGHT = 110
_PARTS = {"duration_s": "Step time", "read_bytes": "Read per step", "write_bytes": "Written per step"}
_HEAD = (
    "Cell",
    "n",
    "prefill",
    "read in prefill",
    "written",
    "steps",
    "step p50",
    "p99",
    "slowest",
    "read/step",
    "written/step",
)


def charts(run: Run) -> Iterator[Panel]:
    """Yield panels of up to seven cells each; all share their axes, so they compare at sight."""
    found = Tried(run.published, lambda trial: steps(trial.path))
    own = [trial for trial in run.published if found.has(trial) and not _decode(found.of(trial)).is_empty()]
    try:
        told = _labelled(run, own, found)
    except CannotDraw as error:
        yield ruled_out(NAME, TITLE, str(error))
        return
    cells = told["cell"].unique(maintain_order=True).to_list()
    groups = [cells[place : place + MOST_CELLS] for place in range(0, len(cells), MOST_CELLS)]
    for place, group in enumerate(groups, 1):
        name = NAME if place == 1 else f"{NAME}-{place}"
        yield Panel(name, TITLE, _chart(run, own, told, group))


def binned(told: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Return mean, least and greatest of each part by `cell` and bin of steps (`step` is its first), and its width."""
    decode = _decode(told)
    first, last = int(decode["step"].min()), int(decode["step"].max())  # type: ignore[arg-type]
    width = _round_up((last - first + 1) / MOST_POINTS)
    place = (pl.col("step") - first) // width * width + first
    parts = [getattr(pl.col(name), how)().alias(f"{name}_{how}") for name in _PARTS for how in ("mean", "min", "max")]
    grouped = decode.group_by("cell", place.alias("step"), maintain_order=True).agg(parts)
    return grouped.sort("step", maintain_order=True), width


def _decode(told: pl.DataFrame) -> pl.DataFrame:
    return told.filter(pl.col("phase") == "decode")


def _labelled(run: Run, own: Sequence[Trial], found: Tried[pl.DataFrame]) -> pl.DataFrame:
    """Return the steps of the valid trials with their cell in words and their trial."""
    valid = [trial for trial in own if trial.state == "valid"]
    if not valid:
        nothing = "no trial of this run has decode steps" if run.published else "no trial has finished"
        raise CannotDraw(f"none of the {len(own)} trials with decode steps is valid" if own else nothing)
    axes, parts = varying(own), []
    for trial in valid:
        one = found.of(trial)
        name = pl.lit(label(trial.cell, axes))
        if one["process"].n_unique() > 1:
            name = name + pl.lit(", ") + pl.col("process")
        parts.append(one.with_columns(name.alias("cell"), pl.lit(trial.slug).alias("slug")))
    return pl.concat(parts)


def _chart(run: Run, own: Sequence[Trial], told: pl.DataFrame, cells: Sequence[str]) -> alt.TopLevelMixin:
    points, width = binned(told)
    drawn = [name for name in _PARTS if points[f"{name}_mean"].is_not_null().any()]
    colours = alt.Scale(domain=list(cells), range=list(theme.CELLS[: len(cells)]))
    shown = points.filter(pl.col("cell").is_in(cells))
    parts: list[theme.View] = [
        _lines(points, shown, name, colours, name == drawn[-1], name == drawn[0]) for name in drawn
    ]
    if "read_bytes" not in drawn:
        parts.append(theme.gap("bytes per step are not known: no single requests were traced"))
    parts.append(table(_HEAD, [_row(told.filter(pl.col("cell") == cell), cell) for cell in cells]))
    return theme.finished(theme.stack(parts), TITLE, _described(run, own, told, width))


def _lines(
    points: pl.DataFrame, shown: pl.DataFrame, name: str, colours: alt.Scale, labelled: bool, first: bool
) -> alt.LayerChart:
    """Return the mean of one part over the steps, in a band from its least to its greatest value."""
    top = float(points[f"{name}_max"].max() or 0.0)  # type: ignore[arg-type]
    unit, factor = _unit(name, top)
    values = shown.select(
        "cell", "step", *((pl.col(f"{name}_{how}") / factor).round(4).alias(how) for how in ("mean", "min", "max"))
    ).drop_nulls()
    steps_axis = alt.Axis(title="Decode step" if labelled else None, labels=labelled, tickMinStep=1, format=",d")
    span = [int(points["step"].min()), int(points["step"].max())]  # type: ignore[arg-type]
    edge = max((span[1] - span[0]) / 80, 0.1)  # room for the marks of the first and the last step
    x = alt.X("step:Q", scale=alt.Scale(domain=[span[0] - edge, span[1] + edge], nice=False), axis=steps_axis)
    scale = alt.Scale(domain=[0, 1.08 * top / factor or 1.0], nice=False)
    y = alt.Y("mean:Q", title=f"{_PARTS[name]} ({unit})", scale=scale, axis=alt.Axis(tickCount=4))
    legend = alt.Legend(symbolType="stroke", symbolStrokeWidth=3, symbolSize=260, columns=4) if first else None
    colour = alt.Color("cell:N", title=None, scale=colours, legend=legend)
    # what lies beneath another line shows through its gaps
    dashes = alt.Scale(domain=colours.domain, range=theme.DASHES)
    dash = alt.StrokeDash("cell:N", scale=dashes, legend=None)
    base = alt.Chart(alt.InlineData(values=values.to_dicts())).encode(x=x, color=colour)
    few = values["step"].n_unique() <= 48
    band = base.mark_area(opacity=0.15, line=False, clip=True).encode(y=alt.Y("min:Q", scale=scale), y2="max:Q")
    line = base.mark_line(strokeWidth=1.6, clip=True, point=alt.OverlayMarkDef(size=22) if few else False)
    return alt.LayerChart(layer=[band, line.encode(y=y, strokeDash=dash, tooltip=_tooltip(unit))]).properties(
        width=theme.WIDTH, height=_HEIGHT
    )


def _unit(name: str, top: float) -> tuple[str, float]:
    if name == "duration_s":
        return ("s", 1.0) if top >= 1 else ("ms", 1e-3)
    return ("GiB", GIB) if top >= GIB else ("MiB", MIB) if top >= MIB else ("KiB", KIB)


def _row(own: pl.DataFrame, cell: str) -> tuple[str, ...]:
    """Return the numbers of one cell: means over the repeats; the time of a step over all steps of all repeats."""
    prefill, decode = own.filter(pl.col("phase") == "prefill"), _decode(own)
    n, times = own["slug"].n_unique(), decode["duration_s"]
    slowest = decode.sort("duration_s").tail(1)
    return (
        cell,
        f"{n}",
        duration_text(_mean(prefill["duration_s"])) if prefill.height else "none",
        *(_bytes(prefill[name]) if prefill.height else "none" for name in ("read_bytes", "write_bytes")),
        f"{decode.height / n:,.0f}",
        duration_text(_rank(times, 0.5)),
        duration_text(_rank(times, 0.99)),
        f"{duration_text(slowest['duration_s'].item())} (step {slowest['step'].item()})",
        *(_bytes(decode[name]) for name in ("read_bytes", "write_bytes")),
    )


def _mean(values: pl.Series) -> float | None:
    return None if values.null_count() == values.len() else float(values.mean())  # type: ignore[arg-type]


def _bytes(values: pl.Series) -> str:
    mean = _mean(values)
    return UNKNOWN if mean is None else bytes_text(mean)


def _rank(values: pl.Series, share: float) -> float:
    """Return the nearest-rank percentile: the least value that `share` of all do not exceed."""
    return float(values.sort()[max(math.ceil(share * values.len()), 1) - 1])


def _described(run: Run, own: Sequence[Trial], told: pl.DataFrame, width: int) -> list[str]:
    counts = told.group_by("cell", maintain_order=True).agg(pl.col("slug").n_unique())["slug"].to_list()
    band = f"; band: least to greatest{' step of the bin' if width > 1 else ''}" if width > 1 or max(counts) > 1 else ""
    bins = f" in bins of {width} steps" if width > 1 else ""
    few = (
        "; of fewer than 100 steps p99 is the slowest"
        if min(_decode(told)["slug"].value_counts()["count"]) < 100
        else ""
    )
    shown = "one repeat (n = 1)" if max(counts) == 1 else f"mean of {repeats_text(counts)}"
    lines = [
        f"A decode step makes one token of every sequence in the batch. Lines: {shown}{bins}{band}.",
        "A request belongs to the step in which it was issued; the page cache may write what a step stored in a later "
        f"one. Percentiles are of all steps of a cell (nearest rank){few}.",
    ]
    return [line for line in (*lines, left_out(run, own)) if line]


def _round_up(least: float) -> int:
    """Return the least of 1, 2, 5, 10, 20, ... that is not below `least`."""
    power = 1
    while True:
        for factor in (1, 2, 5):
            if factor * power >= least:
                return factor * power
        power *= 10


def _tooltip(unit: str) -> list[alt.Tooltip]:
    return [
        alt.Tooltip("cell:N", title="Cell"),
        alt.Tooltip("step:Q", title="Step", format=","),
        alt.Tooltip("mean:Q", title=f"Mean ({unit})", format=",.3f"),
        alt.Tooltip("min:Q", title=f"Least ({unit})", format=",.3f"),
        alt.Tooltip("max:Q", title=f"Greatest ({unit})", format=",.3f"),
    ]
