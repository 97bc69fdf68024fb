"""One chart of a figure, drawn or ruled out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import altair as alt

from analysis.errors import AnalysisError
from analysis.figures import theme
from analysis.run import Run, Trial


@dataclass(frozen=True)
class Panel:
    """A chart named for its files. `trial` is the slug it belongs to, None for the whole run; `reason` is set where
    the data rules the figure out, and the chart then says so."""

    name: str
    title: str
    chart: alt.TopLevelMixin
    trial: str | None = None
    reason: str | None = None


def ruled_out(name: str, title: str, reason: str, trial: str | None = None) -> Panel:
    """Return the panel of a figure that cannot be drawn."""
    return Panel(name, title, theme.notice(title, reason), trial, reason)


def per_trial(run: Run, figure: str, title: str, draw: Callable[[Trial], alt.TopLevelMixin]) -> Iterator[Panel]:
    """Yield one panel per published trial; what stops one trial's chart does not stop the others."""
    for trial in run.published:
        heading, name = theme.named(title, trial), f"{figure}-{trial.slug}"
        try:
            yield Panel(name, heading, draw(trial), trial.slug)
        except AnalysisError as error:
            yield ruled_out(name, heading, str(error), trial.slug)
