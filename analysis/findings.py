"""What the study says, tested on a run's own data: each statement is reproduced, differs, or cannot be tested there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from analysis.run import Run

REPRODUCED, DIFFERS, NOT_TESTABLE = "reproduced", "differs", "not testable here"


@dataclass(frozen=True)
class Finding:
    """One statement of the study and what the run says of it.

    `told` is a sentence or two with the numbers behind `state`, or what is missing; `numbers` are these by name, with
    their unit in it; `trials` are the slugs of the trials that they come from.
    """

    code: str
    claim: str
    state: str
    told: str
    numbers: Mapping[str, float]
    trials: tuple[str, ...]


#: The statements in the order of the study's figures. A new one is a function of a run and one line here.
STATEMENTS: tuple[Callable[[Run], Finding], ...] = ()


def findings(run: Run) -> list[Finding]:
    """Test every statement of the study on the valid trials of `run`."""
    return [statement(run) for statement in STATEMENTS]
