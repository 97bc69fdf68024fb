"""Runs a plan's trials as Ray tasks: one per node and drive at a time, with time limits, retries and fencing."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from sweep.cluster import pinned
from sweep.placement import Placement
from sweep.plan import Grid, Trial
from sweep.progress import Progress
from sweep.remote import run_attempt
from tasks.spec import TrialSpec

_POLL_S = 0.5

#: Beyond its own time limit, how long a trial may take for storage, trace and clean-up before its node is given up.
_GRACE_S = 300.0

#: How long interrupted attempts get to clean up.
_STOP_S = 60.0


@dataclass
class _Running:
    trial: Trial
    placement: Placement
    spec: TrialSpec
    deadline_s: float


class Scheduler:
    """Runs every trial of a plan to a verdict. `attempts` is how often a trial is tried at most."""

    def __init__(
        self,
        sweep: str,
        key: str,
        plan: Grid,
        placements: Mapping[str, Sequence[Placement]],
        actor: Any,
        progress: Progress,
        attempts: int = 2,
    ) -> None:
        """Run the trials of `plan` where `placements`, by trial id, says they can; `key` starts every token."""
        self._sweep, self._key, self._count, self._plan, self._placements = sweep, key, 0, plan, placements
        self._actor, self._progress, self._attempts = actor, progress, attempts
        self._waiting: deque[tuple[Trial, int]] = deque()
        self._running: dict[Any, _Running] = {}
        self.records: dict[str, Mapping[str, Any]] = {}

    def run(self) -> None:
        """Run until the plan has no more trials."""
        while True:
            self._waiting.extend((trial, 1) for trial in self._plan.next_trials(self.records))
            if not self._waiting and not self._running:
                return
            self._submit_what_fits()
            self._show_phases()
            done, _ = ray.wait(list(self._running), timeout=_POLL_S)
            for ref in done:
                self._take(ref)
            self._give_up_overdue()

    def stop(self) -> None:
        """Cancel what runs and wait until its nodes are clean."""
        for ref in self._running:
            ray.cancel(ref, force=False, recursive=False)
        if self._running:
            ray.wait(list(self._running), num_returns=len(self._running), timeout=_STOP_S)
        self._running.clear()

    def _submit_what_fits(self) -> None:
        later: deque[tuple[Trial, int]] = deque()
        while self._waiting:
            trial, attempt = self._waiting.popleft()
            placement = self._free_placement(trial)
            if placement is None:
                later.append((trial, attempt))
            else:
                self._submit(trial, attempt, placement)
        self._waiting = later

    def _free_placement(self, trial: Trial) -> Placement | None:
        """Return a placement whose node is idle: one trial at a time measures on a node."""
        busy = {r.placement.node.ray_id for r in self._running.values()}
        return next((p for p in self._placements[trial.id] if p.node.ray_id not in busy), None)

    def _submit(self, trial: Trial, attempt: int, placement: Placement) -> None:
        self._count += 1
        spec = TrialSpec(
            sweep=self._sweep,
            id=trial.id,
            slug=trial.slug,
            cell=dict(trial.cell),
            repeat=trial.repeat,
            attempt=attempt,
            token=f"{self._key}-{self._count}",
            config=dict(placement.config),
            fingerprint=trial.fingerprint,
        )
        assert placement.node.ray_id is not None
        task = ray.remote(run_attempt).options(
            num_cpus=0,
            num_gpus=placement.gpus,
            resources=dict(placement.resources),
            max_retries=0,
            scheduling_strategy=pinned(placement.node.ray_id),
        )
        ray.get(self._actor.expect.remote(trial.slug, spec.token))
        deadline_s = time.monotonic() + spec.config["limits"]["time_limit_s"] + _GRACE_S
        self._running[task.remote(spec, self._actor)] = _Running(trial, placement, spec, deadline_s)
        self._progress.started(trial.id, placement.where(), attempt)

    def _show_phases(self) -> None:
        if not self._running:
            return
        try:
            notes = ray.get(self._actor.notes.remote(), timeout=_POLL_S)
        except ray.exceptions.GetTimeoutError:
            return
        for running in self._running.values():
            if running.spec.token in notes:
                self._progress.phase(running.trial.id, notes[running.spec.token])

    def _take(self, ref: Any) -> None:
        """Take the answer of a task that ended, however it ended."""
        running = self._running.pop(ref)
        try:
            answer = ray.get(ref)
        except ray.exceptions.RayTaskError as e:
            self._fail(running, _reason(e), deserves_retry=False)
        except ray.exceptions.RayError as e:
            node = running.placement.node.name
            self._fail(running, f"node {node} lost the trial: {_reason(e)}", deserves_retry=True)
        else:
            record = answer["record"]
            self._close(running, record, answer["log_tail"], _lost_events(record))

    def _fail(self, running: _Running, reason: str, deserves_retry: bool) -> None:
        """Publish a failed record for an attempt that could not publish its own."""
        record = _failed_record(running, reason)
        token = f"{running.spec.token}-driver"
        ray.get(self._actor.expect.remote(running.trial.slug, token))
        ray.get(self._actor.publish.remote(running.trial.slug, token, record, []))
        self._close(running, record, "", deserves_retry)

    def _close(self, running: _Running, record: Mapping[str, Any], log_tail: str, deserves_retry: bool) -> None:
        verdict = record["verdict"]
        again = deserves_retry and running.spec.attempt < self._attempts
        if again:
            self._waiting.appendleft((running.trial, running.spec.attempt + 1))
        else:
            self.records[running.trial.id] = record
        self._progress.finished(running.trial.id, verdict["state"], verdict["reasons"], log_tail, again)

    def _give_up_overdue(self) -> None:
        """Abandon attempts whose node answers no more; fencing keeps them from publishing later."""
        now_s = time.monotonic()
        for ref in [ref for ref, r in self._running.items() if now_s > r.deadline_s]:
            running = self._running.pop(ref)
            ray.cancel(ref, force=False, recursive=False)
            limit_s = running.spec.config["limits"]["time_limit_s"] + _GRACE_S
            self._fail(running, f"{running.placement.node.name} gave no answer in {limit_s:.0f} s", True)


def _lost_events(record: Mapping[str, Any]) -> bool:
    """Say whether the tracer missed something: the job was fine, and another attempt may be too."""
    tracer = record["tracer"] or {}
    faults = ("lost", "unmatched", "overtaken", "malformed", "blind")
    return record["verdict"]["state"] == "invalid" and any(tracer.get(name) for name in faults)


def _reason(error: BaseException) -> str:
    cause = getattr(error, "cause", None) or error
    return (str(cause).strip() or type(cause).__name__).splitlines()[0]


def _failed_record(running: _Running, reason: str) -> dict[str, Any]:
    spec = running.spec
    return {
        "schema_version": 1,
        **{k: getattr(spec, k) for k in ("id", "slug", "cell", "repeat", "attempt", "fingerprint", "config")},
        "node": {"hostname": running.placement.node.name},
        "tracer": None,
        "bytes": {"expected": None, "traced": None, "counted": None},
        "metrics": {},
        "verdict": {"state": "failed", "reasons": [reason]},
    }
