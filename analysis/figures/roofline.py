"""Jobs against the ceiling of their storage: how fast, and whether an idle drive or slow requests are to blame."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import altair as alt
import polars as pl

from analysis.attribution import DATA
from analysis.ceiling import Ceiling, ceiling_of, percent
from analysis.errors import CannotDraw
from analysis.figures import theme
from analysis.figures.cells import label, left_out, repeats_text, varying
from analysis.figures.panel import Panel, ruled_out
from analysis.figures.profiled import profile
from analysis.figures.table import table
from analysis.metrics import WHOLE
from analysis.run import Run, Trial
from analysis.units import bytes_text, number_text

NAME = "roofline"
TITLE = "Jobs against the ceiling of their storage"

#: Phases in which a job does not do what it is measured for.
_BESIDE = ("job", "init", "warmup", "drain")
#: An operation with a smaller share of its phase's bytes is not what the phase is about.
_LEAST_SHARE = 0.01
_SIZE = re.compile(r"(?P<group>.*\S)\s+[\d.,]+ (?:B|KiB|MiB|GiB|TiB)")
_HEIGHT, _GAP = 300, 60
_SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
_MOST_LINES = 16
_HEAD = ("Cell and phase", "n", "GiB/s", "of the ceiling", "drive busy", "while busy", "mean request")


def charts(run: Run) -> Iterator[Panel]:
    """Yield the one panel of the run."""
    try:
        yield Panel(NAME, TITLE, chart(run))
    except CannotDraw as error:
        yield ruled_out(NAME, TITLE, str(error))


def chart(run: Run) -> alt.TopLevelMixin:
    """Return the figure; raise CannotDraw where no valid trial has a ceiling and a profile."""
    trials = [trial for trial in run.published if trial.state == "valid"]
    ceilings = [ceiling for trial in trials if (ceiling := ceiling_of(trial)) is not None]
    if not ceilings:
        raise CannotDraw("no valid trial of this run has a ceiling" if trials else "no trial of this run is valid")
    points = _points(run, trials)
    if points.is_empty():
        raise CannotDraw("no valid trial with a ceiling moved data that was traced request by request")
    top = max(115.0, 1.06 * float(points["of_ceiling"].max()))  # type: ignore[arg-type]
    used = [op for op in DATA if op in set(points["op"])]
    width = (theme.WIDTH - _GAP * (len(used) - 1)) // len(used)
    panels = [_panel(points, op, ceilings, top, width) for op in used]
    parts: list[Any] = [alt.hconcat(*panels, spacing=_GAP)]
    lines = _lines(points)
    if len(lines) <= _MOST_LINES:
        parts.append(table(_HEAD, lines))
    stacked: alt.VConcatChart = alt.vconcat(*parts, spacing=18)
    return theme.finished(stacked, TITLE, _described(run, points, ceilings))


def _points(run: Run, trials: Sequence[Trial]) -> pl.DataFrame:
    """Return a row for each phase and operation of each trial: `cell`, `group`, `op`, `busy` and `of_ceiling` in %."""
    frame = profile(run)
    axes = varying(run.published)
    names = {trial.slug: label(trial.cell, axes) for trial in trials}
    known = frame.filter(pl.col("slug").is_in(list(names)), pl.col("op").is_in(DATA), pl.col("bytes") > 0)
    known = known.filter(pl.col("ceiling_share").is_not_null(), pl.col("busy_share") > 0)
    own = known.filter(pl.col("byte_share") >= _LEAST_SHARE)
    told = own.filter(pl.col("name").is_not_null(), ~pl.col("name").is_in(_BESIDE))
    # A command tells no phases: its whole window stands for it
    whole = own.filter((pl.col("phase") == WHOLE) & ~pl.col("slug").is_in(told["slug"].unique().implode()))
    return pl.concat([told, whole]).select(
        "slug",
        pl.col("slug").replace_strict(names, return_dtype=pl.String).alias("cell"),
        pl.col("phase").str.replace(f"^{_SIZE.pattern}$", "${group}").alias("group"),
        "phase",
        "op",
        (pl.col("busy_share") * 100).alias("busy"),
        (pl.col("ceiling_share") * 100).alias("of_ceiling"),
        "bandwidth_gib_s",
        "request_bytes_mean",
    )


def _panel(points: pl.DataFrame, op: str, ceilings: Sequence[Ceiling], top: float, width: int) -> alt.LayerChart:
    """Return the points of one operation under its roofs."""
    own = points.filter(pl.col("op") == op)
    x = alt.X(
        "busy:Q",
        title=f"Time with a {op} in flight (%)",
        scale=alt.Scale(domain=[0, 104], nice=False),
        axis=alt.Axis(values=[0, 25, 50, 75, 100]),
    )
    scale = alt.Scale(domain=[0, top], nice=False)
    y = alt.Y("of_ceiling:Q", title=f"{op.capitalize()} bandwidth (% of the ceiling)", scale=scale)
    colour = _colour(points)
    single = alt.Chart(alt.InlineData(values=own.select("cell", "group", "busy", "of_ceiling").to_dicts()))
    dots = single.mark_circle(size=14, opacity=0.45).encode(x=x, y=y, color=colour)
    data = alt.Chart(alt.InlineData(values=_values(_means(own)))).encode(x=x, y=y, color=colour)
    paths = data.mark_line(strokeWidth=1, opacity=0.5).encode(detail=["cell:N", "group:N"], order="place:Q")
    marks = data.mark_point(size=52, filled=True, opacity=0.95).encode(shape=_shape(points), tooltip=_tooltip())
    several = [dots] if _means(own)["n"].max() != 1 else []
    layers = [*_roofs(op, ceilings, x, y), *several, paths, marks]
    return alt.LayerChart(layer=layers).properties(
        width=width, height=_HEIGHT, title=theme.section(f"{op.capitalize()}s")
    )


def _roofs(op: str, ceilings: Sequence[Ceiling], x: alt.X, y: alt.Y) -> list[alt.Chart]:
    """Return the roofs: fio's bandwidth, in order and at random, and the line of a drive that is as fast when busy."""
    random = [one.further[f"random_{op}_gib_s"] for one in ceilings if f"random_{op}_gib_s" in one.further]
    sequential = [one.gib_s[op] for one in ceilings]
    level = 100 * (sum(random) / len(random)) / (sum(sequential) / len(sequential)) if random else 0.0
    roofs = [{"of_ceiling": 100.0, "said": f"fio, in order: {_range(sequential)} GiB/s", "above": level <= 100}]
    if random:
        roofs.append({"of_ceiling": level, "said": f"fio, at random: {_range(random)} GiB/s", "above": level > 100})
    base = alt.Chart(alt.InlineData(values=roofs)).encode(y=y)
    ink = alt.value(theme.FAINT_INK)
    drawn = [base.mark_rule(strokeDash=[6, 4], strokeWidth=1.2).encode(color=ink)]
    for above in (True, False):
        # at the left, where nothing can be: a drive that is not busy is not fast
        placed = base.transform_filter(f"datum.above == {str(above).lower()}").encode(x=alt.value(6), text="said:N")
        style: dict[str, Any] = {"align": "left", "dy": -7 if above else 9, "fontSize": 10.5, "baseline": "middle"}
        drawn.append(placed.mark_text(stroke="white", strokeWidth=3, **style))
        drawn.append(placed.mark_text(**style).encode(color=ink))
    diagonal = alt.Chart(alt.InlineData(values=[{"busy": 0, "of_ceiling": 0}, {"busy": 100, "of_ceiling": 100}]))
    return [*drawn, diagonal.mark_line(strokeWidth=1.2, color=theme.RULE).encode(x=x, y=y)]


