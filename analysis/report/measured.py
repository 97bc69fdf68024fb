"""What was measured of a run's trials, as tables: what the device saw, its ceiling, whose bytes, the engines."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from analysis import ceiling
from analysis.attribution import DATA
from analysis.figures.roles import label as role_label
from analysis.profile import read_profile
from analysis.report.table import NOTHING, Cell, Column, Link, Row, Table, amount, number
from analysis.run import Run, Trial
from analysis.summary import read_summary, unreadable
from analysis.units import (
    UNKNOWN,
    bytes_text,
    duration_text,
    latency_text,
    number_text,
    share_text,
)

Rows = Mapping[str, Sequence[Mapping[str, Any]]]
#: The numbers of engines, and of the memory that trials had, as the columns of a table: group, then label by metric.
_ENGINE = {
    "Prefill": {"prefill_latency_s": "latency", "prefill_tokens_per_s": "tokens/s"},
    "Decode": {"decode_latency_s": "latency", "decode_tokens_per_s": "tokens/s"},
    "In all": {"total_latency_s": "latency", "tokens_per_s": "tokens/s", "generated_tokens": "tokens"},
    "Size": {"model_bytes": "model", "cache_bytes": "KV cache"},
    "Peak memory": {"peak_gpu_memory_bytes": "GPU", "peak_host_memory_bytes": "process", "memory_peak_bytes": "cgroup"},
    "Memory limit": {"memory_limit_bytes": "cgroup", "oom_kills": "OOM kills"},
}
_ROLE = re.compile(r"role\.(.+)_(?:read|write)_bytes")
_LATENCIES = {"p50": "d2c_p50_us", "p99": "d2c_p99_us", "p99.9": "d2c_p999_us", "max": "d2c_max_us"}
_TRIAL = (Column("Trial", wide=True), Column("Verdict"), Column("Operation"))
_SAW = (
    "Requests issued in each trial's traced window. Latency is issue to completion at the block layer. Queue "
    "depth: requests issued and not yet completed, the mean over the window, and busy while there is "
    "at least one. Sequential: requests that begin "
    "where the one before them ended. Footprint: distinct sectors touched; accesses: how often each of them was, "
    "on average."
)
_CEILING = (
    "What fio reaches sequentially on the same storage; the shares are of bytes on the device per second, over "
    "the whole window and over the phases that came closest."
)
_ABOVE = (
    "Above 100 %, the job was faster than fio on the same storage: fio found its blocks busier, a cache within "
    "the drive served the job, or the ceiling itself varies that much."
)
_ROLES = (
    "Bytes completed in the traced window, by what the file holds that a request's first sector belonged to, as "
    "the extents tell that were seen while the files were there. Journal and metadata are the filesystem's own; "
    "other lies in no extent that was seen."
)
_ENGINES = (
    "Latency and throughput as the engine measured them; sizes of the whole model and KV cache, wherever they "
    "lay. The memory of the cgroup holds the page cache too."
)


def tables(run: Run) -> list[Table]:
    """Return the tables of what was measured, without those that the run has no row for."""
    rows = summary_rows(run)
    found = [requests_table(run), ceiling_table(run, rows), roles_table(run, rows), engines_table(run)]
    return [one.known for one in found if one.rows or one.after]


def summary_rows(run: Run) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of the summary by trial: that of the whole window, then those of the measured phases."""
    rows: dict[str, list[dict[str, Any]]] = {trial.slug: [] for trial in run.published}
    for row in read_summary(run).to_dicts() if rows else ():
        rows[row["slug"]].append(row)
    return rows


def unreadable_trials(run: Run) -> dict[str, str]:
    """Return what is wrong with the trials of which a table cannot be read, by slug."""
    return unreadable(read_summary(run), read_profile(run)) if run.published else {}


def requests_table(run: Run) -> Table:
    """Return what the device saw of each trial, a row for reads and one for writes; trials without single requests are
    told in one line."""
    groups = {"Requests": ("count", "mean size", "per second"), "Latency": tuple(_LATENCIES)}
    groups |= {
        "Bandwidth (GiB/s)": ("mean", "peak"),
        "Queue depth": ("mean", "max", "busy"),
        "Place": ("sequential", "footprint", "accesses per sector"),
    }
    columns = [Column(label, group, numeric=True) for group, labels in groups.items() for label in labels]
    found, silent = [], []
    widths: set[int] = set()
    profiles, broken = _profiles(run), unreadable_trials(run)
    for trial in run.published:
        own = [row for row in profiles.get(trial.slug, ()) if row["requests"]]
        found += [Row((*_named(trial, row["op"]), *_request_cells(row)), trial.slug) for row in own]
        widths |= {row["bin_ns"] for row in own} - {None}
        silent += [] if own or trial.slug in broken else [f"{trial.id} ({trial.tracer})"]
    after = [f"No single requests recorded: {'; '.join(silent)}."] if silent else []
    after += [
        f"Not here, because it cannot be read: {broken[one.slug]}." for one in run.published if one.slug in broken
    ]
    return Table(
        "device",
        "What the device saw",
        _SAW + _bins(widths) if found else "",
        (*_TRIAL, *columns),
        tuple(found),
        tuple(after),
    )


