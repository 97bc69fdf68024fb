"""Fig. 3 of the study: DeepSpeed reads a model's weights from the drive for every token."""

from __future__ import annotations

from collections.abc import Iterator

from analysis.figures import offload
from analysis.figures.panel import Panel
from analysis.run import Run
from analysis.workload import is_deepspeed_model

NAME = "fig3"
TITLE = "Model offloading with DeepSpeed"


def charts(run: Run) -> Iterator[Panel]:
    """Yield one panel per trial, after one that compares the cells of the run."""
    trials = [trial for trial in run.published if is_deepspeed_model(trial)]
    return offload.models(
        run, NAME, TITLE, trials, "DeepSpeed with weights on the drive (workload.kind: deepspeed_model)"
    )
