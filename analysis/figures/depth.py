"""How many requests were in flight: over time above the phases, and for how much of the time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import altair as alt
import numpy as np
import polars as pl

from analysis.attribution import DATA
from analysis.depth import ALL, Depths, DepthTime, queue_depth
from analysis.figures import theme
from analysis.figures.panel import Panel, Tried, per_trial
from analysis.figures.timeline import Timeline, stacked, timelines
from analysis.run import Run, Trial
from analysis.units import NS_PER_S, duration_text, nanoseconds_text, number_text, share_text

NAME = "depth"
TITLE = "Queue depth"

_HEIGHT, _SHARES_HEIGHT = 190, 130
_MOST = "most at once"
_LABELS = {"read": "reads, mean", "write": "writes, mean"}


def charts(run: Run) -> Iterator[Panel]:
    """Yield one panel per trial; all share the bin width and the axes, so they compare at sight."""
    lines = timelines(run.published)
    depths = Tried(run.published, lambda trial: queue_depth(trial.path, lines.of(trial).bin_ns))
    top = max((one.distribution[ALL].maximum() or 0 for one in depths.all()), default=0)

    def draw(trial: Trial) -> alt.TopLevelMixin:
        line, found = lines.of(trial), depths.of(trial)
        parts = stacked(line, lambda labelled: over_time(line, found, top, labelled))
        shares = distribution(found.distribution[ALL], top).properties(title=theme.section("Share of the time"))
        title = theme.named(TITLE, trial)
        return theme.finished(theme.stack([*parts, shares]), title, _described(found), theme.alarm(trial))

    yield from per_trial(run.published, NAME, TITLE, draw)


def over_time(line: Timeline, found: Depths, top: int, labelled: bool) -> alt.LayerChart:
    """Return the mean depth in each bin, writes on top of reads, and the greatest of both together; `top` ends the
    axis."""
    names = [*_LABELS.values(), _MOST]
    colours = [*(theme.OPERATIONS[op] for op in DATA), theme.RULE]
    legend = alt.Legend(symbolType="stroke", symbolStrokeWidth=3, symbolSize=260)
    colour = alt.Color("line:N", title=None, scale=alt.Scale(domain=names, range=colours), legend=legend, sort=names)
    scale = alt.Scale(domain=[0, top * 1.04 or 1.0], nice=False)
    y = alt.Y("depth:Q", title="Requests in flight", scale=scale, axis=alt.Axis(tickCount=5, tickMinStep=1))
    base = alt.Chart(alt.InlineData(values=_values(found))).encode(x=line.x(labelled), color=colour)
    means = base.transform_fold(list(_LABELS.values()), as_=["line", "depth"])
    stacked_means = means.transform_calculate(place=f"indexof({names}, datum.line)").mark_area(
        interpolate="step-after", clip=True, line=False, opacity=0.9
    )
    most = base.transform_fold([_MOST], as_=["line", "depth"]).mark_line(
        interpolate="step-after", strokeWidth=1, clip=True
    )
    tooltip = [alt.Tooltip("begin_s:Q", title="Bin begins (s)", format=".3f")]
    tooltip += [alt.Tooltip(f"{name}:Q", title=name.capitalize(), format=",.2~f") for name in names]
    layers = [
        most.encode(y=alt.Y("depth:Q", stack=None)),
        stacked_means.encode(y=y.stack("zero"), order=alt.Order("place:Q", sort="ascending"), tooltip=tooltip),
    ]
    return alt.LayerChart(layer=layers).properties(width=theme.WIDTH, height=_HEIGHT)


def distribution(spread: DepthTime, top: int) -> alt.LayerChart:
    """Return bars of the share of the time with so many requests in flight, by powers of two up to `top`."""
    edges = [0, 1, *(2**power + 1 for power in range(top.bit_length() + 1) if 2**power < max(top, 1)), max(top, 1) + 1]
    edges = sorted({*edges})
    total = spread.total_ns or 1
    held = np.concatenate((spread.time_ns, np.zeros(edges[-1], np.int64)))
    values = [_bar(first, last, int(held[first:last].sum()) / total) for first, last in pairwise(edges)]
    names = [value["depth"] for value in values]
    x = alt.X("depth:N", title="Requests in flight", sort=names, axis=alt.Axis(labelAngle=0, grid=False))
    y = alt.Y("percent:Q", title="Time (%)", scale=alt.Scale(domain=[0, 112], nice=False))
    tooltip = [alt.Tooltip("depth:N", title="In flight"), alt.Tooltip("percent:Q", title="Time (%)", format=".3f")]
    base = alt.Chart(alt.InlineData(values=values)).encode(
        x=x, y=y.axis(alt.Axis(values=[0, 25, 50, 75, 100])), tooltip=tooltip
    )
    layers = [
        base.mark_bar(color=theme.FAINT_INK),
        base.mark_text(dy=-7, fontSize=11, color=theme.INK).encode(text="label:N"),
    ]
    return alt.LayerChart(layer=layers).properties(width=theme.WIDTH, height=_SHARES_HEIGHT)


def _bar(first: int, last: int, share: float) -> dict[str, Any]:
    name = f"{first:,}" if last == first + 1 else f"{first:,}\u2013{last - 1:,}"
    return {"depth": name, "percent": round(share * 100, 4), "label": share_text(share)}


def _values(found: Depths) -> list[dict[str, float]]:
    """Return one row per bin, and one where the last bin ends, which is where its step does."""
    means = found.over_time.pivot(on="op", index="begin_s", values="mean")
    most = found.over_time.filter(pl.col("op") == ALL).select("begin_s", pl.col("max").alias(_MOST))
    wide = means.select("begin_s", *(pl.col(op).round(3).alias(name) for op, name in _LABELS.items())).join(
        most, on="begin_s"
    )
    closing = wide.tail(1).with_columns(pl.lit((found.end_ns - found.begin_ns) / NS_PER_S).alias("begin_s"))
    return pl.concat([wide, closing]).with_columns(pl.col("begin_s").round(6)).to_dicts()


def _described(found: Depths) -> list[str]:
    """Return what the distribution says, in sentences."""
    spread = found.distribution[ALL]
    told = f"Requests issued and not completed, reads and writes; bins of {nanoseconds_text(found.bin_ns)}."
    busy = spread.busy_share()
    if not busy:
        return [told, "None was in flight at any time."]
    total_s = (found.end_ns - found.begin_ns) / NS_PER_S
    within = f"; {number_text((spread.mean() or 0.0) / busy)} while there was any" if busy < 1 else ""
    most = f"99 % of the time at most {spread.percentile(0.99):,}; never more than {spread.maximum():,}"
    mean = f"Mean over time {number_text(spread.mean() or 0.0)}{within}"
    return [told, f"{mean}; {most}. Busy {share_text(busy)} of {duration_text(total_s)}."]
