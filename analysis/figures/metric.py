"""Any measure against any axis of a sweep: single repeats, their mean, and how sure the mean is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import polars as pl

from analysis.errors import AnalysisError, CannotDraw
from analysis.figures import theme
from analysis.figures.cells import left_out, repeats_text, varying
from analysis.figures.panel import Panel, ruled_out
from analysis.figures.profiled import profile
from analysis.intervals import interval
from analysis.measures import ENGINE, Measure, axis_of, parse
from analysis.metrics import WHOLE
from analysis.run import Run, Trial
from analysis.summary import read_summary
from analysis.units import GIB, KIB, MIB, TIB, bytes_text, number_text

NAME = "metric"
TITLE = "A measure against an axis"

#: What is drawn where a sweep names no measure: the first that the run has.
DEFAULTS = ("tokens_per_s", "read.bandwidth_gib_s", "duration_s")
MOST_FACETS = 12
_HEIGHT, _FACET_WIDTH, _FACET_HEIGHT = 260, 340, 170
#: Values that differ by more than this factor stand on a logarithmic axis.
_WIDE = 100
#: An axis grows by this factor at most to hold confidence intervals.
_ROOM = 1.5
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(KiB|MiB|GiB|TiB|B)\s*", re.IGNORECASE)
_FACTORS = {"b": 1, "kib": KIB, "mib": MIB, "gib": GIB, "tib": TIB}


@dataclass(frozen=True)
class Asked:
    """The figure of one measure, named as one asks for it: `metric:tokens_per_s@workload.batch_size`."""

    measure: Measure

    @property
    def NAME(self) -> str:
        """The name of the figure."""
        return f"{NAME}:{self.measure}"

    @property
    def TITLE(self) -> str:
        """The title of its chart."""
        return f"{self.measure.title} by {self.measure.axis}"

    def check(self, run: Run) -> None:
        """Raise AnalysisError where the run has no such axis, phase or measure at all, valid or not."""
        axis_of(self.measure.axis, _axes(run))
        frame, column = _source(run, self.measure)
        if column not in frame.columns:
            raise AnalysisError(f"no trial of this run has {self.measure.measured}")

    def charts(self, run: Run) -> Iterator[Panel]:
        """Yield the one panel of the run."""
        name = f"{NAME}-" + re.sub(r"[^A-Za-z0-9._]+", "-", f"{self.measure.measured}-by-{self.measure.axis}")
        try:
            yield Panel(name, self.TITLE, chart(run, self.measure))
        except AnalysisError as error:
            yield ruled_out(name, self.TITLE, str(error))


def asked(text: str) -> Asked:
    """Return the figure of the measure that `text` names; raise AnalysisError where it names none."""
    return Asked(parse(text))


def charts(run: Run) -> Iterator[Panel]:
    """Yield what suits a run for which nobody named a measure: the first of DEFAULTS that it has, against its first
    axis of numbers."""
    axes = numeric_axes(run.published)
    if not axes:
        yield ruled_out(NAME, TITLE, f"no axis of this run is one of numbers; name both: {NAME}:MEASURE@AXIS")
        return
    for name in DEFAULTS:
        measure = parse(f"{name}@{axes[0]}")
        try:
            _values(run, measure)
        except CannotDraw:
            continue
        yield from Asked(measure).charts(run)
        return
    yield ruled_out(NAME, TITLE, f"no valid trial of this run has any of {', '.join(DEFAULTS)}")


def numeric_axes(trials: Sequence[Trial]) -> list[str]:
    """Return the axes that have two values or more, all of them numbers or sizes in bytes."""
    known = {axis: [trial.cell[axis] for trial in trials if axis in trial.cell] for axis in varying(trials)}
    return [axis for axis, values in known.items() if None not in map(_number, values) and len({*map(str, values)}) > 1]


def chart(run: Run, measure: Measure) -> alt.TopLevelMixin:
    """Return the figure; raise CannotDraw where no valid trial has the measure, or too many axes are left."""
    axis = axis_of(measure.axis, _axes(run))
    values, unit = _values(run, measure)
    asked = [trial for trial in run.published if axis in trial.cell]
    own = [trial for trial in asked if trial.slug in values]
    if not own:
        raise CannotDraw(f"no valid trial with the axis {axis} has {measure.measured}")
    layout = _laid_out(own, axis)
    scale, unit_text = _unit(unit, values)
    rows = [_row(trial, values[trial.slug] / scale, axis, layout) for trial in own]
    points = _means(rows)
    title = measure.title + (f" ({unit_text})" if unit_text else "")
    drawn = _drawn([*rows, *points], own, axis, layout, title)
    return theme.finished(
        drawn, f"{measure.title} by {axis}", _described(run, asked, points, _domain([*rows, *points]), unit_text)
    )


def _axes(run: Run) -> list[str]:
    return list(dict.fromkeys(name for trial in run.published for name in trial.cell))


@dataclass(frozen=True)
class _Layout:
    """Which axes beside the one on x are told by colour, by dash and mark, and by charts of their own."""

    colour: str | None
    dash: str | None
    facets: tuple[str, ...]


def _values(run: Run, measure: Measure) -> tuple[dict[str, float], str]:
    """Return the value of each valid trial that has one, by slug, and the unit."""
    frame, column = _source(run, measure)
    if column not in frame.columns:
        raise CannotDraw(f"no trial of this run has {measure.measured}")
    known = frame.filter(pl.col("verdict") == "valid").select("slug", pl.col(column).cast(pl.Float64)).drop_nulls()
    if known.is_empty():
        raise CannotDraw(f"no valid trial of this run has {measure.measured}")
    told = {
        unit
        for trial in run.published
        if (found := trial.measured.get(column.removeprefix("metric."))) and (unit := found[1])
    }
    stated = told.pop() if column.startswith("metric.") and len(told) == 1 else measure.unit
    return dict(known.iter_rows()), measure.unit if measure.unit not in ("", "1/s") else stated


def _source(run: Run, measure: Measure) -> tuple[pl.DataFrame, str]:
    """Return the rows that hold the measure, one per trial, and its column."""
    if measure.op is None:
        column = f"metric.{measure.name}" if measure.name in ENGINE else measure.name
        return read_summary(run).filter(pl.col("phase") == WHOLE), column
    frame = profile(run)
    own = frame.filter((pl.col("phase") == measure.phase) & (pl.col("op") == measure.op))
    if own.is_empty():
        phases = ", ".join(frame["phase"].unique(maintain_order=True).to_list())
        raise CannotDraw(f"no trial of this run has a phase {measure.phase!r} with {measure.op}; there are {phases}")
    return own, measure.name


def _laid_out(trials: Sequence[Trial], axis: str) -> _Layout:
    others = [name for name in varying(trials) if name != axis]
    counts = {name: len({str(trial.cell.get(name)) for trial in trials}) for name in others}
    colour = next((name for name in others if counts[name] <= len(theme.CELLS)), None)
    left = [name for name in others if name != colour]
    dash = next((name for name in left if counts[name] <= 3), None)
    facets = tuple(name for name in left if name != dash)
    layout = _Layout(colour, dash, facets)
    many = len({_facet(trial, layout) for trial in trials})
    if many > MOST_FACETS:
        raise CannotDraw(f"{' and '.join(facets)} would make {many} charts, more than {MOST_FACETS}; narrow the sweep")
    return layout


def _facet(trial: Trial, layout: _Layout) -> str:
    return ", ".join(f"{name} {trial.cell.get(name)}" for name in layout.facets)


def _row(trial: Trial, value: float, axis: str, layout: _Layout) -> dict[str, Any]:
    return {
        "kind": "repeat",
        "x": trial.cell[axis],
        "value": value,
        "colour": str(trial.cell.get(layout.colour)) if layout.colour else "",
        "dash": str(trial.cell.get(layout.dash)) if layout.dash else "",
        "facet": _facet(trial, layout),
        "repeat": trial.repeat,
    }


def _means(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the mean of each cell, with its confidence interval where there are repeats."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(str(row[key]) for key in ("x", "colour", "dash", "facet")), []).append(row)
    means = []
    for own in groups.values():
        values = [row["value"] for row in own]
        low, high = interval(values) or (None, None)
        mean = sum(values) / len(values)
        means.append(own[0] | {"kind": "mean", "value": mean, "low": low, "high": high, "n": len(values)})
    return means


def _unit(unit: str, values: dict[str, float]) -> tuple[float, str]:
    """Return what to divide values by, and the unit they then have."""
    if unit == "B":
        top = max(map(abs, values.values()))
        return next(
            ((float(size), name) for size, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")) if top >= size),
            (1.0, "B"),
        )
    return (0.01, "%") if unit == "1" else (1.0, unit)


def _number(value: Any) -> float | None:
    """Return an axis value as a number; a size such as `64MiB` counts its bytes."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    size = _SIZE.fullmatch(value) if isinstance(value, str) else None
    return float(size[1]) * _FACTORS[size[2].lower()] if size else None


