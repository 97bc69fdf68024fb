"""`report.md`: the same facts in plain Markdown, for a repository or a mail."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from urllib.parse import quote

from analysis.figures import Drawn
from analysis.report.content import Content, TrialPart
from analysis.report.table import Cell, Link, Table
from analysis.units import count_text

#: What Markdown takes for markup, an underscore only where it is not within a word.
_MARKUP = re.compile(r"([\\`*\[\]<>#|~&$]|(?<![^\W_])_|_(?![^\W_]))")
#: What begins a list at the beginning of a line.
_LIST = re.compile(r"^([-+]|\d+[.)](?=\s))")
#: What GitHub makes mentions and links of, up to the character whose escape stops it.
_LINKED = re.compile(r"@|\b(?:https?|ftp):|\bwww\.", re.IGNORECASE)
_SPACE = re.compile(r"\s+")
#: Rows that are read at a glance; longer tables are folded.
_MOST_ROWS = 40


def render(content: Content) -> str:
    """Return the report. What comes from the run is escaped; figures are linked as PNG, relative to the run."""
    return "\n".join(part.rstrip() + "\n" for part in _parts(content))


def _parts(content: Content) -> Iterator[str]:
    run = content.run
    yield f"# {escaped(run.sweep)}, run {escaped(run.id)}"
    if run.record.get("description"):
        yield escaped(run.record["description"])
    words = {"missing": "planned, no result"}
    yield ", ".join(f"**{count}** {words.get(state, state)}" for state, count in content.tally.items())
    yield "\n".join(f"- {one.label}: {code(one.text) if one.code else escaped(one.text)}" for one in content.facts)
    if content.comparison:
        yield "## Against the nights before"
        yield fenced(content.comparison)
    yield from _failures(content.bad)
    for one in content.chosen:
        yield from _table(content, one.table)
        if one.figure:
            yield _figure(content, one.figure)
    for table in (content.findings, content.advice):
        yield from _table(content, table)
    if content.figures:
        yield "## Figures"
        yield from (_figure(content, one) for one in content.figures)
    yield from _table(content, content.trials)
    yield from (f"- {escaped(one.trial.id)}: {escaped(one.trouble)}." for one in content.parts if one.trouble)
    for table in (*content.measured, *content.nodes):
        yield from _table(content, table)
    yield "## Run it again"
    yield fenced(content.reproduce) if content.reproduce else "The run does not say how."
    yield "Draw the figures and this report again:"
    yield fenced(content.redraw)


def _failures(bad: Iterable[TrialPart]) -> Iterator[str]:
    for place, one in enumerate(bad):
        if not place:
            yield "## Not valid"
            yield "The data of these trials enters no mean and no comparison."
        yield f"### {escaped(one.trial.id)}: {one.trial.state}"
        yield "\n\n".join(escaped(reason) for reason in one.trial.reasons)
        for name, log in one.logs:
            yield f"End of {code(name)}:"
            yield fenced(log)
        if not one.logs:
            yield "It left no log."
        if one.command:
            yield "Its job was:"
            yield fenced(one.command)


def _figure(content: Content, drawn: Drawn) -> str:
    if drawn.reason:
        return f"**{escaped(drawn.title)}** not drawn: {escaped(drawn.reason)}."
    return f"![{escaped(drawn.title)}]({_address(content, drawn)})"


def _address(content: Content, drawn: Drawn) -> str:
    return quote(os.path.relpath(drawn.files["png"], content.run.path))


def _table(content: Content, table: Table) -> Iterator[str]:
    yield f"## {table.title}"
    if table.note:
        yield escaped(table.note)
    if table.rows:
        labels = [" ".join(filter(None, [column.group, column.label])) for column in table.columns]
        rules = ["---:" if column.numeric else "---" for column in table.columns]
        lines = [_line(map(escaped, labels)), _line(rules)]
        drawn = {one.name: one for part in content.parts for one in part.figures}
        lines += [_line(_cell(content, cell, drawn) for cell in row.cells) for row in table.rows]
        text = "\n".join(lines)
        if len(table.rows) > _MOST_ROWS:
            text = f"<details><summary>{count_text(len(table.rows), 'row')}</summary>\n\n{text}\n\n</details>"
        yield text
    yield from map(escaped, table.after)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(content: Content, cell: Cell, drawn: dict[str, Drawn]) -> str:
    if any(link.figure for link in cell.links):
        return ", ".join(_linked(content, link, drawn) for link in cell.links)
    if cell.kind == "verdict" and cell.text != "valid" and cell.hint:
        return f"**{escaped(cell.text)}**: {escaped(cell.hint)}"
    if cell.kind == "outcome":
        return f"**{escaped(cell.text)}**"
    return escaped(cell.text)


def _linked(content: Content, link: Link, drawn: dict[str, Drawn]) -> str:
    return f"[{escaped(link.text)}]({_address(content, drawn[link.figure])})"


def escaped(text: object) -> str:
    """Return text on one line in which Markdown finds no markup."""
    line = _MARKUP.sub(r"\\\1", _SPACE.sub(" ", str(text)).strip())
    line = _LINKED.sub(lambda found: f"{found[0][:-1]}\\{found[0][-1]}", line)
    return _LIST.sub(lambda found: f"{found[1][:-1]}\\{found[1][-1]}", line)


def code(text: str) -> str:
    """Return text as code on one line, whatever backticks are in it."""
    marks = "`" * (_longest(text) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{marks}{pad}{_SPACE.sub(' ', text)}{pad}{marks}"


def fenced(text: str) -> str:
    """Return text as a block of code, whatever fences are in it."""
    marks = "`" * max(_longest(text) + 1, 3)
    return f"{marks}text\n{text}\n{marks}"


def _longest(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)
