"""A sweep's trials: which, in which order, under which names."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from sweep.cells import Cells
from sweep.code import digest, digest_of
from sweep.definition import REPEAT, SCENARIO, WARMUP, OnImpossible, Order, Sweep
from sweep.errors import ConfigError, ImpossibleError
from sweep.progress import counted
from tasks.secrets import hidden

#: More than these are a slip of the hand: making them would take minutes and all memory.
_MOST_CELLS = _MOST_TRIALS = 2_000_000

#: Text that needs no quotes in a trial's id.
_PLAIN = re.compile(r'[^,="\[\]{}\x00-\x1f\x7f]+')


@dataclass(frozen=True)
class Trial:
    """One repeat of one cell. `cell` holds values by axis label, `config` everything the node is told.

    A warm-up is run before the repeats of its cell, and not counted; `repeat` says which of the warm-ups it is.
    `kin`: what it has in common with the trials that are to run on the same node; None: its cell.
    """

    id: str
    slug: str
    cell: Mapping[str, Any]
    repeat: int
    config: Mapping[str, Any] = field(repr=False)
    warmup: bool = False
    kin: Mapping[str, Any] | None = field(default=None, repr=False)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The half of the trial's identity that the plan knows: its configuration and the code that runs it."""
        return {"plan": {"config": digest(hidden(self.config)), "code": digest_of(self.config)}}


class Grid:
    """The plan of a grid: all trials at once.

    By default repeats are spread over time, so that a drift touches every cell alike. The warm-ups of a cell come
    right before the first of its repeats, whatever the order.
    """

    def __init__(self, sweep: Sweep) -> None:
        """Expand `sweep`; raises ConfigError where a cell makes no sense, unless the sweep says to skip those."""
        #: Conditions that no cell met, as they stand in the file.
        self.idle: list[str] = []
        #: Cells that make no sense, and trials that no node can run, left out; each with the reason.
        self.skipped: list[tuple[str, str]] = []
        #: All trials that may be run, in their order.
        self.trials: tuple[Trial, ...] = tuple(self._expanded(sweep))
        #: All trials of the sweep, selected or not.
        self.every = self.trials
        self._asked = False

    def select(self, trials: Sequence[Trial]) -> None:
        """Leave out all but these of the plan's trials."""
        self.trials = tuple(trials)

    def next_trials(self, finished: Mapping[str, Mapping[str, Any]]) -> tuple[Trial, ...]:
        """Return the trials to run next, given the records of the finished ones by id: all of them, once."""
        asked, self._asked = self._asked, True
        return () if asked else self.trials

    @property
    def trouble(self) -> str | None:
        """Why the next trials cannot be told, in words; None for a grid."""
        return None

    @property
    def planned(self) -> tuple[Trial, ...]:
        """The trials that are to run, as far as that is known: of a grid all of them."""
        return self.trials

    @property
    def least(self) -> int:
        """How many trials there are at least."""
        return len(self.trials)

    @property
    def size(self) -> str:
        """How many trials there are, in words."""
        return counted(len(self.trials), "trial")

    @property
    def is_open(self) -> bool:
        """Whether there may be more trials than are planned."""
        return False

    def extent(self) -> tuple[Sequence[Trial], Sequence[Trial]]:
        """Return trials as many, and of such cells, as are run at least and at most."""
        return self.trials, self.trials

    def certain(self) -> Collection[str]:
        """Return the ids of the trials that run whatever comes of others."""
        return {trial.id for trial in self.trials}

    def rules(self) -> list[str]:
        """Return in words how trials are chosen; nothing for a grid, which runs them all."""
        return []

    def metric(self, trial: Trial) -> str | None:
        """Return the metric of a finished trial that the plan must know; None for a grid."""
        return None

    def may_fail(self, trial: Trial) -> bool:
        """Say whether that a trial fails is an answer, and no reason to stop; of a grid it is none."""
        return False

    def turn(self, trial: Trial) -> int | None:
        """Return the trial's place in the order of all; None where trials run as they are asked for."""
        return None

    def outcome(self) -> dict[str, Any] | None:
        """Return what a run records of how trials were chosen; None for a grid."""
        return None

    def told(self) -> list[str]:
        """Return, in lines for a reader, what came of choosing trials."""
        return []

    def leave_out(self, reasons: Mapping[str, str]) -> None:
        """Leave out these trials, by id; each reason is told in `skipped`."""
        self.skipped += [(trial.id, reasons[trial.id]) for trial in self.trials if trial.id in reasons]
        self.trials = tuple(trial for trial in self.trials if trial.id not in reasons)

    def _expanded(self, sweep: Sweep) -> Iterator[Trial]:
        scenarios = [({SCENARIO: name}, part) for name, part in sweep.scenarios.items()]
        _check_size(sweep)
        cells: list[_Cell] = []
        met: dict[str, Counter[str]] = {"exclude": Counter(), "only": Counter()}
        for named, part in scenarios or [({}, sweep)]:
            made = Cells(part, named)
            cells += self._possible(part, named, made)
            for section, counts in met.items():
                counts.update({text: made.met[section][text] for text in getattr(part, section)})
        self.idle = [f"{section}: {text}" for section, counts in met.items() for text, n in counts.items() if not n]
        if not cells:
            listed = ", ".join(dict.fromkeys(text for counts in met.values() for text in counts))
            raise ConfigError(sweep.source, None, f"has no cells left: exclude and only state {listed}")
        turns = [(repeat, place) for repeat in range(1, sweep.repeats + 1) for place in range(len(cells))]
        if sweep.order is Order.listed:
            turns.sort(key=lambda turn: turn[1])
        elif sweep.order is Order.random:
            random.Random(sweep.seed).shuffle(turns)
        warm: set[int] = set()
        for repeat, place in turns:
            if repeat > cells[place].repeats:
                continue
            if place not in warm:
                warm.add(place)
                yield from (cells[place].trial(n, warmup=True) for n in range(1, cells[place].warmups + 1))
            yield cells[place].trial(repeat)

    def _possible(self, sweep: Sweep, named: Mapping[str, Any], cells: Cells) -> list[_Cell]:
        """Return the cells of a sweep without scenarios; `named` are values beside its axes.

        Those that make no sense are told in `skipped` where the sweep says so, unless that is all of them.
        """
        first = [word(label, value) for label, value in named.items()]
        words = [[word(axis.label, value) for value in axis.values] for axis in sweep.axes]
        found: list[_Cell] = []
        refused: list[tuple[str, ImpossibleError]] = []
        searched = sweep.searched.label if sweep.searched else None
        for places in cells.places():
            turns = list(enumerate(places))
            values = {sweep.axes[axis].label: sweep.axes[axis].values[place] for axis, place in turns}
            own = (*first, *(words[axis][place] for axis, place in turns))
            try:
                config = cells.config(places)
            except ImpossibleError as error:
                if sweep.on_impossible is OnImpossible.error:
                    raise
                refused.append((",".join(own), error))
            else:
                values = {**named, **values}
                kin = {label: value for label, value in values.items() if label != searched} if searched else None
                found.append(_Cell(values, own, config, sweep.repeats, sweep.warmups, kin))
        if refused and not found:
            raise refused[0][1]
        self.skipped += [(words, error.problem) for words, error in refused]
        return found


