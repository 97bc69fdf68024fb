"""One figure of a run as an Altair chart, as notebooks show it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import cast

import altair as alt

from analysis.errors import AnalysisError
from analysis.figures import by_hand, figure, theme
from analysis.figures.panel import Panel
from analysis.run import Run, Trial


def chart(run: Run, name: str, trial: str | Trial | None = None) -> alt.TopLevelMixin:
    """Return the figure called `name`: of the run, or of one trial where it has a chart for each.

    Without a trial, the charts of all trials stand one under the other. AnalysisError where the figure is unknown, or
    is not one for each trial, or has none of this one. What the data rules out is a chart that says why.
    """
    found = by_hand(run, name)
    slug = None if trial is None else run.trial(trial).slug
    panels = [panel for panel in found.charts(run) if slug in (None, panel.trial)]
    if not panels:
        raise AnalysisError(_without(run, name, trial))
    return panels[0].chart if len(panels) == 1 else _stacked(panels)


def _without(run: Run, name: str, trial: str | Trial | None) -> str:
    if trial is None:
        return f"{run.path}: {name} has no chart of this run"
    having = [panel.trial for panel in figure(name).charts(run)]
    if None in having:
        return f"{run.path}: {name} is one chart for the whole run, leave out the trial"
    told = "; ".join(one.id for one in run.published if one.slug in having)
    return f"{run.path}: {name} has no chart of the trial {run.trial(trial).id}; it has of {told}"


def _stacked(panels: Sequence[Panel]) -> alt.TopLevelMixin:
    parts = []
    for panel in panels:
        part = cast(alt.Chart, panel.chart).copy(deep=False)
        part.config = alt.Undefined  # Vega-Lite takes one configuration, at the top
        parts.append(part)
    with warnings.catch_warnings():
        # what is pointed at in one of them is pointed out in all
        warnings.filterwarnings("ignore", "Automatically deduplicated selection parameter")
        stacked = alt.vconcat(*parts, spacing=36)
    return stacked.resolve_scale(color="independent", stroke="independent").configure(**theme.CONFIG)  # type: ignore[no-any-return]
