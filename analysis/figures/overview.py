"""A trial at a glance, the figure to open first: its phases on top, what the drive moved, how busy processors were."""

from __future__ import annotations

from collections.abc import Iterator

import altair as alt

from analysis.figures import bandwidth, theme, utilisation
from analysis.figures.panel import Panel, per_trial
from analysis.figures.timeline import Timeline, stacked, timelines
from analysis.run import Run
from analysis.workload import described, settings

NAME = "timeline"
TITLE = "Phases, bandwidth and utilisation over time"


def charts(run: Run) -> Iterator[Panel]:
    """Yield one panel per trial; all share their axes, so they compare at sight."""
    lines = timelines(run.published)
    yield from per_trial(run.published, NAME, TITLE, lambda trial: chart(lines.of(trial)), ("bandwidth",))


def chart(line: Timeline) -> alt.TopLevelMixin:
    """Return the chart of one trial."""
    parts = stacked(
        line,
        lambda labelled: bandwidth.both(line, labelled),
        lambda labelled: utilisation.over_time(line, labelled),
        phases_first=True,
    )
    # What generates text has a model, a batch and lengths to tell of
    engine = [described(line.trial)] if "gen_len" in settings(line.trial) else []
    told = [*engine, bandwidth.described(line)]
    return theme.finished(theme.stack(parts), theme.named(TITLE, line.trial), told, theme.alarm(line.trial))
