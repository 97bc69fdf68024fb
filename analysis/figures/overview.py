"""A trial at a glance, the figure to open first: its phases on top, what the drive moved, how busy processors were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import altair as alt

from analysis.errors import CannotDraw
from analysis.figures import bandwidth, theme, utilisation
from analysis.figures.panel import Panel, per_trial
from analysis.figures.timeline import Timeline, stacked, timelines
from analysis.metrics import phases
from analysis.run import Run
from analysis.samples import utilisation as sampled
from analysis.workload import described, settings

NAME = "timeline"
TITLE = "Phases, bandwidth and utilisation over time"


def charts(run: Run) -> Iterator[Panel]:
    """Yield one panel per trial; all share their axes, so they compare at sight."""
    lines = timelines(run.published)
    yield from per_trial(run.published, NAME, TITLE, lambda trial: chart(lines.of(trial)), ("bandwidth",))


def chart(line: Timeline) -> alt.TopLevelMixin:
    """Return the chart of one trial; raise CannotDraw where it has neither bandwidth nor phases nor samples."""
    if not phases(line.trial.path) and sampled(line.trial.path).is_empty():
        line.moved  # noqa: B018 - without it this figure has nothing to show
    told = [described(line.trial)] if _generates(line) else []
    with suppress(CannotDraw):  # which stands in place of the bandwidth
        told.append(bandwidth.described(line))
    parts = stacked(
        line,
        lambda labelled: bandwidth.both(line, labelled),
        lambda labelled: utilisation.over_time(line, labelled),
        phases_first=True,
    )
    return theme.finished(theme.stack(parts), theme.named(TITLE, line.trial), told, theme.alarm(line.trial))


def _generates(line: Timeline) -> bool:
    """Say whether the job generates text: then it has a model, a batch and lengths to tell of."""
    return "gen_len" in settings(line.trial)
