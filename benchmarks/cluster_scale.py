"""Does the driver keep up with a large cluster, and does its memory stay flat? 200 nodes, 20 000 trials.

    python benchmarks/cluster_scale.py [--nodes 200] [--trials 20000] [--seconds 0]

The sweep, its expansion, placement, scheduler and analysis actor are the real ones, on a real Ray. The nodes are
played: each is an offer as `sweep.node` makes it, with drives and filesystems of its own, and its attempts are calls of
one of eight actors that wait `--seconds` and publish a record through the analysis actor. A tenth of the nodes is lost
on the way, and as many join late. For scale the same calls are made by a bare loop without scheduler, placement or
progress.

Prints trials per second, CPU seconds and resident memory of driver and analysis actor as the run goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ACTORS = 8


def main() -> None:
    """Run the bare loop, then the driver."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--trials", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=0.0, help="of each trial")
    args = parser.parse_args()
    import ray

    from sweep import cluster

    with tempfile.TemporaryDirectory(prefix="scale-", dir=Path.cwd()) as folder, cluster.local(cluster.here()):
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        crew = [ray.remote(num_cpus=0)(Crew).remote(args.seconds) for _ in range(ACTORS)]
        ray.get([one.ready.remote() for one in crew])
        bare = bare_loop(crew, Path(folder), args.nodes, args.trials // 10)
        print(f"bare loop: {bare:.0f} trials/s over {args.trials // 10} trials")
        driven = drive(crew, Path(folder), args.nodes, args.trials)
        print(f"driver: {driven:.0f} trials/s over {args.trials} trials, {driven / bare:.2f} x the bare loop")


class Crew:
    """Plays the attempts of some nodes."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def ready(self) -> None: ...

    async def attempt(self, spec: Any, host: str, actor: Any, expected: None) -> dict[str, Any]:
        import asyncio

        from tasks.trial import blank_record

        await asyncio.sleep(self._seconds)
        record = blank_record(spec) | {"node": {"hostname": host}, "verdict": {"state": "valid", "reasons": []}}
        await actor.publish.remote(spec.slug, spec.token, record, [])
        return {"record": record, "log_tail": ""}


def analysis(folder: Path) -> Any:
    """Return the analysis actor of a new run."""
    import ray

    from analysis import actor as analysis_actor

    actor = analysis_actor.start(str(folder))
    ray.get(actor.create.remote({"sweep": "scale", "plan": []}, "name: scale\n"))
    return actor


def planned(folder: Path, trials: int) -> tuple[Any, Any]:
    """Return a sweep of so many trials over filesystems and more, and its plan."""
    from sweep import config
    from sweep.plan import Grid

    sizes = [[f"{n}MiB"] for n in range(1, 101)]
    keys = {
        "workload": {"kind": "tensor_io", "sizes": ["1MiB"]},
        "storage": {"kind": "directory", "path": "/mnt/drive"},
        "grid": {
            "storage.fs": ["ext4", "xfs"],
            "workload.sizes": sizes,
            "workload.queue_depth": [1, 32],
        },
        "repeats": trials // 400,
    }
    file = folder / "scale.yaml"
    file.write_text(json.dumps(keys))
    sweep = config.load(str(file))
    return sweep, Grid(sweep)


def offered(number: int) -> Any:
    """Return a node with a drive of its own, ext4 on even ones and xfs on odd ones."""
    from sweep import cluster
    from sweep.placement import Node
    from tasks.machine import Place

    here = cluster.here().offer
    place = Place("/mnt/drive", ("ext4", "xfs")[number % 2], (f"nvme{number}n1",), 1 << 40, False)
    return Node(dataclasses.replace(here, hostname=f"node{number}", places=[place]), f"sim{number}")


class Watch:
    """Progress that prints memory and speed now and then."""

    def __init__(self, total: int, actor_pid: int) -> None:
        self._total, self._pid = total, actor_pid
        self.ended, self._begin, self._last = 0, time.monotonic(), time.monotonic()

    def finished(self, identity: str, state: str, reasons: Sequence[str], log_tail: str, again: bool) -> None:
        self.ended += not again
        if not again and self.ended % (self._total // 8) == 0:
            now = time.monotonic()
            speed = self._total // 8 / (now - self._last)
            self._last = now
            used = resource.getrusage(resource.RUSAGE_SELF)
            cpu_ms = (used.ru_utime + used.ru_stime) / self.ended * 1e3
            print(
                f"{self.ended:6} ended: {speed:.0f}/s, driver {memory_mib(os.getpid())} MiB, "
                f"{cpu_ms:.1f} ms CPU a trial, analysis actor {memory_mib(self._pid)} MiB",
                flush=True,
            )

    def started(self, identity: str, where: str, attempt: int) -> None: ...
    def phase(self, identity: str, text: str) -> None: ...
    def say(self, text: str) -> None: ...
    def planned(self, total: int, more: bool) -> None: ...
    def tell(self, text: str) -> None: ...


def memory_mib(pid: int) -> int:
    """Return the memory of a process that it does not share with others."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Private_")) // 1024