def _drawn(
    rows: Sequence[dict[str, Any]], trials: Sequence[Trial], axis: str, layout: _Layout, title: str
) -> alt.LayerChart | alt.FacetChart:
    numbers, facetted = axis in numeric_axes(trials), bool(layout.facets)
    width, height = (_FACET_WIDTH, _FACET_HEIGHT) if facetted else (theme.WIDTH, _HEIGHT)
    legend = alt.Legend(symbolType="stroke", symbolStrokeWidth=3, symbolSize=260)
    data = alt.Chart(alt.InlineData(values=_embedded(rows, numbers)))
    base = data.encode(x=_x(trials, axis, numbers, width), color=_colour(trials, layout, legend))
    if layout.colour and not numbers:
        apart = alt.Scale(paddingOuter=1)
        base = base.encode(xOffset=alt.XOffset("colour:N", sort=_names(trials, layout.colour), scale=apart))
    mean, one = (base.transform_filter(f"datum.kind == '{kind}'") for kind in ("mean", "repeat"))
    log = ", log scale" if _domain(rows)[0] > 0 else ""
    y = alt.Y("value:Q", title=title + log, scale=_y_scale(rows))
    dash, shape = _dash(trials, layout)
    layers = [
        mean.transform_filter("datum.low != null").mark_rule(strokeWidth=1.6).encode(y=alt.Y("from:Q"), y2="to:Q")
    ]
    if numbers:
        layers.append(mean.mark_line(strokeWidth=1.8).encode(y=y, strokeDash=dash, detail="dash:N"))
    layers.append(one.mark_point(size=20, opacity=0.75, filled=False, strokeWidth=1).encode(y=y, shape=shape))
    marks = mean.mark_point(size=50, filled=True, opacity=1)
    layers.append(marks.encode(y=y, shape=shape, tooltip=_tooltip(axis, layout, title)))
    drawn = alt.LayerChart(layer=layers, data=data.data).properties(width=width, height=height)
    return drawn.facet(facet=alt.Facet("facet:N", title=None), columns=2, spacing=16) if facetted else drawn


