"""Runs a plan's trials as Ray tasks: one per node and drive at a time, with time limits, retries and fencing."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from sweep.errors import first_line
from sweep.membership import pinned
from sweep.placement import Placement
from sweep.plan import Grid, Trial
from sweep.progress import Progress
from sweep.remote import run_attempt
from tasks.spec import TrialSpec
from tasks.trial import blank_record

_POLL_S = 0.5
_NOTES_LIMIT_S = 5.0

#: An attempt says every few seconds that it lives; after this much silence its node is given up.
_SILENCE_LIMIT_S = 120.0

#: How long interrupted attempts get to clean up.
_STOP_S = 60.0


@dataclass
class _Running:
    trial: Trial
    placement: Placement
    spec: TrialSpec
    since_s: float


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
        self._homes: dict[str, str | None] = {}
        self._lost_nodes: set[str | None] = set()
        self.records: dict[str, Mapping[str, Any]] = {}

    def run(self) -> None:
        """Run until the plan has no more trials."""
        while True:
            self._waiting.extend((trial, 1) for trial in self._plan.next_trials(self.records))
            if not self._waiting and not self._running:
                return
            self._submit_what_fits()
            done, _ = ray.wait(list(self._running), timeout=_POLL_S) if self._running else ([], [])
            for ref in done:
                self._take(ref)
            self._follow()

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
            usable = [p for p in self._placements[trial.id] if p.node.ray_id not in self._lost_nodes]
            placement = self._free_placement(trial, usable)
            if not usable:
                self._fail_unplaced(trial, attempt)
            elif placement is None:
                later.append((trial, attempt))
            else:
                self._submit(trial, attempt, placement)
        self._waiting = later

    def _free_placement(self, trial: Trial, usable: Sequence[Placement]) -> Placement | None:
        """Return a placement whose node is idle: one trial at a time measures on a node.

        All repeats of a cell stay on the node of the first, or their spread would be that of the nodes.
        """
        home = self._homes.get(_cell_key(trial))
        at_home = [p for p in usable if p.node.ray_id == home]
        busy = {r.placement.node.ray_id for r in self._running.values()}
        return next((p for p in at_home or usable if p.node.ray_id not in busy), None)

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
        )

    def _submit(self, trial: Trial, attempt: int, placement: Placement) -> None:
        spec = self._spec(trial, attempt, placement.config)
        assert placement.node.ray_id is not None
        task = ray.remote(run_attempt).options(
            num_cpus=0,
            num_gpus=placement.gpus,
            resources=dict(placement.resources),
            max_retries=0,
            scheduling_strategy=pinned(placement.node.ray_id),
        )
        ray.get(self._actor.expect.remote(trial.slug, spec.token))
        self._homes[_cell_key(trial)] = placement.node.ray_id
        self._running[task.remote(spec, self._actor)] = _Running(trial, placement, spec, time.monotonic())
        self._progress.started(trial.id, placement.where(), attempt)

    def _follow(self) -> None:
        """Show what the running attempts do, and give up those that have not said anything for too long."""
        if not self._running:
            return
        try:
            notes = ray.get(self._actor.notes.remote(), timeout=_NOTES_LIMIT_S)
        except ray.exceptions.GetTimeoutError:
            return
        for ref, running in list(self._running.items()):
            silence_s = time.monotonic() - running.since_s
            if running.spec.token in notes:
                text, silence_s = notes[running.spec.token]
                self._progress.phase(running.trial.id, text)
            if silence_s > _SILENCE_LIMIT_S:
                self._give_up(ref)

    def _take(self, ref: Any) -> None:
        """Take the answer of a task that ended, however it ended."""
        running = self._running.pop(ref)
        try:
            answer = ray.get(ref)
        except ray.exceptions.RayTaskError as e:
            self._fail(running, first_line(e.cause or e), deserves_retry=False)
        except ray.exceptions.RayError as e:
            node = running.placement.node.name
            self._fail(running, f"node {node} lost the trial: {first_line(e)}", deserves_retry=True)
        else:
            record = answer["record"]
            self._close(running, record, answer["log_tail"], _lost_events(record))

    def _fail(self, running: _Running, reason: str, deserves_retry: bool) -> None:
        """Publish a failed record for an attempt that did not publish its own before it was lost."""
        spec = running.spec
        published = ray.get(self._actor.published.remote(spec.slug, spec.token))
        if published:
            self._close(running, published, "", _lost_events(published))
            return
        record = self._publish_failed(spec, running.placement.node.name, reason)
        self._close(running, record, "", deserves_retry)

    def _fail_unplaced(self, trial: Trial, attempt: int) -> None:
        """Publish a failed record for a trial that no node is left for."""
        spec = self._spec(trial, attempt, trial.config)
        record = self._publish_failed(spec, "unknown", "every node that could run it was lost")
        self.records[trial.id] = record
        self._progress.finished(trial.id, "failed", record["verdict"]["reasons"], "", False)

    def _publish_failed(self, spec: TrialSpec, node: str, reason: str) -> dict[str, Any]:
        record = blank_record(spec)
        record |= {"node": {"hostname": node}, "verdict": {"state": "failed", "reasons": [reason]}}
        token = f"{spec.token}-driver"
        ray.get(self._actor.expect.remote(spec.slug, token))
        ray.get(self._actor.publish.remote(spec.slug, token, record, []))
        return record

    def _close(self, running: _Running, record: Mapping[str, Any], log_tail: str, deserves_retry: bool) -> None:
        verdict = record["verdict"]
        if record.get("trouble"):
            self._progress.say(f"{running.trial.id}: {record['trouble']}")
        again = deserves_retry and running.spec.attempt < self._attempts
        if again:
            self._waiting.appendleft((running.trial, running.spec.attempt + 1))
        else:
            self.records[running.trial.id] = record
        self._progress.finished(running.trial.id, verdict["state"], verdict["reasons"], log_tail, again)

    def _give_up(self, ref: Any) -> None:
        """Abandon an attempt whose node is silent, and the node; fencing keeps it from publishing later."""
        running = self._running.pop(ref)
        self._lost_nodes.add(running.placement.node.ray_id)
        ray.cancel(ref, force=False, recursive=False)
        name = running.placement.node.name
        self._fail(running, f"node {name} was silent for {_SILENCE_LIMIT_S:.0f} s and gets no more trials", True)


def _cell_key(trial: Trial) -> str:
    return json.dumps(dict(trial.cell), sort_keys=True)


def _lost_events(record: Mapping[str, Any]) -> bool:
    """Say whether the tracer missed something: the job was fine, and another attempt may be too."""
    tracer = record["tracer"] or {}
    faults = ("lost", "unmatched", "duplicate", "out_of_order", "overtaken", "malformed", "blind")
    return record["verdict"]["state"] == "invalid" and any(tracer.get(name) for name in faults)
