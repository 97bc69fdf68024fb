"""Memory, what it lost and read again, stalled tasks and the device's queue over time, one chart per trial.

Drawn from samples alone, so that it is there whatever traced the trial.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import altair as alt
import polars as pl

from analysis import metrics, samples
from analysis.errors import CannotDraw
from analysis.figures import theme
from analysis.figures.panel import Panel, Tried, per_trial
from analysis.figures.timeline import Timeline, comparable, stacked
from analysis.run import Run, Trial
from analysis.units import GIB, MIB, NS_PER_MS, NS_PER_S, bytes_text, nanoseconds_text, number_text, sentence

NAME = "pressure"
TITLE = "Memory, refaults and queue depth over time"

_HEIGHT = 88
_CGROUP, _MACHINE = "cgroup", "memory"
_MEMORY, _REFAULTS, _STALLS, _QUEUE = "memory", "refaults", "stalls", "queue"


@dataclass(frozen=True)
class _Line:
    """One line: its label and colour, and where its samples are; a counter is drawn as its rate.

    Of several sources the first that the trial has is taken.
    """

    label: str
    colour: str
    sources: tuple[str, ...]
    name: str
    counts: bool = False


def _lines(limited: bool) -> dict[str, list[_Line]]:
    """Return the lines of each panel: of the job's cgroup where its memory was limited, else of the machine."""
    memory, paging = (_CGROUP, _CGROUP) if limited else (_MACHINE, "paging")
    whole, cache = (
        ("all of the job", "its page cache") if limited else ("in use", "page cache, without images in memory")
    )
    whose = "" if limited else " (machine)"
    read, stalled = theme.OPERATIONS["read"], (_CGROUP, "pressure")
    return {
        _MEMORY: [
            _Line(whole, theme.BLACK, (memory,), "used"),
            _Line(cache, theme.GREEN, (memory,), "page_cache"),
        ],
        _REFAULTS: [
            _Line("read from the device", read, ("device",), "read_bytes", True),
            _Line(f"pages that had been evicted{whose}", theme.ORANGE, (paging,), "refault_file_bytes", True),
        ],
        _STALLS: [
            _Line("a task waits for I/O", theme.PURPLE, stalled, "io_some_stalled", True),
            _Line("a task waits for memory", theme.GREEN, stalled, "memory_some_stalled", True),
        ],
        _QUEUE: [_Line("queue depth", theme.BLACK, ("device",), "queue_depth")],
    }


@dataclass(frozen=True)
class _Told:
    """What a trial's samples hold: points (`t_ns`, `value`) of each line that has some, by panel."""

    line: Timeline
    panels: Mapping[str, Sequence[tuple[_Line, pl.DataFrame]]]
    limit_bytes: float | None

    def top(self, panel: str) -> float:
        """Return the greatest value in a panel."""
        drawn = [float(points["value"].max() or 0.0) for _, points in self.panels[panel]]  # type: ignore[arg-type]
        return max([*drawn, *self.rules(panel)], default=0.0)

    def rules(self, panel: str) -> list[float]:
        """Return where a panel has horizontal rules."""
        return [self.limit_bytes] if panel == _MEMORY and self.limit_bytes is not None else []


def charts(run: Run) -> Iterator[Panel]:
    """Yield one panel per trial; all share their axes, so they compare at sight."""
    extents = Tried(run.published, _extent)
    lengths = [end - begin for begin, end in extents.all()]
    valid = Tried([trial for trial in run.published if trial.state == "valid"], extents.of)
    shared_ns = comparable([end - begin for begin, end in valid.all()])
    bin_ns = metrics.round_bin(max(lengths, default=1))
    told = Tried(run.published, lambda trial: _told(trial, *extents.of(trial), bin_ns, shared_ns))

    def draw(trial: Trial) -> alt.TopLevelMixin:
        one = told.of(trial)
        # what a job may use and what a machine has cannot be read on one scale
        alike = [other for other in told.all() if (other.limit_bytes is None) == (one.limit_bytes is None)]
        tops = {panel: max(other.top(panel) for other in alike) for panel in one.panels}
        return _chart(one, tops)

    yield from per_trial(run.published, NAME, TITLE, draw)


def _extent(trial: Trial) -> tuple[int, int]:
    """Return the traced window, or else the span of the samples."""
    if trial.window:
        return trial.window
    times = samples.read(trial.path)["t_ns"]
    if times.is_empty():
        raise CannotDraw("the trial has no samples and states no traced window")
    return int(times[0]), int(times[-1]) + 1


def _told(trial: Trial, begin_ns: int, end_ns: int, bin_ns: int, shared_ns: int) -> _Told:
    rows = samples.read(trial.path).filter(pl.col("t_ns").is_between(begin_ns, end_ns))
    limit = trial.measured.get("memory_limit_bytes")
    panels = {}
    for panel, lines in _lines(_CGROUP in set(rows["source"])).items():
        drawn = [(line, _points(rows, line, begin_ns, bin_ns)) for line in lines]
        panels[panel] = [(line, points) for line, points in drawn if not points.is_empty()]
    if not any(panels.values()):
        raise CannotDraw("the trial has no samples of memory or of a queue")
    seconds = max(end_ns - begin_ns, shared_ns) / NS_PER_S
    line = Timeline(trial, begin_ns, end_ns, bin_ns, pl.DataFrame(), seconds, {}, ())
    return _Told(line, panels, limit[0] if limit else None)


