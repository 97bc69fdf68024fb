"""The plan of a sweep whose next trials depend on finished ones: repeats until a mean is known, searches along an axis.

It is a grid of which it asks for no more than it needs. What it asks for follows from the trials that have ended and
from nothing else, so that a run that is gone on with decides as one that was never interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

from sweep import outcome, repeats, search
from sweep.definition import SCENARIO, Find, Search, Sweep, Until
from sweep.plan import Grid, Trial, word
from sweep.progress import counted
from sweep.repeats import tally

#: The records of trials that have ended, by id.
Finished = Mapping[str, Mapping[str, Any]]


def plan_of(sweep: Sweep) -> Grid:
    """Return the plan of a sweep: a grid, or one that chooses among its trials."""
    parts = [sweep, *sweep.scenarios.values()]
    return Adaptive(sweep) if any(part.until or part.search for part in parts) else Grid(sweep)


class _Unit(Protocol):
    """Trials that are chosen together: of a cell, or of a search."""

    def wanted(self, finished: Finished) -> Sequence[Trial]:
        """Return the trials that are to run by now, those that have ended among them."""
        ...

    def is_open(self, finished: Finished) -> bool:
        """Say whether more may be wanted once these have ended."""
        ...

    def extent(self) -> tuple[Sequence[Trial], Sequence[Trial]]:
        """Return trials as many, and of such cells, as are run at least and at most."""
        ...


class _All:
    """A cell that gets all its repeats."""

    def __init__(self, trials: Sequence[Trial]) -> None:
        self._trials = trials

    def wanted(self, finished: Finished) -> Sequence[Trial]:
        return self._trials

    def is_open(self, finished: Finished) -> bool:
        return False

    def extent(self) -> tuple[Sequence[Trial], Sequence[Trial]]:
        return self._trials, self._trials


class _Repeated:
    """A cell that is repeated until its mean is known."""

    def __init__(self, trials: Sequence[Trial], rule: Until) -> None:
        self._trials, self._rule = trials, rule

    def wanted(self, finished: Finished) -> Sequence[Trial]:
        count = repeats.wanted(self._rule, tally(self._trials, finished))
        over = [trial for trial in self._trials if trial.id in finished]
        return [*over, *(trial for trial in self._trials if trial.id not in finished)][:count]

    def is_open(self, finished: Finished) -> bool:
        known = repeats.is_known(self._rule, tally(self._trials, finished))
        return not known and len(self.wanted(finished)) < len(self._trials)

    def extent(self) -> tuple[Sequence[Trial], Sequence[Trial]]:
        return self._trials[: self._rule.min], self._trials

    def outcome(self, finished: Finished) -> dict[str, Any]:
        """Return what a run records of it."""
        own, rule = tally(self._trials, finished), self._rule
        low, high = own.interval(rule.confidence) or (None, None)
        mean = math.fsum(own.values) / len(own.values) if own.values else None
        reached = repeats.spread(rule, own) if own.values else None
        told = {"cell": dict(self._trials[0].cell), "metric": rule.metric, "rel": rule.rel, "most": rule.max}
        told |= {"confidence": rule.confidence, "trials": own.ended, "valid": len(own.values), "mean": mean}
        return told | {"low": low, "high": high, "within": reached, "known": repeats.is_known(rule, own)}


class _Searched:
    """The values of one axis with all else the same, each with its trials."""

    def __init__(self, trials: Sequence[Trial], label: str, rule: Search) -> None:
        self._rule, self._label = rule, label
        by_value: dict[int, list[Trial]] = {}
        for trial in trials:
            by_value.setdefault(id(trial.cell), []).append(trial)
        own = list(by_value.values())
        assert isinstance(rule.values, list)
        own.sort(key=lambda trials: rule.values.index(trials[0].cell[label]), reverse=rule.find is Find.smallest)
        self._trials = own
        self._names = [word(label, trials[0].cell[label]).partition("=")[2] for trials in own]

    def _path(self, finished: Finished) -> search.Path:
        ended = []
        for trials in self._trials:
            done = [trial for trial in trials if trial.id in finished]
            ended.append([tally([trial], finished) for trial in done])
        return search.followed(self._bounded, self._names, ended)

    @cached_property
    def _bounded(self) -> Search:
        """The rule, asking for no more trials of a value than were selected."""
        least = min(map(len, self._trials))
        return Search(
            **vars(self._rule) | {"max": min(self._rule.max, least), "confirm": min(self._rule.confirm, least)}
        )

    def wanted(self, finished: Finished) -> Sequence[Trial]:
        path = self._path(finished)
        counts = [told.ended for told in path.seen]
        for step in path.open:
            counts[step.place] += step.trials
        found: list[Trial] = []
        for trials, count in zip(self._trials, counts, strict=True):
            ordered = sorted(trials, key=lambda trial: trial.id not in finished)
            found += ordered[:count]
        return found

    def is_open(self, finished: Finished) -> bool:
        return self._path(finished).border is None

    def extent(self) -> tuple[Sequence[Trial], Sequence[Trial]]:
        every = sorted((trial for trials in self._trials for trial in trials), key=lambda trial: trial.repeat)
        least, most = search.lengths(self._bounded, len(self._trials))
        return every[:least], every[:most]

    def outcome(self, finished: Finished) -> dict[str, Any]:
        """Return what a run records of it."""
        path, rule = self._path(finished), self._rule
        tried = list(dict.fromkeys(step.place for step in path.steps))
        judged = {place: search.judge(rule, path.seen[place]) for place in tried}
        cell = self._trials[0][0].cell
        told: dict[str, Any] = {"cell": {name: one for name, one in cell.items() if name != self._label}}
        told |= {"axis": self._label, "find": rule.find.name}
        told |= {name: vars(rule)[name] for name in ("metric", "at_most", "at_least", "confirm", "max")}
        told |= {"values": [self._value(place) for place in range(len(self._trials))]}
        told |= self._answer(path) | {"trials": sum(one.ended for one in path.seen)}
        told |= {"grid": len(self._trials) * rule.confirm, "tried": [self._row(path, place, judged) for place in tried]}
        pairs = [[self._value(a), self._value(b)] for a, b in search.contradictions(judged)]
        return told | {"contradictions": pairs}

    def _answer(self, path: search.Path) -> dict[str, Any]:
        """Return what was found: the last value that meets the target, and the one beyond it, as far as there are."""
        last, border = len(self._trials) - 1, path.border
        if border is None:
            return {"state": "open", "answer": None, "beyond": None}
        state = "none" if border < 0 else "all" if border == last else "found"
        answer = self._value(border) if border >= 0 else None
        return {"state": state, "answer": answer, "beyond": self._value(border + 1) if border < last else None}

    def _value(self, place: int) -> Any:
        return self._trials[place][0].cell[self._label]

    def _row(self, path: search.Path, place: int, judged: Mapping[int, search.Judged]) -> dict[str, Any]:
        own = path.seen[place]
        low, high = own.interval() or (None, None)
        reasons: dict[str, int] = {}
        for step in path.steps:
            if step.place == place:
                reasons[step.why] = reasons.get(step.why, 0) + step.trials
        why = [f"{reason} ({counted(trials, 'trial')})" for reason, trials in reasons.items()]
        told = {"value": self._value(place), "trials": own.ended, "values": list(own.values), "bad": list(own.bad)}
        told |= {"median": own.median, "low": low, "high": high, "why": why}
        return told | {"meets": judged[place].meets, "sure": judged[place].sure}


class _Known:
    """A unit, and what it says: asked again only once a trial of its own has ended, for others change nothing of it."""

    def __init__(self, unit: _Unit, trials: Sequence[Trial]) -> None:
        self.unit, self.trials = unit, trials
        self._said: dict[str, Any] = {}

    def forget(self) -> None:
        """A trial of it has ended."""
        self._said.clear()

    @property
    def was_asked(self) -> bool:
        """Whether `wanted` would say what it has said already."""
        return "wanted" in self._said

    def wanted(self, finished: Finished) -> Sequence[Trial]:
        """See `_Unit`."""
        if "wanted" not in self._said:
            self._said["wanted"] = self.unit.wanted(finished)
        found: Sequence[Trial] = self._said["wanted"]
        return found

    def is_open(self, finished: Finished) -> bool:
        """See `_Unit`."""
        if "open" not in self._said:
            self._said["open"] = self.unit.is_open(finished)
        return bool(self._said["open"])

    def outcome(self, finished: Finished) -> dict[str, Any]:
        """Return what a run records of it."""
        assert isinstance(self.unit, (_Repeated, _Searched))
        if "outcome" not in self._said:
            self._said["outcome"] = self.unit.outcome(finished)
        return dict(self._said["outcome"])


class Adaptive(Grid):
    """A plan that chooses among the trials of a grid.

    The records of finished trials have what it asks for (`metric`): `observed`, a value or what is `missing`.
    """

    def __init__(self, sweep: Sweep) -> None:
        """Expand `sweep` to all trials that may be wanted; raises ConfigError as a grid does."""
        super().__init__(sweep)
        self._parts: dict[Any, Sweep] = dict(sweep.scenarios) or {None: sweep}
        self._chosen: dict[str, Trial] = {}
        self._finished: dict[str, Mapping[str, Any]] = {}
        self._trouble: str | None = None

    # --- what is asked of a plan -------------------------------------------------------------------------------------

    def select(self, trials: Sequence[Trial]) -> None:
        """Leave out all but these of the plan's trials."""
        super().select(trials)
        self._forget()

    def leave_out(self, reasons: Mapping[str, str]) -> None:
        """Leave out these trials, by id; each reason is told in `skipped`."""
        super().leave_out(reasons)
        self._forget()

    def next_trials(self, finished: Finished) -> tuple[Trial, ...]:
        """Return the trials to run next, given the records of the finished ones by id."""
        ended = [name for name, record in finished.items() if self._finished.get(name) is not record]
        changed = [*ended, *(self._finished.keys() - finished.keys())]
        if self._chosen and not changed:
            return ()
        self._finished = dict(finished)
        for name in changed:
            if name in self._unit_of:
                self._unit_of[name].forget()
        self._trouble = self._trouble or self._missing(ended)
        if self._trouble:
            return ()
        asked = [unit for unit in self._units if not unit.was_asked]
        wanted = {trial.id: trial for unit in asked for trial in unit.wanted(finished)}
        new = {name: trial for name, trial in wanted.items() if name not in self._chosen}
        cells = {id(trial.cell) for name, trial in new.items() if name not in finished}
        first = [trial for cell in cells for trial in self._warmups.get(cell, ()) if trial.id not in self._chosen]
        new |= {trial.id: trial for trial in first}
        found = sorted(new.values(), key=lambda trial: self._turns[trial.id])
        self._chosen |= {trial.id: trial for trial in found}
        return tuple(found)

    @property
    def trouble(self) -> str | None:
        """Why the next trials cannot be told, in words; None where nothing is wrong."""
        return self._trouble

    @property
    def planned(self) -> tuple[Trial, ...]:
        """The trials that were asked for, in their order."""
        return tuple(self._chosen.values())

    @property
    def is_open(self) -> bool:
        """Whether there may be more trials than are planned."""
        return any(unit.is_open(self._finished) for unit in self._units)

    def metric(self, trial: Trial) -> str | None:
        """Return the metric of a finished trial that the plan must know."""
        part = self._part(trial)
        rule = part.until or part.search
        return rule.metric if rule and not trial.warmup else None

    def may_fail(self, trial: Trial) -> bool:
        """Say whether that a trial fails is an answer: a search finds the values that cannot run so."""
        return self._part(trial).search is not None

    def turn(self, trial: Trial) -> int | None:
        """Return the trial's place in the order of all, however late it is asked for."""
        return self._turns[trial.id]

    # --- what is told ------------------------------------------------------------------------------------------------

    @property
    def least(self) -> int:
        """How many trials there are at least: those that were asked for, or that a sweep like this one needs."""
        return max(len(self._chosen), self._least if self.is_open else 0)

    @property
    def size(self) -> str:
        """How many trials there are, in words."""
        return f"{'at least ' if self.is_open else ''}{counted(self.least, 'trial')}"

    def extent(self) -> tuple[Sequence[Trial], Sequence[Trial]]:
        """Return trials as many, and of such cells, as are run at least and at most, with their warm-ups."""
        parts = [own.unit.extent() for own in self._units]
        return self._warmed(least for least, _ in parts), self._warmed(most for _, most in parts)

    def _warmed(self, parts: Iterable[Sequence[Trial]]) -> list[Trial]:
        own = [trial for part in parts for trial in part]
        first = [warmup for cell in _grouped(own) for warmup in self._warmups.get(cell, ())]
        return list({trial.id: trial for trial in [*first, *own]}.values())

    def certain(self) -> Collection[str]:
        """Return the ids of the trials that run whatever comes of others."""
        first = [trial for own in self._units for trial in own.unit.wanted({})]
        return {trial.id for trial in self._warmed([first])}

    def rules(self) -> list[str]:
        """Return in words how trials are chosen."""
        return [text for name, part in self._parts.items() for text in outcome.rules(name, part)]

    def outcome(self) -> dict[str, Any]:
        """Return what a run records of how trials were chosen."""
        own = [one.outcome(self._finished) for one in self._units if isinstance(one.unit, _Repeated)]
        return {"repeats": own, "searches": self._searches()}

    def told(self) -> list[str]:
        """Return, in lines for a reader, what came of choosing trials."""
        searches = [line for one in self._searches() for line in outcome.search_lines(one)]
        return [*outcome.repeats_lines(self.outcome()["repeats"]), *searches]

    # --- the parts ---------------------------------------------------------------------------------------------------

    def _searches(self) -> list[dict[str, Any]]:
        return [one.outcome(self._finished) for one in self._units if isinstance(one.unit, _Searched)]

    def _forget(self) -> None:
        for name in ("_units", "_unit_of", "_least", "_warmups", "_turns"):
            self.__dict__.pop(name, None)

    def _part(self, trial: Trial) -> Sweep:
        return self._parts[trial.cell[SCENARIO] if None not in self._parts else None]

    @cached_property
    def _least(self) -> int:
        return len(self.extent()[0])

    @cached_property
    def _unit_of(self) -> dict[str, _Known]:
        return {trial.id: own for own in self._units for trial in own.trials}

    @cached_property
    def _units(self) -> list[_Known]:
        """The trials that count, by what chooses them."""
        cells = _grouped(trial for trial in self.trials if not trial.warmup)
        units: list[_Known] = []
        searches: dict[str, list[Trial]] = {}
        for own in cells.values():
            part = self._part(own[0])
            own.sort(key=lambda trial: trial.repeat)
            if part.search:
                searches.setdefault(str(own[0].kin), []).extend(own)
            else:
                units.append(_Known(_Repeated(own, part.until) if part.until else _All(own), own))
        for trials in searches.values():
            part = self._part(trials[0])
            assert part.search
            assert part.searched
            units.append(_Known(_Searched(trials, part.searched.label, part.search), trials))
        # those that were selected without a trial that counts
        alone = [own for cell, own in self._warmups.items() if cell not in cells]
        return [*units, *(_Known(_All(own), own) for own in alone)]

    @cached_property
    def _warmups(self) -> dict[int, list[Trial]]:
        return _grouped(trial for trial in self.trials if trial.warmup)

    @cached_property
    def _turns(self) -> dict[str, int]:
        """The place of each trial in the order of all, the repeats of a cell in the order of their numbers."""
        places = {trial.id: place for place, trial in enumerate(self.trials, 1)}
        for own in _grouped(trial for trial in self.trials if not trial.warmup).values():
            turns = sorted(places[trial.id] for trial in own)
            places |= {trial.id: turn for trial, turn in zip(sorted(own, key=lambda t: t.repeat), turns, strict=True)}
        return places

    def _missing(self, ended: Collection[str]) -> str | None:
        """Say which valid trial, of those that ended since, has not the metric that is asked for, and what there is.

        Also one that an earlier driver finished, and nobody has asked for yet.
        """
        told = {name: (self._finished[name].get("observed") or {}).get("missing") for name in ended}
        bad = (trial for trial in self.trials if told.get(trial.id)) if any(told.values()) else iter(())
        first = next(bad, None)
        return f"{first.id} has no {self.metric(first)}: {told[first.id]}" if first else None


def _grouped(trials: Iterable[Trial]) -> dict[int, list[Trial]]:
    found: dict[int, list[Trial]] = {}
    for trial in trials:
        found.setdefault(id(trial.cell), []).append(trial)
    return found
