"""Fig. 6 of the study: how FlexGen accesses a KV cache on the drive: request sizes, sectors, how often each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import altair as alt

from analysis.figures import accesses, offload, sectors, sizes, theme
from analysis.figures.fig5 import ABOUT
from analysis.figures.panel import Panel, Tried
from analysis.figures.timeline import stacked, timelines
from analysis.run import Run, Trial
from analysis.workload import has_cache_on_disk

NAME = "fig6"
TITLE = "Accesses to a KV cache of FlexGen"


def charts(run: Run) -> Iterator[Panel]:
    """Yield one panel per trial."""
    trials = [trial for trial in run.published if has_cache_on_disk(trial)]
    yield from offload.panels(run, NAME, TITLE, trials, ABOUT, _prepare, ("sizes", "sectors"))


def _prepare(trials: Sequence[Trial]) -> Callable[[Trial], alt.TopLevelMixin]:
    lines, counts, touched = timelines(trials), sizes.counted(trials), Tried(trials, accesses.counted)
    categories, extent = sizes.common(counts), sectors.common_extent(trials)
    most = max((int(one["accesses"].max()) for one in touched.all()), default=1)  # type: ignore[arg-type]

    def draw(trial: Trial) -> alt.TopLevelMixin:
        line, counted, accessed = lines.of(trial), counts.of(trial), touched.of(trial)
        bars = sizes.bars(counted, categories).properties(title=theme.section(sizes.TITLE))
        maps = stacked(line, *sectors.maps(line, extent))
        maps[0] = maps[0].properties(title=theme.section(sectors.TITLE, sectors.EXPLAINED))
        told = theme.section(accesses.TITLE, accesses.described(accessed))
        shares = accesses.distribution(accessed, most).properties(title=told)
        return offload.finished(trial, TITLE, [bars, *maps, shares], sizes.described(trial, counted))

    return draw
