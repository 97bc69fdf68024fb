"""Small multiples of one measure by night: a panel for each cell, with its steps and with what else changed."""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import altair as alt

from analysis import vega
from analysis.figures import theme
from analysis.series import Change, Series

#: Panels beside each other, and what one measures in pixels.
_COLUMNS, _WIDTH, _HEIGHT = 4, 215, 105
_DAY_MS = 86_400_000
#: An axis shows at least this share of the value above and below it: noise of a percent must not fill a panel.
_LEAST_SHARE = 0.1
#: Characters that a panel is wide.
_LINE = 34
#: The text of a step stands left of its rule in the last part of a panel, for there is no room at its right.
_LAST_PART = 0.75
_LARGER: dict[str, list[tuple[float, str]]] = {"µs": [(1e6, "s"), (1e3, "ms")]}


@dataclass(frozen=True)
class Mark:
    """A night on which something else changed too: its letter in the figures, and what changed."""

    letter: str
    at: datetime
    run: str
    changes: tuple[Change, ...]

    def concerns(self, one: Series) -> bool:
        """Say whether anything changed in the cell of a series."""
        return any(one.cell in change.cells for change in self.changes)


@dataclass(frozen=True)
class Figure:
    """All cells of one measure; `svg` is the picture, `steps` how many it shows."""

    name: str
    title: str
    svg: str
    steps: int


def marked(found: Sequence[Change]) -> list[Mark]:
    """Return a mark for each night on which something changed, lettered from the oldest."""
    by_run: dict[str, list[Change]] = {}
    for one in sorted(found, key=lambda change: change.at):
        by_run.setdefault(one.run, []).append(one)
    return [Mark(letter(place), own[0].at, run, tuple(own)) for place, (run, own) in enumerate(by_run.items())]


