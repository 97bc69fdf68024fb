"""What was measured in a run's trials, as tables: on the device, by the role of bytes, by the engines."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from analysis import ceiling
from analysis.figures.cells import listed
from analysis.figures.roles import label as role_label
from analysis.profile import read_profile
from analysis.report import table
from analysis.report.table import NOTHING, NUMBER, Cell, Column, Noted, Row, Table
from analysis.run import Run, Trial
from analysis.units import UNKNOWN, bytes_text, count_text, duration_text, number_text, share_text

Rows = Mapping[str, Sequence[Mapping[str, Any]]]

_OPERATIONS = ("read", "write")
#: The columns of the profile that the report shows: group, label, name, and how a cell is made of one.
_PROFILE = (
    ("", "Requests", "requests", table.count),
    ("", "Bytes", "bytes", table.amount),
    ("", "IOPS", "iops", table.number),
    ("Bandwidth (GiB/s)", "mean", "bandwidth_gib_s", table.number),
    ("Bandwidth (GiB/s)", "peak", "bandwidth_peak_gib_s", table.number),
    ("", "Mean size", "request_bytes_mean", table.amount),
    ("Latency", "p50", "d2c_p50_us", table.latency),
    ("Latency", "p99", "d2c_p99_us", table.latency),
    ("Latency", "p99.9", "d2c_p999_us", table.latency),
    ("Latency", "max", "d2c_max_us", table.latency),
    ("Queue depth", "mean", "depth_mean", table.number),
    ("Queue depth", "max", "depth_max", table.count),
    ("", "Busy", "busy_share", lambda value: table.number(value, share_text)),
    ("", "Sequential", "sequential_share", lambda value: table.number(value, share_text)),
    ("Sectors", "footprint", "footprint_bytes", table.amount),
    ("Sectors", "accesses", "accesses_mean", table.number),
)
#: What there is none of where there are no requests.
_OF_REQUESTS = re.compile(r"request_bytes|d2c|sequential|accesses")
#: The numbers of engines, and of the memory that trials had, as the columns of a table: group, then label by metric.
_ENGINE = {
    "Prefill": {"prefill_latency_s": "latency", "prefill_tokens_per_s": "tokens/s"},
    "Decode": {"decode_latency_s": "latency", "decode_tokens_per_s": "tokens/s"},
    "In all": {"total_latency_s": "latency", "tokens_per_s": "tokens/s", "generated_tokens": "tokens"},
    "Size": {"model_bytes": "model", "cache_bytes": "KV cache"},
    "Peak memory": {"peak_gpu_memory_bytes": "GPU", "peak_host_memory_bytes": "process", "memory_peak_bytes": "cgroup"},
    "Memory limit": {"memory_limit_bytes": "cgroup", "oom_kills": "OOM kills"},
}
#: A phase in which less than this share of the bytes moved tells nothing of how close a job came to the ceiling.
_TELLING = 0.01
_ABOVE = (
    "Shares above 100 % of the ceiling: fio measured less than the drive can do, as its file lay on other blocks, a "
    "cache within the drive helped the job, or the rounds of the ceiling differed by as much."
)
_ROLE = re.compile(r"role\.(.+)_(?:read|write)_bytes")


def metrics(run: Run, summary: Rows) -> Noted:
    """Return what was measured in each trial's whole window, a row for reads and one for writes."""
    told: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in read_profile(run).to_dicts() if run.published else []:
        told.setdefault((row["slug"], row["op"]), []).append(row)
    rows, silent = [], []
    for place, trial in enumerate(run.published):
        own = [told.get((trial.slug, op), []) for op in _OPERATIONS]
        own = [spans for spans in own if any(spans[0].get(name) is not None for _, _, name, _ in _PROFILE)]
        rows += [_metrics_row(trial, place, spans, summary[trial.slug][1:]) for spans in own]
        silent += [] if own else [trial.id]
    columns = [Column("Trial"), Column("Verdict"), Column("Operation")]
    columns += [Column(label, group, NUMBER) for group, label, _, _ in _PROFILE]
    columns += [Column(label, "Ceiling", NUMBER) for label in ("fio (GiB/s)", "window", "busiest phase")]
    found, notes = Table(tuple(columns), tuple(rows), of_trials=True).without_unknown()
    if silent:
        notes.append(f"Nothing was measured on the device in {count_text(len(silent), 'trial')}: {listed(silent)}.")
    if any(cell.sort > 1 for row in rows for cell in row.cells[-2:] if cell.sort is not None):
        notes.append(_ABOVE)
    return Noted(found, notes)


