"""Read and write bandwidth over time, one chart per trial, above a strip of the trial's phases."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import altair as alt
import polars as pl

from analysis import metrics
from analysis.ceiling import ceiling_of
from analysis.errors import CannotDraw
from analysis.figures import rules, theme
from analysis.figures.panel import Panel, per_trial
from analysis.figures.timeline import Timeline, stacked, timelines
from analysis.run import Run, Trial
from analysis.trace import time_column
from analysis.units import NS_PER_S, bytes_text, count_text, nanoseconds_text, sentence

NAME = "bandwidth"
TITLE = "Bandwidth over time"

_HEIGHT, _ALONE_HEIGHT = 210, 100
#: Below this the axis counts MiB/s.
_FEW_GIB_S = 0.1
_MIB_S, _GIB_S = ("MiB/s", 1024), ("GiB/s", 1)


def charts(run: Run) -> Iterator[Panel]:
    """Yield one panel per trial; all share the bin width and the bandwidth axis, so they compare at sight."""
    lines = timelines(run.published)
    yield from per_trial(run.published, NAME, TITLE, lambda trial: chart(lines.of(trial)))


def chart(line: Timeline) -> alt.TopLevelMixin:
    """Return the chart of one trial."""
    line.moved  # noqa: B018 - without it this figure has nothing to show
    parts = stacked(line, lambda labelled: both(line, labelled))
    return theme.finished(
        theme.stack(parts), theme.named(TITLE, line.trial), [described(line)], theme.alarm(line.trial)
    )


def both(line: Timeline, labelled: bool) -> alt.LayerChart:
    """Return the lines of reads and writes on one scale."""
    top = max(line.top.values())
    unit = _MIB_S if top < _FEW_GIB_S else _GIB_S
    return _lines(line, list(theme.OPERATIONS), top, unit, labelled).properties(height=_HEIGHT)


def writes_alone(line: Timeline, labelled: bool) -> alt.LayerChart:
    """Return the line of the writes on a scale of their own, in MiB/s: they vanish beside the reads."""
    return _lines(line, ["write"], line.top["write"], _MIB_S, labelled).properties(height=_ALONE_HEIGHT)


def described(line: Timeline) -> str:
    """Return what was counted, where and by what, and the ceiling, in a few sentences."""
    try:
        when = _counted_when(line.trial)
    except CannotDraw as error:
        return f"{sentence(str(error))}."
    totals = {row["op"]: row["bytes"] for row in line.moved.group_by("op").agg(pl.col("bytes").sum()).to_dicts()}
    place = f"device {line.trial.section('device').get('name') or 'unknown'}"
    return (
        f"Bytes {when} in bins of {nanoseconds_text(line.bin_ns)}: {bytes_text(totals.get('read', 0))} read, "
        f"{bytes_text(totals.get('write', 0))} written; {place}, tracer {line.trial.tracer}{_loss(line.trial)}. "
        + rules.described(ceiling_of(line.trial), max(line.top.values()))
    ).rstrip()


def _counted_when(trial: Trial) -> str:
    """Return at which moment a byte counts, or how often the device's counters were read."""
    if trial.tracer == metrics.COUNTERS:
        interval_ns = int(trial.section("tracer").get("interval_ms") or 0) * 1_000_000
        return f"that the device counted, read every {nanoseconds_text(interval_ns)},"
    path = metrics.requests_path(trial.path)
    return "completed" if time_column(path) == "complete_ns" else "issued (completion was not recorded)"


def _loss(trial: Trial) -> str:
    """Return in words what the tracer lost, nothing where there are no events to lose."""
    if trial.tracer == metrics.COUNTERS:
        return ""
    lost = trial.section("tracer").get("lost")
    return ", lost events unknown" if lost is None else f", {count_text(lost, 'event')} lost"


def _lines(
    line: Timeline, operations: Sequence[str], top: float, unit: tuple[str, int], labelled: bool
) -> alt.LayerChart:
    name, factor = unit
    alone = operations[0].capitalize() if len(operations) == 1 else "Bandwidth"
    ceilings = [ceiling.gib_s[op] for ceiling in line.ceilings for op in operations]
    scale = alt.Scale(domain=[0, rules.top(top, ceilings) * factor or 1.0], nice=True)
    dashed = rules.layers(rules.shown(top, ceiling_of(line.trial), operations), factor, scale)
    values = _values(line, operations, factor)
    base = alt.Chart(alt.InlineData(values=values)).encode(x=line.x(labelled))
    colours = [theme.OPERATIONS[op] for op in operations]
    legend = alt.Legend(symbolType="stroke", symbolStrokeWidth=3, symbolSize=260) if len(operations) > 1 else None
    colour = alt.Color("op:N", title=None, scale=alt.Scale(domain=operations, range=colours), legend=legend)
    flat = alt.Y("bandwidth:Q", stack=None)
    y = alt.Y("bandwidth:Q", title=f"{alone} ({name})", scale=scale, axis=alt.Axis(tickCount=5 if legend else 3))
    folded = base.transform_fold(list(operations), as_=["op", "bandwidth"])
    area = folded.mark_area(interpolate="step-after", opacity=0.18, line=False, clip=True).encode(y=flat)
    drawn = folded.mark_line(interpolate="step-after", strokeWidth=1.3, strokeJoin="round", clip=True)
    hover = alt.selection_point(
        f"hover_{alone}", nearest=True, on="pointermove", fields=["begin_s"], empty=False, clear="pointerout"
    )
    told = [alt.Tooltip(f"{op}:Q", title=f"{op.capitalize()} ({name})", format=".3f") for op in operations]
    rule = (
        base.mark_rule(color=theme.RULE, aria=False)
        .encode(
            opacity=alt.condition(hover, alt.value(0.8), alt.value(0)),
            tooltip=[alt.Tooltip("begin_s:Q", title="Bin begins (s)", format=".3f"), *told],
        )
        .add_params(hover)
    )
    layers = alt.LayerChart(layer=[area.encode(color=colour), drawn.encode(color=colour, y=y), *dashed, rule])
    return layers.properties(width=theme.WIDTH)


def _values(line: Timeline, operations: Sequence[str], factor: int) -> list[dict[str, float]]:
    """Return one row per bin, and one where the last bin ends, or the axis before it: there its step ends."""
    wide = line.moved.pivot(on="op", index="begin_s", values="gib_s")
    wide = wide.select("begin_s", (pl.col(*operations) * factor).round(4))
    end = (pl.col("begin_s") + line.bin_ns / NS_PER_S).clip(upper_bound=line.seconds)
    closing = wide.tail(1).with_columns(end.alias("begin_s"))
    return pl.concat([wide, closing]).with_columns(pl.col("begin_s").round(6)).to_dicts()
