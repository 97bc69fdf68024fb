"""How long requests took, from issue to completion: the distribution of each trial, and the cells beside each other."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import altair as alt

from analysis import metrics
from analysis.attribution import DATA, PERCENTILES
from analysis.errors import CannotDraw
from analysis.figures import theme
from analysis.figures.cells import label, left_out, varying
from analysis.figures.panel import Panel, Tried, per_trial
from analysis.latency import EXACT_VALUES, Latencies
from analysis.run import Run, Trial
from analysis.units import count_text, latency_text, sentence

NAME = "latency"
TITLE = "Latency, issue to completion"

_HEIGHT, _BESIDE_HEIGHT, _ROW, _GAP = 250, 170, 17, 44
#: What is marked on a line, by its name in words, with the shape of the mark.
_MARKED = {"p50": "circle", "p99": "diamond", "p99.9": "triangle-up"}
#: Shares of the requests at which a line has a corner: even steps, and ever finer ones towards the slowest.
_CORNERS = [n / 200 for n in range(1, 200)] + [1 - 10 ** (-n / 8) for n in range(19, 41)] + [1.0]
#: Where the columns of the table end (pixels).
_COLUMNS = (50, 140, 230, 320, 410, 500, 600, 710)

Spread = Mapping[str, Latencies]


def charts(run: Run) -> Iterator[Panel]:
    """Yield the panel that compares the cells, where there are several, and one per trial; all share their axis."""
    spreads = Tried(run.published, _spread)
    ends = _ends(spreads.all())
    if (compared := _compared(run, spreads)) is not None:
        yield Panel(NAME, TITLE, compared)
    yield from per_trial(run.published, NAME, TITLE, lambda trial: chart(trial, spreads.of(trial), ends))


def chart(trial: Trial, spread: Spread, ends: tuple[float, float]) -> alt.TopLevelMixin:
    """Return the chart of one trial; `ends` (µs) are those of the axis."""
    parts: list[theme.View] = [cumulative(spread, ends), table(spread)]
    return theme.finished(
        theme.stack(parts), theme.named(TITLE, trial), [_described(trial, spread)], theme.alarm(trial)
    )


def cumulative(spread: Spread, ends: tuple[float, float]) -> alt.LayerChart:
    """Return the share of each operation's requests that took at most so long, with the percentiles marked."""
    operations = [op for op in DATA if spread[op].count]
    scale = alt.Scale(domain=operations, range=[theme.OPERATIONS[op] for op in operations])
    legend = alt.Legend(symbolType="stroke", symbolStrokeWidth=3, symbolSize=260)
    x = alt.X("latency:Q", title="Latency", scale=_log(ends), axis=_log_axis(ends, (1, 2, 5)))
    y = alt.Y("percent:Q", title="Requests (%)", scale=alt.Scale(domain=[0, 103], nice=False))
    tooltip = [
        alt.Tooltip("op:N", title="Operation"),
        alt.Tooltip("percent:Q", title="Requests (%)", format=".4~f"),
        alt.Tooltip("text:N", title="Took at most"),
    ]
    corners = [corner for op in operations for corner in _corners(op, spread[op])]
    lines = alt.Chart(alt.InlineData(values=corners)).mark_line(strokeWidth=1.8, clip=True)
    marks = [mark for op in operations for mark in _marks(spread[op], op=op)]
    points = alt.Chart(alt.InlineData(values=marks)).mark_point(
        filled=True, size=95, opacity=1, stroke="white", strokeWidth=0.8
    )
    axis = alt.Axis(values=[0, 25, 50, 75, 100])
    colour = alt.Color("op:N", title=None, scale=scale)
    layers = [
        lines.encode(x=x, y=y.axis(axis), color=colour.legend(legend), tooltip=tooltip),
        points.encode(x=x, y=y.axis(axis), color=colour, shape=_shape(), tooltip=tooltip),
    ]
    return alt.LayerChart(layer=layers).properties(width=theme.WIDTH, height=_HEIGHT)


