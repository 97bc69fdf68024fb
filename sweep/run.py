"""One execution of a sweep: Ray, the analysis actor, the scheduler, and the run's folder around them."""

from __future__ import annotations

import datetime
import itertools
import os
import shutil
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.errors import StoreFull
from sweep import baseline, closing, cluster, head, home, interrupt, lock, night, progress, session
from sweep.baseline import Baseline
from sweep.config import as_yaml
from sweep.definition import Sweep
from sweep.ending import by_reason, conclude, tell_what_is_kept
from sweep.errors import EXIT_INTERRUPTED, EXIT_TRIALS, ConfigError, first_line
from sweep.inquiry import ask_here, ask_through_ray
from sweep.membership import Membership
from sweep.options import Options
from sweep.past import Past, find, is_at_home
from sweep.placement import Node, Placements, few, fit
from sweep.plan import Grid
from sweep.record import new_record, now, shown
from sweep.resume import Decisions
from tasks import lease
from tasks.text import printable

if TYPE_CHECKING:
    from sweep.scheduler import Scheduler

#: Free space the results folder must have before anything starts.
_LEAST_FREE_BYTES = 64 << 20

#: How long this machine's attempts get to clean up after Ray has ended.
_CLEAN_LIMIT_S = 60.0

#: How long the actor gets to close a run that is cut short: its disk may hang.
_FINISH_LIMIT_S = 60.0


def run_sweep(sweep: Sweep, plan: Grid, options: Options) -> int:
    """Run all trials of `plan`, draw the figures and return the exit code."""
    here = cluster.here()
    if options.address is None and not options.resume:
        fit(sweep, plan, Placements([here]))
    home.probe(sweep.source, sweep.shared)
    at_head = options.address is not None
    earlier = find(options.results, sweep.name, options.run, at_head) if options.resume else None
    if not options.baseline:
        return _in_folder(sweep, plan, options, here, earlier, None)
    named = (options.results, sweep, plan, options.baseline, earlier, at_head)
    baseline.find(*named)  # a slip of the hand waits for nobody
    with night.alone((options.results / sweep.name).absolute(), options.wait_s):
        base = baseline.find(*named)
        print(printable(f"baseline: {base}"), flush=True)
        return _in_folder(sweep, plan, options, here, earlier, base)


def _in_folder(
    sweep: Sweep, plan: Grid, options: Options, here: Node, earlier: Path | None, base: Baseline | None
) -> int:
    """Run in a new folder, or in that of an `earlier` run, with the result compared to a `base`."""
    if earlier:
        _check_room(earlier)
    folder = earlier or _new_folder(options.results, sweep.name)
    try:
        with lock.held(folder):
            return _Run(sweep, plan, options, folder, uuid.uuid4().hex[:8], base).drive(here)
    finally:
        with suppress(OSError):  # it holds runs, unless this was the first and never became one
            folder.parent.rmdir()


