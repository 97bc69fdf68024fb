"""What a report tells of a run, before it is HTML or Markdown: both say the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from analysis import ceiling, judgement, provenance, stacks
from analysis.errors import AnalysisError
from analysis.logs import tails
from analysis.report import chosen, judged, measured, nodes
from analysis.report.table import Cell, Column, Link, Row, Table, amount, number, text
from analysis.report.words import command, flat, moment, seconds, told
from analysis.run import STATES, TRIPLE, Run, Trial
from analysis.units import UNKNOWN, count_text, duration_text

if TYPE_CHECKING:
    from analysis.figures import Drawn

MISSING = "missing"

#: Of the cells that were left out no more are named in the head.
_MOST_LEFT_OUT = 5

_TRIALS = (
    "Expected: what the workload should move. Traced: what the tracer saw complete. Counted: the device's own "
    "counters over the same window. = traced equals counted, ≠ they differ, ? they cannot be compared. Lost: "
    "events that the tracer lost. Unmatched: issues without a completion, or the other way round."
)


@dataclass(frozen=True)
class Fact:
    """One line of the head; `code` where it is typed rather than read."""

    label: str
    text: str
    code: bool = False


@dataclass(frozen=True)
class TrialPart:
    """A trial's own section: sentences, figures, settings, and how to run it by hand and again."""

    trial: Trial
    glance: str
    notes: tuple[str, ...]
    trouble: str | None
    unreadable: str | None
    facts: tuple[tuple[str, str], ...]
    stacks: str | None
    command: str | None
    again: str | None
    logs: tuple[tuple[str, str], ...]
    figures: tuple[Drawn, ...]


@dataclass(frozen=True)
class Content:
    """All of a report."""

    run: Run
    comparison: str | None
    facts: tuple[Fact, ...]
    tally: Mapping[str, int]
    findings: Table
    advice: Table
    chosen: tuple[chosen.Chosen, ...]
    figures: tuple[Drawn, ...]
    trials: Table
    measured: tuple[Table, ...]
    nodes: tuple[Table, ...]
    parts: tuple[TrialPart, ...]
    sweep_yaml: str | None
    reproduce: str | None
    redraw: str

    @property
    def bad(self) -> list[TrialPart]:
        """The trials that are not valid."""
        return [one for one in self.parts if one.trial.state != "valid"]


def gathered(run: Run, drawn: Sequence[Drawn]) -> Content:
    """Gather what the report of a run tells; `drawn` are its figures."""
    broken = measured.unreadable_trials(run)
    spans = measured.profile_rows(run)
    parts = tuple(
        _part(run, trial, drawn, spans.get(trial.slug, []), broken.get(trial.slug)) for trial in run.published
    )
    reproduce = run.record.get("reproduce")
    choices = tuple(chosen.sections(run, drawn))
    return Content(
        run=run,
        comparison=judgement.told(run),
        facts=_facts(run),
        tally=_tally(run),
        findings=judged.findings_table(run),
        advice=judged.advice_table(run),
        chosen=choices,
        figures=tuple(one for one in drawn if one.trial is None and one not in [part.figure for part in choices]),
        trials=_trials(run, parts).known,
        measured=tuple(measured.tables(run)),
        nodes=tuple(nodes.tables(run)),
        parts=parts,
        sweep_yaml=_sweep_yaml(run),
        reproduce=command(reproduce) if reproduce else None,
        redraw=command(["python", "-m", "analysis", str(run.path)]),
    )


def _facts(run: Run) -> tuple[Fact, ...]:
    record = run.record
    argv, git = record.get("argv"), record.get("git")
    dirty = " with uncommitted changes" if isinstance(git, Mapping) and git.get("dirty") else ""
    commit = f"commit {told(git.get('commit'))[:12]}{dirty}" if isinstance(git, Mapping) else "not in git"
    versions = record.get("versions") or {}
    imported = record.get("import")
    left = imported.get("left") if isinstance(imported, Mapping) else None
    unused = [f"{told(one.get('file'))} ({told(one.get('reason'))})" for one in left or () if isinstance(one, Mapping)]
    return (
        Fact("Begun with" if record.get("resumed") else "Command", command(argv) if argv else UNKNOWN, True),
        Fact("In folder", told(record.get("cwd")), True),
        Fact("By", f"{told(record.get('user'))} on {told(record.get('host'))}"),
        Fact("Started", moment(record.get("started"))),
        *([] if imported else [Fact("Took", _took(record))]),
        Fact("State", told(record.get("state"))),
        *([] if imported else [Fact("Code", commit)]),
        Fact("Versions", ", ".join(f"{name} {version}" for name, version in versions.items()) or UNKNOWN),
        *([Fact("Files not used", "; ".join(unused))] if unused else []),
        *_besides(run),
    )


