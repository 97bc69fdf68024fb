"""The rows of a phase strip: spans too close to tell apart on paper become one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from analysis.metrics import Phase
from analysis.units import NS_PER_S, bytes_text

MOST_ROWS = 12
#: The process of the phases that a trial tells itself, beside those of its jobs.
_OURS = "trial"
#: Gaps narrower than this share of the window cannot be seen at the width we draw.
_VISIBLE = 1 / 1500
#: Spans longer than this share of it stay apart without a gap, so that steps can be counted.
_COUNTABLE = 1 / 120


def strip_rows(phases: Sequence[Phase]) -> list[tuple[str, Phase]]:
    """Return each phase with the name of its row: process (where several do something beside the trial itself), name,
    and the word-valued attributes that differ between the phases (an api, a device), as long as the rows stay few."""
    several = len({phase.process for phase in phases} - {_OURS}) > 1
    telling = [key for key in _word_keys(phases) if len({phase.attributes.get(key) for phase in phases} - {None}) > 1]
    for keys in (telling, []):
        rows = [(_row(phase, several, keys), phase) for phase in phases]
        if len({name for name, _ in rows}) <= MOST_ROWS:
            break
    names = list(dict.fromkeys(phase.name for phase in phases))
    seen = list(dict.fromkeys(name for name, _ in rows))
    rows.sort(key=lambda row: (names.index(row[1].name), seen.index(row[0]), row[1].begin_ns))
    return rows


def merged(rows: Sequence[tuple[str, Phase]], begin_ns: int, end_ns: int) -> list[dict[str, Any]]:
    """Return the spans to draw, in seconds since `begin_ns`, clipped to the window, invisible gaps closed."""
    gap, long = (end_ns - begin_ns) * _VISIBLE, (end_ns - begin_ns) * _COUNTABLE
    drawn: list[dict[str, Any]] = []
    latest: dict[str, dict[str, Any]] = {}
    for name, phase in rows:
        first, last = max(phase.begin_ns, begin_ns), min(end_ns if phase.end_ns is None else phase.end_ns, end_ns)
        if last < first:
            continue
        span = latest.get(name)
        if span is not None and first - span["last"] < gap and (last - first < long or first < span["last"]):
            span["last"] = max(span["last"], last)
            span["bytes"] += [] if phase.bytes is None else [phase.bytes]
            span["count"] += 1
            continue
        span = {"row": name, "phase": phase.name, "first": first, "last": last, "count": 1}
        span["bytes"] = [] if phase.bytes is None else [phase.bytes]
        step = [] if phase.step is None else [("step", phase.step)]
        span["attributes"] = ", ".join(f"{key} {value}" for key, value in [*step, *sorted(phase.attributes.items())])
        latest[name] = span
        drawn.append(span)
    return [_drawable(span, begin_ns) for span in drawn]


def _drawable(span: dict[str, Any], begin_ns: int) -> dict[str, Any]:
    return {
        "row": span["row"],
        "phase": span["phase"],
        "begin_s": round((span["first"] - begin_ns) / NS_PER_S, 6),
        "end_s": round((span["last"] - begin_ns) / NS_PER_S, 6),
        "attributes": span["attributes"] if span["count"] == 1 else "several phases, too close to draw apart",
        "moved": bytes_text(sum(span["bytes"])) if span["bytes"] else "not stated",
        "count": span["count"],
    }


def _word_keys(phases: Sequence[Phase]) -> list[str]:
    values: dict[str, set[str]] = {}
    for phase in phases:
        for key, value in phase.attributes.items():
            values.setdefault(key, set()).add(value)
    return [key for key, found in values.items() if not any(_number(value) for value in found)]


def _number(text: str) -> bool:
    try:
        float(text)
    except (TypeError, ValueError):
        return False
    return True


def _row(phase: Phase, several: bool, keys: Sequence[str]) -> str:
    words = [phase.name, *(phase.attributes[key] for key in keys if phase.attributes.get(key))]
    return f"{phase.process}: {' '.join(words)}" if several else " ".join(words)