@dataclass(frozen=True)
class _Run:
    """A run that this process drives alone. `key` starts the tokens of all its attempts."""

    sweep: Sweep
    plan: Grid
    options: Options
    folder: Path
    key: str
    baseline: Baseline | None = None

    def drive(self, here: Node) -> int:
        """Run on this machine, or on the cluster that the options name."""
        address = self.options.address
        if address is None:
            session.clear_abandoned()
            for problem in lease.reap():
                text = f"sweep: an earlier sweep left this behind, and it cannot be removed: {problem}"
                print(printable(text), file=sys.stderr)
        if self.options.resume:
            lock.wait_for_writer(self.folder)
        what = f"{self.sweep.name}: {self.plan.size}"
        print(f"{what}; {f'joining {address}' if address else 'starting Ray'}", flush=True)
        nodes_of: AbstractContextManager[list[Node]] = cluster.joined(address) if address else cluster.local(here)
        try:
            with nodes_of as nodes:
                return self._on(nodes)
        finally:
            if address is None:
                _wait_until_clean(self.key)

    def _on(self, nodes: Sequence[Node]) -> int:
        from sweep.scheduler import Policy, Scheduler

        placements = Placements(nodes)
        if self.options.address and self.baseline:
            home.check_at_head(cluster.head_address(), self.sweep.shared, "--baseline")
        resumed = self._resumed(placements) if self.options.resume else None
        fit(self.sweep, self.plan, placements)
        self._tell_what_runs(resumed)
        finished = resumed.records() if resumed else {}
        actor = self._opened(nodes, resumed)
        policy = Policy(
            max_failures=self.options.max_failures,
            fail_fast=self.options.fail_fast,
            cooldown_s=self.sweep.cooldown_s,
            keep=self.options.keep,
        )
        membership = Membership(nodes, started_locally=False) if self.options.address else None
        with progress.shown(len(self.plan.trials) - len(finished)) as view:
            told = (self.sweep.name, self.key, self.plan, placements, actor, view)
            scheduler = Scheduler(*told, policy, membership, finished=finished)
            with self._watch(scheduler):
                ended = self._ended(scheduler, actor, view)
        return ended if isinstance(ended, int) else self._concluded(scheduler, actor, ended)

    def _concluded(self, scheduler: Scheduler, actor: Any, ended: Mapping[str, Any]) -> int:
        """Say how a run went that came to its end, and return the exit code."""
        if self.options.keep:
            print("offload files are kept; on each node, python -m tasks.kept lists and --remove removes them")
        if scheduler.stopped_by:
            self._tell_what_is_kept(f"stopped: {scheduler.stopped_by}", scheduler)
        elif is_at_home(self.folder, self.options.results, self.sweep.name):
            closing.retire(actor, self.folder, self.sweep.retention, self.baseline)
        if self.baseline is not None:
            closing.tell(actor, self.folder, ended["judged"])
        code = conclude(scheduler.records, ended, self.plan.told())
        if self.plan.trouble:
            code = EXIT_TRIALS
        if self.baseline is None:
            return code
        judged = ended["judged"]
        return night.exit_code(code, judged["regressed"] if judged else None)

    def _resumed(self, placements: Placements) -> Decisions:
        """Decide what of an earlier run is good, and leave out of the plan what is not worth running."""
        if self.options.address:
            home.check_at_head(cluster.head_address(), self.sweep.shared)
        ask = ask_through_ray if self.options.address else ask_here
        decisions = Decisions(self.plan, placements, Past(self.folder), ask)
        self.plan.select(decisions.wanted())
        return decisions

    def _tell_what_runs(self, resumed: Decisions | None) -> None:
        if resumed:
            lines = [f"going on with {shown(self.folder)}", *(f"  {line}" for line in resumed.told())]
            print(printable("\n".join(lines)), flush=True)
        for text, ids in by_reason(self.plan.skipped).items():
            print(printable(f"left out: {few(ids)}: {text}"))

    def _opened(self, nodes: Sequence[Node], resumed: Decisions | None) -> Any:
        """Start the analysis actor, make the run's folder, or open it again, and return the actor."""
        import ray

        from analysis import actor as analysis_actor

        record, text = new_record(self.sweep, self.plan, self.folder, nodes, self.options), as_yaml(self.sweep)
        with interrupt.deferred(), _told_by_the_actor(self.folder):
            actor = analysis_actor.start(str(self.folder), self.sweep.shared)
            if resumed:
                ray.get(actor.resume.remote(resumed.fields(record), text, resumed.aside()))
            else:
                ray.get(actor.create.remote(record, text))
                self._tell_of_latest()
        return actor

    def _tell_of_latest(self) -> None:
        """Say it where `latest` goes on being another run, which has all trials of the sweep."""
        latest = self.folder.parent / "latest"
        if self.options.selection and latest.is_symlink() and latest.resolve() != self.folder.resolve():
            whole = latest.resolve().name
            print(f"latest stays {whole}, which is of the whole sweep; this run of some trials is {shown(self.folder)}")

    def _ended(self, scheduler: Scheduler, actor: Any, view: progress.Progress) -> Mapping[str, Any] | int:
        """Run all trials; return what was drawn then, or the exit code of a run that was cut short."""
        import ray

        closed = False
        try:
            scheduler.run()
            state = "stopped" if scheduler.stopped_by else "finished"
            trouble = ray.get(actor.finish.remote({"state": state, **_ending(self.plan)}))
            closed = True
            closing.enter(actor, self.folder)
            judged = self._judged(actor, view)
            view.say("drawing the figures")
            drawn = _draw(actor, self.folder)
            _tell_of_copy(drawn.get("trouble", trouble))
            return {**drawn, "judged": judged}
        except KeyboardInterrupt:
            _stop(scheduler, actor, self.folder, None if closed else "interrupted", self.plan)
            view.say("interrupted")
            self._tell_what_is_kept("interrupted", scheduler)
            return EXIT_INTERRUPTED
        except (ray.exceptions.RayError, StoreFull) as e:
            _stop(scheduler, actor, self.folder, None if closed else "broken", self.plan)
            self._tell_what_is_kept(f"stopped: {first_line(getattr(e, 'cause', None) or e)}", scheduler)
            return EXIT_TRIALS

    def _judged(self, actor: Any, view: progress.Progress) -> Mapping[str, Any] | None:
        """Return how the run compares with its baseline, None where it has none or cannot be judged."""
        if self.baseline is None:
            return None
        view.say("comparing with the baseline")
        return closing.judge(actor, self.folder, self.baseline)

    def _watch(self, scheduler: Scheduler) -> AbstractContextManager[None]:
        """Watch the head of the cluster that this run is on; where it goes, this process ends."""

        def conclude_alone(why: str) -> int:
            self._tell_what_is_kept(f"stopped: {why}", scheduler)
            return EXIT_TRIALS

        return head.watched(cluster.head_address(), conclude_alone) if self.options.address else nullcontext()

    def _tell_what_is_kept(self, why: str, scheduler: Scheduler) -> None:
        tell_what_is_kept(why, scheduler.records, self.plan.size, self.folder, self.options)


