"""Tables of a report, before they are HTML or Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from analysis.units import UNKNOWN, bytes_text, exact_bytes_text


@dataclass(frozen=True)
class Link:
    """A reference to a trial's section or to a figure, by slug or name; each rendering knows where they are."""

    text: str
    trial: str = ""
    figure: str = ""


@dataclass(frozen=True)
class Cell:
    """One cell: `value` is what a number is sorted by, `hint` tells more, `kind` how it is meant.

    Kinds: `verdict` (its `hint` are the reasons), `outcome` (of a finding), `agree`, `differ`, `unknown`, or none.
    """

    text: str
    value: float | None = None
    hint: str = ""
    kind: str = ""
    links: tuple[Link, ...] = ()


@dataclass(frozen=True)
class Column:
    """A column; `group` is a heading that neighbours share, `numeric` columns are sorted by value, `wide` ones wrap."""

    label: str
    group: str = ""
    numeric: bool = False
    wide: bool = False


@dataclass(frozen=True)
class Row:
    """A row, of the trial with this slug where it is about one."""

    cells: tuple[Cell, ...]
    trial: str = ""


@dataclass(frozen=True)
class Table:
    """A titled table; `note` says how to read it, `after` what is to be known beside it."""

    anchor: str
    title: str
    note: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    after: tuple[str, ...] = ()

    @property
    def groups(self) -> list[tuple[str, list[tuple[int, Column]]]]:
        """The columns with their places, neighbours of one group together."""
        found: list[tuple[str, list[tuple[int, Column]]]] = []
        for place, column in enumerate(self.columns):
            if found and column.group and found[-1][0] == column.group:
                found[-1][1].append((place, column))
            else:
                found.append((column.group, [(place, column)]))
        return found

    @property
    def known(self) -> Table:
        """The table without the columns of which no row knows anything; a sentence names them."""
        kept = [
            place
            for place in range(len(self.columns))
            if not self.rows or any(_tells(row.cells[place]) for row in self.rows)
        ]
        columns = tuple(self.columns[place] for place in kept)
        shown = {column.group for column in columns}
        left = [
            column for place, column in enumerate(self.columns) if place not in kept and (column.label or column.group)
        ]
        # a group of which nothing is left is named as one
        names = dict.fromkeys(
            column.group if column.group and column.group not in shown else f"{column.group} {column.label}".strip()
            for column in left
        )
        rows = tuple(replace(row, cells=tuple(row.cells[place] for place in kept)) for row in self.rows)
        after = (*self.after, f"No trial knows: {', '.join(names)}.") if names else self.after
        return replace(self, columns=columns, rows=rows, after=after)


def _tells(cell: Cell) -> bool:
    return cell.kind != "unknown" and bool(cell.text or cell.links)


NOTHING = Cell("–", kind="unknown")


def text(words: object) -> Cell:
    """Return a cell of words; what is not known says so."""
    return Cell(UNKNOWN, kind="unknown") if words in (None, "", UNKNOWN) else Cell(str(words))


def number(value: float | None, words: str) -> Cell:
    """Return a cell that is sorted by `value` and shows `words`."""
    return Cell(UNKNOWN, kind="unknown") if value is None else Cell(words, value)


def amount(count: int | None) -> Cell:
    """Return a number of bytes, to the byte in its hint."""
    return Cell(UNKNOWN, kind="unknown") if count is None else Cell(bytes_text(count), count, exact_bytes_text(count))


def plain(anchor: str, title: str, note: str, rows: Sequence[dict[str, str]], wide: Sequence[str] = ()) -> Table:
    """Return a table of texts by column, all rows with the same columns."""
    columns = tuple(Column(name, wide=name in wide) for name in (rows[0] if rows else ()))
    return Table(anchor, title, note, columns, tuple(Row(tuple(map(text, row.values()))) for row in rows))
