"""How a run chose its trials: searches along an axis, and repeats until a mean is known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.figures import Drawn
from analysis.figures.search import NAME, answer_of, name_of, searches, title_of
from analysis.report.table import NOTHING, Column, Row, Table, number, text
from analysis.run import Run
from analysis.selection import cell_text
from analysis.units import number_text, sentence

_SEARCH = (
    "In the order in which values were first tried. Median and interval are of the metric, over the valid trials of a "
    "value; the interval is Student's 95 % one of the mean."
)
_REPEATS = (
    "A cell was repeated until the confidence interval of the metric's mean was within the stated part of the mean, or "
    "up to the stated number of trials, failed and invalid ones among them."
)


@dataclass(frozen=True)
class Chosen:
    """A section: a table, and the figure that belongs to it."""

    table: Table
    figure: Drawn | None = None


def sections(run: Run, drawn: Sequence[Drawn]) -> Iterator[Chosen]:
    """Yield one section for each search, and one of the cells whose repeats were chosen."""
    figures = {one.name: one for one in drawn if one.figure == NAME}
    for place, told in enumerate(searches(run)):
        yield Chosen(_search(place, told), figures.get(name_of(place)))
    adaptive = run.record.get("adaptive")
    cells = adaptive.get("repeats") if isinstance(adaptive, Mapping) else None
    if cells:
        yield Chosen(_repeats(cells))


def _search(place: int, told: Mapping[str, Any]) -> Table:
    columns = (
        Column("Order", numeric=True),
        Column(str(told["axis"])),
        Column("Trials", numeric=True),
        Column("Median", numeric=True),
        Column("Mean, 95 %", numeric=True),
        Column("Meets it?"),
        Column("Why it was tried", wide=True),
    )
    rows = tuple(_tried(order, row, told) for order, row in enumerate(told["tried"], 1))
    after = [f"Not monotone: {b} meets the target although {a} does not." for a, b in told.get("contradictions") or []]
    note = f"{sentence(answer_of(told))}. {_SEARCH}"
    return Table(f"search-{place + 1}", f"Search: {title_of(told)}", note, columns, rows, tuple(after))


def _tried(order: int, row: Mapping[str, Any], told: Mapping[str, Any]) -> Row:
    middle = None if row["low"] is None else (row["low"] + row["high"]) / 2
    span = "" if row["low"] is None else f"{number_text(row['low'])} to {number_text(row['high'])}"
    verdict = "yes" if row["meets"] else "no"
    if row["value"] in (told.get("answer"), told.get("beyond")) and not row["sure"]:
        verdict += ", uncertain: " + ("decided by the median" if row["values"] else "it has no valid trial")
    why = "; then ".join(row["why"])
    if row["bad"]:
        why += f"; not valid: {len(row['bad'])} ({row['bad'][0]})"
    answer = ", the answer" if row["value"] == told.get("answer") else ""
    return Row(
        (
            number(order, str(order)),
            text(cell_text(row["value"])),
            number(row["trials"], str(row["trials"])),
            number(row["median"], "" if row["median"] is None else number_text(row["median"])),
            NOTHING if middle is None else number(middle, span),
            text(verdict + answer),
            text(why),
        )
    )


def _repeats(cells: Sequence[Mapping[str, Any]]) -> Table:
    columns = (
        Column("Cell", wide=True),
        Column("Metric"),
        Column("Trials", numeric=True),
        Column("Valid", numeric=True),
        Column("Mean", numeric=True),
        Column("Interval", numeric=True),
        Column("Within", numeric=True),
        Column("Ended", wide=True),
    )
    return Table("repeats", "Repeats", _REPEATS, columns, tuple(map(_cell, cells)))


def _cell(told: Mapping[str, Any]) -> Row:
    mean, within = told["mean"], told["within"]
    asked = f"±{told['rel'] * 100:g} %"
    why = f"known within {asked}" if told["known"] else f"not within {asked}"
    if not told["known"] and told["trials"] >= told["most"]:
        why += f" after {told['trials']} trials, the most"
    name = ", ".join(f"{axis}={cell_text(value)}" for axis, value in told["cell"].items()) or "the only one"
    span = "" if told["low"] is None else f"{number_text(told['low'])} to {number_text(told['high'])}"
    return Row(
        (
            text(name),
            text(told["metric"]),
            number(told["trials"], str(told["trials"])),
            number(told["valid"], str(told["valid"])),
            number(mean, "" if mean is None else number_text(mean)),
            number(None if told["low"] is None else told["high"] - told["low"], span),
            number(within, "" if within is None else f"±{within * 100:.1f} %"),
            text(why),
        )
    )
