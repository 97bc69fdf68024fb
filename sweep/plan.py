"""A sweep's trials: which, in which order, under which names."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import analysis
import tasks
from sweep.cells import Cells
from sweep.definition import SCENARIO, Order, Sweep

#: Text that needs no quotes in a trial's id.
_PLAIN = re.compile(r'[^,="\[\]{}\x00-\x1f\x7f]+')


@dataclass(frozen=True)
class Trial:
    """One repeat of one cell. `cell` holds values by axis label, `config` everything the node is told."""

    id: str
    slug: str
    cell: Mapping[str, Any]
    repeat: int
    config: Mapping[str, Any] = field(repr=False)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The half of the trial's identity that the plan knows: its configuration and the code that runs it."""
        plan = {"config": self.config, "code": code_hash()}
        return {"plan": digest(plan), "code": code_hash()}


class Grid:
    """The plan of a grid: all trials at once.

    By default repeats are spread over time, so that a drift touches every cell alike.
    """

    def __init__(self, sweep: Sweep) -> None:
        """Expand `sweep`; raises ConfigError where a cell makes no sense."""
        self.trials: tuple[Trial, ...] = tuple(_expanded(sweep))
        self._asked = False

    def next_trials(self, finished: Mapping[str, Mapping[str, Any]]) -> tuple[Trial, ...]:
        """Return the trials to run next, given the records of the finished ones by id: all of them, once."""
        asked, self._asked = self._asked, True
        return () if asked else self.trials


@dataclass(frozen=True)
class _Cell:
    """One cell: its values by label, their part of an id, its configuration, and how often it is to be run."""

    values: Mapping[str, Any]
    words: tuple[str, ...]
    config: Mapping[str, Any]
    repeats: int

    def trial(self, repeat: int) -> Trial:
        """Return one of its repeats."""
        identity = identity_of(self.words, repeat)
        return Trial(identity, slug_of(identity), self.values, repeat, self.config)


def _expanded(sweep: Sweep) -> Iterator[Trial]:
    cells = list(_cells(sweep, {}))
    for name, scenario in sweep.scenarios.items():
        cells += _cells(scenario, {SCENARIO: name})
    turns = [(repeat, place) for repeat in range(1, sweep.repeats + 1) for place in range(len(cells))]
    if sweep.order is Order.listed:
        turns.sort(key=lambda turn: turn[1])
    elif sweep.order is Order.random:
        random.Random(sweep.seed).shuffle(turns)
    yield from (cells[place].trial(repeat) for repeat, place in turns if repeat <= cells[place].repeats)


def _cells(sweep: Sweep, named: Mapping[str, Any]) -> Iterator[_Cell]:
    """Yield the cells that are the sweep's own."""
    if sweep.scenarios:
        return
    cells = Cells(sweep, named)
    first = [word(label, value) for label, value in named.items()]
    words = [[word(axis.label, value) for value in axis.values] for axis in sweep.axes]
    for places in cells.places():
        turns = list(enumerate(places))
        values = {sweep.axes[axis].label: sweep.axes[axis].values[place] for axis, place in turns}
        own = (*first, *(words[axis][place] for axis, place in turns))
        yield _Cell({**named, **values}, own, cells.config(places), sweep.repeats)


def word(label: str, value: Any) -> str:
    """Return what stands for one value in a trial's id."""
    return f"{label}={_text(value)}"


def identity_of(words: Sequence[str], repeat: int) -> str:
    """Return the id of one repeat of the cell that `words` tell."""
    return ",".join([*words, f"rep={repeat}"])


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


def digest(value: Any) -> str:
    """Return a short hash of JSON values, the same whatever the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


@cache
def code_hash() -> str:
    """Return a hash of the code that a node runs: `tasks` with its scripts, and the schemas."""
    root = Path(tasks.__file__).parent
    files = [p for p in sorted(root.rglob("*")) if p.suffix in (".py", ".bt")]
    files.append(Path(analysis.__file__).parent / "schema.py")
    if (scripts := root.parent / "bpftrace").is_dir() and not (root / "bpftrace").is_dir():
        files += sorted(scripts.glob("*.bt"))
    content = hashlib.sha256()
    for path in files:
        content.update(path.name.encode() + b"\0" + path.read_bytes())
    return content.hexdigest()[:16]
