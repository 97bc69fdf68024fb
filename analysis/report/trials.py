"""The trials of a run: the table of all of them, and what there is to tell of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis import ceiling, provenance, stacks
from analysis.figures.cells import label, varying
from analysis.logs import tails
from analysis.report import table
from analysis.report.table import NUMBER, Cell, Column, Noted, Row, Table
from analysis.report.words import command, flat, seconds, told
from analysis.run import TRIPLE, Run, Trial
from analysis.units import UNKNOWN, count_text

OPERATIONS = ("read", "write")
_MOVED = {"read": "Read", "write": "Written"}
_AGREEMENT = {True: ("=", 0, "agree"), False: ("≠", 1, "differ"), None: ("?", None, "unknown")}


@dataclass(frozen=True)
class Entry:
    """What the report tells of a trial beside its row: `facts` are keys and texts, `logs` names and last lines."""

    trial: Trial
    anchor: str
    command: str | None
    trouble: str | None
    stacks: str | None
    notes: Sequence[str]
    facts: Sequence[tuple[str, str]]
    logs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Repeats:
    """The trials of one combination of axis values: repeats of the same."""

    label: str
    trials: Sequence[Entry]

    @property
    def told(self) -> str:
        """How many trials there are, and how many of them are not valid."""
        bad = sum(one.trial.state != "valid" for one in self.trials)
        return count_text(len(self.trials), "trial") + (f", {bad} not valid" if bad else "")


def entry(trial: Trial, phases: Sequence[Mapping[str, Any]]) -> Entry:
    """Return what there is to tell of a trial; `phases` are its rows of the summary for measured phases."""
    trouble = trial.record.get("trouble")
    return Entry(
        trial=trial,
        anchor=table.anchor(trial.slug),
        command=command(trial.record["command"]) if trial.record.get("command") else None,
        trouble=str(trouble).rstrip(".") if trouble else None,
        stacks=_stacks(trial),
        notes=[*ceiling.described(trial, phases), *ceiling.cost_described(trial)],
        facts=_facts(trial),
        logs=[] if trial.state == "valid" else tails(trial.path),
    )


def by_cell(run: Run, entries: Sequence[Entry]) -> list[Repeats]:
    """Return the trials by cell, cells and repeats in plan order."""
    axes = varying(run.published)
    found: dict[str, list[Entry]] = {}
    for own in entries:
        found.setdefault(label(own.trial.cell, axes), []).append(own)
    return [Repeats(name, own) for name, own in found.items()]


def _facts(trial: Trial) -> list[tuple[str, str]]:
    tracer = trial.section("tracer")
    imported = trial.section("import")
    files = [
        (f"import.{file.get('kind')}", f"{told(file.get('name'))}, {told(file.get('lines'))} lines")
        for file in imported.get("files") or []
        if isinstance(file, Mapping)
    ]
    return [
        ("tracer", " ".join(str(tracer[key]) for key in ("name", "version") if tracer.get(key)) or UNKNOWN),
        *flat(trial.section("storage"), "storage."),
        *provenance.health_facts(trial),
        *flat(trial.section("metrics"), "metrics."),
        *files,
    ]


def _stacks(trial: Trial) -> str | None:
    """Return what recording stacks means for a trial that was asked for them."""
    if not stacks.recorded(trial):
        return None
    done = trial.section("stacks").get("state") == "recorded"
    return f"with stacks{'' if done else ' (none recorded)'}: bandwidth and latency are disturbed"


def overview(run: Run) -> Noted:
    """Return the table of all trials, and of those planned that have no result."""
    columns = [Column("Trial"), Column("Verdict"), Column("Repeat", kind=NUMBER), Column("Took", kind=NUMBER)]
    for op in OPERATIONS:
        columns += [Column(kind, _MOVED[op], NUMBER) for kind in TRIPLE]
        columns.append(Column("equal", _MOVED[op]))
    columns += [Column("Lost", kind=NUMBER), Column("Unmatched", kind=NUMBER), Column("Device")]
    rows = [_row(trial, place) for place, trial in enumerate(run.published)]
    rows += [_planned(entry, len(rows) + place, len(columns)) for place, entry in enumerate(run.missing)]
    return Noted(*Table(tuple(columns), tuple(rows), of_trials=True).without_unknown())


def _row(trial: Trial, place: int) -> Row:
    tracer = trial.section("tracer")
    note = _stacks(trial)
    name = table.trial_cell(trial, place)
    if note:
        name = Cell(name.text, name.sort, link=name.link, note=(note, f"figure-flamegraph-{trial.slug}"))
    again = f" (attempt {trial.attempt})" if trial.attempt > 1 else ""
    cells = [
        name,
        table.verdict(trial.state, trial.reasons),
        Cell(told(trial.repeat) + again, _plain(trial.repeat)),
        table.duration(seconds(trial.record.get("started"), trial.record.get("ended"))),
    ]
    for op in OPERATIONS:
        cells += _triple(trial, op)
    cells += [Cell(told(tracer.get(name)), _plain(tracer.get(name))) for name in ("lost", "unmatched")]
    return Row((*cells, Cell(_device(trial))), trial.state)


def _planned(entry: Mapping[str, Any], place: int, width: int) -> Row:
    cells = [
        Cell(told(entry.get("id")), place),
        table.verdict(table.MISSING, ["planned, no result"]),
        Cell(told(entry.get("repeat")), _plain(entry.get("repeat"))),
    ]
    return Row((*cells, *[Cell(table.NOTHING)] * (width - len(cells))), table.MISSING)


def _plain(value: Any) -> float | None:
    """Return a number as it is; anything else is no number."""
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _triple(trial: Trial, op: str) -> list[Cell]:
    """Return the expected, traced and counted bytes of an operation, and whether the last two agree."""
    counts = {kind: trial.byte_count(kind, op) for kind in TRIPLE}
    traced, counted = counts["traced"], counts["counted"]
    agree, words = None, "traced and counted cannot be compared"
    if traced is not None and counted is not None:
        agree = traced == counted
        words = "traced equals counted" if agree else f"traced is {traced - counted:+,} bytes against counted"
    text, key, style = _AGREEMENT[agree]
    return [*(table.amount(count) for count in counts.values()), Cell(text, key, told=words, style=style)]


def _device(trial: Trial) -> str:
    device, host = trial.section("device"), trial.section("node").get("hostname")
    if not device.get("name"):
        return told(host) if host is None else f"{host}: {UNKNOWN}"
    drive = device.get("drive")
    beneath = f" on {drive}" if drive and drive != device["name"] else ""
    return f"{told(host)}: {device['name']}{beneath}{' (RAM-backed)' if device.get('ram_backed') else ''}"