def _metrics_row(
    trial: Trial, place: int, spans: Sequence[Mapping[str, Any]], phases: Sequence[Mapping[str, Any]]
) -> Row:
    """Return the row of an operation; `spans` are its rows of the profile, the whole window first, `phases` the
    summary's for measured phases."""
    whole = spans[0]
    cells = [table.trial_cell(trial, place), table.verdict(trial.state), Cell(whole["op"])]
    for _, _, name, cell in _PROFILE:
        none = whole.get("requests") == 0 and _OF_REQUESTS.match(name)
        cells.append(Cell(NOTHING, told="no requests") if none else cell(whole.get(name)))
    return Row((*cells, *_against_ceiling(trial, spans, phases)))


def _against_ceiling(
    trial: Trial, spans: Sequence[Mapping[str, Any]], phases: Sequence[Mapping[str, Any]]
) -> list[Cell]:
    """Return the ceiling of an operation, the share of it that the whole window reached, and the busiest phase's."""
    top = ceiling.ceiling_of(trial)
    if top is None:
        return [Cell(UNKNOWN)] * 3
    op, share = spans[0]["op"], spans[0].get("ceiling_share")
    best = ceiling.busiest(phases, op, top) or _busiest(spans)
    return [
        table.number(top.gib_s[op]),
        Cell(ceiling.percent(share), share),
        Cell(UNKNOWN) if best is None else Cell(f"{ceiling.percent(best[1])} ({best[0]})", best[1]),
    ]


def _busiest(spans: Sequence[Mapping[str, Any]]) -> tuple[str, float] | None:
    """Return name and share of the phase that came closest to the ceiling, of those in which more than next to nothing
    moved: for a job whose phases do not tell their bytes."""
    least = _TELLING * (spans[0]["bytes"] or 0)
    own = [row for row in spans if row["phases"] and row["ceiling_share"] and row["bytes"] >= least]
    best = max(own, key=lambda row: row["ceiling_share"], default=None)
    return None if best is None else (best["phase"], best["ceiling_share"])


def roles(run: Run, summary: Rows, names: Sequence[str]) -> Table:
    """Return the bytes by role of each trial that knows them, a row for reads and one for writes.

    `names` are the columns of the summary.
    """
    found = list(dict.fromkeys(match[1] for name in names if (match := _ROLE.fullmatch(name))))
    columns = [Column("Trial"), Column("Verdict"), Column("Operation")]
    for role in found:
        columns += [Column("bytes", role_label(role), NUMBER), Column("share", role_label(role), NUMBER)]
    rows = []
    for place, trial in enumerate(run.published):
        for op in _OPERATIONS:
            moved = {role: summary[trial.slug][0].get(f"role.{role}_{op}_bytes") for role in found}
            if any(count is not None for count in moved.values()):
                cells = [table.trial_cell(trial, place), table.verdict(trial.state), Cell(op)]
                rows.append(Row((*cells, *_role_cells(list(moved.values())))))
    return Table(tuple(columns), tuple(rows), of_trials=True)


def _role_cells(moved: Sequence[int | None]) -> list[Cell]:
    total = sum(count for count in moved if count is not None)
    cells = []
    for count in moved:
        share = count / total if count is not None and total else None
        cells += [Cell(NOTHING) if count is None else table.amount(count)]
        cells += [Cell(NOTHING) if share is None else table.number(share, share_text)]
    return cells


def engines(run: Run) -> Table:
    """Return what engines reported of every trial of which one did."""
    columns = [Column("Trial"), Column("Verdict")]
    columns += [Column(label, group, NUMBER) for group, own in _ENGINE.items() for label in own.values()]
    names = [name for own in _ENGINE.values() for name in own]
    rows = []
    for place, trial in enumerate(run.published):
        if any(name in trial.measured for name in names):
            cells = [table.trial_cell(trial, place), table.verdict(trial.state)]
            rows.append(Row((*cells, *(_measured(trial, name) for name in names))))
    return Table(tuple(columns), tuple(rows), of_trials=True).without_unknown()[0]


def _measured(trial: Trial, name: str) -> Cell:
    if name not in trial.measured:
        return Cell(NOTHING)
    value, unit = trial.measured[name]
    text = {"B": bytes_text, "s": duration_text}.get(unit, number_text)
    return table.number(value, text)