def _bins(widths: set[int]) -> str:
    """Return what peak bandwidth is, with the width of the bins, in ns."""
    if not widths:
        return ""
    told = " to ".join(dict.fromkeys(latency_text(width / 1000) for width in (min(widths), max(widths))))
    burst = "a shorter burst counts over the whole bin"
    return f" Peak bandwidth: that of the busiest bin, each window cut into equal bins (of {told}); {burst}."


def profile_rows(run: Run) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of the profile by trial."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in read_profile(run).to_dicts() if run.published else ():
        found.setdefault(row["slug"], []).append(row)
    return found


def _profiles(run: Run) -> dict[str, list[dict[str, Any]]]:
    """Return the profile of each trial's whole window, reads then writes."""
    found: dict[str, list[dict[str, Any]]] = {}
    if run.published:
        whole = read_profile(run).filter((pl.col("phase") == "trial") & pl.col("op").is_in(DATA))
        for row in whole.to_dicts():
            found.setdefault(row["slug"], []).append(row)
    return found


def _request_cells(row: Mapping[str, Any]) -> list[Cell]:
    def plain(name: str) -> Cell:
        return number(row[name], UNKNOWN if row[name] is None else number_text(row[name]))

    return [
        number(row["requests"], f"{row['requests']:,}"),
        number(row["request_bytes_mean"], bytes_text(row["request_bytes_mean"])),
        plain("iops"),
        *(number(row[name], latency_text(row[name])) for name in _LATENCIES.values()),
        plain("bandwidth_gib_s"),
        plain("bandwidth_peak_gib_s"),
        plain("depth_mean"),
        plain("depth_max"),
        _share_cell(row["busy_share"]),
        _share_cell(row["sequential_share"]),
        amount(row["footprint_bytes"]),
        plain("accesses_mean"),
    ]


def ceiling_table(run: Run, rows: Rows) -> Table:
    """Return what share of its storage's ceiling each trial reached, of those that have one."""
    found = []
    spans = profile_rows(run)
    for trial in run.published:
        top = ceiling.ceiling_of(trial)
        whole = rows[trial.slug][0]
        for op in DATA if top else ():
            assert top is not None
            share, best = whole.get(f"{op}_ceiling_share"), ceiling.busiest(spans.get(trial.slug, ()), op)
            if share is None and best is None:
                continue
            cells = [
                number(top.gib_s[op], f"{number_text(top.gib_s[op])} GiB/s"),
                number(share, ceiling.percent(share)),
                NOTHING if best is None else Cell(ceiling.percent(best[1]), best[1]),
                NOTHING if best is None else Cell(best[0]),
            ]
            found.append(Row((*_named(trial, op), *cells), trial.slug))
    above = any(cell.value is not None and cell.value > 1 for row in found for cell in row.cells[4:6])
    labels = ("fio", "whole window", "busiest phase")
    columns = (*_TRIAL, *(Column(label, numeric=True) for label in labels), Column("which"))
    after = (_ABOVE,) if above else ()
    return Table("ceiling", "Against the ceiling", _CEILING, columns, tuple(found), after)


def roles_table(run: Run, rows: Rows) -> Table:
    """Return the bytes by role of each trial that knows them, a row for reads and one for writes."""
    names = read_summary(run).columns if run.published else []
    roles = list(dict.fromkeys(match[1] for name in names if (match := _ROLE.fullmatch(name))))
    columns = [Column(label, role_label(role), numeric=True) for role in roles for label in ("bytes", "share")]
    found = []
    for trial in run.published:
        for op in DATA:
            moved = [rows[trial.slug][0].get(f"role.{role}_{op}_bytes") for role in roles]
            total = sum(count or 0 for count in moved)
            if any(count is not None for count in moved):
                cells = [cell for count in moved for cell in _role_cells(count, total)]
                found.append(Row((*_named(trial, op), *cells), trial.slug))
    return Table("roles", "Whose bytes", _ROLES, (*_TRIAL, *columns), tuple(found))


def _role_cells(count: int | None, total: int) -> tuple[Cell, Cell]:
    share = count / total if count and total else None
    return NOTHING if count is None else amount(count), Cell("") if share is None else _share_cell(share)


def _share_cell(share: float | None) -> Cell:
    return number(share, UNKNOWN if share is None else share_text(share))


def engines_table(run: Run) -> Table:
    """Return what engines reported, of every trial of which one did."""
    columns = [Column(label, group, numeric=True) for group, labels in _ENGINE.items() for label in labels.values()]
    names = [name for labels in _ENGINE.values() for name in labels]
    reported = [trial for trial in run.published if any(name in trial.measured for name in names)]
    rows = [Row((*_named(one), *(_engine_cell(one, name) for name in names)), one.slug) for one in reported]
    return Table("engines", "What the engines reported", _ENGINES, (*_TRIAL[:2], *columns), tuple(rows))


def _engine_cell(trial: Trial, name: str) -> Cell:
    if name not in trial.measured:
        return NOTHING
    value, unit = trial.measured[name]
    if unit == "B":
        return amount(round(value))
    return Cell(duration_text(value) if unit == "s" else number_text(value), value)


def _named(trial: Trial, *operation: str) -> tuple[Cell, ...]:
    name = Cell(trial.id, links=(Link(trial.id, trial=trial.slug),))
    return (name, Cell(trial.state, kind="verdict"), *map(Cell, operation))