def _points(rows: pl.DataFrame, line: _Line, begin_ns: int, bin_ns: int) -> pl.DataFrame:
    tell = samples.rate if line.counts else samples.gauge
    found = [tell(rows, source, line.name, begin_ns, bin_ns) for source in line.sources]
    points = next((one for one in found if not one.is_empty()), found[-1])
    if (line.sources, line.name) != ((_MACHINE,), "page_cache"):
        return points
    # an image in memory counts as page cache, and can't be given up
    shared = samples.gauge(rows, _MACHINE, "shared", begin_ns, bin_ns)
    kept = points.join(shared, on="t_ns", how="left", suffix="_shared")
    return kept.select("t_ns", pl.col("value") - pl.col("value_shared").fill_null(0.0))


def _chart(told: _Told, tops: Mapping[str, float]) -> alt.TopLevelMixin:
    titles = {_MEMORY: "Memory", _REFAULTS: "Read", _STALLS: "Time (%)", _QUEUE: "Queue depth"}
    units = {_MEMORY: _of_bytes(tops[_MEMORY]), _REFAULTS: _of_bytes(tops[_REFAULTS]), _STALLS: (0.01, "")}
    tops = {**tops, _STALLS: 1.0}
    parts = []
    for panel in (panel for panel, lines in told.panels.items() if lines):
        unit, name = units.get(panel, (1.0, ""))
        title = f"{titles[panel]} ({name}{'/s' if panel == _REFAULTS else ''})" if name else titles[panel]
        parts.append(partial(_panel, told, panel, title, unit, tops[panel]))
    heading = theme.named(TITLE, told.line.trial)
    return theme.finished(
        theme.stack(stacked(told.line, *parts)), heading, _described(told), theme.alarm(told.line.trial)
    )


def _of_bytes(top: float) -> tuple[float, str]:
    """Return the unit for values up to `top`, and its name."""
    return (GIB, "GiB") if top >= GIB else (MIB, "MiB")


def _panel(told: _Told, panel: str, title: str, unit: float, top: float, labelled: bool) -> alt.LayerChart:
    """Return the lines of one panel over time, in `unit`, on a scale up to `top`."""
    lines = [line for line, _ in told.panels[panel]]
    scale = alt.Scale(domain=[line.label for line in lines], range=[line.colour for line in lines])
    legend = alt.Legend(symbolType="stroke", symbolStrokeWidth=3, symbolSize=260) if len(lines) > 1 else None
    ends = alt.Scale(domain=[0, top / unit * 1.06 or 1.0], nice=False)
    y = alt.Y("value:Q", title=title, scale=ends, axis=alt.Axis(tickCount=3))
    values = [row for line, points in told.panels[panel] for row in _rows(told, line.label, points, unit)]
    drawn: alt.Chart = (
        alt.Chart(alt.InlineData(values=values))
        .mark_line(interpolate="step-before", strokeWidth=1.3, clip=True)
        .encode(x=told.line.x(labelled), y=y, color=alt.Color("line:N", title=None, legend=legend, scale=scale))
    )
    rules = alt.Chart(alt.InlineData(values=[{"value": rule / unit} for rule in told.rules(panel)]))
    ruled: alt.Chart = rules.mark_rule(color=theme.ALARM, strokeDash=[5, 3]).encode(y="value:Q")
    return alt.LayerChart(layer=[drawn, ruled]).properties(width=theme.WIDTH, height=_HEIGHT)


def _rows(told: _Told, label: str, points: pl.DataFrame, unit: float) -> list[dict[str, Any]]:
    placed = points.select(
        ((pl.col("t_ns") - told.line.begin_ns) / NS_PER_S).round(4).alias("begin_s"),
        (pl.col("value") / unit).round(4).alias("value"),
    )
    return [{"line": label, **row} for row in placed.to_dicts()]


def _described(told: _Told) -> list[str]:
    """Return what the panels show, in sentences."""
    trial, limit = told.line.trial, told.limit_bytes
    sampler = trial.section("sampler")
    interval, cost = sampler.get("interval_ms"), sampler.get("cost_cores")
    bins, every = [nanoseconds_text(told.line.bin_ns)], []
    if isinstance(interval, (int, float)):
        bins = [] if interval * NS_PER_MS >= told.line.bin_ns else bins
        every = [f"sampled every {number_text(interval)} ms"]
    spent = f" at the cost of {number_text(100 * cost)} % of a core" if isinstance(cost, (int, float)) else ""
    how = ", ".join([*(f"means in bins of {width}" for width in bins), *every])
    return [
        f"Dashed: the limit, {bytes_text(limit)}." if limit is not None else "The job's memory was not limited.",
        f"Queue depth of {trial.section('device').get('name') or 'unknown'}: requests waiting and in flight (aqu-sz).",
        f"{sentence(how)}{spent}.",
    ]
