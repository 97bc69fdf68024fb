"""What becomes of a plan's trials when a run is gone on with: reused, stale with the reason, or still to be run.

A finished trial is reused if it is valid and both halves of its fingerprint are the same. The plan's half is compared
here; of the node's half each node is asked once for all trials that depend on the same of it.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from typing import Any

from sweep.code import code_of, digest, digest_of, is_script
from sweep.comparison import code_changes, plan_changes
from sweep.errors import ConfigError
from sweep.inquiry import Ask, Inquiry, ask_here
from sweep.past import Finished, Past
from sweep.placement import Demand, Node, Placement, Placements, few
from sweep.plan import Grid, Trial, plan_entry
from sweep.progress import counted
from tasks.identity import Question, question
from tasks.secrets import hidden

#: What one message lists at most: fields of one trial, and reasons of all.
_MOST_FIELDS, _MOST_REASONS = 4, 20


class State(Enum):
    """What becomes of a trial."""

    run = "run"
    reuse = "reuse"
    stale = "stale"
    impossible = "impossible"
    #: A warm-up of a cell that has nothing left to run.
    idle = "idle"


@dataclass(frozen=True)
class Decision:
    """What becomes of a trial, and why; `finished` is what an earlier run has of it, which `stays` there or not."""

    state: State
    reasons: tuple[str, ...] = ()
    finished: Finished | None = None
    stays: bool = False


class _There:
    """Where trials can run that ask the same of a node; and every node alive, with the tracer it would use."""

    def __init__(self, placements: Sequence[Placement], nodes: Sequence[Node], demand: Demand) -> None:
        self.placements = [(placement.node, placement.tracer) for placement in placements]
        able = {id(node) for node, _ in self.placements}
        self._alive: dict[str, list[tuple[Node, str]]] = {}
        for node in sorted(nodes, key=lambda one: id(one) not in able):
            self._alive.setdefault(node.name, []).append((node, demand.tracer_on(node)))

    def candidates(self, name: str) -> Sequence[tuple[Node, str]]:
        """Return where a trial that ran on the node `name` could have run as it did, with the tracer there.

        On that node, also while it cannot take the trial, for want of free space say; or else on any that can.
        """
        return self._alive.get(name) or self.placements


class _Case:
    """What trials with one configuration have in common: where they can run, and what they depend on."""

    def __init__(self, trial: Trial, there: _There) -> None:
        self.there = there
        # As a record would have it, JSON and all.
        self.config: Mapping[str, Any] = json.loads(json.dumps(hidden(trial.config)))
        self._trial = trial

    @cached_property
    def question(self) -> Question:
        return question(self._trial.config)

    @cached_property
    def code(self) -> str:
        return digest_of(self._trial.config)

    @cached_property
    def planned(self) -> str:
        return digest(self.config)

    @property
    def tracer(self) -> str:
        return str(self.config["trace"]["tracer"])

    def config_changes(self, finished: Finished, tracer: str) -> list[str]:
        """Return the keys that are not as recorded, where the trial would run with this tracer."""
        recorded = finished.config
        if finished.planned == self.planned:
            # The record may lack more than this: values that were secret where it was made.
            settled = recorded
        else:
            settled = self.config
        return plan_changes(recorded, {**settled, "trace": {**settled["trace"], "tracer": tracer}})

    def candidates(self, finished: Finished) -> Sequence[tuple[Node, str]]:
        """Return the nodes on which the trial could have run as it did, each with the tracer that it would have."""
        return self.there.candidates(finished.hostname)


class Decisions:
    """What becomes of all trials of a plan, the selected and the others; `dropped` are those it does not have."""

    def __init__(self, plan: Grid, placements: Placements, past: Past | None = None, ask: Ask | None = None) -> None:
        """Decide; without a `past` nothing is finished. `ask` is how nodes are asked for their halves."""
        self._plan, self._past, self._placements = plan, past, placements
        self._cases: dict[int, _Case] = {}
        self._there: dict[str, _There] = {}
        self._inquiry = Inquiry(ask or ask_here)
        self._unfinished = "not finished, and run if it is needed" if plan.is_open else "not finished"
        self._check_kinship()
        pairs = [(trial, self._past.trials.get(trial.id) if self._past else None) for trial in plan.every]
        self._inquiry.gather(
            (case.candidates(finished)[0][0], case.question)
            for trial, finished in pairs
            if finished and finished.state == "valid" and (case := self._case(trial)).there.placements
        )
        decided = {trial.id: self._decide(trial, finished) for trial, finished in pairs}
        self.of: dict[str, Decision] = {trial.id: decided.pop(trial.id) for trial in plan.trials}
        self._others = {name: _left_alone(one) for name, one in decided.items()}
        self._rest_warmups()
        known = {trial.id for trial in plan.every}
        self.dropped = [one for one in (past.trials.values() if past else ()) if one.id not in known]

    def _check_kinship(self) -> None:
        """Refuse a run that has nothing in common with the plan: it was not meant."""
        finished = self._past.trials if self._past else {}
        if finished and not any(trial.id in finished for trial in self._plan.every):
            assert self._past is not None
            text = f"none of the {counted(len(finished), 'trial')} of {self._past.path} is in this sweep"
            raise ConfigError("--resume", None, text, "start a run of its own without --resume, or name one with --run")

    # --- one trial ---------------------------------------------------------------------------------------------------

    def _case(self, trial: Trial) -> _Case:
        """Return what all trials with the same configuration share."""
        if id(trial.config) not in self._cases:
            demand = self._placements.demand(trial)
            if demand.key not in self._there:
                self._there[demand.key] = _There(self._placements.of(trial), self._placements.nodes, demand)
            self._cases[id(trial.config)] = _Case(trial, self._there[demand.key])
        return self._cases[id(trial.config)]

    def _decide(self, trial: Trial, finished: Finished | None) -> Decision:
        case = self._case(trial)
        if not case.there.placements:
            reasons = self._placements.obstacles(trial) or ("no node is alive",)
            return Decision(State.impossible, reasons, finished, self._same_plan(case, finished))
        if finished is None:
            return Decision(State.run, (self._unfinished,) if self._past else ())
        if finished.state != "valid":
            return Decision(State.run, (f"was {finished.state}", *finished.reasons), finished)
        if finished.code is None or finished.node is None:
            return Decision(State.stale, ("its fingerprint is of an older version and cannot be compared",), finished)
        changes = [
            *case.config_changes(finished, case.candidates(finished)[0][1]),
            *self._code_changes(case, finished.code),
            *self._node_changes(case, finished, finished.node),
        ]
        return Decision(State.stale if changes else State.reuse, tuple(changes), finished, stays=not changes)

    def _same_plan(self, case: _Case, finished: Finished | None) -> bool:
        """Say whether a trial that no node can run now was valid, and the plan's half of it is as it was.

        It stays where it is while its node is away: nothing says that it is not good any more.
        """
        if finished is None or finished.state != "valid" or finished.code != case.code:
            return False
        tracer = finished.config["trace"]["tracer"]
        return case.tracer in ("auto", tracer) and not case.config_changes(finished, tracer)

    def _code_changes(self, case: _Case, recorded: str) -> list[str]:
        if recorded == case.code:
            return []
        files, now = self._past.code(recorded) if self._past else None, code_of(case.config)
        if files is None:
            return [f"code: {recorded} -> {case.code}"]
        # A script that tracers might have needed, as long as the node was free to choose one, is none that did.
        return code_changes({path: told for path, told in files.items() if path in now or not is_script(path)}, now)

    def _node_changes(self, case: _Case, finished: Finished, recorded: Mapping[str, Any]) -> list[str]:
        """Return nothing where a node that the trial could have run on is the same, else how the first one differs."""
        found: list[str] = []
        for node, _ in case.candidates(finished):
            changes = self._inquiry.changes(node, case.question, recorded)
            if not changes:
                return []
            found = found or changes
        name = case.candidates(finished)[0][0].name
        if name != finished.hostname:
            found = [f"{finished.hostname}, where it ran, is not here, and {name} is not the same", *found]
        return found

    # --- warm-ups ----------------------------------------------------------------------------------------------------

    def _rest_warmups(self) -> None:
        """Run the warm-ups of a cell if any of its counted trials runs, and none of them otherwise."""
        runs = {id(t.cell) for t in self._plan.trials if not t.warmup and self.of[t.id].state in RUNS}
        for trial in self._plan.trials:
            own = self.of[trial.id]
            if not trial.warmup or own.state is State.impossible or self._past is None:
                continue
            if id(trial.cell) in runs:
                if own.state is State.reuse:
                    self.of[trial.id] = Decision(State.run, ("a trial of its cell runs",), own.finished)
            elif own.state in RUNS:
                self.of[trial.id] = Decision(State.idle, ("no trial of its cell runs",), own.finished, True)

    # --- all trials --------------------------------------------------------------------------------------------------

    def trials(self, *states: State) -> list[Trial]:
        """Return the plan's selected trials that are in one of these states."""
        return [trial for trial in self._plan.trials if self.of[trial.id].state in states]

    def wanted(self) -> list[Trial]:
        """Return the selected trials that the run goes on with: none that no node can run, and which it has already."""
        having = {name for name, one in self.of.items() if one.state is State.impossible and one.stays}
        return [t for t in self.trials(*RUNS, State.reuse, State.impossible) if t.id not in having]

    def records(self) -> dict[str, dict[str, Any]]:
        """Return what a driver keeps of the trials that are reused, by id."""
        found = ((trial, self.of[trial.id].finished) for trial in self.trials(State.reuse))
        return {trial.id: finished.record(trial.warmup) for trial, finished in found if finished}

    def kept(self) -> set[str]:
        """Return the ids of all finished trials that stay in the run, not selected ones too."""
        both = (self.of | self._others).items()
        return {name for name, one in both if one.finished and one.stays}

    def planned(self) -> list[Trial]:
        """Return the trials that the run is made of: the selected, what it has of the others, what it still lacks."""
        decided = self.of | self._others
        known = {entry.get("id") for entry in (self._past.record.get("plan") or [] if self._past else [])}
        chosen = {trial.id for trial in self._plan.planned}  # what a plan chooses later it adds itself
        others = known - self.of.keys()
        lacking = {name for name in chosen | others if name in decided and decided[name].state in RUNS}
        found = lacking | self.kept()
        return [trial for trial in self._plan.every if trial.id in found]

    def aside(self) -> list[str]:
        """Return the folder names of all finished trials that do not stay in the run."""
        if self._past is None:
            return []
        kept = self.kept()
        return [one.slug for one in self._past.trials.values() if one.id not in kept] + self._past.unreadable

    def fields(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Return what changes in the earlier `run.json`, given what a new run of the same would record."""
        before = self._past.record if self._past else {}
        session = {name: record[name] for name in ("argv", "started", "user", "host", "cwd", "git", "versions")}
        session |= {"before": {name: before.get(name) for name in ("state", "ended")}}
        session["selection"] = record.get("selection")
        session |= {"reused": len(self.trials(State.reuse)), "aside": len(self.aside())}
        nodes = {node.get("hostname"): node for node in [*(before.get("nodes") or []), *record["nodes"]]}
        return {
            **{name: value for name, value in record.items() if name not in _OF_THE_FIRST},
            "plan": [plan_entry(trial) for trial in self.planned()],
            "nodes": list(nodes.values()),
            "code": (before.get("code") or {}) | record["code"],
            "selection": _joined(before.get("selection"), record.get("selection")),
            "resumed": [*(before.get("resumed") or []), session],
        }

    def told(self) -> list[str]:
        """Return, in lines for a reader, how many trials are reused and why the others are not."""
        lines = [f"reused: {counted(len(self.trials(State.reuse)), 'trial')}"]
        for state in (State.stale, State.run, State.impossible):
            lines += _grouped(state, [(t.id, self.of[t.id].reasons) for t in self.trials(state)])
        stale = [(name, one.reasons) for name, one in self._others.items() if one.state is State.stale]
        lines += _grouped(State.stale, stale, " and not selected")
        every = (self.of | self._others).items()
        if unasked := [name for name, one in every if one.stays and one.state is State.impossible]:
            count = counted(len(unasked), "trial")
            lines.append(f"left as they are, for no node here can run them: {count} ({few(unasked)})")
        if self.dropped:
            ids = few([one.id for one in self.dropped])
            lines.append(f"no longer in the sweep: {counted(len(self.dropped), 'trial')} ({ids})")
            if begun := self._past and self._past.record.get("argv"):
                lines.append(f"the run was started with: {shlex.join(map(str, begun))}")
        if aside := self.aside():
            lines.append(f"kept aside in superseded/: {counted(len(aside), 'trial')}")
        return lines


def _left_alone(decision: Decision) -> Decision:
    """Return what becomes of a trial that is not selected: it stays as it ended, valid or not, unless it is stale."""
    ended_badly = decision.finished is not None and decision.finished.state != "valid"
    return replace(decision, stays=decision.stays or ended_badly)


#: States of what would run.
RUNS = (State.run, State.stale)

#: What `run.json` tells of the driver that began the run; of others it is in `resumed`.
_OF_THE_FIRST = ("run_id", "argv", "started", "user", "host", "cwd", "git", "versions")


def _joined(before: Any, now: Any) -> dict[str, list[str]] | None:
    """Return what of a sweep a run has that was selected in two sessions; None for all of it."""
    if not before or not now:
        return None
    return {name: list(dict.fromkeys([*before[name], *now[name]])) for name in now}


def _grouped(state: State, trials: Sequence[tuple[str, tuple[str, ...]]], which: str = "") -> list[str]:
    """Return one line for every reason that trials share, with their number and the first of them."""
    by_reason: dict[tuple[str, ...], list[str]] = {}
    for name, reasons in trials:
        by_reason.setdefault(reasons, []).append(name)
    shown = sorted(by_reason.items(), key=lambda pair: -len(pair[1]))
    lines = [
        f"{state.value}{which}: {counted(len(ids), 'trial')} ({few(ids)}): {in_words(reasons)}"
        for reasons, ids in shown[:_MOST_REASONS]
    ]
    if rest := shown[_MOST_REASONS:]:
        count = sum(len(ids) for _, ids in rest)
        lines.append(f"{state.value}{which}: {counted(count, 'trial')} for {counted(len(rest), 'further reason')}")
    return lines


def in_words(reasons: Sequence[str]) -> str:
    """Return the reasons for a decision in one line."""
    more = len(reasons) - _MOST_FIELDS
    return "; ".join(reasons[:_MOST_FIELDS]) + (f" and {more} more" if more > 0 else "")
