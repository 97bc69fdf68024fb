"""Fig. 5 of the study: FlexGen's KV cache on the drive, its bandwidth over time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import altair as alt

from analysis.figures import bandwidth, offload, utilisation
from analysis.figures.panel import Panel
from analysis.figures.timeline import stacked, timelines
from analysis.run import Run, Trial
from analysis.workload import has_cache_on_disk

NAME = "fig5"
TITLE = "KV cache offloading with FlexGen"
ABOUT = "FlexGen with its KV cache on the drive (workload.kind: flexgen; workload.percent leaves it a share)"


def charts(run: Run) -> Iterator[Panel]:
    """Yield one panel per trial, after one that compares the cells of the run."""
    trials = [trial for trial in run.published if has_cache_on_disk(trial)]
    yield from offload.compared(run, NAME, TITLE, trials)
    yield from offload.panels(run, NAME, TITLE, trials, ABOUT, _prepare, ("timeline", "bandwidth"))


def _prepare(trials: Sequence[Trial]) -> Callable[[Trial], alt.TopLevelMixin]:
    lines = timelines(trials)

    def draw(trial: Trial) -> alt.TopLevelMixin:
        line = lines.of(trial)
        parts = stacked(
            line,
            lambda labelled: bandwidth.both(line, labelled),
            lambda labelled: bandwidth.writes_alone(line, labelled),
            lambda labelled: utilisation.over_time(line, labelled),
        )
        return offload.finished(trial, TITLE, parts, bandwidth.described(line))

    return draw
