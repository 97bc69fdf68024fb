"""How often sectors were accessed, a part of figures: the cumulative distribution, reads and writes apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import polars as pl

from analysis.accesses import access_counts
from analysis.attribution import DATA
from analysis.errors import CannotDraw
from analysis.figures import theme
from analysis.metrics import requests_path
from analysis.run import Trial
from analysis.units import SECTOR_BYTES, bytes_text, count_text

TITLE = "Accesses per sector, cumulative"

_HEIGHT = 190
#: Accesses that differ by more than this factor stand on a logarithmic axis.
_WIDE = 20
#: Steps of the distribution lower than this share of a sector's operation (%) are not drawn one by one.
_VISIBLE = 0.1


def counted(trial: Trial) -> pl.DataFrame:
    """Return how many sectors the trial accessed how often: `op`, `accesses`, `sectors`."""
    found = access_counts(requests_path(trial.path))
    if found.is_empty():
        raise CannotDraw("the trace holds no read and no write with data")
    return found


def distribution(counts: pl.DataFrame, most: int) -> alt.Chart:
    """Return the share of the accessed sectors with at most x accesses; `most` is where the axis ends."""
    operations = [op for op in DATA if op in set(counts["op"])]
    wide = most > _WIDE
    domain = [0.9, most * 1.1] if wide else [0, most + 1]
    values = [value for op in operations for value in _steps(counts.filter(pl.col("op") == op), op, domain[1])]
    scale = alt.Scale(type="log" if wide else "linear", domain=domain, nice=False)
    axis = alt.Axis(values=_ticks(most) if wide else alt.Undefined, format=",d", tickMinStep=1, grid=True)
    colours = [theme.OPERATIONS[op] for op in operations]
    colour = alt.Color(
        "op:N",
        title=None,
        scale=alt.Scale(domain=operations, range=colours),
        legend=alt.Legend(symbolType="stroke", symbolStrokeWidth=3, symbolSize=260),
    )
    y = alt.Y("percent:Q", title="Accessed sectors (%)", scale=alt.Scale(domain=[0, 103], nice=False))
    tooltip = [
        alt.Tooltip("op:N", title="Operation"),
        alt.Tooltip("accesses:Q", title="Accesses of a sector, at most", format=","),
        alt.Tooltip("percent:Q", title="Sectors (%)", format=".2f"),
    ]
    chart: alt.Chart = (
        alt.Chart(alt.InlineData(values=values))
        .mark_line(interpolate="step-after", strokeWidth=1.8, clip=True)
        .encode(
            x=alt.X("accesses:Q", title="Accesses per sector (at most)", scale=scale, axis=axis),
            y=y.axis(values=[0, 25, 50, 75, 100]),
            color=colour,
            tooltip=tooltip,
        )
        .properties(width=theme.WIDTH, height=_HEIGHT)
    )
    return chart


def described(counts: pl.DataFrame) -> str:
    """Return the footprint of each operation and the mean number of accesses, in a sentence."""
    parts = []
    for op, done in {"read": "read", "write": "written"}.items():
        own = counts.filter(pl.col("op") == op)
        if sectors := int(own["sectors"].sum()):
            mean = int((own["accesses"] * own["sectors"]).sum()) / sectors
            footprint = f"{count_text(sectors, 'sector')} {done} ({bytes_text(sectors * SECTOR_BYTES)})"
            parts.append(f"{mean:,.2f} of the {footprint}")
    return f"Mean accesses: {', '.join(parts)}."


def _steps(own: pl.DataFrame, op: str, end: float) -> list[dict[str, Any]]:
    """Return the corners of one operation's line, from 0 % on to the end of the axis."""
    shares = own["sectors"].cum_sum() / own["sectors"].sum() * 100
    points = list(zip(own["accesses"].to_list(), shares.to_list(), strict=True))
    drawn: list[tuple[float, float]] = [(points[0][0], 0.0)]
    for accesses, percent in points:
        if percent - drawn[-1][1] >= _VISIBLE or accesses == points[-1][0]:
            drawn.append((accesses, percent))
    drawn.append((end, 100.0))
    return [{"op": op, "accesses": accesses, "percent": round(percent, 3)} for accesses, percent in drawn]


def _ticks(most: int) -> Sequence[int]:
    return [factor * 10**power for power in range(len(str(most))) for factor in (1, 2, 5) if factor * 10**power <= most]
