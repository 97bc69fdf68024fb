"""What the figures of engines that offload have in common: which trials, one chart each, the cells compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import altair as alt

from analysis.errors import CannotDraw
from analysis.figures import bandwidth, comparison, sizes, theme, utilisation
from analysis.figures.panel import Panel, per_trial, ruled_out
from analysis.figures.timeline import stacked, timelines
from analysis.run import Run, Trial
from analysis.workload import described

#: Returns, for the trials of a figure, what draws the chart of one of them.
Prepare = Callable[[Sequence[Trial]], Callable[[Trial], alt.TopLevelMixin]]


def panels(
    run: Run, name: str, title: str, trials: Sequence[Trial], about: str, prepare: Prepare, holds: tuple[str, ...]
) -> Iterator[Panel]:
    """Yield one panel per trial; `about` says in words what the run has no trial of, where there is none."""
    if not trials:
        reason = f"no trial of this run is one of {about}" if run.published else "no trial has finished"
        yield ruled_out(name, title, reason)
        return
    yield from per_trial(trials, name, title, prepare(trials), holds)


def compared(run: Run, name: str, title: str, trials: Sequence[Trial]) -> Iterator[Panel]:
    """Yield the panel that compares the cells of the run, where there are several."""
    chart = comparison.chart(run, trials, title)
    if chart is not None:
        yield Panel(name, title, chart)


def models(run: Run, name: str, title: str, trials: Sequence[Trial], about: str) -> Iterator[Panel]:
    """Yield the panels of engines that read weights from the drive: bandwidth, GPU utilisation, request sizes."""

    def prepare(trials: Sequence[Trial]) -> Callable[[Trial], alt.TopLevelMixin]:
        lines, counts = timelines(trials), sizes.counted(trials)
        categories = sizes.common(counts)

        def draw(trial: Trial) -> alt.TopLevelMixin:
            line = lines.of(trial)
            parts = stacked(
                line,
                lambda labelled: bandwidth.both(line, labelled),
                lambda labelled: utilisation.over_time(line, labelled),
            )
            try:
                counted = counts.of(trial)
                told = theme.section(sizes.TITLE, sizes.described(trial, counted))
                parts += [sizes.bars(counted, categories).properties(title=told), sizes.table(counted)]
            except CannotDraw as error:
                parts.append(theme.gap(str(error)).properties(title=theme.section(sizes.TITLE)))
            return finished(trial, title, parts, bandwidth.described(line))

        return draw

    yield from compared(run, name, title, trials)
    yield from panels(run, name, title, trials, about, prepare, ("timeline", "bandwidth", "sizes"))


def finished(trial: Trial, title: str, parts: Sequence[theme.View], *told: str) -> alt.TopLevelMixin:
    """Return the parts as one figure of a trial, marked where the trial is not valid."""
    lines = [described(trial), *told]
    return theme.finished(theme.stack(parts), theme.named(title, trial), lines, theme.alarm(trial))