def table(spread: Spread) -> alt.LayerChart:
    """Return the percentiles of each operation as a table."""
    names = [f"p{_name(share)}" for share in PERCENTILES.values()]
    lines: list[tuple[str, Sequence[str]]] = [("", ("", "requests", *names, "slowest"))]
    for op in DATA:
        if (own := spread[op]).count:
            times = [*(own.percentile(share) for share in PERCENTILES.values()), own.maximum()]
            lines.append((op, (op, f"{own.count:,}", *(latency_text((time or 0) / 1000) for time in times))))
    cells = [
        {"x": x, "y": row + 0.5, "text": text, "op": op if not column else ""}
        for row, (op, texts) in enumerate(lines)
        for column, (x, text) in enumerate(zip(_COLUMNS, texts, strict=True))
    ]
    scale = alt.Scale(domain=["", *DATA], range=[theme.INK, *theme.OPERATIONS.values()])
    base = alt.Chart(alt.InlineData(values=cells)).encode(
        x=alt.X("x:Q", scale=alt.Scale(domain=[0, theme.WIDTH], nice=False), axis=None),
        y=alt.Y("y:Q", scale=alt.Scale(domain=[len(lines), 0], nice=False), axis=None),
        text="text:N",
        color=alt.Color("op:N", scale=scale, legend=None),
    )
    head, body = base.transform_filter("datum.y < 1"), base.transform_filter("datum.y > 1")
    layers = [head.mark_text(align="right", fontSize=11, fontWeight=600), body.mark_text(align="right", fontSize=11)]
    drawn = alt.LayerChart(layer=layers)
    return drawn.properties(width=theme.WIDTH, height=_ROW * len(lines), view=alt.ViewConfig(stroke=None))


def _spread(trial: Trial) -> Spread:
    found = metrics.latencies(trial.path)
    if not any(own.count for own in found.values()):
        raise CannotDraw("the trace holds no read and no write of which both issue and completion are known")
    return found


def _ends(spreads: Sequence[Spread]) -> tuple[float, float]:
    """Return the ends of an axis (µs) that holds all but the fastest thousandth."""
    own = [one for spread in spreads for one in spread.values() if one.count]
    fastest = min([one.percentile(0.001) or 1 for one in own], default=1)
    slowest = max([one.maximum() or 1 for one in own], default=10)
    return max(fastest, 1) / 1000 / 1.1, max(slowest, 10 * fastest) / 1000 * 1.15


def _log(ends: tuple[float, float]) -> alt.Scale:
    return alt.Scale(type="log", domain=list(ends), nice=False)


def _log_axis(ends: tuple[float, float], digits: Sequence[int]) -> alt.Axis:
    """Return an axis with a rule at these digits of every power of ten, labelled as people read times."""
    powers = range(math.floor(math.log10(ends[0])), math.ceil(math.log10(ends[1])) + 1)
    at = [digit * 10.0**power for power in powers for digit in digits if ends[0] <= digit * 10.0**power <= ends[1]]
    text = "datum.value >= 1e6 ? format(datum.value / 1e6, '~r') + ' s' : datum.value >= 1e3 ? "
    text += "format(datum.value / 1e3, '~r') + ' ms' : format(datum.value, '~r') + ' µs'"
    return alt.Axis(values=at, labelExpr=text, labelOverlap=True, labelFlush=False, grid=True)


def _shape() -> alt.Shape:
    scale = alt.Scale(domain=list(_MARKED), range=list(_MARKED.values()))
    return alt.Shape("mark:N", title=None, scale=scale, legend=alt.Legend(symbolFillColor=theme.FAINT_INK))


def _corners(op: str, own: Latencies) -> list[dict[str, Any]]:
    """Return the corners of a line, from the fastest on."""
    found = [(0.0, own.percentile(0.0)), *((share, own.percentile(share)) for share in _CORNERS)]
    return [_point(value or 0.0, share, op=op) for share, value in found]


def _marks(own: Latencies, **told: str) -> list[dict[str, Any]]:
    shares = {name: float(name[1:]) / 100 for name in _MARKED}
    return [_point(own.percentile(share) or 0.0, share, mark=name, **told) for name, share in shares.items()]


def _point(nanoseconds: float, share: float, **told: str) -> dict[str, Any]:
    microseconds = max(nanoseconds, 1) / 1000
    place = {"latency": round(microseconds, 3), "percent": round(share * 100, 5)}
    return {**told, **place, "text": latency_text(microseconds)}


def _name(share: float) -> str:
    return f"{share * 100:.2f}".rstrip("0").rstrip(".")


def _described(trial: Trial, spread: Spread) -> str:
    counts = " and ".join(count_text(spread[op].count, op) for op in DATA)
    device = trial.section("device").get("name") or "unknown"
    close = any(own.count > EXACT_VALUES for own in spread.values())
    about = " Percentiles of so many are within 0.1 %." if close else ""
    return f"{counts} on device {device}, from issue to completion; the wait in a scheduler comes before.{about}"


