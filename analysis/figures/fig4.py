"""Fig. 4 of the study: FlexGen reads a model's weights from the drive for every token."""

from __future__ import annotations

from collections.abc import Iterator

from analysis.figures import offload
from analysis.figures.panel import Panel
from analysis.run import Run
from analysis.workload import has_weights_on_disk

NAME = "fig4"
TITLE = "Model offloading with FlexGen"


def charts(run: Run) -> Iterator[Panel]:
    """Yield one panel per trial, after one that compares the cells of the run."""
    trials = [trial for trial in run.published if has_weights_on_disk(trial)]
    return offload.models(
        run,
        NAME,
        TITLE,
        trials,
        "FlexGen with weights on the drive (workload.kind: flexgen; workload.percent leaves it a share)",
    )
