"""Cells of a run in words, and the trials that stand in no mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from analysis.run import Run, Trial
from analysis.units import count_text


def varying(trials: Sequence[Trial]) -> list[str]:
    """Return the axes in which the trials differ."""
    axes = dict.fromkeys(axis for trial in trials for axis in trial.cell)
    return [axis for axis in axes if len({str(trial.cell.get(axis)) for trial in trials}) > 1]


def label(cell: dict[str, Any], axes: Sequence[str]) -> str:
    """Return a cell in words: its values on these axes, each with its name but for a filesystem's."""
    parts = [str(cell.get(axis)) if axis.rpartition(".")[2] == "fs" else f"{axis} {cell.get(axis)}" for axis in axes]
    return ", ".join(parts) or "all trials"


def left_out(run: Run, trials: Sequence[Trial]) -> str:
    """Return which of the trials are in no mean, and why, and how many of the run are missing."""
    parts = []
    bad = [trial.id for trial in trials if trial.state != "valid"]
    if bad:
        parts.append(f"{count_text(len(bad), 'trial')} not valid, left out: {_listed(bad)}.")
    if run.missing:
        parts.append(f"{len(run.missing)} of {len(run.plan)} planned trials have no result.")
    return " ".join(parts)


def _listed(names: Sequence[str], most: int = 4) -> str:
    more = len(names) - most
    return "; ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def repeats_text(counts: Sequence[int]) -> str:
    """Return of how many repeats means are, where `counts` are those of the cells: `n = 1 to 3 repeats`."""
    least, most = min(counts), max(counts)
    return f"n = {least if least == most else f'{least} to {most}'} repeat{'' if most == 1 else 's'}"
