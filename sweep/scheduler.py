"""Runs a plan's trials as Ray tasks: one per node and drive at a time, with time limits, retries and fencing."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ray

from analysis.errors import StoreFull
from sweep.backlog import Backlog, NodeId, Waiting
from sweep.errors import first_line
from sweep.health import STREAK, Health
from sweep.membership import Changes, Membership
from sweep.placement import Node, Placement, Placements, few
from sweep.plan import Grid, Trial, plan_entry
from sweep.progress import Progress, counted
from sweep.remote import submit
from tasks.kept import described
from tasks.spec import TrialSpec
from tasks.trial import blank_record

_POLL_S = 0.5

#: An attempt that says nothing from the start waits for its node; after this much time that is shown.
_PATIENT_S = 10.0

#: An attempt says every few seconds that it lives; after this much silence its node is given up.
_SILENCE_LIMIT_S = 120.0

#: What an attempt may take beside its job's time limit: an image, a ceiling, a long trace decoded and sent.
_BESIDE_S = 7200

#: What a plan chose is all written at once, and each trial that ends may add to it: no more often than this.
_TELL_S = 5.0

#: How long interrupted attempts get to clean up.
_STOP_S = 60.0


@dataclass(frozen=True)
class Policy:
    """What becomes of trials that do not end well.

    `attempts`, `losses`: how often a trial is tried at most whose worker crashes, whose node goes; `max_failures`:
    after that many that failed or are not valid, no more are started (a value of a search may fail); `fail_fast`: after
    the first one, and what runs is stopped; `cooldown_s`: the rest of a drive between two trials; `patience_s`: how
    long trials wait for a node that could run them, once there is none; `keep`: offload files stay on the node.
    """

    attempts: int = 3
    losses: int = 6
    max_failures: int | None = None
    fail_fast: bool = False
    cooldown_s: float = 0.0
    patience_s: float = 300.0
    keep: bool = False


@dataclass
class _Running:
    trial: Trial
    placement: Placement
    spec: TrialSpec
    since_s: float

    @property
    def node(self) -> Node:
        return self.placement.node


class Scheduler:
    """Runs every trial of a plan to a verdict. `records` holds verdict and metrics of those that ended, by id."""

    def __init__(
        self,
        sweep: str,
        key: str,
        plan: Grid,
        placements: Placements,
        actor: Any,
        progress: Progress,
        policy: Policy | None = None,
        membership: Membership | None = None,
        launch: Callable[[TrialSpec, Placement, Any, Any], Any] = submit,
        finished: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Run the trials of `plan` where `placements` says they can; `key` starts every token.

        `finished` has the records of those that an earlier driver finished, by id: they are not run again.

        `membership` tells of nodes that come and go; without it nobody does. `launch` starts an attempt, given its
        specification, its place, the actor and what must be done before, and returns a reference to its answer.
        """
        self._sweep, self._key, self._count, self._plan, self._placements = sweep, key, 0, plan, placements
        self._actor, self._progress, self._policy = actor, progress, policy or Policy()
        self._membership, self._launch = membership, launch
        self._backlog, self._health = Backlog(placements), Health()
        self._running: dict[Any, _Running] = {}
        self._rests_until: dict[tuple[NodeId, str], float] = {}
        self._shown_rest: dict[NodeId, float] = {}
        self._asked: Any = None
        self._asked_s = self._stranded_s = 0.0
        self._failed, self._missed = set[str](), set[str]()
        self.records: dict[str, Mapping[str, Any]] = dict(finished or {})
        self._finished, self._reused = frozenset(self.records), 0
        self._chooses = plan.outcome() is not None
        self._untold, self._told_s = list[Trial](), -math.inf
        self._homes = {node.name: node for node in reversed(placements.nodes)} if finished else {}

    # --- the loop ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run until the plan has no more trials, or too many have failed."""
        self._observe_finished()
        while self._goes_on():
            self._submit_what_fits()
            for ref in self._wait():
                self._take(ref)
            self._ask()
            self._meet()
        self._tell_plan()

    @property
    def stopped_by(self) -> str | None:
        """Why trials were not run, in words; None where all were."""
        if self._plan.trouble:
            return self._plan.trouble
        limit = 1 if self._policy.fail_fast else self._policy.max_failures
        if limit is None or len(self._failed) < limit:
            return None
        return f"{counted(len(self._failed), 'trial')} failed or {'is' if len(self._failed) == 1 else 'are'} not valid"

    def stop(self) -> None:
        """Cancel what runs and wait until its nodes are clean."""
        self._tell_plan()
        for ref in self._running:
            ray.cancel(ref, force=False, recursive=False)
        if self._running:
            ray.wait(list(self._running), num_returns=len(self._running), timeout=_STOP_S)
        self._running.clear()

    def _goes_on(self) -> bool:
        if self.stopped_by:
            if self._policy.fail_fast:
                self.stop()
            return bool(self._running)
        new = self._plan.next_trials(self.records)
        for trial in new:
            if trial.id in self.records:
                self._settle(trial)
            else:
                self._backlog.push(trial, turn=self._plan.turn(trial))
        if new and self._chooses:
            self._untold += new
            self._reused += sum(trial.id in self._finished for trial in new)
            self._progress.planned(self._plan.least - self._reused, self._plan.is_open)
        if time.monotonic() - self._told_s >= _TELL_S:
            self._tell_plan()
        return bool(self._running) or bool(self._backlog)

    def _tell_plan(self) -> None:
        """Record trials that a plan chose late, and what it chose until now."""
        if self._untold:
            entries, self._untold, self._told_s = [plan_entry(one) for one in self._untold], [], time.monotonic()
            self._actor.plan.remote(entries, self._plan.outcome())

    def _observe_finished(self) -> None:
        """Add to the records of an earlier driver what the plan asks of them; the actor computes it of all at once."""
        asked = {
            trial.id: self._actor.observe.remote(trial.slug, metric)
            for trial in self._plan.trials
            if trial.id in self.records and (metric := self._asked_of(trial, self.records[trial.id]))
        }
        if asked:
            self._progress.say(f"looking at {counted(len(asked), 'finished trial')}")
        for name, observed in zip(asked, ray.get([*asked.values()]) if asked else (), strict=True):
            self.records[name] = {**self.records[name], "observed": observed}

    def _asked_of(self, trial: Trial, record: Mapping[str, Any]) -> str | None:
        """Return the metric that the plan asks of a trial that ended so; None where it asks for nothing."""
        return self._plan.metric(trial) if record["verdict"]["state"] == "valid" else None

    def _observed(self, trial: Trial, record: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the plan asks of a trial that ended; the actor computed it when it published the trial."""
        metric = self._asked_of(trial, record)
        return {} if metric is None else {"observed": ray.get(self._actor.observe.remote(trial.slug, metric))}

    def _settle(self, trial: Trial) -> None:
        """Keep the cell of a trial that an earlier driver finished on the node where it ran."""
        node = self._homes.get(self.records[trial.id].get("node", {}).get("hostname"))
        if node and self._placements.at(trial, node):
            self._backlog.settle(trial, node)

    def _submit_what_fits(self) -> None:
        if self.stopped_by:
            return
        busy = {running.node.ray_id for running in self._running.values()}
        for node in [node for node in self._placements.nodes if node.ray_id not in busy]:
            waiting = self._backlog.peek(node)
            placement = self._placements.at(waiting.trial, node) if waiting else None
            if placement and not self._rests(placement):
                self._backlog.pop(node)
                assert waiting is not None
                self._submit(waiting, placement)

    def _rests(self, placement: Placement) -> bool:
        """Say whether a drive of the placement rests; how long is shown once."""
        node, now = placement.node, time.monotonic()
        until = {drive: self._rests_until.get((node.ray_id, drive), 0.0) for drive in placement.drives}
        resting = [drive for drive in until if until[drive] > now]
        if resting and self._shown_rest.get(node.ray_id) != (end := max(until.values())):
            self._shown_rest[node.ray_id] = end
            self._progress.say(f"resting {', '.join(resting)} on {node.name} for {end - now:.0f} s")
        return bool(resting)

    def _wait(self) -> list[Any]:
        """Return the attempts that have ended, after a moment where there are none."""
        refs = [*self._running, *([self._asked] if self._asked is not None else [])]
        if not refs:
            time.sleep(min(_POLL_S, 0.1 if self._backlog else 0.0))
            return []
        if ray.wait(refs, timeout=_POLL_S)[0]:
            done, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
            return [ref for ref in done if ref in self._running]
        return []

    # --- attempts ----------------------------------------------------------------------------------------------------

    def _spec(self, trial: Trial, attempt: int, config: Mapping[str, Any]) -> TrialSpec:
        self._count += 1
        return TrialSpec(
            sweep=self._sweep,
            id=trial.id,
            slug=trial.slug,
            cell=dict(trial.cell),
            repeat=trial.repeat,
            attempt=attempt,
            token=f"{self._key}-{self._count}",
            config=dict(config),
            fingerprint=trial.fingerprint,
            warmup=trial.warmup,
            keep=self._policy.keep,
        )

    def _submit(self, waiting: Waiting, placement: Placement) -> None:
        trial = waiting.trial
        spec = self._spec(trial, waiting.attempt, placement.definite(trial.config))
        # Not waited for: the attempt starts once the actor expects it.
        expected = self._actor.expect.remote(spec.slug, spec.token, self._plan.metric(trial))
        ref = self._launch(spec, placement, self._actor, expected)
        self._running[ref] = _Running(trial, placement, spec, time.monotonic())
        self._progress.started(trial.id, placement.where(), waiting.attempt)

    def _take(self, ref: Any) -> None:
        """Take the answer of a task that ended, however it ended."""
        running = self._running.pop(ref, None)
        if running is None:
            return  # given up meanwhile
        try:
            answer = ray.get(ref)
        except ray.exceptions.RayTaskError as e:
            if isinstance(e.cause, (ray.exceptions.RayActorError, StoreFull)):
                raise e.cause from None  # nothing can be published any more
            self._judge(running, self._fail(running, first_line(e.cause or e)))
        except ray.exceptions.WorkerCrashedError:
            reason = f"Ray's worker on node {running.node.name} was killed, or crashed"
            self._judge(running, self._fail(running, reason, self._policy.attempts))
        except ray.exceptions.RayError:
            # Of the node, then: Ray may list it as alive for a while yet, and must not be given its trials again.
            self._running[ref] = running
            self._lose(running.node, "is gone: its Ray answers no more", doubted=True)
        else:
            record = answer["record"]
            self._close(running, record, answer["log_tail"], self._worth(record))
            self._judge(running, record)

    def _fail(self, running: _Running, reason: str, attempts: int = 1) -> Mapping[str, Any]:
        """Give up an attempt, try its trial again up to `attempts` in all, and return the record that stands.

        That is its own where it had published it before it was lost, else a failed one.
        """
        spec = running.spec
        record = _failed(spec, running.node.name, reason)
        published = ray.get(self._actor.give_up.remote(spec.slug, spec.token, record))
        if published:
            self._close(running, published, "", self._worth(published))
        else:
            self._close(running, record, "", attempts)
        return published or record

    def _worth(self, record: Mapping[str, Any]) -> int:
        """Return how many attempts a trial is worth that ended so: one more where its tracer missed something."""
        if not _lost_events(record) or record["id"] in self._missed:
            return 1
        self._missed.add(record["id"])  # the job was fine, and another attempt may be too; once
        return int(record["attempt"]) + 1

    def _close(self, running: _Running, record: Mapping[str, Any], log_tail: str, attempts: int) -> None:
        verdict, node = record["verdict"], running.node
        for drive in running.placement.drives:
            self._rests_until[node.ray_id, drive] = time.monotonic() + self._policy.cooldown_s
        if record.get("trouble"):
            self._progress.tell(f"{running.trial.id}: {record['trouble']}")
        if record.get("kept"):
            self._progress.tell(f"{running.trial.id}: kept on {node.name}: {described(record['kept'])}")
        again = running.spec.attempt < attempts
        self._progress.finished(running.trial.id, verdict["state"], verdict["reasons"], log_tail, again)
        if again:
            self._backlog.push(running.trial, running.spec.attempt + 1)
        else:
            self._keep(running.trial, record)

    def _keep(self, trial: Trial, record: Mapping[str, Any]) -> None:
        # The verdict and what a plan may ask for: the records of a long sweep would fill the driver's memory.
        slim = {name: record.get(name) for name in ("verdict", "metrics", "attempt")}
        self.records[trial.id] = slim | {"warmup": trial.warmup} | self._observed(trial, record)
        state = record["verdict"]["state"]
        if not trial.warmup and state != "valid" and not (state == "failed" and self._plan.may_fail(trial)):
            self._failed.add(trial.id)

    # --- nodes -------------------------------------------------------------------------------------------------------

    def _ask(self) -> None:
        """Ask, now and then, what the running attempts do; show it, and give up those that say nothing for too long."""
        if self._asked is not None and ray.wait([self._asked], timeout=0)[0]:
            notes, self._asked = ray.get(self._asked), None
            self._follow(notes)
        if self._running and self._asked is None and time.monotonic() - self._asked_s >= _POLL_S:
            self._asked_s = time.monotonic()
            self._asked = self._actor.notes.remote([running.spec.token for running in self._running.values()])

    def _follow(self, notes: Mapping[str, tuple[str, float]]) -> None:
        for ref, running in list(self._running.items()):
            if running.spec.token in notes:
                text, silence_s = notes[running.spec.token]
                self._progress.phase(running.trial.id, text)
                if text.startswith("waiting"):
                    running.since_s = time.monotonic()
                if ref in self._running and (why := _overdue(running, silence_s)):
                    self._lose(running.node, why, doubted=True)
            elif time.monotonic() - running.since_s > _PATIENT_S:
                self._progress.phase(
                    running.trial.id, "waiting for the first word of its node, which another sweep may use"
                )

    def _meet(self) -> None:
        """Take notice of nodes that came and went, and of trials that no node is left for."""
        changes = self._membership.poll() if self._membership else Changes()
        for text in changes.refused:
            self._progress.tell(text)
        for ray_id in changes.lost:
            for node in [node for node in self._placements.nodes if node.ray_id == ray_id]:
                self._lose(node, "is gone")
        for node in changes.joined:
            self._progress.tell(f"node {node.name} joined")
            self._backlog.join(node)
            self._actor.meet.remote(node.record())
        self._wait_for_nodes()

    def _lose(self, node: Node, why: str, doubted: bool = False) -> None:
        """Do without a node from now on; fencing keeps its attempts from publishing later.

        Of one that is `doubted` Ray thinks that it lives: it joins again if it answers.
        """
        if doubted and self._membership:
            self._membership.doubt(node.ray_id)
        self._progress.tell(f"node {node.name} {why}: it gets no more trials unless it joins again")
        self._backlog.leave(node.ray_id)
        for ref, running in list(self._running.items()):
            if running.node.ray_id == node.ray_id:
                del self._running[ref]
                ray.cancel(ref, force=False, recursive=False)
                self._fail(running, f"node {node.name} {why}", self._policy.losses)

    def _judge(self, running: _Running, record: Mapping[str, Any]) -> None:
        """Give a node no more trials that fails one after the other; try elsewhere once more what failed on it."""
        node = running.node
        self._health.ended(node.ray_id, running.trial, record["verdict"]["state"] == "valid")
        streak = self._health.failing(node.ray_id)
        if not streak or node not in self._placements.nodes:
            return
        self._backlog.leave(node.ray_id)
        again = [trial for trial in {trial.id: trial for trial in streak}.values() if self._is_worth_another(trial)]
        for trial in again:
            attempt = self.records.pop(trial.id)["attempt"]
            self._failed.discard(trial.id)
            self._backlog.push(trial, attempt + 1)
        ids = f"; once more elsewhere: {few([trial.id for trial in again])}" if again else ""
        self._progress.tell(f"node {node.name} is quarantined: its last {STREAK} attempts were not valid{ids}")

    def _is_worth_another(self, trial: Trial) -> bool:
        known = self.records.get(trial.id)
        return bool(known and known["attempt"] < self._policy.losses and self._placements.of(trial))

    def _wait_for_nodes(self) -> None:
        """Give trials that no node can run time until one joins, then fail them."""
        stranded = self._backlog.stranded()
        if not stranded:
            self._stranded_s = 0.0
            return
        now = time.monotonic()
        if not self._stranded_s:
            self._stranded_s = now
            if self._membership:
                what = f"{counted(len(stranded), 'trial')} {'waits' if len(stranded) == 1 else 'wait'}"
                self._progress.tell(f"{what} for a node that can run them, {self._policy.patience_s:.0f} s at most")
        if self._membership and now - self._stranded_s < self._policy.patience_s:
            return
        for waiting in self._backlog.drop_stranded():
            self._fail_unplaced(waiting)

    def _fail_unplaced(self, waiting: Waiting) -> None:
        spec = self._spec(waiting.trial, waiting.attempt, waiting.trial.config)
        record = _failed(spec, "unknown", "every node that could run it was lost")
        ray.get(self._actor.expect.remote(spec.slug, spec.token))
        ray.get(self._actor.give_up.remote(spec.slug, spec.token, record))
        self._progress.finished(waiting.trial.id, "failed", record["verdict"]["reasons"], "", False)
        self._keep(waiting.trial, record)


def _overdue(running: _Running, silence_s: float) -> str | None:
    """Say why an attempt is not waited for any longer, or None."""
    if silence_s > _SILENCE_LIMIT_S:
        return f"was silent for {_SILENCE_LIMIT_S:.0f} s"
    limit_s = int(running.spec.config["limits"]["time_limit_s"]) + _BESIDE_S
    if time.monotonic() - running.since_s > limit_s:
        return f"has not ended {running.trial.id} within {limit_s} s: does its drive hang?"
    return None


def _failed(spec: TrialSpec, node: str, reason: str) -> dict[str, Any]:
    """Return the record of an attempt that has none of its own."""
    verdict = {"state": "failed", "reasons": [reason]}
    return blank_record(spec) | {"node": {"hostname": node}, "verdict": verdict}


def _lost_events(record: Mapping[str, Any]) -> bool:
    """Say whether a trial is not valid because its tracer missed something."""
    tracer = record["tracer"] or {}
    faults = ("lost", "unmatched", "duplicate", "out_of_order", "overtaken", "malformed", "blind")
    return record["verdict"]["state"] == "invalid" and any(tracer.get(name) for name in faults)
