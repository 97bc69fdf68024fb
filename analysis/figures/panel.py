"""One chart of a figure, drawn or ruled out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import altair as alt

from analysis.errors import AnalysisError
from analysis.figures import theme
from analysis.run import Trial

T = TypeVar("T")


@dataclass(frozen=True)
class Panel:
    """A chart named for its files. `trial` is the slug it belongs to, None for the whole run; `reason` is set where
    the data rules the figure out, and the chart then says so. `holds` names the figures whose charts of the same
    trial are parts of this one."""

    name: str
    title: str
    chart: alt.TopLevelMixin
    trial: str | None = None
    reason: str | None = None
    holds: tuple[str, ...] = ()


def ruled_out(name: str, title: str, reason: str, trial: str | None = None) -> Panel:
    """Return the panel of a figure that cannot be drawn."""
    return Panel(name, title, theme.notice(title, reason), trial, reason)


class Tried(Generic[T]):
    """Something computed of each trial, kept, or why it cannot be."""

    def __init__(self, trials: Sequence[Trial], compute: Callable[[Trial], T]) -> None:
        """Compute it for all; an AnalysisError of one does not stop the others."""
        self._found: dict[str, T] = {}
        self._errors: dict[str, AnalysisError] = {}
        for trial in trials:
            try:
                self._found[trial.slug] = compute(trial)
            except AnalysisError as error:
                self._errors[trial.slug] = error

    def of(self, trial: Trial) -> T:
        """Return it for one trial, or raise what stood in its way."""
        if trial.slug in self._errors:
            raise self._errors[trial.slug]
        return self._found[trial.slug]

    def has(self, trial: Trial) -> bool:
        """Say whether one trial has it."""
        return trial.slug in self._found

    def all(self) -> list[T]:
        """Return it for the trials that have it."""
        return list(self._found.values())


def per_trial(
    trials: Sequence[Trial],
    figure: str,
    title: str,
    draw: Callable[[Trial], alt.TopLevelMixin],
    holds: tuple[str, ...] = (),
) -> Iterator[Panel]:
    """Yield one panel per trial; what stops one trial's chart does not stop the others."""
    for trial in trials:
        heading, name = theme.named(title, trial), f"{figure}-{trial.slug}"
        try:
            yield Panel(name, heading, draw(trial), trial.slug, holds=holds)
        except AnalysisError as error:
            yield ruled_out(name, heading, str(error), trial.slug)
