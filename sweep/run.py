"""One execution of a sweep: Ray, the analysis actor, the scheduler, and the run's folder around them."""

from __future__ import annotations

import datetime
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.schema import SCHEMA_VERSION
from sweep import __version__, cluster, interrupt, lock, progress, session
from sweep.code import table_of
from sweep.config import as_yaml
from sweep.definition import Sweep
from sweep.errors import EXIT_INTERRUPTED, EXIT_TRIALS, EXIT_VALID, ConfigError, first_line
from sweep.membership import Membership
from sweep.past import Past, find
from sweep.placement import Node, Placements, few, fit
from sweep.plan import Grid, plan_entry
from sweep.resume import RUNS, Decisions, State, ask_here, ask_through_ray
from sweep.selection import Selection
from tasks import interpreter, lease
from tasks.machine import user_name

#: Free space the results folder must have before anything starts.
_LEAST_FREE_BYTES = 64 << 20

#: How long this machine's attempts get to clean up after Ray has ended.
_CLEAN_LIMIT_S = 60.0


@dataclass(frozen=True)
class Options:
    """What the command line asked for beside the sweep itself. `argv` is that command line, for the record."""

    results: Path
    address: str | None = None
    argv: tuple[str, ...] = ()
    max_failures: int | None = None
    fail_fast: bool = False
    selection: Selection = Selection()
    keep: bool = False
    resume: bool = False
    run: str | None = None


def run_sweep(sweep: Sweep, plan: Grid, options: Options) -> int:
    """Run all trials of `plan`, draw the figures and return the exit code."""
    key, address = uuid.uuid4().hex[:8], options.address
    here = cluster.here()
    if address is None:
        fit(sweep, plan, Placements([here]))
    new = not options.resume
    folder = _new_folder(options.results, sweep.name) if new else find(options.results, sweep.name, options.run)
    with lock.held(folder):
        return _drive(here, sweep, plan, folder, key, options)


def _drive(here: Node, sweep: Sweep, plan: Grid, folder: Path, key: str, options: Options) -> int:
    """Run the sweep on this machine or a cluster, as the one driver of the run in `folder`."""
    address = options.address
    if address is None:
        session.clear_abandoned()
        for problem in lease.reap():
            print(f"sweep: an earlier sweep left this behind, and it cannot be removed: {problem}", file=sys.stderr)
    if options.resume:
        lock.wait_for_writer(folder)
    what = f"{sweep.name}: {progress.counted(len(plan.trials), 'trial')}"
    print(f"{what}; {f'joining {address}' if address else 'starting Ray'}", flush=True)
    nodes_of: AbstractContextManager[list[Node]] = cluster.joined(address) if address else cluster.local(here)
    try:
        with nodes_of as nodes:
            return _run_on(nodes, sweep, plan, folder, key, options)
    finally:
        if address is None:
            _wait_until_clean(key)


def _run_on(nodes: Sequence[Node], sweep: Sweep, plan: Grid, folder: Path, key: str, options: Options) -> int:
    import ray

    from analysis import actor as analysis_actor
    from sweep.scheduler import Policy, Scheduler

    placements = Placements(nodes)
    fit(sweep, plan, placements)
    for text, ids in _by_reason(plan.skipped).items():
        print(f"left out: {few(ids)}: {text}")
    policy = Policy(
        max_failures=options.max_failures,
        fail_fast=options.fail_fast,
        cooldown_s=sweep.cooldown_s,
        keep=options.keep,
    )
    membership = Membership(nodes, started_locally=False) if options.address else None
    resumed = _resumed(plan, placements, folder, options) if options.resume else None
    finished = resumed.records() if resumed else {}
    record = _record(sweep, plan, folder, nodes, options)
    with interrupt.deferred():
        actor = analysis_actor.start(str(folder))
        if resumed:
            ray.get(actor.resume.remote(resumed.fields(record), as_yaml(sweep), resumed.aside()))
        else:
            ray.get(actor.create.remote(record, as_yaml(sweep)))
    with progress.shown(len(plan.trials) - len(finished)) as shown:
        scheduler = Scheduler(sweep.name, key, plan, placements, actor, shown, policy, membership, finished=finished)
        try:
            scheduler.run()
            state = "stopped" if scheduler.stopped_by else "finished"
            ray.get(actor.finish.remote({"state": state, "ended": _now()}))
            shown.say("drawing the figures")
            drawn = _draw(actor, folder)
        except KeyboardInterrupt:
            _stop(scheduler, actor, "interrupted")
            shown.say("interrupted")
            _tell_what_is_kept("interrupted", scheduler.records, len(plan.trials), folder)
            return EXIT_INTERRUPTED
        except ray.exceptions.RayError as e:
            _stop(scheduler, actor, "broken")
            _tell_what_is_kept(f"stopped: {first_line(e)}", scheduler.records, len(plan.trials), folder)
            return EXIT_TRIALS
    if options.keep:
        print("offload files are kept; on each node, python -m tasks.kept lists and --remove removes them")
    if scheduler.stopped_by:
        print(f"stopped: {scheduler.stopped_by}; not run: {len(plan.trials) - len(scheduler.records)}")
    return _conclude(scheduler.records, drawn)


