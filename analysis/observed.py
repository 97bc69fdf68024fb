"""One metric of one trial, as a plan asks for it that decides by what trials came to."""

from __future__ import annotations

import difflib
import math
from pathlib import Path
from typing import Any

from analysis import measures
from analysis.errors import AnalysisError
from analysis.measures import ENGINE, Measure
from analysis.metrics import WHOLE
from analysis.profile import profile
from analysis.run import load_trial
from analysis.summary import summary_rows


def observed(trial_dir: str | Path, metric: str) -> dict[str, Any]:
    """Return `{"value": number}`, or `{"missing": why}` where a trial has no such metric, with what it has instead.

    `metric` is named as in figures, without an axis: `tokens_per_s`, `decode/read.d2c_p99_us` (`analysis.measures`).
    """
    measure = measures.named(metric)
    try:
        value = _of_trial(trial_dir, measure) if measure.op is None else _of_span(trial_dir, measure)
    except AnalysisError as error:
        return {"missing": str(error)}
    return {"value": value}


def _of_trial(trial_dir: str | Path, measure: Measure) -> float:
    trial = load_trial(trial_dir)
    row = next(row for row in summary_rows(trial) if row["phase"] == WHOLE)
    if row.get("unreadable"):
        raise AnalysisError(str(row["unreadable"]))
    name = f"metric.{measure.name}" if measure.name in ENGINE else measure.name
    known = {key: value for key, value in row.items() if _is_number(value)}
    if name not in known:
        own = [key for key in known if key.startswith(("metric.", "role."))]
        told = f"its job reports {', '.join(own)}" if own else "its job reports no metrics of its own"
        raise AnalysisError(f"nothing recorded it; {told}")
    return float(known[name])


def _of_span(trial_dir: str | Path, measure: Measure) -> float:
    rows = profile(trial_dir)
    phases = list(dict.fromkeys(str(row["phase"]) for row in rows))
    if measure.phase not in phases:
        raise AnalysisError(f"no phase {measure.phase!r}; {_told(measure.phase, phases)}")
    row = next(row for row in rows if row["phase"] == measure.phase and row["op"] == measure.op)
    value = row.get(measure.name)
    if not _is_number(value):
        known = [str(one["op"]) for one in rows if one["phase"] == measure.phase and _is_number(one.get(measure.name))]
        there = f"it is known of {', '.join(known)} there" if known else "it is known of no operation there"
        raise AnalysisError(f"nothing recorded it; {there} (tracer: {load_trial(trial_dir).tracer})")
    return float(value)  # type: ignore[arg-type]


def _told(phase: str, phases: list[str]) -> str:
    near = difflib.get_close_matches(phase, phases, 1, 0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{hint}phases: {', '.join(phases)}"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
