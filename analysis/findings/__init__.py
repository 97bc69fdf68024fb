"""What the study says, tested on a run's own data: each statement is reproduced, differs, or cannot be tested there."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from analysis.evidence import Evidence, gathered
from analysis.findings import cache, model, tensors
from analysis.findings.finding import DIFFERS, NOT_TESTABLE, REPRODUCED, Finding
from analysis.run import Run

__all__ = ["DIFFERS", "NOT_TESTABLE", "REPRODUCED", "STATEMENTS", "Finding", "findings"]

#: The statements in the order of the study's figures. A new one is a function of a run, with the evidence of its
#: trials, and one line here.
STATEMENTS: tuple[Callable[[Run, Sequence[Evidence]], Finding], ...] = (
    tensors.aio_loads,
    tensors.aio_stores,
    model.reads_of_128_kib,
    model.drive_not_saturated,
    model.whole_model_each_pass,
    cache.reads_and_writes,
    cache.requests_of_128_kib,
    cache.reads_far_above_writes,
    cache.whole_cache_each_step,
)


def findings(run: Run) -> list[Finding]:
    """Test every statement of the study on the valid trials of `run`."""
    told = gathered(run)
    return [statement(run, told) for statement in STATEMENTS]
