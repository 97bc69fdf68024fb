"""Which sectors were accessed when, one chart per trial: a map of the device over time, reads and writes apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import altair as alt
import numpy as np

from analysis.attribution import DATA
from analysis.errors import CannotDraw
from analysis.figures import theme
from analysis.figures.panel import Panel, Tried, per_trial
from analysis.figures.timeline import Part, Timeline, stacked, timelines
from analysis.run import Run, Trial
from analysis.sectors import Extent, Grid, device_extent, rectangles, sector_grids
from analysis.units import GIB, NS_PER_S, bytes_text, nanoseconds_text

NAME = "sectors"
TITLE = "Sectors accessed over time"
EXPLAINED = "Offset on the traced device: number of the sector × 512 bytes."

#: A map of more rectangles than this is drawn in coarser cells.
MOST_RECTANGLES = 4000
_HEIGHT = 130


def charts(run: Run) -> Iterator[Panel]:
    """Yield one panel per trial; all share the axes of time and of the device, so they compare at sight."""
    lines, extent = timelines(run.published), common_extent(run.published)
    yield from per_trial(run.published, NAME, TITLE, lambda trial: chart(lines.of(trial), extent))


def chart(line: Timeline, extent: Extent) -> alt.TopLevelMixin:
    """Return the chart of one trial."""
    parts = stacked(line, *maps(line, extent))
    told = [f"{EXPLAINED} Device {line.trial.section('device').get('name') or 'unknown'}; white: not accessed."]
    return theme.finished(theme.stack(parts), theme.named(TITLE, line.trial), told, theme.alarm(line.trial))


def common_extent(trials: Sequence[Trial]) -> Extent:
    """Return what of the device the trials span together."""
    found = [extent for extent in Tried(trials, lambda trial: device_extent(trial.path)).all() if extent]
    if not found:
        return Extent(0, 1, 0)
    return Extent(
        min(extent.begin for extent in found),
        max(extent.end for extent in found),
        max(extent.largest_request for extent in found),
    )


def maps(line: Timeline, extent: Extent) -> list[Part]:
    """Return one map for each operation that moved data."""
    grids = sector_grids(line.trial.path, line.begin_ns, round(line.seconds * NS_PER_S), extent)
    used = [op for op in DATA if grids[op].counts.any()]
    if not used:
        raise CannotDraw("the trace holds no read and no write with data")
    return [_part(line, extent, op, grids[op]) for op in used]


def _part(line: Timeline, extent: Extent, op: str, grid: Grid) -> Part:
    return lambda labelled: _map(line, extent, op, grid, labelled)


def _map(line: Timeline, extent: Extent, op: str, grid: Grid, labelled: bool) -> alt.Chart:
    grid, thresholds, found = _cells(grid)
    names = [_range(low, high) for low, high in zip(thresholds, [*thresholds[1:], None], strict=True)]
    low, high = (extent.begin if extent.begin > extent.end / 10 else 0) / GIB, extent.end / GIB
    colour = alt.Color(
        "level:N",
        title=f"{op.capitalize()}s in a cell of {nanoseconds_text(grid.cell_ns)} × {bytes_text(grid.cell_bytes)}",
        scale=alt.Scale(domain=names, range=theme.shades(theme.OPERATIONS[op], len(names))),
        legend=alt.Legend(symbolType="square", symbolSize=110, symbolStrokeWidth=0),
    )
    y = alt.Y(
        "low:Q", title=f"{op.capitalize()} offset (GiB)", scale=alt.Scale(domain=[low, high], nice=False, zero=False)
    )
    values = [_value(grid, names[level - 1], *place) for *place, level in found]
    chart: alt.Chart = (
        alt.Chart(alt.InlineData(values=values))
        .mark_rect(clip=True, stroke=None, aria=False)
        .encode(
            x=line.x(labelled), x2="end_s:Q", y=y.axis(tickCount=4), y2="high:Q", color=colour, tooltip=_tooltip(op)
        )
        .properties(width=theme.WIDTH, height=_HEIGHT)
    )
    return chart


def _cells(grid: Grid) -> tuple[Grid, list[int], list[tuple[int, int, int, int, int]]]:
    """Return a grid coarse enough to draw, the least count of each level, and its rectangles."""
    while True:
        thresholds = _thresholds(int(grid.counts.max()))
        found = list(rectangles(np.searchsorted(thresholds, grid.counts, side="right")))
        if len(found) <= MOST_RECTANGLES or max(grid.counts.shape) <= 2:
            return grid, thresholds, found
        grid = grid.coarser()


def _thresholds(most: int) -> list[int]:
    """Return the least count of each level: few levels, so that neighbours are often equal and drawn as one."""
    factor = 4 if most < 4**6 else 10
    steps = [1]
    while steps[-1] * factor <= most:
        steps.append(steps[-1] * factor)
    return steps


def _value(grid: Grid, level: str, row: int, row_end: int, column: int, column_end: int) -> dict[str, Any]:
    seconds, height = grid.cell_ns / NS_PER_S, grid.cell_bytes / GIB
    return {
        "begin_s": round(column * seconds, 4),
        "end_s": round(column_end * seconds, 4),
        "low": round((grid.low + row) * height, 6),
        "high": round((grid.low + row_end) * height, 6),
        "level": level,
    }


def _range(low: int, high: int | None) -> str:
    if high is None:
        return f"{low:,} or more"
    return f"{low:,}" if high == low + 1 else f"{low:,}–{high - 1:,}"


def _tooltip(op: str) -> list[alt.Tooltip]:
    return [
        alt.Tooltip("level:N", title=f"{op.capitalize()}s in each cell"),
        alt.Tooltip("begin_s:Q", title="From (s)", format=".2f"),
        alt.Tooltip("end_s:Q", title="To (s)", format=".2f"),
        alt.Tooltip("low:Q", title="From offset (GiB)", format=".3f"),
        alt.Tooltip("high:Q", title="To offset (GiB)", format=".3f"),
    ]
