"""Who submitted the requests: a flame graph of kernel and user stacks, one per trial that recorded them.

A box is a function, as wide as the requests submitted in it and in what it called; its callers are below it. On a page
a click makes a box as wide as the chart, a double click goes back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import altair as alt

from analysis.figures import theme
from analysis.figures.panel import Panel, per_trial, ruled_out
from analysis.run import Run, Trial
from analysis.stacks import Box, Frame, boxes, recorded, tree
from analysis.units import bytes_text, count_text

NAME = "flamegraph"
TITLE = "Who submitted the requests"

_ROW, _TEXT = 17, 10.5
#: Pixels of one character, of the letters on average, and of the margin that a label keeps.
_CHARACTER, _MARGIN = 6.4, 8
#: Boxes narrower than this (pixels) are left out: hairlines, whose stacks would only make the chart tall.
_VISIBLE = 1.5
_OPERATIONS = {**theme.OPERATIONS, "flush": theme.PURPLE, "discard": theme.GREEN, "other": theme.RULE}
_TINTS = {"operation": 0.75, "user": 0.5, "kernel": 0.25}
_ROOT = "#d8dee4"


def charts(run: Run) -> Iterator[Panel]:
    """Yield one panel per trial that was asked for stacks."""
    asked = [trial for trial in run.published if recorded(trial)]
    if not asked:
        yield ruled_out(NAME, TITLE, "no trial recorded stacks (trace.stacks: true records them)")
    yield from per_trial(asked, NAME, TITLE, chart)


def chart(trial: Trial) -> alt.TopLevelMixin:
    """Return the flame graph of one trial."""
    root = tree(trial)
    drawn = boxes(root, least=round(root.requests * _VISIBLE / theme.WIDTH))
    graph = _graph(root, drawn)
    return theme.finished(graph, theme.named(TITLE, trial), described(trial, root), theme.alarm(trial))


def described(trial: Trial, root: Frame) -> list[str]:
    """Return what the graph shows, what is missing from it, and what recording it did to the trial."""
    facts = trial.section("stacks")
    parts = {"lost": "stacks", "without_kernel_stack": "kernel stack", "without_user_stack": "user stack"}
    unknown = [f"the {part} of {count_text(facts[name], 'request')}" for name, part in parts.items() if facts.get(name)]
    requests, least = count_text(root.requests, "request"), 100 * _VISIBLE / theme.WIDTH
    lines = [
        f"{requests}, {bytes_text(root.bytes)}. A box is a function, as wide as its requests are many; below it are "
        f"its callers. Left out: boxes of less than {least:.1f} % of the requests.",
        "User stacks end where code has no frame pointers." + (f" Not known: {', '.join(unknown)}." if unknown else ""),
    ]
    return [*lines, "Recording stacks disturbed this trial: its bandwidth and latency are not the drive's."]


def _graph(root: Frame, drawn: list[Box]) -> alt.LayerChart:
    rows = 1 + max(box.depth for box in drawn)
    kinds = list(dict.fromkeys(_kind(box.frame) for box in sorted(drawn, key=_order)))
    zoom = alt.selection_point(name="zoom", fields=["begin", "end"], on="click", clear="dblclick")
    low, high = "(zoom.begin ? zoom.begin[0] : 0)", f"(zoom.end ? zoom.end[0] : {root.requests})"
    scale = alt.Scale(domainMin=alt.ExprRef(low), domainMax=alt.ExprRef(high), nice=False, zero=False)
    y = alt.Y("row:O", sort=list(range(rows)), scale=alt.Scale(padding=0), axis=None)
    colour = alt.Color(
        "kind:N",
        title=None,
        scale=alt.Scale(domain=kinds, range=[_colour(kind) for kind in kinds]),
        legend=_legend(kinds),
    )
    base = alt.Chart(alt.InlineData(values=[_row(box, root, rows) for box in drawn]))
    shown = base.transform_filter(f"datum.end > {low} && datum.begin < {high}")
    shown = shown.transform_calculate(left=f"max(datum.begin, {low})", right=f"min(datum.end, {high})")
    room = f"floor(((datum.right - datum.left) / ({high} - {low}) * {theme.WIDTH} - {_MARGIN}) / {_CHARACTER})"
    rects = shown.mark_rect(stroke="white", strokeWidth=0.6, clip=True, cursor="pointer").encode(
        x=alt.X("left:Q", scale=scale, axis=None), x2="right:Q", y=y, color=colour, tooltip=_tooltip()
    )
    texts = shown.transform_calculate(label=f"{room} < 3 ? '' : truncate(datum.name, {room})").mark_text(
        align="left", dx=_MARGIN / 2, fontSize=_TEXT, color=theme.INK, clip=True
    )
    labels = texts.encode(x=alt.X("left:Q", scale=scale, axis=None), y=y, text="label:N", tooltip=_tooltip())
    layers = alt.LayerChart(layer=[rects.add_params(zoom), labels])
    return layers.properties(width=theme.WIDTH, height=_ROW * rows, view=alt.ViewConfig(stroke=None))


def _row(box: Box, root: Frame, rows: int) -> dict[str, Any]:
    return {
        "name": box.frame.name,
        "kind": _kind(box.frame),
        "begin": box.begin,
        "end": box.end,
        "row": rows - 1 - box.depth,
        "requests": box.frame.requests,
        "share": 100 * box.frame.requests / root.requests,
        "moved": bytes_text(box.frame.bytes),
    }


def _kind(frame: Frame) -> str:
    return f"{frame.op}: {frame.kind}" if frame.op else "all"


def _order(box: Box) -> tuple[int, int]:
    places = list(_OPERATIONS)
    op = box.frame.op
    return (places.index(op) if op in places else len(places), list(_TINTS).index(box.frame.kind or "operation"))


def _colour(kind: str) -> str:
    """Return an operation's colour, paler for user code and palest for the kernel's."""
    op, _, part = kind.partition(": ")
    if not part:
        return _ROOT
    full = _OPERATIONS.get(op, theme.RULE)
    parts = [int(full[place : place + 2], 16) for place in (1, 3, 5)]
    return "#" + "".join(f"{round(255 - (255 - level) * _TINTS[part]):02x}" for level in parts)


def _legend(kinds: list[str]) -> alt.Legend:
    return alt.Legend(values=[kind for kind in kinds if kind.endswith(("user", "kernel"))], symbolType="square")


def _tooltip() -> list[alt.Tooltip]:
    return [
        alt.Tooltip("name:N", title="Function"),
        alt.Tooltip("kind:N", title="Of"),
        alt.Tooltip("requests:Q", title="Requests", format=","),
        alt.Tooltip("share:Q", title="Share (%)", format=".2f"),
        alt.Tooltip("moved:N", title="Bytes"),
    ]
