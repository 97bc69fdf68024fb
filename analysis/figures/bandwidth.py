"""Read and write bandwidth over time, one chart per trial, under a strip of the trial's phases."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import altair as alt
import polars as pl

from analysis import metrics
from analysis.errors import AnalysisError
from analysis.figures import theme
from analysis.figures.panel import Panel, per_trial
from analysis.figures.spans import merged, strip_rows
from analysis.run import Run, Trial
from analysis.trace import time_column
from analysis.units import NS_PER_S, bytes_text, count_text, nanoseconds_text

NAME = "bandwidth"
TITLE = "Bandwidth over time"

_HEIGHT, _STRIP_ROW = 210, 15
#: Below this the axis counts MiB/s.
_FEW_GIB_S = 0.1


def applies(run: Run) -> bool:
    """Return whether any trial has requests to draw."""
    return any(trial.table("requests") is not None for trial in run.published)


def charts(run: Run) -> Iterator[Panel]:
    """Yield one panel per trial; all share the bin width and the bandwidth axis, so they compare at sight."""
    width, top = _common(run)
    yield from per_trial(run, NAME, TITLE, lambda trial: chart(trial, width, top))


def chart(trial: Trial, bin_ns: int | None = None, top_gib_s: float | None = None) -> alt.TopLevelMixin:
    """Return the chart of one trial; `top_gib_s` is the end of the bandwidth axis, by default the trial's own."""
    begin, end = metrics.extent(trial.path)
    width = bin_ns or metrics.round_bin(end - begin)
    moved = metrics.bandwidth_over_time(trial.path, width)
    seconds = max((end - begin) / NS_PER_S, 1e-9)
    spans = merged(strip_rows(metrics.phases(trial.path)), begin, end)
    lines = _lines(moved, seconds, width / NS_PER_S, top_gib_s or _top(moved), labelled=not spans)
    parts = [lines, _strip(spans, seconds)] if spans else [lines]
    stacked = alt.vconcat(*parts, spacing=4).resolve_scale(color="independent")
    return theme.finished(stacked, theme.named(TITLE, trial), _subtitle(trial, moved, width), theme.alarm(trial))


def _common(run: Run) -> tuple[int | None, float | None]:
    """Return the bin width (ns) and top bandwidth (GiB/s) that fit every drawable trial of the run."""
    extents = {}
    for trial in run.published:
        try:
            extents[trial.slug] = metrics.extent(trial.path)
        except AnalysisError:
            continue  # its own panel says why
    if not extents:
        return None, None
    width = metrics.round_bin(max(end - begin for begin, end in extents.values()))
    tops = [0.0]
    for trial in run.published:
        try:
            tops.append(_top(metrics.bandwidth_over_time(trial.path, width)))
        except AnalysisError:
            continue
    return width, max(tops) or None


def _top(moved: pl.DataFrame) -> float:
    return float(moved["gib_s"].max() or 0.0)  # type: ignore[arg-type]


def _time(seconds: float, labelled: bool) -> alt.X:
    scale = alt.Scale(domain=[0, seconds], nice=False, zero=False)
    title = "Time since the traced window began (s)" if labelled else None
    axis = alt.Axis(title=title, labels=labelled, ticks=labelled, domain=labelled, grid=True, tickCount=10)
    return alt.X("begin_s:Q", scale=scale, axis=axis)


