"""What becomes of a plan's trials when a run is gone on with: reused, stale with the reason, or still to be run.

A finished trial is reused if it is valid and both halves of its fingerprint are the same. The plan's half is compared
here; of the node's half each node is asked once for all trials that depend on the same of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from sweep.code import code_of, digest_of
from sweep.comparison import code_changes, node_changes, plan_changes
from sweep.errors import first_line
from sweep.past import Finished, Past
from sweep.placement import Node, Placement, Placements, few
from sweep.plan import Grid, Trial, plan_entry
from sweep.progress import counted
from tasks.errors import TaskError
from tasks.identity import Question, identity, question
from tasks.secrets import hidden

#: What one message lists at most: fields of one trial, and reasons of all.
_MOST_FIELDS, _MOST_REASONS = 4, 20

#: A node's half of a fingerprint, or why it cannot be told.
Answer = dict[str, Any] | str

#: Asks nodes, each its own questions.
Ask = Callable[[Sequence[tuple[Node, Sequence[Question]]]], Sequence[Sequence[Answer]]]

#: How long nodes may take to look at themselves: a foreign interpreter can be on a cold network filesystem.
_ANSWER_LIMIT_S = 180.0


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
    """What becomes of a trial, and why; `finished` is what an earlier run has of it."""

    state: State
    reasons: tuple[str, ...] = ()
    finished: Finished | None = None


class Decisions:
    """What becomes of all trials of a plan, the selected and the others; `dropped` are those it does not have."""

    def __init__(self, plan: Grid, placements: Placements, past: Past | None = None, ask: Ask | None = None) -> None:
        """Decide; without a `past` nothing is finished. `ask` is how nodes are asked for their halves."""
        self._plan, self._past = plan, past
        self._configs: dict[int, Mapping[str, Any]] = {}
        self._questions: dict[int, Question] = {}
        self._node_half = _Nodes(ask or ask_here)
        wanted = {trial.id for trial in plan.trials}
        pairs = [(trial, self._found(trial)) for trial in plan.every]
        self._node_half.gather(
            (_candidates(finished, there)[0].node, self._question(trial))
            for trial, finished in pairs
            if finished and finished.state == "valid" and (there := placements.of(trial))
        )
        self.of: dict[str, Decision] = {
            trial.id: self._decide(trial, finished, placements) for trial, finished in pairs if trial.id in wanted
        }
        self._others = {
            trial.id: self._decide(trial, finished, placements) for trial, finished in pairs if trial.id not in wanted
        }
        self._rest_warmups()
        known = {trial.id for trial in plan.every}
        self.dropped = [one for one in (past.trials.values() if past else ()) if one.id not in known]

    # --- one trial ---------------------------------------------------------------------------------------------------

    def _found(self, trial: Trial) -> Finished | None:
        return self._past.trials.get(trial.id) if self._past else None

    def _decide(self, trial: Trial, finished: Finished | None, placements: Placements) -> Decision:
        there = placements.of(trial)
        if not there:
            return Decision(State.impossible, placements.obstacles(trial) or ("no node is alive",), finished)
        if finished is None:
            return Decision(State.run, ("not finished",) if self._past else ())
        if finished.state != "valid":
            return Decision(State.run, (f"was {finished.state}", *finished.reasons), finished)
        changes = tuple(self._changes(trial, finished, there))
        return Decision(State.stale if changes else State.reuse, changes, finished)

    def _changes(self, trial: Trial, finished: Finished, there: Sequence[Placement]) -> list[str]:
        if finished.code is None or finished.node is None:
            return ["its fingerprint is of an older version and cannot be compared"]
        candidates = _candidates(finished, there)
        changes = plan_changes(finished.config, self._config(trial, candidates[0]))
        changes += self._code_changes(trial, finished.code)
        asked = self._question(trial)
        found: list[str] = []
        for candidate in candidates:
            of_node = self._node_half.changes(candidate.node, asked, finished.node)
            if not of_node:
                return changes
            found = found or of_node
        name = candidates[0].node.name
        away = [f"{finished.hostname}, where it ran, is not here, and {name} is not the same"]
        return changes + ([] if name == finished.hostname else away) + found

    def _config(self, trial: Trial, placement: Placement) -> Mapping[str, Any]:
        """Return the configuration as a record would have it, JSON and all."""
        if id(trial.config) not in self._configs:
            self._configs[id(trial.config)] = json.loads(json.dumps(hidden(trial.config)))
        return placement.definite(self._configs[id(trial.config)])

    def _question(self, trial: Trial) -> Question:
        if id(trial.config) not in self._questions:
            self._questions[id(trial.config)] = question(trial.config)
        return self._questions[id(trial.config)]

    def _code_changes(self, trial: Trial, recorded: str) -> list[str]:
        now = digest_of(trial.config)
        if recorded == now:
            return []
        files = self._past.code(recorded) if self._past else None
        if files is None:
            return [f"code: {recorded} -> {now}"]
        return code_changes(files, code_of(trial.config))

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
                self.of[trial.id] = Decision(State.idle, ("no trial of its cell runs",), own.finished)

    # --- all trials --------------------------------------------------------------------------------------------------

    def trials(self, *states: State) -> list[Trial]:
        """Return the plan's selected trials that are in one of these states."""
        return [trial for trial in self._plan.trials if self.of[trial.id].state in states]

    def records(self) -> dict[str, dict[str, Any]]:
        """Return what a driver keeps of the trials that are reused, by id."""
        found = ((trial, self.of[trial.id].finished) for trial in self.trials(State.reuse))
        return {trial.id: finished.record(trial.warmup) for trial, finished in found if finished}

    def kept(self) -> set[str]:
        """Return the ids of all finished trials that stay in the run, not selected ones too."""
        both = (self.of | self._others).items()
        return {name for name, one in both if one.finished and one.state in (State.reuse, State.idle)}

    def planned(self) -> list[Trial]:
        """Return the trials that the run is made of: the selected, what it has of the others, what it still lacks."""
        decided = self.of | self._others
        known = {entry.get("id") for entry in (self._past.record.get("plan") or [] if self._past else [])}
        lacking = {name for name in (*self.of, *known) if name in decided and decided[name].state in RUNS}
        return [trial for trial in self._plan.every if trial.id in lacking | self.kept()]

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
        session |= {"reused": len(self.trials(State.reuse)), "aside": len(self.aside())}
        nodes = {node.get("hostname"): node for node in [*(before.get("nodes") or []), *record["nodes"]]}
        return {
            **{name: value for name, value in record.items() if name not in _OF_THE_FIRST},
            "plan": [plan_entry(trial) for trial in self.planned()],
            "nodes": list(nodes.values()),
            "code": (before.get("code") or {}) | record["code"],
            "resumed": [*(before.get("resumed") or []), session],
        }

    def told(self) -> list[str]:
        """Return, in lines for a reader, how many trials are reused and why the others are not."""
        lines = [f"reused: {counted(len(self.trials(State.reuse)), 'trial')}"]
        for state in (State.stale, State.run, State.impossible):
            lines += _grouped(state, [(t.id, self.of[t.id].reasons) for t in self.trials(state)])
        stale = [(name, one.reasons) for name, one in self._others.items() if one.state is State.stale]
        lines += _grouped(State.stale, stale, " and not selected")
        if self.dropped:
            ids = few([one.id for one in self.dropped])
            lines.append(f"no longer in the sweep: {counted(len(self.dropped), 'trial')} ({ids})")
        if aside := self.aside():
            lines.append(f"kept aside in superseded/: {counted(len(aside), 'trial')}")
        return lines