def _embedded(rows: Sequence[dict[str, Any]], numbers: bool) -> list[dict[str, Any]]:
    """Return the rows with axis values to draw, and with what of an interval is on the axis of values."""
    low, high = _domain(rows)
    values = []
    for row in rows:
        placed = row | {"x": _number(row["x"]) if numbers else str(row["x"])}
        if row.get("low") is not None:
            placed |= {"from": max(row["low"], low), "to": min(row["high"], high)}
        values.append(placed)
    return values


def _x(trials: Sequence[Trial], axis: str, numbers: bool, width: int) -> alt.X:
    """Return the axis of the values that a sweep set."""
    order = list(dict.fromkeys(trial.cell[axis] for trial in trials))
    if numbers:
        return _numeric_x(order, axis, width < theme.WIDTH)
    names = [str(value) for value in order]
    crowded = max(map(len, names)) * 6.5 > width / len(names)
    return alt.X("x:N", title=axis, sort=names, axis=alt.Axis(labelAngle=-35 if crowded else 0, labelLimit=160))


def _names(trials: Sequence[Trial], axis: str) -> list[str]:
    return list(dict.fromkeys(str(trial.cell.get(axis)) for trial in trials))


def _numeric_x(order: Sequence[Any], axis: str, narrow: bool) -> alt.X:
    """Return the axis of numbers: powers of two stand at equal distances."""
    numbers = sorted({_number(value) or 0.0 for value in order})
    sizes = any(isinstance(value, str) for value in order)
    log = len(numbers) > 1 and all(_is_power(value) for value in numbers)
    span = numbers[-1] / numbers[0] if log else (numbers[-1] - numbers[0]) or 1.0
    edge = span**0.04 if log else span * 0.04
    domain = [numbers[0] / edge, numbers[-1] * edge] if log else [numbers[0] - edge, numbers[-1] + edge]
    scale = alt.Scale(type="log", base=2, domain=domain, nice=False) if log else alt.Scale(domain=domain, nice=False)
    names = " : ".join(
        f"datum.value == {value!r} ? '{bytes_text(value) if sizes else f'{value:,g}'}'" for value in numbers
    )
    own = log or len(numbers) <= (8 if narrow else 14)  # else ticks as they fall
    shown = alt.Axis(values=numbers, labelExpr=f"{names} : ''", labelFlush=False, labelOverlap=True)
    return alt.X("x:Q", title=axis, scale=scale, axis=shown if own else alt.Axis(format="~s"))


