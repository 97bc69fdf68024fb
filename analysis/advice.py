"""Advice by rule: what a storage person would point at in a trial's data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from analysis.run import Run


@dataclass(frozen=True)
class Advice:
    """One thing worth knowing: `told` says what was seen, with its numbers, and what to do; `trials` are slugs."""

    code: str
    title: str
    told: str
    trials: tuple[str, ...]


#: A new rule is a small function of a run and one line here.
RULES: tuple[Callable[[Run], list[Advice]], ...] = ()


def advice(run: Run) -> list[Advice]:
    """Return what the rules say of the valid trials of `run`."""
    return [one for rule in RULES for one in rule(run)]
