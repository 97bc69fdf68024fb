"""Whose bytes moved when: bandwidth over time by what the files hold, reads above writes, one chart per trial."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import altair as alt
import polars as pl

from analysis import metrics
from analysis.attribution import DATA
from analysis.figures import theme
from analysis.figures.panel import Panel, Tried, per_trial
from analysis.figures.timeline import Part, Timeline, stacked, timelines
from analysis.roles import owners, roles_over_time
from analysis.run import Run, Trial
from analysis.units import GIB, NS_PER_S, bytes_text, share_text

NAME = "roles"
TITLE = "Whose bytes moved, by role"

_HEIGHT = 130
#: Below this the axis counts MiB/s.
_FEW_GIB_S = 0.1
_LABELS = {"kv": "KV cache", "file": "offload file", "metadata": "filesystem metadata", "journal": "journal"}


@dataclass(frozen=True)
class _Moved:
    """Bytes by operation, role and bin of one trial, and its roles in the order of the legend."""

    bytes: pl.DataFrame
    roles: tuple[str, ...]


def charts(run: Run) -> Iterator[Panel]:
    """Yield one panel per trial; all share their colours, bins and axes, so they compare at sight."""
    lines = timelines(run.published)
    moved = Tried(run.published, lambda trial: _moved(lines.of(trial)))
    roles = list(dict.fromkeys(role for one in moved.all() for role in one.roles))
    colours = dict(zip(roles, theme.role_colours(roles), strict=True))

    def draw(trial: Trial) -> alt.TopLevelMixin:
        return chart(lines.of(trial), moved.of(trial), colours)

    yield from per_trial(run.published, NAME, TITLE, draw)


def chart(line: Timeline, moved: _Moved, colours: dict[str, str]) -> alt.TopLevelMixin:
    """Return the chart of one trial; `colours` has one for each role."""
    operations = [op for op in DATA if not moved.bytes.filter(op=op).is_empty()]
    parts = stacked(line, *[_part(line, moved, op, colours, op == operations[0]) for op in operations])
    title = theme.named(TITLE, line.trial)
    return theme.finished(theme.stack(parts), title, [described(moved)], theme.alarm(line.trial))


def label(role: str) -> str:
    """Return a role in words."""
    return _LABELS.get(role, role)


def described(moved: _Moved) -> str:
    """Return the share of each role in what was read and written, in a sentence or two."""
    parts = []
    for op, done in zip(DATA, ("read", "written"), strict=True):
        own = moved.bytes.filter(op=op).group_by("role").agg(pl.col("bytes").sum()).sort("bytes", descending=True)
        total = int(own["bytes"].sum())
        shares = [f"{share_text(row['bytes'] / total)} {label(row['role'])}" for row in own.to_dicts()]
        parts.append(f"{bytes_text(total)} {done}" + (f" ({', '.join(shares)})" if shares else ""))
    return "; ".join(parts) + ". A request belongs to the file that its first sector belonged to then."


def _moved(line: Timeline) -> _Moved:
    told = owners(line.trial.path)
    path = metrics.requests_path(line.trial.path)
    found = roles_over_time(path, told, line.begin_ns, line.end_ns, line.bin_ns)
    seen = {*found["role"]}
    return _Moved(found, tuple(role for role in told.roles if role in seen))


def _part(line: Timeline, moved: _Moved, op: str, colours: dict[str, str], legend: bool) -> Part:
    return lambda labelled: _areas(line, moved, op, colours, labelled, legend)


def _areas(line: Timeline, moved: _Moved, op: str, colours: dict[str, str], labelled: bool, legend: bool) -> alt.Chart:
    """Return the bandwidth of one operation, roles stacked."""
    top = line.top[op]
    unit, factor = ("MiB/s", 1024) if top < _FEW_GIB_S else ("GiB/s", 1)
    # The largest lies at the bottom, on the axis
    own = moved.bytes.filter(op=op)
    totals = own.group_by("role").agg(pl.col("bytes").sum())
    size = dict(totals.iter_rows())
    roles = sorted(moved.roles, key=lambda role: -size.get(role, 0))
    names = [label(role) for role in moved.roles]
    scale = alt.Scale(domain=names, range=[colours[role] for role in moved.roles])
    drawn = alt.Legend(symbolType="square", symbolStrokeWidth=0, symbolSize=110) if legend else None
    values = _values(line, own, [role for role in roles if role in size], factor)
    tooltip = [alt.Tooltip("begin_s:Q", title="Bin begins (s)", format=".3f")]
    tooltip += [alt.Tooltip("role:N", title="Role"), alt.Tooltip("bandwidth:Q", title=unit, format=".3f")]
    y = alt.Y(
        "bandwidth:Q",
        stack="zero",
        title=f"{op.capitalize()} ({unit})",
        scale=alt.Scale(domain=[0, top * factor or 1.0], nice=True),
        axis=alt.Axis(tickCount=4),
    )
    placed: alt.Chart = (
        alt.Chart(alt.InlineData(values=values))
        .transform_fold([label(role) for role in roles if role in size], as_=["role", "bandwidth"])
        .transform_calculate(place=f"indexof({[label(role) for role in roles]}, datum.role)")
        .mark_area(interpolate="step-after", clip=True, line=False)
        .encode(
            x=line.x(labelled),
            y=y,
            color=alt.Color("role:N", title=None, scale=scale, legend=drawn, sort=names),
            order=alt.Order("place:Q", sort="ascending"),
            tooltip=tooltip,
        )
        .properties(width=theme.WIDTH, height=_HEIGHT)
    )
    return placed


def _values(line: Timeline, own: pl.DataFrame, roles: Sequence[str], factor: int) -> list[dict[str, float]]:
    """Return one row per bin with a column for each role, and one where the last bin ends, which is where its step
    does."""
    seconds = line.bin_ns / NS_PER_S
    bins = max((line.end_ns - line.begin_ns - 1) // line.bin_ns + 1, 1)
    wide = pl.DataFrame({"bin": range(bins)})
    for role in roles:
        speed = (pl.col("bytes") / (seconds * GIB) * factor).round(4).alias(label(role))
        wide = wide.join(own.filter(role=role).select("bin", speed), on="bin", how="left")
    closing = wide.tail(1).with_columns(pl.col("bin") + 1)
    filled = pl.concat([wide, closing]).fill_null(0.0)
    return filled.select((pl.col("bin") * seconds).round(6).alias("begin_s"), pl.exclude("bin")).to_dicts()
