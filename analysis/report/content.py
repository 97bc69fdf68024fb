"""Everything that the report tells of a run, in the order in which it tells it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from analysis.advice import Advice, advice
from analysis.findings import Finding, findings
from analysis.report import measured, places, trials
from analysis.report.table import MISSING, Noted, Table
from analysis.report.trials import Entry, Repeats
from analysis.report.words import command, moment, seconds, told
from analysis.run import STATES, Run, Trial
from analysis.summary import read_summary
from analysis.units import UNKNOWN, duration_text

if TYPE_CHECKING:
    from analysis.figures import Drawn


@dataclass(frozen=True)
class Fact:
    """A fact of the run; `code` where it is for a shell."""

    label: str
    text: str
    code: bool = False


@dataclass(frozen=True)
class Content:
    """What there is to tell; `reproduce` and `redraw` are command lines, `definition` the resolved sweep.yaml."""

    run: Run
    facts: Sequence[Fact]
    tally: Mapping[str, int]
    findings: Sequence[Finding]
    advice: Sequence[Advice]
    overview: Noted
    metrics: Noted
    roles: Table
    engines: Table
    nodes: Sequence[Table]
    drives: Table
    cells: Sequence[Repeats]
    drawn: Sequence[Drawn]
    reproduce: str | None
    redraw: str
    definition: str | None

    @property
    def trials(self) -> list[Entry]:
        """The published trials in plan order."""
        return [one for cell in self.cells for one in cell.trials]

    @property
    def bad(self) -> list[Entry]:
        """The published trials that are not valid."""
        return [one for one in self.trials if one.trial.state != "valid"]

    def named(self, slugs: Sequence[str]) -> list[Trial]:
        """Return the trials with these slugs."""
        found = {trial.slug: trial for trial in self.run.published}
        return [found[slug] for slug in slugs if slug in found]

    def figures_of(self, trial: Trial | None) -> list[Drawn]:
        """Return the charts of a trial, or of the whole run; those that are parts of another are left out."""
        own = [one for one in self.drawn if one.trial == (trial and trial.slug)]
        held = {name for one in own for name in one.holds}
        return [one for one in own if trial is None or one.figure not in held]

    def path_of(self, drawn: Drawn) -> str:
        """Return the address of a chart's PNG from the run's folder."""
        return quote(os.path.relpath(drawn.files["png"], self.run.path).replace(os.sep, "/"))


def gathered(run: Run, drawn: Sequence[Drawn]) -> Content:
    """Return what there is to tell of a run with the given figures."""
    names, summary = _summary(run)
    reproduce = run.record.get("reproduce")
    entries = [trials.entry(trial, summary[trial.slug][1:]) for trial in run.published]
    return Content(
        run=run,
        facts=_facts(run),
        tally=_tally(run),
        findings=findings(run) if run.published else [],
        advice=advice(run),
        overview=trials.overview(run),
        metrics=measured.metrics(run, summary),
        roles=measured.roles(run, summary, names),
        engines=measured.engines(run),
        nodes=places.tables(run),
        drives=places.drives(run),
        cells=trials.by_cell(run, entries),
        drawn=drawn,
        reproduce=command(reproduce) if reproduce else None,
        redraw=command(["python", "-m", "analysis", str(run.path)]),
        definition=_definition(run),
    )


def _summary(run: Run) -> tuple[Sequence[str], dict[str, list[dict[str, Any]]]]:
    """Return the summary's columns and, by trial, its rows: that of the whole window, then those of the phases."""
    rows: dict[str, list[dict[str, Any]]] = {trial.slug: [] for trial in run.published}
    if not rows:
        return [], rows
    frame = read_summary(run)
    for row in frame.to_dicts():
        rows[row["slug"]].append(row)
    return frame.columns, rows


def _facts(run: Run) -> list[Fact]:
    record = run.record
    argv = record.get("argv")
    git = record.get("git")
    dirty = " with uncommitted changes" if isinstance(git, Mapping) and git.get("dirty") else ""
    versions = record.get("versions") or {}
    took = seconds(record.get("started"), record.get("ended"))
    imported = record.get("import")
    facts = [
        Fact("Command", command(argv) if argv else UNKNOWN, code=bool(argv)),
        Fact("In folder", told(record.get("cwd")), code=bool(record.get("cwd"))),
        Fact("By", f"{told(record.get('user'))} on {told(record.get('host'))}"),
        Fact("Started", moment(record.get("started"))),
        Fact("Took", duration_text(took) if record.get("ended") else "not ended"),
        Fact("State", told(record.get("state"))),
        Fact("Code", f"commit {told(git.get('commit'))[:12]}{dirty}" if isinstance(git, Mapping) else "not in git"),
        Fact("Versions", ", ".join(f"{name} {version}" for name, version in versions.items()) or UNKNOWN),
    ]
    return facts + (_import_facts(imported) if isinstance(imported, Mapping) else [])


def _import_facts(imported: Mapping[str, Any]) -> list[Fact]:
    """Return what an imported run was imported from, and the files of it that were not used."""
    left = [one for one in imported.get("left") or [] if isinstance(one, Mapping)]
    texts = [f"{told(one.get('file'))} ({told(one.get('reason'))})" for one in left]
    return [Fact("Imported from", told(imported.get("source")), code=bool(imported.get("source")))] + (
        [Fact("Files not used", "; ".join(texts))] if texts else []
    )


def _tally(run: Run) -> dict[str, int]:
    states = [trial.state for trial in run.published]
    return {state: states.count(state) for state in STATES} | {MISSING: len(run.missing)}


def _definition(run: Run) -> str | None:
    try:
        return (run.path / "sweep.yaml").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
