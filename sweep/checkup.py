"""What a node offers, what it lacks for which of the package's sweeps, and what would mend that."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from sweep import config
from sweep.errors import ConfigError
from sweep.placement import Node, Placement, needs, place
from sweep.plan import Grid
from tasks.files import conf_dir
from tasks.machine import NEEDS_ROOT, Offer
from tasks.tracers import OF_REQUESTS
from tasks.units import format_bytes

#: A clock that is off by more than this makes records of one sweep hard to put in order.
_SKEW_S = 1.0

#: Less free space than this in the state folder, and a long trace does not fit.
_LEAST_FREE_BYTES = 2 << 30

#: The commands by which reasons say what to do.
_COMMAND = re.compile(
    r"(apt-get install [\w.-]+|modprobe [\w-]+|python -m [\w.]+(?: \w+)?|make setup|mount -t [\w -/]+)"
)


@dataclass(frozen=True)
class Wanted:
    """One sweep of the package, at one of its scales, and a trial of each of its cells."""

    name: str
    kind: str
    cells: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Lack:
    """A capability that a node has not: why, which sweeps need it, and the command that would mend it."""

    name: str
    reason: str
    needed_by: tuple[str, ...]
    fix: str | None


@dataclass(frozen=True)
class Checkup:
    """One machine, looked at. With a `problem` the rest is not known."""

    name: str
    problem: str | None = None
    offer: Offer | None = None
    runs: tuple[str, ...] = ()
    cannot: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    lacks: tuple[Lack, ...] = ()
    advice: tuple[str, ...] = ()

    @property
    def fit(self) -> bool:
        """Whether the machine can run a trial of any of the package's sweeps."""
        return bool(self.runs)

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        return {
            "name": self.name,
            "problem": self.problem,
            "offer": self.offer and self.offer.to_json(),
            "runs": list(self.runs),
            "cannot": {name: list(reasons) for name, reasons in self.cannot.items()},
            "lacks": [vars(lack) | {"needed_by": list(lack.needed_by)} for lack in self.lacks],
            "advice": list(self.advice),
        }


@cache
def shipped() -> tuple[Wanted, ...]:
    """Return the sweeps that come with the package, each also as `scale=small` where it has that."""
    return tuple(wanted for file in sorted(conf_dir().glob("*.yaml")) for wanted in _scales(str(file), file.stem))


def _scales(file: str, name: str) -> Iterator[Wanted]:
    for words in ([], ["scale=small"]):
        try:
            trials = Grid(config.load(file, words)).trials
        except ConfigError:
            continue  # it has no such scale, or is a base for others
        cells = tuple(trial.config for trial in trials if trial.repeat == 1)
        kinds = dict.fromkeys(cell["workload"]["kind"] for cell in cells)
        yield Wanted(" ".join([name, *words]), ", ".join(kinds), cells)


def needed_by() -> dict[str, tuple[str, ...]]:
    """Return for each capability the package's sweeps that have a cell that needs it."""
    found: dict[str, list[str]] = {}
    for wanted in shipped():
        for name in dict.fromkeys(name for cell in wanted.cells for name in needs(cell)):
            found.setdefault(name, []).append(f"{wanted.name.partition(' ')[0]} ({wanted.kind})")
    for name in OF_REQUESTS:
        # trace.tracer=auto takes one of them: none is needed by name, and without any there are no requests
        found.setdefault(f"tracer:{name}", []).append("request sizes, latencies and sectors, by this tracer or another")
    return {name: tuple(dict.fromkeys(sweeps)) for name, sweeps in found.items()}


def examined(offer: Offer, told: Mapping[str, Any]) -> Checkup:
    """Return what there is to say of a machine with this offer; `told` is what else its probe told."""
    runs, cannot = [], {}
    for wanted in shipped():
        answers = [place(cell, Node(offer)) for cell in wanted.cells]
        able = sum(isinstance(answer, Placement) for answer in answers)
        if able:
            runs.append(wanted.name if able == len(answers) else f"{wanted.name}: {able} of {len(answers)} cells")
        if able < len(answers):
            reasons = [reason for answer in answers if isinstance(answer, list) for reason in answer]
            cannot[wanted.name] = tuple(dict.fromkeys(reasons))
    users = needed_by()
    lacks = [Lack(name, why, users.get(name, ()), fix_of(why)) for name, why in offer.missing.items()]
    return Checkup(offer.hostname, None, offer, tuple(runs), cannot, tuple(lacks), tuple(_advice(offer, told)))


def fix_of(reason: str) -> str | None:
    """Return the command that a reason names, or None: a GPU has to be bought."""
    if NEEDS_ROOT in reason:
        return "sudo python -m sweep.node ..., or the service in docs/cluster.md"
    found = _COMMAND.search(reason)
    return found[0] if found else None


def _advice(offer: Offer, told: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the machine's owner may want to see to, though trials can run."""
    skew_s = float(told.get("skew_s", 0.0))
    if abs(skew_s) > _SKEW_S:
        which = "ahead of" if skew_s > 0 else "behind"
        yield f"its clock is {abs(skew_s):.1f} s {which} this machine's: timedatectl set-ntp true"
    ground = offer.place_of(offer.state_dir)
    if ground and ground.free_bytes < _LEAST_FREE_BYTES:
        free = format_bytes(ground.free_bytes)
        yield f"only {free} free in the state folder {offer.state_dir}: free some, or set OFFLOAD_SWEEP_STATE"
    for fs, folder in offer.storage.items():
        under = offer.place_of(folder)
        if ground and under and set(ground.drives) & set(under.drives):
            shared = ", ".join(sorted(set(ground.drives) & set(under.drives)))
            yield f"storage {fs}={folder} shares the drive {shared} with the state folder, where long traces go"
        if under and fs not in ("loop", under.fs):
            yield f"storage {fs}={folder} is {under.fs}, not {fs}: no trial will be placed there"
    for problem in told.get("problems", ()):
        yield f"left by an earlier attempt, and it cannot be removed: {problem}"
    for path in told.get("leftovers", ()):
        yield f"{path} is of a sweep with another state folder, or was left behind by one"
    yield from (f"{device.path}: {device.obstacle}" for device in offer.scratch if device.obstacle)
