"""Which trials of a plan a command line asks for: `--only EXPR` and `--trial ID`."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweep.definition import REPEAT, SCENARIO, WARMUP, Sweep
from sweep.errors import ConfigError, ExpressionError
from sweep.expression import Test, parse
from sweep.plan import Trial

#: How many ids are looked at closely for one that is misspelt.
_CLOSEST = 50


@dataclass(frozen=True)
class Selection:
    """Conditions, and ids or folder names of trials; what any of them names is run. With neither that is all."""

    only: tuple[str, ...] = ()
    trials: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Say whether anything is left out at all."""
        return bool(self.only or self.trials)

    def argv(self) -> list[str]:
        """Return the options that select the same."""
        stated = [("--only", text) for text in self.only] + [("--trial", text) for text in self.trials]
        return [word for option in stated for word in option]

    def to_json(self) -> dict[str, list[str]] | None:
        """Return what a run records; None where nothing is left out."""
        return {"only": [*self.only], "trials": [*self.trials]} if self else None

    def of(self, trials: Sequence[Trial], sweep: Sweep, skipped: Sequence[tuple[str, str]] = ()) -> tuple[Trial, ...]:
        """Return those of the trials that are selected, in their order; ConfigError where a word names none of them.

        `skipped` are the cells that the sweep leaves out, each with the reason.
        """
        if not self:
            return tuple(trials)
        named = _named(self.trials, trials, dict(skipped))
        met: Counter[str] = Counter()
        tests = [(text, _test(text, trials, sweep)) for text in self.only]
        words = _Words(sweep)
        found = []
        for trial in trials:
            meets = [text for text, test in tests if test(words.of(trial))]
            met.update(meets)
            if meets or trial.id in named:
                found.append(trial)
        if idle := next((text for text in self.only if not met[text]), None):
            raise ConfigError(_PLACE, "--only", f"none of the {len(trials)} trials meets {idle!r}", _LISTED)
        return tuple(found)


_PLACE, _LISTED = "command line", "--dry-run lists them"


def _named(wanted: Sequence[str], trials: Sequence[Trial], skipped: Mapping[str, str]) -> set[str]:
    """Return the ids of the trials that are called so, by id or by the name of their folder."""
    by_name = {name: trial.id for trial in trials for name in (trial.slug, trial.id)} if wanted else {}
    for name in wanted:
        if name not in by_name:
            if reason := skipped.get(name.rpartition(",")[0]):
                raise ConfigError(_PLACE, "--trial", f"{name!r} is left out as impossible: {reason}")
            near = _nearest(name, [trial.id for trial in trials])
            hint = f"did you mean {near!r}? {_LISTED}" if near else _LISTED
            raise ConfigError(_PLACE, "--trial", f"none of the {len(trials)} trials is {name!r}", hint)
    return {by_name[name] for name in wanted}


def _nearest(name: str, ids: Sequence[str]) -> str | None:
    """Return the id that `name` was meant to be; first those that share most words, for ids can be very many."""
    words = set(name.split(","))
    closest = sorted(ids, key=lambda one: -len(words & {*one.split(",")}))[:_CLOSEST]
    return next(iter(difflib.get_close_matches(name, closest, 1)), None)


def _test(text: str, trials: Sequence[Trial], sweep: Sweep) -> Test:
    numbers = {
        name: sorted({t.repeat for t in trials if t.warmup is w}) for name, w in ((REPEAT, False), (WARMUP, True))
    }
    try:
        return parse(text, {**numbers, **sweep.known})
    except ExpressionError as error:
        raise ConfigError(_PLACE, "--only", str(error)) from None


class _Words:
    """What conditions may call the values of a trial: its axes by key and last word, its scenario, its number."""

    def __init__(self, sweep: Sweep) -> None:
        parts: Mapping[Any, Sweep] = sweep.scenarios or {None: sweep}
        self._axes = {
            name: [(axis.label, axis.path, axis.path.rpartition(".")[2]) for axis in part.axes]
            for name, part in parts.items()
        }

    def of(self, trial: Trial) -> dict[str, Any]:
        found: dict[str, Any] = {WARMUP if trial.warmup else REPEAT: trial.repeat}
        if SCENARIO in trial.cell:
            found[SCENARIO] = trial.cell[SCENARIO]
        for label, path, last in self._axes[trial.cell.get(SCENARIO)]:
            found[path] = found[last] = trial.cell[label]
        return found
