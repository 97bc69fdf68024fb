"""A table as a part of a figure, so that the picture holds its own numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from analysis.figures import theme

_ROW = 17
#: Width of a letter of the table, about, in pixels, and the space between two columns.
_LETTER, _SPACE = 6.2, 18


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> alt.LayerChart:
    """Return the rows under their head: the first column left-aligned, the others to the right, as numbers stand."""
    ends = _ends([head, *rows])
    cells = [
        _cell(ends, row, column, text) for row, texts in enumerate([head, *rows]) for column, text in enumerate(texts)
    ]
    x = alt.X("x:Q", scale=alt.Scale(domain=[0, theme.WIDTH], nice=False), axis=None)
    y = alt.Y("y:Q", scale=alt.Scale(domain=[1 + len(rows), 0], nice=False), axis=None)
    base = alt.Chart(alt.InlineData(values=cells)).encode(x=x, y=y, text="text:N")
    layers = [_texts(base, first, is_head) for first in (True, False) for is_head in (True, False)]
    rule = alt.Chart(alt.InlineData(values=[{"x": 0, "x2": ends[-1], "y": 1}]))
    layers.append(rule.mark_rule(color=theme.RULE).encode(x=x, x2="x2:Q", y=y))
    drawn = alt.LayerChart(layer=layers)
    return drawn.properties(width=theme.WIDTH, height=_ROW * (1 + len(rows)), view=alt.ViewConfig(stroke=None))


def _ends(lines: Sequence[Sequence[str]]) -> list[float]:
    """Return where each column ends (pixels), all within the width of a figure."""
    widths = [max(len(line[column]) for line in lines) * _LETTER + _SPACE for column in range(len(lines[0]))]
    shrink = min(theme.WIDTH / sum(widths), 1.0)
    return [sum(widths[: column + 1]) * shrink for column in range(len(widths))]


def _cell(ends: Sequence[float], row: int, column: int, text: str) -> dict[str, Any]:
    x = ends[column] if column else 0.0
    return {"x": x, "y": row + 0.5, "text": text, "first": not column, "head": not row}


def _texts(base: alt.Chart, first: bool, head: bool) -> alt.Chart:
    chosen = base.transform_filter(f"datum.first == {str(first).lower()} && datum.head == {str(head).lower()}")
    colour: str = theme.FAINT_INK if head else theme.INK
    drawn: alt.Chart = chosen.mark_text(
        align="left" if first else "right", fontSize=11, color=colour, fontWeight=600 if head else 400
    )
    return drawn