def _sessions(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return how a run was gone on with, each time."""
    return [one for one in record.get("resumed") or [] if isinstance(one, Mapping)]


def _took(record: Mapping[str, Any]) -> str:
    """Return how long a run took, without the time between its sessions."""
    if not record.get("ended"):
        return "not ended"
    sessions = _sessions(record)
    if not sessions:
        return duration_text(seconds(record.get("started"), record["ended"]))
    before = [one.get("before") for one in sessions]
    ends = [*(one.get("ended") if isinstance(one, Mapping) else None for one in before), record["ended"]]
    begins = [record.get("started"), *(one.get("started") for one in sessions)]
    took = [seconds(begin, end) for begin, end in zip(begins, ends, strict=True)]
    known = [one for one in took if one is not None]
    lost = f", of which {len(took) - len(known)} did not tell when it ended" if len(known) < len(took) else ""
    return f"{duration_text(sum(known) if known else None)} in {count_text(len(took), 'session')}{lost}"


def _besides(run: Run) -> Iterator[Fact]:
    """Yield what belongs to the run beside the trials that count."""
    states = [trial.state for trial in run.warmups]
    if states:
        counts = ", ".join(f"{states.count(state)} {state}" for state in STATES if state in states)
        yield Fact("Warm-ups", f"{count_text(len(states), 'trial')} run first and not counted: {counts}")
    for one in _sessions(run.record)[-_MOST_LEFT_OUT:]:
        kept = f"{count_text(int(one.get('reused') or 0), 'trial')} kept, {int(one.get('aside') or 0)} set aside"
        yield Fact("Gone on with", command(one.get("argv")), True)
        yield Fact("Then", f"{moment(one.get('started'))} on {told(one.get('host'))}: {kept}")
    merged = [one for one in run.record.get("merged") or [] if isinstance(one, Mapping)]
    if merged:
        parts = [f"{told(one.get('run_id'))} ({count_text(int(one.get('trials') or 0), 'trial')})" for one in merged]
        yield Fact("Merged of", ", ".join(parts))
    differences = [told(one) for one in run.record.get("differences") or []]
    if differences:
        more = f"; and {len(differences) - _MOST_LEFT_OUT} more" if len(differences) > _MOST_LEFT_OUT else ""
        yield Fact("Not the same in them", "; ".join(differences[:_MOST_LEFT_OUT]) + more)
    skipped = [one for one in run.record.get("skipped") or [] if isinstance(one, Mapping)]
    if skipped:
        listed = "; ".join(f"{told(one.get('id'))} ({told(one.get('reason'))})" for one in skipped[:_MOST_LEFT_OUT])
        more = f"; and {len(skipped) - _MOST_LEFT_OUT} more" if len(skipped) > _MOST_LEFT_OUT else ""
        yield Fact("Left out", f"{count_text(len(skipped), 'cell')} as impossible: {listed}{more}")


def _tally(run: Run) -> dict[str, int]:
    states = [trial.state for trial in run.published]
    counts = {state: states.count(state) for state in STATES}
    return counts | ({MISSING: len(run.missing)} if run.missing else {})


def _trials(run: Run, parts: Sequence[TrialPart]) -> Table:
    kinds = [
        Column(label, group, numeric=bool(label))
        for group in ("Read", "Written")
        for label in ("expected", "traced", "counted", "")
    ]
    head = (Column("Trial", wide=True), Column("Verdict"), Column("Figures", wide=True), Column("Took", numeric=True))
    columns = (*head, *kinds, Column("Lost", numeric=True), Column("Unmatched", numeric=True), Column("Device"))
    rows = [_row(one) for one in parts]
    for entry in run.missing:
        blank = (Cell(""),) * (len(columns) - 2)
        missing = Cell(MISSING, kind="verdict", hint=_missing(run, told(entry.get("slug"))))
        rows.append(Row((Cell(told(entry.get("id"))), missing, *blank), f"missing {told(entry.get('slug'))}"))
    return Table("trials", "Trials", _TRIALS if rows else "No trial has finished.", columns, tuple(rows))


def _missing(run: Run, slug: str) -> str:
    """Return in words that a trial has no result, and where that of an earlier session is."""
    before = run.superseded(slug)
    if not before:
        return "planned, no result"
    last = before[-1]
    return f"planned, no result; its {last.state} one of an earlier session is in superseded/{last.path.name}"


def _row(part: TrialPart) -> Row:
    trial = part.trial
    tracer = trial.section("tracer")
    name = trial.id + (f" (attempt {trial.attempt})" if trial.attempt > 1 else "")
    name += " (its data cannot be read)" if part.unreadable else ""
    hint = "; ".join(filter(None, [part.unreadable, part.stacks]))
    took = seconds(trial.record.get("started"), trial.record.get("ended"))
    counts = [number(value, told(value)) for value in (tracer.get("lost"), tracer.get("unmatched"))]
    figures = tuple(Link(one.figure + (" (not drawn)" if one.reason else ""), figure=one.name) for one in part.figures)
    cells = (
        Cell(name, links=(Link(name, trial=trial.slug),), hint=hint),
        Cell(trial.state, kind="verdict", hint="; ".join(trial.reasons)),
        Cell(", ".join(link.text for link in figures), links=figures),
        number(took, duration_text(took)),
        *(cell for operation in ("read", "write") for cell in _triple(trial, operation)),
        *counts,
        _place(trial),
    )
    return Row(cells, trial.slug)


def _triple(trial: Trial, operation: str) -> list[Cell]:
    """Return the expected, traced and counted bytes of an operation, and whether the last two agree."""
    counts = {kind: trial.byte_count(kind, operation) for kind in TRIPLE}
    traced, counted = counts["traced"], counts["counted"]
    if traced is None or counted is None:
        sign = Cell("?", hint="traced and counted cannot be compared", kind="unknown")
    elif traced == counted:
        sign = Cell("=", hint="traced equals counted", kind="agree")
    else:
        sign = Cell("≠", hint=f"traced is {traced - counted:+,} bytes against counted", kind="differ")
    return [*map(amount, counts.values()), sign]


def _part(
    run: Run, trial: Trial, drawn: Sequence[Drawn], rows: Sequence[Mapping[str, Any]], unreadable: str | None
) -> TrialPart:
    mine = [one for one in drawn if one.trial == trial.slug]
    held = {name for one in mine for name in one.holds}
    argv = trial.record.get("command")
    trouble = "; ".join(str(one) for one in (unreadable, trial.record.get("trouble")) if one)
    notes = [*ceiling.described(trial, rows), *ceiling.cost_described(trial)]
    return TrialPart(
        trial=trial,
        glance=_glance(trial),
        notes=(*notes, *([f"Note: {trouble}."] if trouble else [])),
        trouble=trouble or None,
        unreadable=unreadable,
        facts=_trial_facts(trial),
        stacks=_stacks(trial),
        command=command(argv) if argv else None,
        again=_again(run, trial),
        logs=() if trial.state == "valid" else tuple(tails(trial.path)),
        figures=tuple(one for one in mine if one.figure not in held),
    )


def _glance(trial: Trial) -> str:
    """Return in a few words what a trial did."""
    took = duration_text(seconds(trial.record.get("started"), trial.record.get("ended")))
    moved = {op: trial.byte_count("traced", op) for op in ("read", "write")}
    kind = "traced" if None not in moved.values() else "counted"
    read, write = (amount(trial.byte_count(kind, op)).text for op in ("read", "write"))
    if (read, write) == (UNKNOWN, UNKNOWN):
        return "" if took == UNKNOWN else took
    return f"{took}, {read} read, {write} written"


def _trial_facts(trial: Trial) -> tuple[tuple[str, str], ...]:
    tracer = trial.section("tracer")
    name = " ".join(str(tracer[key]) for key in ("name", "version") if tracer.get(key)) or UNKNOWN
    storage = [(f"storage.{key}", words) for key, words in flat(trial.section("storage"))]
    metrics = [(f"metrics.{key}", words) for key, words in flat(trial.section("metrics"))]
    return (("tracer", name), *storage, *provenance.health_facts(trial), *metrics)


def _stacks(trial: Trial) -> str | None:
    """Return what recording stacks means for a trial that was asked for them."""
    if not stacks.recorded(trial):
        return None
    done = trial.section("stacks").get("state") == "recorded"
    return f"with stacks{'' if done else ' (none recorded)'}: bandwidth and latency are disturbed"


def _place(trial: Trial) -> Cell:
    """Return node and device of a trial."""
    host, device = told(trial.section("node").get("hostname")), _device(trial)
    return text(UNKNOWN if host == device == UNKNOWN else f"{host}: {device}")


def _device(trial: Trial) -> str:
    device = trial.section("device")
    if not device.get("name"):
        return UNKNOWN
    drive = device.get("drive")
    beneath = f" on {drive}" if drive and drive != device["name"] else ""
    return f"{device['name']}{beneath}{' (RAM-backed)' if device.get('ram_backed') else ''}"


def _again(run: Run, trial: Trial) -> str | None:
    """Return shell lines that run this trial alone again: its resolved configuration as a sweep of one cell."""
    config = trial.section("config")
    if not config:
        return None
    one = yaml.safe_dump({"name": f"{run.sweep}-again", **config}, sort_keys=False, width=1000)
    return f"cat > again.yaml <<'END_OF_SWEEP'\n{one}END_OF_SWEEP\npython -m sweep again.yaml"


def _sweep_yaml(run: Run) -> str | None:
    path = run.path / "sweep.yaml"
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise AnalysisError(f"{path}: cannot be read ({error.strerror})") from None