def letter(place: int) -> str:
    """Return A to Z, then AA, AB and so on."""
    letters = string.ascii_uppercase
    return (letter(place // len(letters) - 1) if place >= len(letters) else "") + letters[place % len(letters)]


def change_text(share: float) -> str:
    """Return a change with its sign: `−15 %`."""
    digits = 0 if abs(share) >= 0.1 else 1
    return f"{share * 100:+.{digits}f} %".replace("-", "−")


def scale(own: Sequence[Series]) -> tuple[float, str]:
    """Return what to divide values by, and the unit that is theirs then: of the largest median, one for all series."""
    unit = own[0].measure.unit
    top = max(night.median for one in own for night in one.nights)
    larger = [(factor, name) for factor, name in _LARGER.get(unit, []) if top >= factor]
    return larger[0] if larger else (1.0, "" if unit == "1" else unit)


def drawn(own: Sequence[Series], names: Mapping[str, str], marks: Sequence[Mark]) -> Figure:
    """Return the figure of one measure in all its cells, called by `names`, on axes of time that are all the same."""
    factor, unit = scale(own)
    nights = [_ms(night.at) for one in own for night in one.nights]
    panels = [_Panel(one, factor, (min(nights), max(nights))).chart(names[one.cell], marks) for one in own]
    title = f"{own[0].title}, {unit}" if unit else own[0].title
    chart = alt.concat(*panels, columns=_COLUMNS, spacing={"row": 16, "column": 22})
    spec = vega.plain(theme.finished(chart, title).to_dict())
    return Figure(_slug(own[0].title), title, vega.svg(spec), sum(len(one.shifts) for one in own))


def _slug(text: str) -> str:
    return "-".join("".join(one if one.isalnum() else " " for one in text.lower()).split())


def _ms(at: datetime) -> float:
    return at.timestamp() * 1000


class _Panel:
    """One cell. `span` is the time that the axis shows, in ms since 1970; values are divided by `factor`."""

    def __init__(self, one: Series, factor: float, span: tuple[float, float]) -> None:
        self._one, self._factor, self._span = one, factor, span
        self._medians = [_row(night.at, night.median / factor) for night in one.nights]
        self._points = [_row(n.at, value / factor) for n in one.nights for value in n.values if len(n.values) > 1]
        self._low, self._high = self._domain()
        self._x = alt.X(
            "t:T",
            title=None,
            scale=alt.Scale(type="utc", domain=[span[0] - _DAY_MS / 2, span[1] + _DAY_MS / 2], nice=False),
            axis=alt.Axis(format="%-d %b", values=_ticks(span), labelFontSize=9.5, grid=False),
        )
        self._y = alt.Y(
            "v:Q",
            title=None,
            scale=alt.Scale(domain=[self._low, self._high], nice=False, zero=False),
            axis=alt.Axis(tickCount=3, labelFontSize=9.5, format=_format(self._low, self._high)),
        )

    def chart(self, name: str, marks: Sequence[Mark]) -> alt.LayerChart:
        """Return the panel under its name."""
        layers = [*self._marked([mark for mark in marks if mark.concerns(self._one)]), *self._stepped()]
        x, y = self._x, self._y
        if self._points:
            points = _of(self._points).mark_circle(size=9, opacity=0.3, color=theme.FAINT_INK)
            layers.append(points.encode(x=x, y=y))
        line = _of(self._medians).mark_line(strokeWidth=1.4, color=theme.BLUE, point=alt.OverlayMarkDef(size=9))
        layers.append(line.encode(x=x, y=y))
        small: dict[str, Any] = {"fontSize": 10.5, "fontWeight": 600, "anchor": "start", "offset": 5, "lineHeight": 13}
        title = alt.TitleParams(text=_wrapped(name), **small)
        panel = alt.layer(*layers, width=_WIDTH, height=_HEIGHT, title=title)
        assert isinstance(panel, alt.LayerChart)
        return panel

    def _domain(self) -> tuple[float, float]:
        medians = [row["v"] for row in self._medians]
        values = [*medians, *(row["v"] for row in self._points)]
        low = min(*values, min(medians) * (1 - _LEAST_SHARE))
        high = max(*values, max(medians) * (1 + _LEAST_SHARE))
        return (low, high) if high > low else (low - 1, high + 1)

    def _marked(self, marks: Sequence[Mark]) -> Iterator[alt.Chart]:
        """Yield the rules of nights on which something else changed, each under its letter."""
        if marks:
            rows = [_row(mark.at, self._high) | {"letter": mark.letter} for mark in marks]
            yield _of(rows).mark_rule(strokeDash=[3, 3], color=theme.RULE, strokeWidth=1).encode(x=self._x)
            text = _of(rows).mark_text(baseline="bottom", dy=-1, fontSize=9, color=theme.FAINT_INK)
            yield text.encode(x=self._x, y=self._y, text="letter:N")

    def _stepped(self) -> Iterator[alt.Chart]:
        """Yield the rules of the nights from which on the level is another, each with its change."""
        look: dict[str, Any] = {"fontSize": 10, "fontWeight": 600, "color": theme.ALARM}
        for shift in self._one.shifts:
            at = self._one.nights[shift.index].at
            top = shift.after < shift.before
            row = _row(at, self._high if top else self._low) | {"text": change_text(shift.change)}
            yield _of([row]).mark_rule(color=theme.ALARM, strokeWidth=1.4).encode(x=self._x)
            late = _ms(at) > self._span[0] + (self._span[1] - self._span[0]) * _LAST_PART
            place: dict[str, Any] = {"align": "right" if late else "left", "dx": -3 if late else 3}
            text = _of([row]).mark_text(baseline="top" if top else "bottom", **place, **look)
            yield text.encode(x=self._x, y=self._y, text="text:N")


def _row(at: datetime, value: float) -> dict[str, Any]:
    return {"t": _ms(at), "v": value}


def _of(rows: Sequence[dict[str, Any]]) -> alt.Chart:
    return alt.Chart(alt.InlineData(values=[*rows]))


def _ticks(span: tuple[float, float]) -> list[float]:
    """Return the midnights (UTC) that the axis of time names: four, or as many as there are days."""
    first, last = (round(end / _DAY_MS) for end in span)
    count = min(4, last - first + 1)
    return [_DAY_MS * round(first + (last - first) * place / max(count - 1, 1)) for place in range(count)]


def _wrapped(text: str) -> list[str]:
    """Return a panel's heading in lines no longer than the panel is wide."""
    lines = [""]
    for word in text.split(", "):
        if lines[-1] and len(lines[-1]) + len(word) > _LINE:
            lines.append("")
        lines[-1] += f"{', ' if lines[-1] else ''}{word}"
    return lines


def _format(low: float, high: float) -> str:
    """Return digits enough that three ticks between the ends differ."""
    digits = 0
    while digits < 6 and (high - low) / 3 < 10.0**-digits:
        digits += 1
    return f",.{digits}f"
