"""What the run comes to, as tables: the study's statements, and advice."""

from __future__ import annotations

from collections.abc import Iterable

from analysis.advice import advice
from analysis.findings import findings
from analysis.report.table import Cell, Column, Link, Row, Table
from analysis.run import Run

_STUDY = "An I/O Characterizing Study of Offloading LLM Models and KV Caches to NVMe SSD"
_FINDINGS = f'Statements of the study "{_STUDY}" (CHEOPS 2025), tested on the valid trials of this run.'
_ADVICE = "What a storage person would point at in these trials, by rule."


def findings_table(run: Run) -> Table:
    """Return a row for each statement of the study: its outcome, the numbers behind it, the trials they come from."""
    columns = (Column("Statement", wide=True), Column("Outcome"), Column("What this run says", wide=True))
    rows = [
        Row((Cell(one.claim), Cell(one.state, kind="outcome"), Cell(one.told), _trials(run, one.trials)))
        for one in findings(run)
    ]
    return Table("findings", "Findings", _FINDINGS, (*columns, Column("Trials", wide=True)), tuple(rows))


def advice_table(run: Run) -> Table:
    """Return a row for each piece of advice: its code, what was seen and what to do, and in which trials."""
    columns = (Column("Code"), Column("Advice", wide=True), Column("What was seen", wide=True))
    rows = [Row((Cell(one.code), Cell(one.title), Cell(one.told), _trials(run, one.trials))) for one in advice(run)]
    note = _ADVICE if rows else "No rule has anything to say of these trials."
    return Table("advice", "Advice", note, (*columns, Column("Trials", wide=True)), tuple(rows))


def _trials(run: Run, slugs: Iterable[str]) -> Cell:
    ids = {trial.slug: trial.id for trial in run.published}
    links = tuple(Link(ids.get(slug, slug), trial=slug) for slug in slugs)
    return Cell("; ".join(link.text for link in links), links=links) if links else Cell("–", kind="unknown")
