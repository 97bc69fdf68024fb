"""What a finding is, and how the repeats of several cells come to one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from analysis.evidence import Evidence
from analysis.figures.cells import label, varying
from analysis.run import Run
from analysis.units import count_text

REPRODUCED, DIFFERS, NOT_TESTABLE = "reproduced", "differs", "not testable here"
#: What helps where the repeats of a cell do not agree.
MORE_REPEATS = "The repeats of a cell disagree: run the sweep with more of them (repeats=5)."


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


@dataclass(frozen=True)
class Judged:
    """What the repeats of one cell say of a statement: it `holds` or not, or (None) they cannot tell.

    `note` is a sentence that cells share, such as what the device was set to.
    """

    cell: str
    holds: bool | None
    told: str
    numbers: Mapping[str, float]
    repeats: int
    note: str = ""


def finding(
    run: Run,
    code: str,
    claim: str,
    judged: Sequence[Judged],
    slugs: Sequence[str],
    undecided: str = MORE_REPEATS,
    unable: int = 0,
) -> Finding:
    """Return what cells that were all judged come to: a single one that differs makes the statement differ, one that
    cannot tell leaves it untested; `undecided` says what would change that. `unable` counts the valid trials that lack
    what it takes."""
    states = [one.holds for one in judged]
    state = DIFFERS if False in states else NOT_TESTABLE if None in states else REPRODUCED
    numbers = {f"{one.cell}: {name}": value for one in judged for name, value in one.numbers.items()}
    told = "; ".join(f"{one.cell}: {one.told}" for one in judged) + "."
    notes = dict.fromkeys(one.note for one in judged)
    sentences = [
        told,
        undecided if state == NOT_TESTABLE else "",
        *notes,
        _repeats_told([one.repeats for one in judged]),
        f"{count_text(unable, 'valid trial')} of the kind could not be judged." if unable else "",
        left_told(run),
    ]
    return Finding(code, claim, state, " ".join(filter(None, sentences)), numbers, tuple(slugs))


def untested(run: Run, code: str, claim: str, missing: str) -> Finding:
    """Return that a statement cannot be tested; `missing` says in sentences what is, and what would change that."""
    return Finding(code, claim, NOT_TESTABLE, " ".join(filter(None, [missing, left_told(run)])), {}, ())


def agreed(states: Iterable[bool]) -> bool | None:
    """Return what all repeats say, None where they disagree."""
    said = {*states}
    return said.pop() if len(said) == 1 else None


@dataclass(frozen=True)
class Statement:
    """A statement on the trials of one kind, judged cell by cell: what a trial needs for it, and what a cell says.

    `lacks` says in words what none of the kind's trials has, `sweeps` which sweeps have such trials, `how` with what.
    """

    code: str
    claim: str
    able: Callable[[Evidence], bool]
    judge: Callable[[str, Sequence[Evidence]], Judged]
    lacks: str
    sweeps: str
    how: str = "with a tracer of single requests (trace.tracer=auto)"
    undecided: str = MORE_REPEATS

    def tested(self, run: Run, own: Sequence[Evidence], kind: str) -> Finding:
        """Return the finding on the valid trials `own`, whose kind is told in words."""
        able = [one for one in own if self.able(one)]
        if not own:
            return untested(run, self.code, self.claim, f"No valid trial has {kind}. Run {self.sweeps}.")
        if not able:
            missing = f"{count_text(len(own), 'valid trial')} with {kind}, but {self.lacks}"
            return untested(run, self.code, self.claim, f"{missing}. Run {self.sweeps} {self.how}.")
        cells = _by_cell(run, able, self.judge)
        slugs = [one.trial.slug for one in able]
        return finding(run, self.code, self.claim, cells, slugs, self.undecided, len(own) - len(able))


def _by_cell(run: Run, own: Sequence[Evidence], judge: Callable[[str, Sequence[Evidence]], Judged]) -> list[Judged]:
    axes = varying(run.published)
    cells: dict[str, list[Evidence]] = {}
    for one in own:
        cells.setdefault(label(one.trial.cell, axes), []).append(one)
    return [judge(cell, repeats) for cell, repeats in cells.items()]


def ranged(name: str, values: Sequence[float]) -> dict[str, float]:
    """Return one value under its name, several as the least and the greatest."""
    least, greatest = min(values), max(values)
    return {name: least} if least == greatest else {f"{name}, least": least, f"{name}, greatest": greatest}


def span(values: Sequence[float], text: Callable[[float], str]) -> str:
    """Return one value, or `least to greatest`, in words."""
    least, greatest = text(min(values)), text(max(values))
    return least if least == greatest else f"{least} to {greatest}"


def left_told(run: Run) -> str:
    """Return how many of the run's trials are not valid, and therefore in no finding."""
    bad = sum(trial.state != "valid" for trial in run.published)
    return f"{count_text(bad, 'trial')} not valid, left out." if bad else ""


def _repeats_told(counts: Sequence[int]) -> str:
    least, greatest = min(counts), max(counts)
    if greatest == 1:
        return "One repeat (n = 1), so the spread is unknown."
    return f"n = {least if least == greatest else f'{least} to {greatest}'} repeats."
