"""The house theme: one look for screen and print, safe for colour-blind readers (Okabe-Ito)."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np

from analysis.run import Trial

BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
#: From Tol's muted palette, where reads and writes have taken their colours of Okabe and Ito's.
WINE, INDIGO = "#882255", "#332288"
SKY, PURPLE, YELLOW, BLACK = "#56B4E9", "#CC79A7", "#F0E442", "#000000"
INK, FAINT_INK, RULE, GRID, ALARM = "#1f2328", "#57606a", "#8c959f", "#e4e8ec", "#b3261e"

#: What stands alone or is a part of a figure.
View = alt.Chart | alt.LayerChart

#: A colour means the same thing in every figure.
OPERATIONS = {"read": BLUE, "write": VERMILLION}
PHASES = {
    "job": "#d8dee4",
    "init": "#b6bcc4",
    "warmup": "#8c959f",
    "store": ORANGE,
    "load": SKY,
    "prefill": PURPLE,
    "decode": GREEN,
    "drain": "#6b7280",
}
#: What offload files hold, and what else a filesystem writes.
ROLES = {
    "weights": WINE,
    "kv": ORANGE,
    "activations": PURPLE,
    "tensor": SKY,
    "file": GREEN,
    "journal": INDIGO,
    "metadata": "#8c959f",
    "other": BLACK,
}
#: Cells of a sweep beside each other, in this order. Blue and vermillion are reads' and writes'; yellow is too pale.
CELLS = (INDIGO, ORANGE, GREEN, WINE, SKY, PURPLE, BLACK)
#: The dash pattern of each of them, so that lines differ without colour too.
DASHES = ([1, 0], [7, 3], [2, 2], [9, 2, 2, 2], [4, 4], [12, 4], [1, 3])
SPARE = (PURPLE, GREEN, YELLOW, BLUE, VERMILLION, ORANGE, SKY)

FONT = "Helvetica Neue, Helvetica, Arial, Liberation Sans, sans-serif"
WIDTH = 720
TITLE_CHARACTERS = 88
SUBTITLE_CHARACTERS = 128

CONFIG: dict[str, Any] = {
    "background": "white",
    "font": FONT,
    "padding": 12,
    "view": {"stroke": GRID, "continuousWidth": WIDTH},
    "title": {
        "anchor": "start",
        "frame": "group",
        "fontSize": 15,
        "fontWeight": 600,
        "color": INK,
        "subtitleFontSize": 11.5,
        "subtitleColor": FAINT_INK,
        "subtitleLineHeight": 16,
        "subtitlePadding": 5,
        "offset": 12,
        "lineHeight": 19,
    },
    "axis": {
        "labelFontSize": 11,
        "labelColor": INK,
        "titleFontSize": 12,
        "titleFontWeight": 500,
        "titleColor": INK,
        "titlePadding": 8,
        "gridColor": GRID,
        "domainColor": RULE,
        "tickColor": RULE,
        "tickSize": 4,
    },
    "header": {"labelFontSize": 12.5, "labelFontWeight": 600, "labelColor": INK, "titleFontSize": 12},
    "legend": {
        "labelFontSize": 11.5,
        "titleFontSize": 11.5,
        "titleFontWeight": 500,
        "titleColor": FAINT_INK,
        "labelColor": INK,
        "orient": "top",
        "direction": "horizontal",
        "symbolStrokeWidth": 2.5,
        "symbolSize": 90,
        "symbolOpacity": 1,
        "labelLimit": 320,
        "columnPadding": 16,
        "padding": 2,
        "offset": 8,
        "titleOrient": "left",
        "titlePadding": 8,
    },
}


def finished(
    chart: alt.TopLevelMixin, title: str, subtitle: Sequence[str] = (), alarm: Sequence[str] = ()
) -> alt.TopLevelMixin:
    """Return `chart` in the house theme under its title; `alarm` lines stand first and turn the title red."""
    lines = [part for line in (*alarm, title) for part in _wrap(line, TITLE_CHARACTERS) or [""]]
    below = [part for line in subtitle for part in _wrap(line, SUBTITLE_CHARACTERS)]
    heading: dict[str, Any] = {"text": lines[:8]}
    if below:
        heading["subtitle"] = below
    if alarm:
        heading["color"] = ALARM
    return chart.properties(title=alt.TitleParams(**heading)).configure(**CONFIG)  # type: ignore[no-any-return]


def stack(parts: Sequence[View]) -> alt.VConcatChart:
    """Return charts one under the other, each with legends of its own."""
    stacked: alt.VConcatChart = alt.vconcat(*parts, spacing=14)
    return stacked.resolve_scale(color="independent", stroke="independent", xOffset="independent")  # type: ignore[no-any-return]


def section(title: str, subtitle: str = "") -> alt.TitleParams:
    """Return the heading of one part of a figure."""
    below: dict[str, Any] = {"subtitle": _wrap(subtitle, SUBTITLE_CHARACTERS)} if subtitle else {}
    return alt.TitleParams(text=title, fontSize=12.5, offset=8, **below)


def shades(colour: str, count: int) -> list[str]:
    """Return `count` shades from a pale one, still to be seen on white, through the colour to a dark one."""
    full = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    at = np.linspace(0, 2, count)
    mixed = [np.interp(at, [0, 1, 2], [255 - (255 - part) * 0.3, part, part * 0.4]) for part in full]
    return ["#" + "".join(f"{round(part):02x}" for part in shade) for shade in zip(*mixed, strict=True)]


def notice(title: str, reason: str) -> alt.TopLevelMixin:
    """Return a figure that says why there is none."""
    text = _wrap(f"Not drawn: {reason}.", 100)
    mark = alt.Chart(alt.InlineData(values=[{}])).mark_text(
        text=text, align="left", x=14, y=26, fontSize=13, color=FAINT_INK, lineHeight=18
    )
    return finished(mark.properties(width=WIDTH, height=18 * len(text) + 28), title)


def gap(reason: str) -> alt.Chart:
    """Return what stands in a figure in place of a part that the data rules out: the reason."""
    text = _wrap(f"Not drawn: {reason}.", 100)
    mark = alt.Chart(alt.InlineData(values=[{}])).mark_text(
        text=text, align="left", x=0, y=12, fontSize=12, color=FAINT_INK, lineHeight=16
    )
    drawn: alt.Chart = mark.properties(width=WIDTH, height=16 * len(text) + 10, view=alt.ViewConfig(stroke=None))
    return drawn


def alarm(trial: Trial) -> list[str]:
    """Return the line that marks a trial whose data may not be used; nothing for a valid one."""
    return [] if trial.state == "valid" else [f"{trial.state.upper()}: {'; '.join(trial.reasons)}"]


def phase_colours(names: Sequence[str]) -> list[str]:
    """Return a colour for each phase name; a name that has no colour of its own gets a spare one."""
    spare = [colour for colour in SPARE if colour not in {PHASES.get(name) for name in names}]
    others = [name for name in names if name not in PHASES]
    return [PHASES.get(name) or spare[others.index(name) % len(spare)] for name in names]


def role_colours(names: Sequence[str]) -> list[str]:
    """Return a colour for each role; one that a workload made up gets a spare one."""
    others = [name for name in names if name not in ROLES]
    spare = [colour for colour in (YELLOW, *SPARE) if colour not in {ROLES.get(name) for name in names}]
    return [ROLES.get(name) or spare[others.index(name) % len(spare)] for name in names]


def named(title: str, trial: Trial) -> str:
    """Return the title of one trial's chart; its id gets spaces to break lines at."""
    return f"{title}: {trial.id.replace(',', ', ')}"


def _wrap(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_on_hyphens=False)