def _lines(moved: pl.DataFrame, seconds: float, width_s: float, top: float, labelled: bool) -> alt.LayerChart:
    unit, factor = ("MiB/s", 1024) if top < _FEW_GIB_S else ("GiB/s", 1)
    wide = moved.pivot(on="op", index="begin_s", values="gib_s")
    wide = wide.with_columns((pl.col("read", "write") * factor).round(4))
    closing = wide.tail(1).with_columns(pl.col("begin_s") + width_s)  # a step ends where the next one begins
    names = list(theme.OPERATIONS)
    scale = alt.Scale(domain=[0, top * factor or 1.0], nice=True)
    base = alt.Chart(alt.InlineData(values=pl.concat([wide, closing]).to_dicts())).encode(x=_time(seconds, labelled))
    colour = alt.Color(
        "op:N",
        title=None,
        scale=alt.Scale(domain=names, range=list(theme.OPERATIONS.values())),
        legend=alt.Legend(symbolType="stroke", symbolStrokeWidth=3, symbolSize=260),
    )
    flat = alt.Y("bandwidth:Q", stack=None)
    y = alt.Y("bandwidth:Q", title=f"Bandwidth ({unit})", scale=scale, axis=alt.Axis(tickCount=5))
    folded = base.transform_fold(list(theme.OPERATIONS), as_=["op", "bandwidth"])
    area = folded.mark_area(interpolate="step-after", opacity=0.18, line=False, clip=True).encode(y=flat)
    line = folded.mark_line(interpolate="step-after", strokeWidth=1.3, strokeJoin="round", clip=True)
    hover = alt.selection_point(nearest=True, on="pointermove", fields=["begin_s"], empty=False, clear="pointerout")
    rule = (
        base.mark_rule(color=theme.RULE)
        .encode(
            opacity=alt.condition(hover, alt.value(0.8), alt.value(0)),
            tooltip=[
                alt.Tooltip("begin_s:Q", title="Bin begins (s)", format=".3f"),
                alt.Tooltip("read:Q", title=f"Read ({unit})", format=".3f"),
                alt.Tooltip("write:Q", title=f"Write ({unit})", format=".3f"),
            ],
        )
        .add_params(hover)
    )
    layers = alt.LayerChart(layer=[area.encode(color=colour), line.encode(color=colour, y=y), rule])
    return layers.properties(width=theme.WIDTH, height=_HEIGHT)


def _strip(spans: list[dict[str, Any]], seconds: float) -> alt.Chart:
    rows = list(dict.fromkeys(span["row"] for span in spans))
    names = list(dict.fromkeys(span["phase"] for span in spans))
    labels = alt.Axis(title=None, domain=False, ticks=False, labelFontSize=10.5, labelLimit=150, grid=False)
    tooltip = [
        alt.Tooltip("row:N", title="Phase"),
        alt.Tooltip("attributes:N", title="Attributes"),
        alt.Tooltip("begin_s:Q", title="Begins (s)", format=".3f"),
        alt.Tooltip("end_s:Q", title="Ends (s)", format=".3f"),
        alt.Tooltip("moved:N", title="Bytes of the phase"),
        alt.Tooltip("count:Q", title="Phases"),
    ]
    colour = alt.Color("phase:N", scale=alt.Scale(domain=names, range=theme.phase_colours(names)), legend=None)
    y = alt.Y("row:N", sort=rows, axis=labels)
    bars = alt.Chart(alt.InlineData(values=spans)).mark_bar(height=_STRIP_ROW - 5, minBandSize=1)
    placed: alt.Chart = bars.encode(x=_time(seconds, True), x2="end_s:Q", y=y, color=colour, tooltip=tooltip)
    return placed.properties(width=theme.WIDTH, height=_STRIP_ROW * len(rows), view=alt.ViewConfig(stroke=None))


def _subtitle(trial: Trial, moved: pl.DataFrame, width: int) -> list[str]:
    path = metrics.requests_path(trial.path)
    when = "completed" if time_column(path) == "complete_ns" else "issued (completion was not recorded)"
    totals = {row["op"]: row["bytes"] for row in moved.group_by("op").agg(pl.col("bytes").sum()).to_dicts()}
    device = trial.section("device")
    place = f"device {device.get('name') or 'unknown'}"
    lost = trial.section("tracer").get("lost")
    loss = "lost events unknown" if lost is None else f"{count_text(lost, 'event')} lost"
    return [
        f"Bytes {when} in bins of {nanoseconds_text(width)}: {bytes_text(totals.get('read', 0))} read, "
        f"{bytes_text(totals.get('write', 0))} written; {place}, tracer {trial.tracer}, {loss}."
    ]