def _draw(actor: Any, folder: Path) -> dict[str, Any]:
    """Draw figures and report; trouble with a picture is a message, for every trial is safe by now."""
    import ray

    try:
        drawn: dict[str, Any] = ray.get(actor.draw.remote())
    except ray.exceptions.RayTaskError as e:
        again = f"once mended, draw it with: python -m analysis {shown(folder)}"
        print(printable(f"sweep: the report cannot be drawn: {first_line(e.cause or e)}\n  {again}"), file=sys.stderr)
        return {"run": str(folder), "report": None, "ruled_out": {}}
    return drawn


def _ending(plan: Grid) -> dict[str, Any]:
    """Return what `run.json` tells of a run only once it has ended."""
    outcome = plan.outcome()
    return {"ended": now()} | ({} if outcome is None else {"adaptive": outcome})


def _stop(scheduler: Scheduler, actor: Any, folder: Path, state: str | None, plan: Grid) -> None:
    """Cancel and clean up; further interrupts wait until that is done.

    `state` is what becomes of the run, None where it had ended before: it stays what it was.
    """
    import ray

    interrupt.ignore()
    scheduler.stop()
    with suppress(ray.exceptions.RayError):
        if state is not None:
            _tell_of_copy(ray.get(actor.finish.remote({"state": state, **_ending(plan)}), timeout=_FINISH_LIMIT_S))
        closing.enter(actor, folder, _FINISH_LIMIT_S)


def _tell_of_copy(trouble: str | None) -> None:
    """Say what was wrong with the run's copy at a URL, if anything was."""
    if trouble:
        text = f"sweep: not all of the run is at its URL: {trouble}\n  going on with it (--resume) puts the rest there"
        print(printable(text), file=sys.stderr)


@contextmanager
def _told_by_the_actor(folder: Path) -> Iterator[None]:
    """Raise ConfigError where the actor cannot make or open the run's folder, as on a disk that takes no more files."""
    import ray

    try:
        yield
    except ray.exceptions.RayError as e:
        why = first_line(getattr(e, "cause", None) or e)
        raise ConfigError("--results", None, f"the run's folder {shown(folder)} cannot be used: {why}") from None


def _new_folder(results: Path, name: str) -> Path:
    """Make a new run's folder and return it; refuse a place that cannot be written to."""
    parent = (results / name).absolute()
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise _no_place(parent, e) from None
    _check_room(parent)
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    for number in itertools.count(1):
        folder = parent / (stamp if number == 1 else f"{stamp}-{number}")
        with suppress(FileExistsError):  # made in the same second, or before the clock was set back
            folder.mkdir()
            return folder
    raise AssertionError("numbers do not end")


def _check_room(folder: Path) -> None:
    """Raise ConfigError where nothing can be written to a folder of the results."""
    try:
        free_bytes = shutil.disk_usage(folder).free
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as e:
        raise _no_place(folder, e) from None
    if free_bytes < _LEAST_FREE_BYTES:
        raise ConfigError("--results", None, f"the disk of {folder} is full", "free some space, or name another folder")


def _no_place(folder: Path, e: OSError) -> ConfigError:
    return ConfigError("--results", None, f"cannot write to {folder}: {e.strerror}")


def _wait_until_clean(key: str) -> None:
    """Wait for the supervisors on this machine that still clean up; then undo what a killed one left."""
    end = time.monotonic() + _CLEAN_LIMIT_S
    while lease.running(key) and time.monotonic() < end:
        time.sleep(0.1)
    lease.reap()
