"""What a trial costs beside its job: ours, plain Ray tasks and Ray Tune, the same 200 jobs (`true`) in the same Ray.

    python benchmarks/trial_overhead.py [--trials 200] [--rounds 3]

Each number is the time from the driver's submission to a result on disk, for one trial at a time; the job itself takes
one or two milliseconds. Rounds of all kinds alternate, for machines are noisy.

ours    a whole trial: fenced attempt under a supervisor, storage looked at, job in a process group of its own, samples,
        phases and counters, checksummed files sent to the analysis actor, published so that it survives a crash
plain   a Ray task that runs the job, writes a JSON record, fsync, rename
tune    a Ray Tune trial whose function runs the job and reports; `reuse` keeps its actors for the next trial
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def main() -> None:
    """Run all kinds and print their medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    from sweep import cluster

    kinds: dict[str, Callable[[int, Path], list[float]]] = {"ours": ours, "plain": plain, "tune": tune, "reuse": reuse}
    found: dict[str, list[float]] = {name: [] for name in kinds}
    with tempfile.TemporaryDirectory(prefix="overhead-", dir=Path.cwd()) as folder, cluster.local(cluster.here()):
        for number in range(args.rounds):
            for name, kind in kinds.items():
                place = Path(folder) / f"{name}-{number}"
                place.mkdir()
                took = kind(args.trials // args.rounds + 1, place)
                found[name] += took[1:]  # the first one starts a worker
                print(f"round {number + 1}, {name}: median {statistics.median(took[1:]) * 1e3:.1f} ms", flush=True)
    for name, took in found.items():
        deciles = statistics.quantiles([t * 1e3 for t in took], n=10)
        ratio = statistics.median(took) / statistics.median(found["ours"])
        middle = statistics.median(took) * 1e3
        print(f"{name:6} {len(took)} trials: median {middle:.1f} ms, 10 % {deciles[0]:.1f}, 90 % {deciles[-1]:.1f}; "
              f"{ratio:.2f} x ours")  # fmt: skip


class _Clock:
    """Progress that only takes the time of each trial."""

    def __init__(self) -> None:
        self._begun: dict[str, float] = {}
        self.took: list[float] = []

    def started(self, identity: str, where: str, attempt: int) -> None:
        self._begun[identity] = time.perf_counter()

    def finished(self, identity: str, state: str, reasons: Sequence[str], log_tail: str, again: bool) -> None:
        assert state == "valid", reasons
        self.took.append(time.perf_counter() - self._begun[identity])

    def phase(self, identity: str, text: str) -> None: ...
    def say(self, text: str) -> None: ...
    def planned(self, total: int, more: bool) -> None: ...
    def tell(self, text: str) -> None: ...


def ours(count: int, folder: Path) -> list[float]:
    """Run trials of a sweep through the scheduler, as `python -m sweep` does."""
    import ray

    from analysis import actor as analysis_actor
    from sweep import cluster, config
    from sweep.placement import Node, Placements
    from sweep.plan import Grid
    from sweep.scheduler import Scheduler

    file = folder / "nothing.yaml"
    keys = {
        "workload": {"kind": "command", "argv": ["true"]},
        "storage": {"kind": "directory", "path": str(folder), "fs": "auto"},
        "trace": {"tracer": "none"},
        "ceiling": {"enabled": False},
        "repeats": count,
    }
    file.write_text(json.dumps(keys))
    plan = Grid(config.load(str(file)))
    actor = analysis_actor.start(str(folder / "run"))
    ray.get(actor.create.remote({"sweep": "nothing", "plan": []}, "name: nothing\n"))
    node = Node(cluster.here().offer, ray.nodes()[0]["NodeID"])
    clock = _Clock()
    Scheduler("nothing", os.urandom(4).hex(), plan, Placements([node]), actor, clock).run()
    ray.get(actor.finish.remote({"state": "finished"}))
    ray.kill(actor)
    published = len(list((folder / "run" / "trials").glob("*/trial.json")))
    assert published == count, f"{published} of {count} trials are published"
    return clock.took


def _job() -> None:
    subprocess.run(["true"], check=True)


def _task(path: str) -> str:
    _job()
    temporary = Path(f"{path}.new")
    with temporary.open("w") as f:
        json.dump({"state": "valid"}, f)
        f.flush()
        os.fsync(f.fileno())
    temporary.replace(path)
    return path


def plain(count: int, folder: Path) -> list[float]:
    """Run Ray tasks, one at a time."""
    import ray

    task = ray.remote(num_cpus=0, max_retries=0)(_task)
    took = []
    for number in range(count):
        begin = time.perf_counter()
        ray.get(task.remote(str(folder / f"{number}.json")))
        took.append(time.perf_counter() - begin)
    return took


def tune(count: int, folder: Path, again: bool = False) -> list[float]:
    """Run Ray Tune trials, one at a time; a trial ends when the next one can start."""
    from ray import tune as ray_tune

    ends: list[float] = []

    class Ends(ray_tune.Callback):  # type: ignore[misc]
        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            ends.append(time.perf_counter())

    def trainable(settings: dict[str, Any]) -> None:
        _job()
        ray_tune.report({"state": 1})

    begin = time.perf_counter()
    ray_tune.Tuner(
        trainable,
        param_space={"number": ray_tune.grid_search(list(range(count)))},
        tune_config=ray_tune.TuneConfig(max_concurrent_trials=1, reuse_actors=again),
        run_config=ray_tune.RunConfig(storage_path=str(folder), verbose=0, callbacks=[Ends()]),
    ).fit()
    assert len(ends) == count, f"{len(ends)} of {count} Tune trials ended"
    return [b - a for a, b in zip([begin, *ends], ends, strict=False)]


def reuse(count: int, folder: Path) -> list[float]:
    """Run Ray Tune trials in actors that are used again."""
    return tune(count, folder, again=True)


if __name__ == "__main__":
    main()
