"""A sweep's trials: which, in which order, under which names."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import analysis
import tasks
from sweep.config import SCENARIO, Sweep

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
    """The plan of a grid: all trials at once, repeats spread over time so that a drift touches every cell alike."""

    def __init__(self, sweep: Sweep) -> None:
        """Expand `sweep`; raises ConfigError where a cell makes no sense."""
        self.trials: tuple[Trial, ...] = tuple(_expanded(sweep))
        self._asked = False

    def next_trials(self, finished: Mapping[str, Mapping[str, Any]]) -> tuple[Trial, ...]:
        """Return the trials to run next, given the records of the finished ones by id: all of them, once."""
        asked, self._asked = self._asked, True
        return () if asked else self.trials


def _expanded(sweep: Sweep) -> Iterator[Trial]:
    cells = list(_cells(sweep, {}))
    for name, scenario in sweep.scenarios.items():
        cells += _cells(scenario, {SCENARIO: name})
    for repeat in range(1, sweep.repeats + 1):
        for cell, config, repeats in cells:
            if repeat <= repeats:
                yield _trial(cell, repeat, config)


def _cells(sweep: Sweep, named: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any], int]]:
    """Yield values by label, configuration and repeats of every cell that is the sweep's own."""
    if sweep.scenarios:
        return
    for values in itertools.product(*(axis.values for axis in sweep.axes)):
        by_path = dict(zip((axis.path for axis in sweep.axes), values, strict=True))
        by_label = dict(zip((axis.label for axis in sweep.axes), values, strict=True))
        yield {**named, **by_label}, sweep.resolve(by_path), sweep.repeats


def _trial(cell: dict[str, Any], repeat: int, config: dict[str, Any]) -> Trial:
    parts = [f"{label}={_text(value)}" for label, value in cell.items()]
    identity = ",".join([*parts, f"rep={repeat}"])
    return Trial(identity, slug_of(identity), cell, repeat, config)


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
