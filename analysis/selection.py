"""Which trials, and which spans of them, a question is about."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.errors import AnalysisError, nearest
from analysis.metrics import Phase, phases
from analysis.run import STATES, Run, Trial
from analysis.units import bytes_text

Span = tuple[int, int]

_SIZE = re.compile(r"^(\d[\d.]*)\s*([KMGT]i?)?B$")
#: A word of a phase's description; a size is one word, blank or not.
_WORD = re.compile(r"\d[\d.]*\s?[KMGT]?i?B(?!\S)|\S+")
#: What names an axis of the cell whatever else bears that name.
AXIS_PREFIX = "cell."
_FILTERS = ("op", "phase", "verdict")


def trials_where(run: Run, verdict: str | None, axes: Mapping[str, Any]) -> list[Trial]:
    """Return the published trials of this verdict (None: of any) whose cells have these values.

    A value may be a list of which one must be met. An axis or a value that no trial has is an error, and so is a
    choice that no trial meets.
    """
    if verdict is not None and verdict not in STATES:
        raise AnalysisError(f"no verdict is called {verdict!r}; {nearest(str(verdict), STATES)}")
    found = list(run.published)
    for name, wanted in axes.items():
        axis, values = _axis(run, name), _wanted(wanted)
        known = {cell_text(trial.cell[axis]) for trial in run.published if axis in trial.cell}
        for value in values:
            if cell_text(value) not in known:
                hint = nearest(cell_text(value), sorted(known))
                raise AnalysisError(f"{run.path}: no trial has {axis}={cell_text(value)}; {hint}")
        accepted = {cell_text(value) for value in values}
        found = [trial for trial in found if axis in trial.cell and cell_text(trial.cell[axis]) in accepted]
    if not found:
        told = ", ".join(f"{name}={_shown(value)}" for name, value in axes.items())
        raise AnalysisError(f"{run.path}: no trial has {told}" if told else f"{run.path}: no trials")
    chosen = [trial for trial in found if verdict in (None, trial.state)]
    if not chosen:
        states = ", ".join(sorted({trial.state for trial in found}))
        raise AnalysisError(
            f"{run.path}: no {verdict} trial among the {len(found)} meant ({states}); verdict=None is any"
        )
    return chosen


def phases_like(told: Sequence[Phase], wanted: str) -> list[Phase]:
    """Return the phases that `wanted` describes: a name, and words that each is one of the phase's attributes.

    `decode` is every step; `load aio cpu 64 MiB` and `load api=aio size_bytes=67108864` tell attributes by value or
    by name and value, `decode step=3` a step.
    """
    names = sorted({phase.name for phase in told}, key=len, reverse=True)
    name = next((name for name in names if wanted == name or wanted.startswith(f"{name} ")), None)
    if name is None:
        raise AnalysisError(f"no phase is called {wanted!r}; {nearest(wanted.split(' ')[0], sorted(names))}")
    words = [_canonical(word) for word in _WORD.findall(wanted[len(name) :])]
    same = [phase for phase in told if phase.name == name]
    for word in words:
        known = set().union(*(_words(phase) for phase in same))
        if word not in known:
            hint = nearest(word, sorted(known, key=lambda one: ("=" in one, one)))
            raise AnalysisError(f"no phase {name} has {word!r}; {hint}")
    found = [phase for phase in same if set(words) <= _words(phase)]
    if not found:
        raise AnalysisError(f"no phase {name} has all of {', '.join(words)}")
    return found


def phase_spans(trial_dir: str | Path, wanted: str) -> list[Span]:
    """Return the spans of the finished phases that `wanted` describes; AnalysisError where there are none."""
    try:
        spans = spans_of(phases_like(phases(trial_dir), wanted))
    except AnalysisError as error:
        raise AnalysisError(f"{trial_dir}: {error}") from None
    if not spans:
        raise AnalysisError(f"{trial_dir}: the phase {wanted!r} never ended: its process died inside")
    return spans


def spans_of(told: Sequence[Phase]) -> list[Span]:
    """Return the spans [begin, end) ns of the finished ones among these phases, in order, none overlapping."""
    merged: list[Span] = []
    for begin, end in sorted((phase.begin_ns, phase.end_ns) for phase in told if phase.end_ns is not None):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((begin, end))
    return merged


def inside(times_ns: npt.NDArray[np.int64], spans: Sequence[Span]) -> npt.NDArray[np.bool_]:
    """Say which times lie in one of the spans [begin, end), which are in order and do not overlap."""
    begins, ends = (np.array(column, dtype=np.int64) for column in zip(*spans, strict=True))
    place = np.searchsorted(begins, times_ns, side="right") - 1
    return (place >= 0) & (times_ns < ends[np.maximum(place, 0)])


def cell_text(value: Any) -> str:
    """Return a cell's value as trial ids show it: 8, 8.0 and "8" are one."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, (int, float)):
        return f"{value:.15g}"
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _axis(run: Run, name: str) -> str:
    axes = list(dict.fromkeys(axis for trial in run.published for axis in trial.cell))
    axis = name.removeprefix(AXIS_PREFIX)
    for candidate in (name, axis):
        if candidate in axes:
            return candidate
    raise AnalysisError(f"{run.path}: no axis or filter is called {axis!r}; {nearest(axis, [*axes, *_FILTERS])}")


def _wanted(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple, set, frozenset)) else [value]


def _shown(value: Any) -> str:
    return " or ".join(cell_text(one) for one in _wanted(value))


def _words(phase: Phase) -> set[str]:
    told = {key: str(value) for key, value in phase.attributes.items()}
    if phase.step is not None:
        told["step"] = str(phase.step)
    words = {f"{key}={value}" for key, value in told.items()} | {value for key, value in told.items() if key != "step"}
    sizes = [value for key, value in told.items() if key.endswith("_bytes") and value.isdigit()]
    return words | {_canonical(bytes_text(int(value))) for value in sizes}


def _canonical(word: str) -> str:
    """Return a size without its blank and needless digits, `1MiB` for `1.00 MiB`; any other word as it is."""
    size = _SIZE.match(word)
    return f"{float(size[1]):g}{size[2] or ''}B" if size else word