def _compared(run: Run, spreads: Tried[Spread]) -> alt.TopLevelMixin | None:
    """Return the distributions of the cells of valid trials, repeats taken together; None where there is one cell."""
    axes = varying(run.published)
    cells: dict[str, dict[str, Latencies]] = {}
    repeats: Counter[str] = Counter()
    valid = [trial for trial in run.published if trial.state == "valid"]
    for trial in valid:
        if spreads.has(trial):
            name = label(trial.cell, axes)
            own = cells.setdefault(name, {op: Latencies() for op in DATA})
            repeats[name] += 1
            for op in DATA:
                own[op].merge(spreads.of(trial)[op])
    if len(cells) < 2:
        return None
    n = sorted(repeats.values())
    of = f"{n[0]}" if n[0] == n[-1] else f"{n[0]} to {n[-1]}"
    taken = "the requests of all repeats of a cell together" if n[-1] > 1 else "one repeat of each cell"
    without = len(valid) - sum(n)
    lines = [f"{sentence(taken)} (n = {of}), the whole traced window.", left_out(run, run.published)]
    lines += [f"No latencies of {count_text(without, 'valid trial')}."] if without else []
    return theme.finished(_beside(cells), f"{TITLE}: by cell", [line for line in lines if line])


def _beside(cells: Mapping[str, Spread]) -> alt.VConcatChart | alt.HConcatChart:
    """Return reads and writes beside each other: a line per cell, if they are few, above a row for each."""
    operations = [op for op in DATA if any(own[op].count for own in cells.values())]
    held = [one for own in cells.values() for one in own.values() if one.count]
    ends = min(one.percentile(0.01) or 1 for one in held) / 1100, max(one.percentile(0.999) or 1 for one in held) / 700
    width = (theme.WIDTH - _GAP * (len(operations) - 1)) // len(operations)
    rows = alt.hconcat(*(_ranges(cells, op, ends, width, op == operations[0]) for op in operations), spacing=_GAP)
    if len(cells) > len(theme.CELLS):
        return rows
    lines = alt.hconcat(*(_lines(cells, op, ends, width, op == operations[0]) for op in operations), spacing=_GAP)
    both: alt.VConcatChart = alt.vconcat(lines, rows, spacing=14).resolve_legend(
        color="independent", shape="independent"
    )
    return both


def _lines(cells: Mapping[str, Spread], op: str, ends: tuple[float, float], width: int, first: bool) -> alt.Chart:
    """Return the share of one operation's requests that took at most so long, a line per cell."""
    names = list(cells)
    values = [row | {"cell": name} for name in names if cells[name][op].count for row in _corners(op, cells[name][op])]
    scale = alt.Scale(domain=names, range=list(theme.CELLS[: len(names)]))
    legend = alt.Legend(symbolType="stroke", symbolStrokeWidth=3, symbolSize=260, columns=2)
    # only the first has labels: so it stands above its row of percentiles, as the other does
    axis = alt.Axis(values=[0, 25, 50, 75, 100], labels=first, ticks=first, domain=first)
    y = alt.Y("percent:Q", title="Requests (%)" if first else None, scale=alt.Scale(domain=[0, 103], nice=False))
    tooltip = [alt.Tooltip("cell:N", title="Cell"), alt.Tooltip("percent:Q", title="Requests (%)", format=".4~f")]
    drawn: alt.Chart = (
        alt.Chart(alt.InlineData(values=values))
        .mark_line(strokeWidth=1.8, clip=True)
        .encode(
            x=alt.X("latency:Q", title=f"{op.capitalize()} latency", scale=_log(ends), axis=_log_axis(ends, (1, 3))),
            y=y.axis(axis),
            color=alt.Color("cell:N", title=None, scale=scale, legend=legend if first else None),
            tooltip=[*tooltip, alt.Tooltip("text:N", title="Took at most")],
        )
        .properties(width=width, height=_BESIDE_HEIGHT)
    )
    return drawn


def _ranges(cells: Mapping[str, Spread], op: str, ends: tuple[float, float], width: int, first: bool) -> alt.LayerChart:
    """Return a row per cell: a line from the median to the 99.9th percentile of one operation, with marks."""
    rows = list(cells)
    marks = [mark for name, own in cells.items() if own[op].count for mark in _marks(own[op], cell=name)]
    axis = alt.Axis(labelLimit=300, ticks=False, domain=False, grid=True) if first else None
    x = alt.X("latency:Q", title=f"{op.capitalize()} latency", scale=_log(ends), axis=_log_axis(ends, (1, 3)))
    base = alt.Chart(alt.InlineData(values=marks)).encode(
        y=alt.Y("cell:N", title=None, sort=rows, scale=alt.Scale(domain=rows), axis=axis)
    )
    colour = theme.OPERATIONS[op]
    tooltip = [alt.Tooltip("cell:N", title="Cell"), alt.Tooltip("mark:N"), alt.Tooltip("text:N", title="Took at most")]
    points = base.mark_point(filled=True, size=95, opacity=1, stroke="white", strokeWidth=0.8)
    layers = [
        base.mark_line(color=colour, strokeWidth=2, opacity=0.5).encode(x=x, detail="cell:N"),
        points.encode(x=x, shape=_shape(), color=alt.value(colour), tooltip=tooltip),
    ]
    return alt.LayerChart(layer=layers).properties(width=width, height=26 * len(rows))
