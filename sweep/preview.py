"""The dry run: what would become of every trial, where, in what time and on how much disk; nothing is started."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from analysis.retention import Removal, excess
from sweep import baseline, cluster, durations, home, lock
from sweep.baseline import Baseline
from sweep.definition import Order, Sweep
from sweep.durations import Durations
from sweep.errors import EXIT_VALID
from sweep.inquiry import ask_here, ask_through_ray
from sweep.past import Past, is_at_home
from sweep.placement import Placement, Placements, fit, needs
from sweep.plan import Grid, Trial
from sweep.progress import counted
from sweep.resume import RUNS, Decisions, State, in_words
from tasks import workloads
from tasks.text import printable
from tasks.units import format_bytes, parse_bytes


def dry_run(
    sweep: Sweep,
    plan: Grid,
    results: Path,
    address: str | None,
    resumed: Path | None,
    keep: bool = False,
    baselines: Sequence[str] = (),
) -> int:
    """Print what would become of every trial, with `resumed` if that run is gone on with, and return the exit code.

    With `keep` also how much the offload files that stay would take; what it would be compared with, and which runs
    would be removed then.
    Raises PlacementError after all that, where trials are impossible and the sweep does not leave those out.
    """
    if resumed:
        lock.refuse_driven(resumed)
    base = baseline.find(results, sweep, plan, baselines, resumed, address is not None) if baselines else None
    with _nodes(address) as placements:
        for option, stated in (("--resume", resumed), ("--baseline", baselines)):
            if address and stated:
                home.check_at_head(cluster.head_address(), sweep.shared, option)
        past = Past(resumed) if resumed else None
        decisions = Decisions(plan, placements, past, ask_through_ray if address else ask_here)
    print(f"{sweep.name}: {_size(plan)}")
    for text in plan.rules():
        print(printable(text))
    for text in plan.idle:
        print(f"note: no cell meets {text}")
    for words, reason in plan.skipped:
        print(printable(f"left out: {words}: {reason}"))
    if sweep.description:
        print(sweep.description)
    if sweep.order is Order.random:
        print(f"order: random; it is the same again with seed={sweep.seed}")
    known = Durations((results / sweep.name).absolute(), plan.every)
    _print_trials(plan, placements, decisions, known)
    if resumed:
        lines = [f"--resume goes on with {resumed}", *(f"  {line}" for line in decisions.told())]
        print(printable("\n".join(lines)))
    runs = decisions.trials(*RUNS)
    for wanted in dict.fromkeys(_wanted(t.config, placements.of(t)[0]) for t in runs):
        print(printable(f"needs {wanted}"))
    if keep:
        print(f"--keep leaves {_kept(runs)}")
    print(f"expected: {_expected(sweep, plan, runs, placements, known)}")
    print(f"figures: {', '.join(sweep.figures)}")
    if base:
        print(printable(f"baseline: {base}"))
    for one in _excess(sweep, plan, results, resumed, base):
        print(printable(f"would be removed then: run {one}"))
    plan.select(decisions.wanted())
    fit(sweep, plan, placements)
    return EXIT_VALID


def _excess(sweep: Sweep, plan: Grid, results: Path, resumed: Path | None, base: Baseline | None) -> Iterator[Removal]:
    """Yield the runs that would be too many with this one; of its size nothing is known yet."""
    if resumed and not is_at_home(resumed, results, sweep.name):
        return
    folder = results / sweep.name
    used = [one.folder for one in base.bases if one.folder] if base else []
    if resumed:
        used.append(resumed)
    elif len(plan.trials) < len(plan.every):
        used.append(folder / "latest")  # which a run of some trials leaves as it is
    assert not isinstance(sweep.retention.size, str)
    yield from excess(folder, sweep.retention.runs, sweep.retention.size, used, coming=0 if resumed else 1)


@contextmanager
def _nodes(address: str | None) -> Iterator[Placements]:
    if address is None:
        yield Placements([cluster.here()])
        return
    with cluster.joined(address) as nodes:
        yield Placements(nodes)


def _size(plan: Grid) -> str:
    """Return in words how many trials there are, and what they are made of."""
    warmups = sum(trial.warmup for trial in plan.trials)
    least, most_of_all = (sum(not trial.warmup for trial in trials) for trials in plan.extent())
    per_cell: Counter[int] = Counter()
    for trial in plan.trials:  # the trials of a cell share it
        per_cell[id(trial.cell)] += not trial.warmup
    most = max(per_cell.values())
    repeats = f"{'up to ' if min(per_cell.values()) < most else ''}{counted(most, 'repeat')}"
    all_of_them = counted(len(plan.every), "trial")
    count = all_of_them if len(plan.trials) == len(plan.every) else f"{len(plan.trials)} of {all_of_them} selected"
    if least < most_of_all or (most_of_all and plan.rules()):
        return f"{_span(least, most_of_all)} of {all_of_them} that could be, {counted(len(per_cell), 'cell')}"
    beside = f", {counted(warmups, 'warm-up')} among them" if warmups else ""
    return f"{count}{beside}, {counted(len(per_cell), 'cell')} x {repeats}"


def _print_trials(plan: Grid, placements: Placements, decisions: Decisions, known: Durations) -> None:
    """Print one line for each trial: its id, its state, why, where it would run, and what that takes."""
    width = max(len(t.id) for t in plan.trials)
    states = max(len(one.state.value) for one in decisions.of.values())
    certain, further = plan.certain(), 0
    for trial in plan.trials:
        decision = decisions.of[trial.id]
        if decision.state is State.run and trial.id not in certain and trial.repeat > 1:
            further += 1
            continue
        words = [] if decision.state is State.reuse else [in_words(decision.reasons)]
        if decision.state in RUNS:
            took_s = known.of(trial)
            time = "unknown time" if took_s is None else f"about {durations.in_words(took_s)}"
            words += [] if trial.id in certain or decision.reasons else ["if it is needed"]
            words.append(f"on {_where(placements.of(trial))}, {_room(trial.config)}, {time}")
        text = "; ".join(filter(None, words))
        print(printable(f"  {trial.id:<{width}}  {decision.state.value:<{states}}  {text}".rstrip()))
    if further:
        print(f"  and of these cells up to {counted(further, 'further repeat')}, as far as they are needed")


def _span(least: int, most: int) -> str:
    """Return in words that there are so many trials at least and at most."""
    return f"{least} to {counted(most, 'trial')}" if least < most else counted(most, "trial")


def _expected(sweep: Sweep, plan: Grid, runs: Sequence[Trial], placements: Placements, known: Durations) -> str:
    ids = {trial.id for trial in runs}
    least, runs = ([trial for trial in trials if trial.id in ids] for trials in plan.extent())
    unknown = sum(known.of(trial) is None for trial in runs)
    if not runs:
        return "nothing to run"
    if unknown == len(runs):
        return "unknown time, for no earlier run has valid trials of these cells"
    least_s, most_s = (known.total(trials, placements, sweep.cooldown_s) for trials in (least, runs))
    first = f"{durations.in_words(least_s)} to " if len(least) < len(runs) else ""
    total = f"about {first}{durations.in_words(most_s)}"
    fewest = sum(known.of(trial) is not None for trial in least)
    nodes = len({p.node.ray_id for trial in runs for p in placements.of(trial)})
    alone = "one trial at a time" + (f" on each of {nodes} nodes" if nodes > 1 else "")
    beside = f", and {counted(unknown, 'trial')} of unknown time" if unknown else ""
    return f"{total} for {_span(fewest, len(runs) - unknown)}, {alone}{beside}"


def _where(placements: Sequence[Placement]) -> str:
    return " or ".join(p.where() for p in placements)


def _kept(runs: Sequence[Trial]) -> str:
    """Return in words what --keep leaves of these trials; a scratch device keeps those of the last one only."""
    own = [trial for trial in runs if trial.config["storage"]["kind"] != "device"]
    in_memory = [trial for trial in own if trial.config["storage"]["backing"] == "tmpfs"]
    most = f"the offload files of {counted(len(own), 'trial')}, {format_bytes(_total(own))} at most"
    beside = f", {format_bytes(_total(in_memory))} of it in memory" if in_memory else ""
    return f"{most}{beside}; python -m tasks.kept, on each node, lists and removes them"


def _total(trials: Sequence[Trial]) -> int:
    return sum(_room_bytes(trial.config) for trial in trials)


def _room(config: Mapping[str, Any]) -> str:
    return f"{format_bytes(_room_bytes(config))} of disk"


def _room_bytes(config: Mapping[str, Any]) -> int:
    storage = config["storage"]
    return parse_bytes(
        storage["image_size"] if storage["kind"] == "loop" else workloads.of_config(config).space_bytes()
    )


def _wanted(config: Mapping[str, Any], placement: Placement) -> str:
    names = sorted({*needs(config), f"tracer:{placement.tracer}"})
    gpu = ["gpu"] if placement.gpus and "gpu" not in names else []
    return f"{', '.join([*names, *gpu])}; {_room(config)}"