def _is_power(value: float) -> bool:
    return value >= 1 and value == int(value) and int(value).bit_count() == 1


def _domain(rows: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Return the ends of the axis of values: all of them are on it, and what of the intervals leaves room for them."""
    values = [row["value"] for row in rows]
    least, most = min(values), max(values)
    if 0 < least * _WIDE < most:
        return least / 1.3, most * 1.3
    highs = [row["high"] for row in rows if row.get("high") is not None]
    top = min(max([most, *highs]), _ROOM * most) if most > 0 else 0.0
    return min(least, 0.0) * 1.05, top * 1.05 if top > 0 else 1.0 if least == 0 else 0.0


def _y_scale(rows: Sequence[dict[str, Any]]) -> alt.Scale:
    low, high = _domain(rows)
    return alt.Scale(type="log" if low > 0 else "linear", domain=[low, high], nice=False)


def _colour(trials: Sequence[Trial], layout: _Layout, legend: alt.Legend) -> Any:
    if layout.colour is None:
        return alt.value(theme.CELLS[0])
    names = _names(trials, layout.colour)
    scale = alt.Scale(domain=names, range=list(theme.CELLS[: len(names)]))
    return alt.Color("colour:N", title=layout.colour, scale=scale, legend=legend)


def _dash(trials: Sequence[Trial], layout: _Layout) -> tuple[Any, Any]:
    """Return the dash of lines and the shape of marks for the axis that they tell apart."""
    if layout.dash is None:
        return alt.value([1, 0]), alt.value("circle")
    names = _names(trials, layout.dash)
    dash = alt.Scale(domain=names, range=list(theme.DASHES[: len(names)]))
    shape = alt.Scale(domain=names, range=["circle", "square", "triangle-up"][: len(names)])
    # one legend for both: Vega-Lite drops both where one of them has none
    legend = alt.Legend(symbolFillColor=theme.FAINT_INK, symbolStrokeColor=theme.FAINT_INK)
    lines = alt.StrokeDash("dash:N", title=layout.dash, scale=dash, legend=legend)
    return lines, alt.Shape("dash:N", title=layout.dash, scale=shape, legend=legend)


def _tooltip(axis: str, layout: _Layout, title: str) -> list[alt.Tooltip]:
    others = [("colour", layout.colour), ("dash", layout.dash)]
    told = [alt.Tooltip(f"{field}:N", title=name) for field, name in others if name]
    told += [alt.Tooltip("facet:N", title="Chart")] if layout.facets else []
    return [
        alt.Tooltip("x:N", title=axis),
        *told,
        alt.Tooltip("value:Q", title=f"Mean: {title}", format=",.4~g"),
        alt.Tooltip("low:Q", title="95 % interval from", format=",.4~g"),
        alt.Tooltip("high:Q", title="to", format=",.4~g"),
        alt.Tooltip("n:Q", title="Repeats"),
    ]


def _described(
    run: Run, trials: Sequence[Trial], points: Sequence[dict[str, Any]], domain: tuple[float, float], unit: str
) -> list[str]:
    counts = [point["n"] for point in points]
    if max(counts) == 1:
        shown = "One repeat (n = 1) of each cell: no confidence interval can be given."
    else:
        alone = "; of one repeat alone there is none" if min(counts) == 1 else ""
        shown = (
            f"Filled: mean of {repeats_text(counts)}; bars: 95 % confidence interval of the mean (Student's t){alone}"
        )
        shown += "; small: each repeat."
    ends = [end for point in points if point["low"] is not None for end in (point["low"], point["high"])]
    outermost = (min(ends), max(ends)) if ends else ()
    beyond = [number_text(end) for end in outermost if not _within(end, domain)]
    cut = f"Bars that the axis cuts reach {' and '.join(beyond)}{unit and f' {unit}'}." if beyond else ""
    below = ends and min(ends) < 0 <= min(point["value"] for point in points)
    if beyond and below:
        cut += " One that reaches below 0 is of too few repeats to say much."
    return [line for line in (shown, cut, left_out(run, trials)) if line]


def _within(value: float, domain: tuple[float, float]) -> bool:
    return not domain[0] > value and not domain[1] < value
