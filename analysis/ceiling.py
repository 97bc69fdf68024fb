"""What fio reached on a trial's own storage, and what share of it the job did."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from analysis.attribution import DATA
from analysis.run import Trial
from analysis.units import GIB, UNKNOWN, bytes_text, number_text

#: Names of `trial.json` that a ceiling needs, by operation: engines move large tensors, in order.
_SEQUENTIAL = {"read": "sequential_read_gib_s", "write": "sequential_write_gib_s"}
_FURTHER = ("random_read_gib_s", "random_write_gib_s", "first_write_gib_s")
#: A kind of phase that moved less than this share of what the largest one did says nothing of the job.
_TELLING = 0.01
_VERB = {"read": "reads", "write": "overwrites"}


@dataclass(frozen=True)
class Ceiling:
    """What fio reached, in GiB/s: sequentially by operation, and `further` by name, such as `random_read_gib_s`."""

    gib_s: Mapping[str, float]
    further: Mapping[str, float]
    settings: Mapping[str, Any]

    @property
    def first_write_gib_s(self) -> float | None:
        """How fast fio wrote its file for the first time, to blocks that were never written."""
        return self.further.get("first_write_gib_s")

    def how(self) -> str:
        """Return requests and depth in words, such as `128 KiB, depth 32`."""
        block, depth, jobs = (self.settings.get(name) for name in ("block_bytes", "depth", "jobs"))
        parts = [bytes_text(block) if isinstance(block, int) else UNKNOWN, f"depth {depth or UNKNOWN}"]
        return ", ".join(parts) + (f" in each of {jobs} jobs" if isinstance(jobs, int) and jobs > 1 else "")


def ceiling_of(trial: Trial) -> Ceiling | None:
    """Return the ceiling that the trial recorded, or None where it has none."""
    told = trial.section("ceiling")
    known = {name: float(told[name]) for name in (*_SEQUENTIAL.values(), *_FURTHER) if _is_speed(told.get(name))}
    if told.get("state") not in ("measured", "cached") or not {*_SEQUENTIAL.values()} <= {*known}:
        return None
    settings = told.get("settings")
    return Ceiling(
        {op: known[name] for op, name in _SEQUENTIAL.items()},
        {name: known[name] for name in _FURTHER if name in known},
        settings if isinstance(settings, Mapping) else {},
    )


def _is_speed(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def share(moved: int | None, seconds: float | None, ceiling: Ceiling | None, op: str) -> float | None:
    """Return bytes per second as a share of the sequential ceiling of `op`; None where one of them is not known.

    1 is the ceiling. Above it: blocks that fio found busier, a cache within the drive, or the spread of the ceiling.
    """
    if ceiling is None or moved is None or not seconds:
        return None
    return moved / seconds / GIB / ceiling.gib_s[op]


def columns(ceiling: Ceiling | None, whole: bool) -> dict[str, float | None]:
    """Return the columns of the summary that state the ceiling, all of it in the row of the whole window."""
    row: dict[str, float | None] = {f"ceiling_{op}_gib_s": ceiling.gib_s[op] if ceiling else None for op in DATA}
    if whole:
        row |= {f"ceiling_{name}": ceiling.further.get(name) if ceiling else None for name in _FURTHER}
    return row


def shares(row: Mapping[str, Any], ceiling: Ceiling | None) -> dict[str, float | None]:
    """Return the share of the ceiling that a row of the summary reached, by operation.

    Of bytes traced, which the device moved, not of a phase's own bytes, which the page cache may have; in a trial
    without single requests, of those counted, which only the whole window knows.
    """
    return {
        f"{op}_ceiling_share": share(
            row.get(f"counted_{op}_bytes") if row[f"traced_{op}_bytes"] is None else row[f"traced_{op}_bytes"],
            row["duration_s"],
            ceiling,
            op,
        )
        for op in DATA
    }


def busiest(profile: Iterable[Mapping[str, Any]], op: str) -> tuple[str, float] | None:
    """Return the kind of phase in which the job came closest to the ceiling, such as `load aio cpu 64 MiB`, and how
    close, or None.

    `profile` are a trial's rows of the profile. Phases of one kind count together: all bytes over all time. Of those in
    which next to nothing moved, the shortest would win.
    """
    own = [row for row in profile if row["op"] == op and row["phases"] is not None and row["ceiling_share"]]
    most = max((row["bytes"] for row in own), default=0)
    telling = [row for row in own if row["bytes"] >= _TELLING * most]
    best = max(telling, key=lambda row: float(row["ceiling_share"]), default=None)
    return None if best is None else (best["phase"], best["ceiling_share"])


def percent(value: float | None) -> str:
    """Return a share as percent, never rounded to nothing nor to all of it: `37 %`, `0.4 %`, `< 0.1 %`."""
    if value is None:
        return UNKNOWN
    if 0 < value < 0.001:
        return "< 0.1 %"
    return f"{value:.1%}".replace("%", " %") if value < 0.0995 else f"{value:.0%}".replace("%", " %")


def described(trial: Trial, profile: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return in sentences what the ceiling is, how close the job came, and when it was measured; or why there is none.

    `profile` are the trial's rows of the profile.
    """
    ceiling, told = ceiling_of(trial), trial.section("ceiling")
    if ceiling is None:
        return [f"No ceiling: {told['reason']}."] if told.get("state") == "failed" and told.get("reason") else []
    rows = list(profile)
    read, write = (number_text(ceiling.gib_s[op]) for op in DATA)
    lines = [
        f"On the same storage fio reads {read} GiB/s and overwrites {write} GiB/s ({ceiling.how()}; {_when(told)})."
    ]
    if ceiling.first_write_gib_s is not None:
        lines[0] += f" Blocks that were never written it writes at {number_text(ceiling.first_write_gib_s)} GiB/s."
    for op in DATA:
        if (best := busiest(rows, op)) is not None:
            lines.append(f"In {best[0]} the job reached {percent(best[1])} of what fio {_VERB[op]} there.")
    return lines


def _when(told: Mapping[str, Any]) -> str:
    if told.get("state") == "measured":
        return "measured before this trial"
    try:
        return f"measured {datetime.fromisoformat(str(told.get('measured_at'))):%Y-%m-%d %H:%M} UTC, kept by the node"
    except ValueError:
        return "measured earlier, kept by the node"


def cost_described(trial: Trial) -> list[str]:
    """Return in sentences what tracing cost fio on the trial's storage, or why nobody knows; none where not asked."""
    cost = trial.section("tracer").get("cost")
    if not isinstance(cost, Mapping):
        return []
    if cost.get("state") != "measured":
        return [f"Tracer cost not measured: {cost.get('reason') or UNKNOWN}."]
    try:
        return [_cost(load, trial.tracer) for load in cost["loads"]]
    except (KeyError, TypeError, ValueError):
        return ["Tracer cost: recorded in a form that cannot be read."]


def _cost(load: Mapping[str, Any], tracer: str) -> str:
    kind = {"read": "reads", "randread": "random reads"}.get(str(load.get("rw")), str(load.get("rw")))
    spread = f"{load['least_ratio']:.2f} to {load['greatest_ratio']:.2f}"
    text = f"Tracer cost: under {tracer} fio keeps {load['ratio']:.2f} of its IOPS ({spread}; {kind} of "
    text += f"{bytes_text(load['block_bytes'])}, depth {load['depth']}; {load['missed']:,} requests or events missed"
    cpu = load.get("tracer_cpu_s_per_million_events")
    return text + (f"; {number_text(cpu)} s of the tracer's own processor time per million events)." if cpu else ").")