def _means(points: pl.DataFrame) -> pl.DataFrame:
    """Return the means over the repeats of each cell, phase and operation, with their number `n`."""
    numbers = ("bandwidth_gib_s", "of_ceiling", "busy", "request_bytes_mean")
    keys = ("cell", "group", "phase", "op")
    return points.group_by(*keys, maintain_order=True).agg(
        pl.len().alias("n"), *(pl.col(one).mean() for one in numbers)
    )


def _values(means: pl.DataFrame) -> list[dict[str, Any]]:
    rows = means.with_columns(pl.int_range(pl.len()).over("cell", "group").alias("place")).to_dicts()
    return [row | {"size": bytes_text(row["request_bytes_mean"]), "while_busy": _while_busy(row)} for row in rows]


def _while_busy(row: dict[str, Any]) -> str:
    return percent(row["of_ceiling"] / row["busy"])


def _colour(points: pl.DataFrame) -> alt.Color:
    """Return the colour of a cell, or, where cells are too many to tell apart, of a phase."""
    cells = points["cell"].unique(maintain_order=True).to_list()
    field = "cell" if len(cells) <= len(theme.CELLS) else "group"
    names = points[field].unique(maintain_order=True).to_list()[: len(theme.CELLS)]
    scale = alt.Scale(domain=names, range=list(theme.CELLS[: len(names)]))
    legend = alt.Legend(symbolType="circle", symbolStrokeWidth=0, columns=_columns(names)) if len(names) > 1 else None
    return alt.Color(f"{field}:N", title=None, scale=scale, legend=legend)


