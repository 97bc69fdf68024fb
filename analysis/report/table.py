"""Tables as both renderings know them: each cell with its text and what it sorts by."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from analysis.run import STATES, Trial
from analysis.units import (
    UNKNOWN,
    bytes_text,
    duration_text,
    exact_bytes_text,
    latency_text,
    number_text,
)

MISSING = "missing"
#: What a verdict is marked with, in the order in which verdicts sort.
SIGNS = {"valid": "✓", "invalid": "!", "failed": "✕", MISSING: "–"}
NUMBER, TEXT, WIDE = "number", "name", "wide"
#: Stands for a value that there cannot be, such as the latency of no requests.
NOTHING = "–"


@dataclass(frozen=True)
class Cell:
    """`text`, and the number it `sort`s by: None where the text itself is the key, or nothing is known.

    `told` explains it to who asks; `link` is an anchor of the page; `style` a class of the page's stylesheet. `state`
    and `reasons` are those of a verdict; `note` stands below the text, with the anchor it leads to.
    """

    text: str
    sort: float | None = None
    told: str = ""
    link: str = ""
    style: str = ""
    state: str = ""
    reasons: tuple[str, ...] = ()
    note: tuple[str, str] | None = None

    @property
    def known(self) -> bool:
        """Whether it says anything."""
        return self.text not in (UNKNOWN, NOTHING, "") and self.style != "unknown"

    @property
    def key(self) -> str:
        """The number it sorts by as text; empty where it has none."""
        return "" if self.sort is None or not math.isfinite(self.sort) else f"{self.sort:.15g}"


@dataclass(frozen=True)
class Column:
    """A column's label, below the label of its `group` where it has one, and what is in it (a class of the page)."""

    label: str
    group: str = ""
    kind: str = TEXT

    @property
    def full(self) -> str:
        """The label with its group's."""
        return f"{self.group} {self.label}".strip()


@dataclass(frozen=True)
class Row:
    """Cells in the order of the columns; `state` where the row is a trial's own."""

    cells: tuple[Cell, ...]
    state: str = ""


@dataclass(frozen=True)
class Table:
    """Columns, and rows that each have a cell for every one of them; `of_trials` where each row is of a trial."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    of_trials: bool = False

    def __post_init__(self) -> None:
        if any(len(row.cells) != len(self.columns) for row in self.rows):
            raise ValueError("a row has other cells than the table has columns")

    @property
    def groups(self) -> list[tuple[str, int, int]]:
        """Label, first column and number of columns of each group; a column outside of groups is one without label."""
        found: list[tuple[str, int, int]] = []
        first = 0
        for group, own in groupby(self.columns, key=lambda column: column.group):
            count = len(list(own))
            found += [(group, first, count)] if group else [("", first + step, 1) for step in range(count)]
            first += count
        return found

    def begins(self, place: int) -> bool:
        """Say whether a group begins, or the last one ended, at a column."""
        return place > 0 and self.columns[place].group != self.columns[place - 1].group

    def without_unknown(self) -> tuple[Table, list[str]]:
        """Return the table without the columns of which no row knows anything, and a sentence that names them."""
        places = range(len(self.columns))
        kept = [place for place in places if not self.rows or any(row.cells[place].known for row in self.rows)]
        columns = tuple(self.columns[place] for place in kept)
        told = {column.group for column in columns}
        # a group of which nothing is left is named as one
        left = dict.fromkeys(
            column.group if column.group and column.group not in told else column.full
            for place, column in enumerate(self.columns)
            if place not in kept
        )
        rows = tuple(replace(row, cells=tuple(row.cells[place] for place in kept)) for row in self.rows)
        return replace(self, columns=columns, rows=rows), [f"No trial knows: {', '.join(left)}."] if left else []


@dataclass(frozen=True)
class Noted:
    """A table with sentences on what is not in it, and on what in it may look wrong."""

    table: Table
    notes: Sequence[str]


def anchor(slug: str) -> str:
    """Return the page's anchor of a trial."""
    return f"trial-{slug}"


def trial_cell(trial: Trial, place: int) -> Cell:
    """Return a trial's id with its link; it sorts by its place in the plan."""
    return Cell(trial.id, place, link=anchor(trial.slug))


def verdict(state: str, reasons: Sequence[str] = ()) -> Cell:
    """Return a verdict with its reasons."""
    return Cell(state, [*STATES, MISSING].index(state), state=state, reasons=tuple(reasons))


def number(value: float | int | None, text: Callable[..., str] = number_text) -> Cell:
    """Return a number as `text` tells it."""
    return Cell(UNKNOWN) if value is None else Cell(text(value), value)


def count(value: int | None) -> Cell:
    """Return a whole number with separators."""
    return number(value, lambda whole: f"{whole:,}")


def amount(value: float | None) -> Cell:
    """Return bytes in a unit for people; to the byte for who asks."""
    if value is None:
        return Cell(UNKNOWN)
    return Cell(bytes_text(value), value, told=exact_bytes_text(value) if isinstance(value, int) else "")


def duration(seconds: float | None) -> Cell:
    """Return a duration; it sorts by its seconds."""
    return number(seconds, duration_text)


def latency(microseconds: float | None) -> Cell:
    """Return a latency; it sorts by its microseconds."""
    return number(microseconds, latency_text)


def texts(rows: Sequence[dict[str, str]], wide: Sequence[str] = ()) -> Table:
    """Return a table of words: rows of the same keys; those named `wide` may break their lines."""
    names = tuple(rows[0]) if rows else ()
    columns = tuple(Column(name, kind=WIDE if name in wide else TEXT) for name in names)
    return Table(columns, tuple(Row(tuple(Cell(row[name]) for name in names)) for row in rows))
