"""What charts of a trial over time share: the axis, the width of the bins, the strip of the trial's phases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import polars as pl

from analysis import metrics
from analysis.attribution import DATA
from analysis.ceiling import Ceiling, ceiling_of
from analysis.errors import AnalysisError, CannotDraw
from analysis.figures import theme
from analysis.figures.panel import Tried
from analysis.figures.spans import merged, strip_rows
from analysis.run import Trial
from analysis.units import NS_PER_S

#: A part of a stack: draws a chart, with the labels of the time axis or without.
Part = Callable[[bool], theme.View]

_STRIP_ROW = 15
#: Trials whose durations differ by more than this factor have time axes of their own: the shorter would be a smear.
_COMPARABLE = 3


@dataclass(frozen=True)
class Timeline:
    """The bandwidth of one trial over time, and the axes on which it compares with the trials drawn beside it.

    `seconds` is where the time axis ends, `top` the most that any of them moved, by operation, in GiB/s, and `ceilings`
    what fio reached on the storage of each.
    """

    trial: Trial
    begin_ns: int
    end_ns: int
    bin_ns: int
    _moved: pl.DataFrame | AnalysisError
    seconds: float
    top: Mapping[str, float]
    ceilings: Sequence[Ceiling]

    @property
    def moved(self) -> pl.DataFrame:
        """The trial's bytes over time; raises the reason where its tracer has none."""
        if isinstance(self._moved, AnalysisError):
            raise self._moved
        return self._moved

    def x(self, labelled: bool, field: str = "begin_s") -> alt.X:
        """Return the time axis for a field in seconds since the traced window began."""
        scale = alt.Scale(domain=[0, self.seconds], nice=False, zero=False)
        title = "Time since the traced window began (s)" if labelled else None
        axis = alt.Axis(title=title, labels=labelled, ticks=labelled, domain=labelled, grid=True, tickCount=10)
        return alt.X(f"{field}:Q", scale=scale, axis=axis)


def timelines(trials: Sequence[Trial]) -> Tried[Timeline]:
    """Return the timeline of each trial; all share their axes."""
    extents = Tried(trials, lambda trial: metrics.extent(trial.path))
    lengths = Tried(trials, lambda trial: max(extents.of(trial)[1] - extents.of(trial)[0], 1))
    width = metrics.round_bin(max(lengths.all(), default=1))
    moved = Tried(trials, lambda trial: metrics.bandwidth_over_time(trial.path, width))
    top = {op: max([_top(frame, op) for frame in moved.all()], default=0.0) for op in DATA}
    ceilings = [ceiling for trial in trials if (ceiling := ceiling_of(trial)) is not None]
    shared = comparable(Tried([trial for trial in trials if trial.state == "valid"], lengths.of).all())

    def timeline(trial: Trial) -> Timeline:
        # an axis narrower than the one bin on it would be as wide as the chart, and the bin many times wider
        seconds = max(lengths.of(trial), shared, width) / NS_PER_S
        return Timeline(trial, *extents.of(trial), width, _or_reason(moved, trial), seconds, top, ceilings)

    return Tried(trials, timeline)


def stacked(line: Timeline, *parts: Part, phases_first: bool = False) -> list[theme.View]:
    """Return the parts, to stand one under the other, above the strip of the trial's phases, or below it.

    In place of one that the data rules out stands the reason.
    """
    spans = merged(strip_rows(metrics.phases(line.trial.path)), line.begin_ns, line.end_ns)
    labelled = phases_first or not spans
    drawn = [drawn_or_gap(lambda part=part: part(labelled and part is parts[-1])) for part in parts]  # type: ignore[misc]
    strip = [_strip(spans, line, not labelled)] if spans else []
    return [*strip, *drawn] if phases_first else [*drawn, *strip]


def drawn_or_gap(draw: Callable[[], theme.View]) -> theme.View:
    """Return a part of a figure, or why it is not there."""
    try:
        return draw()
    except CannotDraw as error:
        return theme.gap(str(error))


def _or_reason(moved: Tried[pl.DataFrame], trial: Trial) -> pl.DataFrame | AnalysisError:
    try:
        return moved.of(trial)
    except CannotDraw as error:
        return error


def comparable(lengths: Sequence[int]) -> int:
    """Return the end of an axis that all trials can share (ns), 0 where they cannot."""
    longest = max(lengths, default=0)
    return longest if longest <= _COMPARABLE * min(lengths, default=0) else 0


def _top(moved: pl.DataFrame, op: str) -> float:
    return float(moved.filter(pl.col("op") == op)["gib_s"].max() or 0.0)  # type: ignore[arg-type]


def _strip(spans: list[dict[str, Any]], line: Timeline, labelled: bool) -> alt.Chart:
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
    scale = alt.Scale(domain=names, range=theme.phase_colours(names))
    # a white edge tells neighbours apart; on a hairline it would be all there is
    wide = alt.datum.end_s - alt.datum.begin_s > line.seconds / 240
    edge = alt.when(wide).then(alt.value("white")).otherwise(alt.Stroke("phase:N", scale=scale, legend=None))
    bars = alt.Chart(alt.InlineData(values=spans)).mark_bar(height=_STRIP_ROW - 5, minBandSize=1, strokeWidth=0.6)
    placed: alt.Chart = bars.encode(
        x=line.x(labelled),
        x2="end_s:Q",
        y=alt.Y("row:N", sort=rows, axis=labels),
        color=alt.Color("phase:N", scale=scale, legend=None),
        stroke=edge,
        tooltip=tooltip,
    )
    return placed.properties(width=theme.WIDTH, height=_STRIP_ROW * len(rows), view=alt.ViewConfig(stroke=None))