def _shape(points: pl.DataFrame) -> alt.Shape:
    groups = points["group"].unique(maintain_order=True).to_list()
    shapes = [_SHAPES[place % len(_SHAPES)] for place in range(len(groups))]
    legend = (
        alt.Legend(symbolFillColor=theme.FAINT_INK, symbolStrokeWidth=0, columns=_columns(groups))
        if len(groups) > 1
        else None
    )
    return alt.Shape("group:N", title=None, scale=alt.Scale(domain=groups, range=shapes), legend=legend)


def _columns(names: Sequence[str]) -> int:
    """Return how many columns of a legend fit in half of the figure's width."""
    return max(theme.WIDTH // 2 // (7 * max(map(len, names)) + 36), 1)


def _tooltip() -> list[alt.Tooltip]:
    return [
        alt.Tooltip("cell:N", title="Cell"),
        alt.Tooltip("phase:N", title="Phase"),
        alt.Tooltip("bandwidth_gib_s:Q", title="GiB/s", format=".3f"),
        alt.Tooltip("of_ceiling:Q", title="Of the ceiling (%)", format=".1f"),
        alt.Tooltip("busy:Q", title="Drive busy (%)", format=".1f"),
        alt.Tooltip("while_busy:N", title="Of the ceiling while busy"),
        alt.Tooltip("size:N", title="Mean request"),
        alt.Tooltip("n:Q", title="Repeats"),
    ]


def _lines(points: pl.DataFrame) -> list[tuple[str, ...]]:
    """Return the means over the repeats of each cell, phase and operation as rows of a table."""
    return [
        (
            f"{row['cell']}, {row['phase']}: {row['op']}",
            f"{row['n']}",
            number_text(row["bandwidth_gib_s"]),
            percent(row["of_ceiling"] / 100),
            percent(row["busy"] / 100),
            _while_busy(row),
            bytes_text(row["request_bytes_mean"]),
        )
        for row in _means(points).to_dicts()
    ]


def _range(values: Sequence[float]) -> str:
    least, most = number_text(min(values)), number_text(max(values))
    return least if least == most else f"{least} to {most}"


def _described(run: Run, points: pl.DataFrame, ceilings: Sequence[Ceiling]) -> list[str]:
    counts = points.group_by("cell", maintain_order=True).agg(pl.col("slug").n_unique())["slug"].to_list()
    dots = "; dots: each of them" if max(counts) > 1 else ""
    how = " or ".join(dict.fromkeys(ceiling.how() for ceiling in ceilings))
    lines = [
        f"Marks: phases of a cell, mean of {repeats_text(counts)}{dots}. Ceiling: fio on the same storage, {how}.",
        "On the grey diagonal a drive is as fast as under fio whenever it is busy; left of the corner it waits for the "
        "job, below the diagonal requests are too small or too few.",
    ]
    if (points["of_ceiling"] > points["busy"]).any():
        lines.append(
            "Above the diagonal or 100 %: a job is not bound to fio's settings, such as request size and depth."
        )
    return [line for line in (*lines, left_out(run, run.published)) if line]