def _resumed(plan: Grid, placements: Placements, folder: Path, options: Options) -> Decisions:
    """Decide what of an earlier run is good, tell it, and leave out of the plan what is not worth running."""
    decisions = Decisions(plan, placements, Past(folder), ask_through_ray if options.address else ask_here)
    print("\n".join([f"going on with {_shown(folder)}", *(f"  {line}" for line in decisions.told())]), flush=True)
    plan.select(decisions.trials(*RUNS, State.reuse))
    return decisions


def _draw(actor: Any, folder: Path) -> dict[str, Any]:
    """Draw figures and report; trouble with a picture is a message, for every trial is safe by now."""
    import ray

    try:
        drawn: dict[str, Any] = ray.get(actor.draw.remote())
    except ray.exceptions.RayTaskError as e:
        again = f"once mended, draw it with: python -m analysis {_shown(folder)}"
        print(f"sweep: the report cannot be drawn: {first_line(e.cause or e)}\n  {again}", file=sys.stderr)
        return {"run": str(folder), "report": None, "ruled_out": {}}
    return drawn


def _stop(scheduler: Any, actor: Any, state: str) -> None:
    """Cancel and clean up; further interrupts wait until that is done."""
    import ray

    interrupt.ignore()
    scheduler.stop()
    with suppress(ray.exceptions.RayError):
        ray.get(actor.finish.remote({"state": state, "ended": _now()}))


def _tell_what_is_kept(why: str, records: Mapping[str, Any], total: int, folder: Path) -> None:
    print(f"{why}; {len(records)} of {progress.counted(total, 'trial')} are kept in {_shown(folder)}")
    if records:
        print(f"draw them with: python -m analysis {_shown(folder)}")


def _conclude(records: Mapping[str, Mapping[str, Any]], drawn: Mapping[str, Any]) -> int:
    states = [r["verdict"]["state"] for r in records.values() if not r["warmup"]]
    warm = [r["verdict"]["state"] for r in records.values() if r["warmup"]]
    print(f"{progress.counted(len(states), 'trial')}: {_counts(states)}")
    if warm:
        print(f"{progress.counted(len(warm), 'warm-up')}, not counted: {_counts(warm)}")
    for reason, names in _by_reason(drawn["ruled_out"].items()).items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        print(f"not drawn: {names[0]}{more}: {reason}")
    print(f"figures: {_shown(Path(drawn['run']) / 'figures')}")
    if drawn["report"]:
        print(f"report:  {_shown(Path(drawn['report']))}")
    return EXIT_VALID if set(states or warm) == {"valid"} else EXIT_TRIALS


def _by_reason(told: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Return, for each reason, the names it was given for."""
    found: dict[str, list[str]] = {}
    for name, reason in told:
        found.setdefault(reason, []).append(name)
    return found


def _counts(states: Sequence[str]) -> str:
    return ", ".join(f"{states.count(state)} {state}" for state in ("valid", "invalid", "failed") if state in states)


def _shown(path: Path) -> str:
    """Return a path as a person would type it here."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def _new_folder(results: Path, name: str) -> Path:
    """Return the path of a new run's folder; refuse a place that cannot be written to."""
    parent = (results / name).absolute()
    try:
        parent.mkdir(parents=True, exist_ok=True)
        free_bytes = shutil.disk_usage(parent).free
        if not os.access(parent, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as e:
        raise ConfigError("--results", None, f"cannot write to {parent}: {e.strerror}") from None
    if free_bytes < _LEAST_FREE_BYTES:
        raise ConfigError("--results", None, f"the disk of {parent} is full", "free some space, or name another folder")
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    taken = [p.name for p in parent.glob(f"{stamp}*")]
    return parent / (f"{stamp}-{len(taken) + 1}" if taken else stamp)


def _record(sweep: Sweep, plan: Grid, folder: Path, nodes: Sequence[Node], options: Options) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "sweep": sweep.name,
        "run_id": folder.name,
        "description": sweep.description,
        "argv": ["python", "-m", "sweep", *options.argv],
        "started": _now(),
        "ended": None,
        "state": "running",
        "user": user_name(),
        "host": socket.gethostname(),
        "cwd": str(Path.cwd()),
        "git": _git_state(),
        "versions": {
            "offload-sweep": __version__,
            "python": platform.python_version(),
            **interpreter.installed(["ray", "polars", "altair"]),
        },
        "nodes": [node.record() for node in nodes],
        "plan": [plan_entry(t) for t in plan.trials],
        "code": table_of(t.config for t in plan.trials),
        "selection": options.selection.to_json(),
        "skipped": [{"id": words, "reason": reason} for words, reason in plan.skipped],
        "figures": list(sweep.figures),
        "reproduce": ["python", "-m", "sweep", _shown(folder / "sweep.yaml"), *options.selection.argv()],
    }


def _git_state() -> dict[str, Any] | None:
    """Return commit and cleanness of the clone that this code lies in, or None where it is no clone."""
    root = Path(__file__).resolve().parent.parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("rev-parse", "--show-toplevel") != str(root):
        return None
    return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _wait_until_clean(key: str) -> None:
    """Wait for the supervisors on this machine that still clean up; then undo what a killed one left."""
    end = time.monotonic() + _CLEAN_LIMIT_S
    while lease.running(key) and time.monotonic() < end:
        time.sleep(0.1)
    lease.reap()