#: States of what would run.
RUNS = (State.run, State.stale)

#: What `run.json` tells of the driver that began the run; of others it is in `resumed`.
_OF_THE_FIRST = ("run_id", "argv", "started", "user", "host", "cwd", "git", "versions")


def _candidates(finished: Finished, there: Sequence[Placement]) -> Sequence[Placement]:
    """Return where a trial could have run as it did: the node of that name, or else any that can take it."""
    return [p for p in there if p.node.name == finished.hostname] or there


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


# --- nodes -----------------------------------------------------------------------------------------------------------


class _Nodes:
    """The node halves of fingerprints, each asked for once."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._answers: dict[tuple[str | None, Question], Answer] = {}
        self._changes: dict[tuple[str | None, Question, int], list[str]] = {}

    def gather(self, wanted: Iterable[tuple[Node, Question]]) -> None:
        """Ask every node all of its questions at once."""
        questions: dict[str | None, tuple[Node, dict[Question, None]]] = {}
        for node, asked in wanted:
            if (node.ray_id, asked) not in self._answers:
                questions.setdefault(node.ray_id, (node, {}))[1][asked] = None
        pairs = [(node, list(own)) for node, own in questions.values()]
        for (node, own), answers in zip(pairs, self._ask(pairs) if pairs else (), strict=True):
            self._answers |= {(node.ray_id, asked): answer for asked, answer in zip(own, answers, strict=True)}

    def changes(self, node: Node, asked: Question, recorded: Mapping[str, Any]) -> list[str]:
        """Return what of a node is not as recorded."""
        key = (node.ray_id, asked, id(recorded))
        if key not in self._changes:
            self.gather([(node, asked)])
            answer = self._answers[node.ray_id, asked]
            self._changes[key] = [f"node: {answer}"] if isinstance(answer, str) else node_changes(recorded, answer)
        return self._changes[key]


def answered(questions: Sequence[Question]) -> list[Answer]:
    """Return this machine's answers."""
    return [_answer(asked) for asked in questions]


def _answer(asked: Question) -> Answer:
    try:
        found: dict[str, Any] = json.loads(json.dumps(identity(asked)))
    except TaskError as e:
        return str(e)
    return found


def ask_here(pairs: Sequence[tuple[Node, Sequence[Question]]]) -> list[list[Answer]]:
    """Answer for this machine, which is the only node."""
    return [answered(questions) for _, questions in pairs]


def ask_through_ray(pairs: Sequence[tuple[Node, Sequence[Question]]]) -> list[list[Answer]]:
    """Ask nodes of the cluster, all at the same time; where one does not answer, that is the answer."""
    import ray

    from sweep.membership import pinned

    task = ray.remote(answered)
    refs = []
    for node, questions in pairs:
        assert node.ray_id is not None
        here = task.options(num_cpus=0, max_retries=0, scheduling_strategy=pinned(node.ray_id))
        refs.append(here.remote(list(questions)))
    ray.wait(refs, num_returns=len(refs), timeout=_ANSWER_LIMIT_S)
    return [_received(ref, len(questions)) for ref, (_, questions) in zip(refs, pairs, strict=True)]


def _received(ref: Any, count: int) -> list[Answer]:
    import ray

    try:
        found: list[Answer] = ray.get(ref, timeout=1)
    except ray.exceptions.RayError as e:
        return [f"it does not answer: {first_line(e)}"] * count
    return found
