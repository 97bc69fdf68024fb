"""`report.md`: the same in Markdown as GitHub renders it, for a repository or a mail."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from analysis.figures.cells import listed
from analysis.report.table import MISSING, NUMBER, Cell, Noted, Table

if TYPE_CHECKING:
    from analysis.figures import Drawn
    from analysis.report.content import Content

#: What is markup wherever it stands in a line; an underscore is none inside a word.
_MARKUP = re.compile(r"[\\`*\[\]<>|~#&$]|(?<![^\W_])_|_(?![^\W_])")
#: What is markup only where a line begins with it.
_BLOCK = re.compile(r"^(?:[-+](?=\s|$)|-(?=--)|\d+[.)](?=\s|$))")


def document(told: Content) -> str:
    """Return the document. All text from the run is escaped; there is no HTML in it."""
    parts = [part for section in _SECTIONS for part in section(told)]
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """Return `text` as Markdown that shows it as it is, in one line."""
    plain = "".join(" " if unicodedata.category(letter) == "Cc" else letter for letter in text)
    line = _MARKUP.sub(r"\\\g<0>", " ".join(plain.split()))
    return _BLOCK.sub(lambda found: f"{found[0][:-1]}\\{found[0][-1]}", line)


def fenced(text: str, language: str = "") -> str:
    """Return `text` as a block of code, whatever backticks are in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def pipes(table: Table) -> str:
    """Return a table in pipes; every row has as many cells as there are columns."""
    head = [escaped(column.full) for column in table.columns]
    rules = ["---:" if column.kind == NUMBER else "---" for column in table.columns]
    rows = [[_cell(cell) for cell in row.cells] for row in table.rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, rules, *rows])


def _cell(cell: Cell) -> str:
    reasons = f"{cell.text}: {'; '.join(cell.reasons)}" if cell.reasons else cell.text
    return escaped(f"{reasons} ({cell.note[0]})" if cell.note else reasons)


def _head(told: Content) -> Iterator[str]:
    yield f"# {escaped(told.run.sweep)}, run {escaped(told.run.id)}"
    if told.run.record.get("description"):
        yield escaped(str(told.run.record["description"]))
    counts = [
        f"{count} {'planned without result' if state == MISSING else state}" for state, count in told.tally.items()
    ]
    yield f"**Trials:** {', '.join(counts)}."
    yield "\n".join(f"- {fact.label}: {escaped(fact.text)}" for fact in told.facts)


def _findings(told: Content) -> Iterator[str]:
    if told.findings:
        yield "## Findings"
        yield "What the study states, tested on the valid trials of this run."
    for one in told.findings:
        own = _trials(told, one.trials)
        yield f"- **{escaped(one.claim)}**: *{one.state}*. {escaped(one.told)}{own}"


def _advice(told: Content) -> Iterator[str]:
    if told.advice:
        yield "## Advice"
    for one in told.advice:
        yield f"- **{escaped(one.title)}** ({escaped(one.code)}). {escaped(one.told)}{_trials(told, one.trials)}"


def _trials(told: Content, slugs: Sequence[str]) -> str:
    """Return the ids of trials in words, the first few of many."""
    names = [trial.id for trial in told.named(slugs)]
    return f" Of: {escaped(listed(names))}." if names else ""


def _tables(told: Content) -> Iterator[str]:
    yield "## Trials"
    yield "Expected: what the workload should move. Traced: what the tracer saw. Counted: the device's own counters."
    yield from _noted(told.overview) if told.overview.table.rows else ["No trial has finished."]
    notes: dict[str, list[str]] = {}
    for one in told.trials:
        if one.trouble:
            notes.setdefault(one.trouble, []).append(one.trial.id)
    for note, names in notes.items():
        yield f"- Note, {escaped(listed(names))}: {escaped(note)}."
    if metrics := [*_noted(told.metrics)]:
        yield from ["## Metrics", *metrics]
    for title, table in (("Whose bytes", told.roles), ("What the engines reported", told.engines)):
        if table.rows:
            yield f"## {title}"
            yield pipes(table)


def _noted(noted: Noted) -> Iterator[str]:
    if noted.table.rows:
        yield pipes(noted.table)
    yield from (escaped(note) for note in noted.notes)


def _failures(told: Content) -> Iterator[str]:
    if told.bad:
        yield "## Not valid"
        yield "The data of these trials enters no mean and no comparison."
    for one in told.bad:
        yield f"### {escaped(one.trial.id)}: {one.trial.state}"
        yield "\n".join(f"- {escaped(reason)}" for reason in one.trial.reasons)
        for name, text in one.logs:
            yield f"End of {escaped(name)}:"
            yield fenced(text)


def _figures(told: Content) -> Iterator[str]:
    shared = told.figures_of(None)
    charted = [(one, own) for one in told.trials if (own := told.figures_of(one.trial))]
    if shared or charted:
        yield "## Figures"
    for drawn in shared:
        yield _not_drawn(drawn) if drawn.reason else f"![{escaped(drawn.title)}]({told.path_of(drawn)})"
    if charted:
        yield "\n".join(f"- {escaped(one.trial.id)}: {_links(told, own)}" for one, own in charted)


def _links(told: Content, own: Sequence[Drawn]) -> str:
    """Return a trial's charts by the names of their figures, then why others are not drawn."""
    links = [f"[{drawn.figure}]({told.path_of(drawn)})" for drawn in own if not drawn.reason]
    return "; ".join([*([", ".join(links)] if links else []), *(_not_drawn(drawn) for drawn in own if drawn.reason)])


def _not_drawn(drawn: Drawn) -> str:
    return f"{escaped(drawn.title)} not drawn: {escaped(drawn.reason or '')}"


def _places(told: Content) -> Iterator[str]:
    yield "## Nodes"
    yield from (pipes(table) for table in told.nodes)
    if not told.nodes:
        yield "No node is recorded."
    if told.drives.rows:
        yield "## Drives under test"
        yield pipes(told.drives)


def _again(told: Content) -> Iterator[str]:
    yield "## Run it again"
    yield fenced(told.reproduce, "sh") if told.reproduce else "The run does not say how."
    yield "Draw its figures and this report again:"
    yield fenced(told.redraw, "sh")
    commands = [(one, one.command) for one in told.trials if one.command]
    if commands:
        yield "## Commands by hand"
    for one, text in commands:
        yield f"{escaped(one.trial.id)}:"
        yield fenced(text, "sh")


_SECTIONS = (_head, _failures, _findings, _advice, _figures, _tables, _places, _again)