class Turnover:
    """Loses a tenth of the nodes once a third of the trials has ended; as many others join after another third."""

    def __init__(self, watch: Watch, trials: int, lost: Sequence[Any], late: Sequence[Any]) -> None:
        self._watch, self._trials, self._lost, self._late = watch, trials, list(lost), list(late)

    def poll(self) -> Any:
        from sweep.membership import Changes

        lost, late = [], []
        if self._watch.ended > self._trials // 3:
            lost, self._lost = self._lost, []
        if self._watch.ended > 2 * self._trials // 3:
            late, self._late = self._late, []
        return Changes(joined=late, lost=[node.ray_id for node in lost])

    def doubt(self, ray_id: str | None) -> None: ...


def drive(crew: Sequence[Any], folder: Path, nodes: int, trials: int) -> float:
    """Run the trials through the scheduler; return how many ended per second."""
    import ray

    from sweep.placement import Placements, fit
    from sweep.scheduler import Scheduler

    begin = time.monotonic()
    sweep, plan = planned(folder, trials)
    print(f"expanded {len(plan.trials)} trials of {len({id(t.config) for t in plan.trials})} cells "
          f"in {time.monotonic() - begin:.1f} s")  # fmt: skip
    actor = analysis(folder / "driven")
    pid = max(int(p.name) for p in Path("/proc").glob("[0-9]*") if b"ray::AnalysisActor" in _title(p))
    placements = Placements([offered(n) for n in range(nodes)])
    begin = time.monotonic()
    fit(sweep, plan, placements)
    print(f"placed them on {nodes} nodes in {time.monotonic() - begin:.1f} s")
    watch = Watch(trials, pid)
    few = nodes // 10
    turnover = Turnover(watch, trials, placements.nodes[:few], [offered(nodes + n) for n in range(few)])

    def launch(spec: Any, placement: Any, actor: Any, expected: Any) -> Any:
        return crew[hash(placement.node.name) % ACTORS].attempt.remote(spec, placement.node.name, actor, expected)

    begin = time.monotonic()
    scheduler = Scheduler("scale", "k", plan, placements, actor, watch, None, turnover, launch)  # type: ignore[arg-type]
    scheduler.run()
    took = time.monotonic() - begin
    ray.get(actor.finish.remote({"state": "finished"}))
    states = [record["verdict"]["state"] for record in scheduler.records.values()]
    published = len(list((folder / "driven" / "trials").glob("*/trial.json")))
    assert states == ["valid"] * trials == ["valid"] * published, f"{published} published"
    return trials / took


def bare_loop(crew: Sequence[Any], folder: Path, nodes: int, trials: int) -> float:
    """Make the same calls with as many under way as there are nodes; return how many ended per second."""
    import ray

    from tasks.spec import TrialSpec

    _, plan = planned(folder, 400 * max(1, trials // 400))
    actor = analysis(folder / "bare")
    waiting = list(plan.trials)[:trials]
    begin, under_way, ended = time.monotonic(), [], 0
    while waiting or under_way:
        while waiting and len(under_way) < nodes:
            t = waiting.pop()
            token = f"b-{len(waiting)}"
            spec = TrialSpec("scale", t.id, t.slug, dict(t.cell), t.repeat, 1, token, dict(t.config), t.fingerprint)
            expected = actor.expect.remote(t.slug, token)
            under_way.append(crew[len(waiting) % ACTORS].attempt.remote(spec, "bare", actor, expected))
        done, under_way = ray.wait(under_way, timeout=1)
        ended += len(ray.get(done))
    took = time.monotonic() - begin
    ray.kill(actor)
    return ended / took


def _title(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


if __name__ == "__main__":
    main()