def _check_size(sweep: Sweep) -> None:
    """Refuse more cells than anybody could mean; they would be made one by one until memory ends."""
    for name, part in sweep.scenarios.items() or [(None, sweep)]:
        lengths = [len(axis.values) for axis in part.axes]
        count = prod(lengths[group[0]] for group in part.together)
        for number, most, what in (
            (count, _MOST_CELLS, "cells before exclude and only"),
            (count * (part.repeats + part.warmups), _MOST_TRIALS, "trials"),
        ):
            if number > most:
                key = "grid" if name is None else f"scenarios.{name}.grid"
                raise ConfigError(sweep.source, key, f"makes {number} {what}; {most} is the most")


@dataclass(frozen=True)
class _Cell:
    """One cell: its values by label, their part of an id, its configuration, and how often it is to be run."""

    values: Mapping[str, Any]
    words: tuple[str, ...]
    config: Mapping[str, Any]
    repeats: int
    warmups: int
    kin: Mapping[str, Any] | None

    def trial(self, repeat: int, warmup: bool = False) -> Trial:
        """Return one of its repeats, or one of its warm-ups."""
        identity = identity_of(self.words, repeat, warmup)
        return Trial(identity, slug_of(identity), self.values, repeat, self.config, warmup, self.kin)


def plan_entry(trial: Trial) -> dict[str, Any]:
    """Return what a run records of a trial that it is to have."""
    entry = {"id": trial.id, "slug": trial.slug, "cell": dict(trial.cell), "repeat": trial.repeat}
    return entry | ({"warmup": True} if trial.warmup else {})


def word(label: str, value: Any) -> str:
    """Return what stands for one value in a trial's id."""
    return f"{label}={_text(value)}"


def identity_of(words: Sequence[str], repeat: int, warmup: bool = False) -> str:
    """Return the id of one repeat, or one warm-up, of the cell that `words` tell."""
    return ",".join([*words, f"{WARMUP if warmup else REPEAT}={repeat}"])


def slug_of(identity: str) -> str:
    """Return a folder name for a trial id: readable, short, and unique by a hash of the whole id."""
    words = (re.sub(r"[^A-Za-z0-9.]+", "-", part).strip("-") for part in identity.split(","))
    readable = "_".join(words)
    return f"{readable[:80].strip('-._')}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"


def _text(value: Any) -> str:
    """Return a value as it stands in an id: text as it is, unless it could be mistaken for something else."""
    if isinstance(value, str) and _PLAIN.fullmatch(value) and not _is_json(value):
        return value
    return json.dumps(value, separators=(",", ":"))


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
