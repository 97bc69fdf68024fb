"""Are the engines as fast through the sweep as by hand? Tokens per second of both, in turn, as a ratio.

    python benchmarks/engine_speed.py conf/fig4.yaml --pairs 6 scale=small 'grid.workload.batch_size=[4]'

Takes a sweep of one cell. Each pair is one run of `python -m sweep ... trace.tracer=none` and one of the engine's own
benchmark by hand (flexgen_by_hand.py, zero_inference_by_hand.py), on a filesystem and under a memory limit of the same
settings; which goes first alternates. Prints every pair and the 95 % interval of the ratio's geometric mean
(Student's t on the logarithms). Needs root. Run it alone: the machine's noise is in the figures.
"""

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import nullcontext
from pathlib import Path

from scipy.stats import t as student

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from sweep import config as sweeps  # noqa: E402
from sweep.plan import Grid  # noqa: E402
from tasks import workloads  # noqa: E402
from tasks.cgroup import memory_limited  # noqa: E402
from tasks.lease import Lease  # noqa: E402
from tasks.spec import limits_of, storage_of  # noqa: E402
from tasks.storage import flush, volume  # noqa: E402
from tasks.units import parse_bytes  # noqa: E402

SCRIPTS = {"flexgen": "flexgen_by_hand.py", "deepspeed_model": "zero_inference_by_hand.py"}


def by_sweep(arguments, results):
    """Return tokens per second of one trial of the sweep, without a tracer."""
    command = [sys.executable, "-m", "sweep", *arguments, "trace.tracer=none", "--results", results]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    (record,) = Path(results).glob("*/latest/trials/*/trial.json")
    found = json.loads(record.read_text())
    assert found["verdict"]["state"] == "valid", found["verdict"]
    return found["metrics"]["tokens_per_s"]["value"]


def by_hand(trial, folder):
    """Return tokens per second of the engine's own benchmark."""
    lease = Lease.take(f"hand-{uuid.uuid4().hex[:8]}")
    workload, memory = workloads.of_config(trial), limits_of(trial).memory
    with volume(storage_of(trial), lease) as found:
        flush(found.offload_dir)  # as a trial does: nothing of mkfs is in flight when the engine starts
        found.devices.settle()
        limited = memory_limited(parse_bytes(memory), lease) if memory else nullcontext()
        with limited as limit:
            workload.job(folder, found.offload_dir, 1)  # writes the description that both read
            script = Path(__file__).parent / SCRIPTS[trial["workload"]["kind"]]
            enter = (lambda: limit.procs.write_text("0")) if limit else None
            done = subprocess.run(
                [sys.executable, script, folder / "job.json"],
                capture_output=True,
                text=True,
                check=True,
                preexec_fn=enter,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )
    return float(re.findall(r"total throughput: ([\d.]+) token/s", done.stdout)[-1])


def interval(ratios):
    """Return geometric mean and 95 % interval of ratios."""
    logs = [math.log(ratio) for ratio in ratios]
    half = student.ppf(0.975, len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    mean = statistics.mean(logs)
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def main():
    """Run the pairs and print them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("conf")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--pairs", type=int, default=6, choices=range(3, 21), metavar="3..20")
    parser.add_argument("--rest-s", type=float, default=8, help="seconds of rest before each run")
    args = parser.parse_intermixed_args()
    (trial,) = (t.config for t in Grid(sweeps.load(args.conf, args.overrides)).trials)
    ratios = []
    print("| pair | by hand (tokens/s) | through the sweep (tokens/s) | ratio |\n|---|---|---|---|")
    for pair in range(1, args.pairs + 1):
        with tempfile.TemporaryDirectory() as folder:
            runs = {
                "hand": lambda folder=folder: by_hand(trial, Path(folder)),
                "sweep": lambda folder=folder: by_sweep([args.conf, *args.overrides], folder),
            }
            order = ("hand", "sweep") if pair % 2 else ("sweep", "hand")
            speed = {}
            for name in order:
                subprocess.run(["sync"], check=True)
                time.sleep(args.rest_s)  # the run before has left images to discard and processes to end
                speed[name] = runs[name]()
        ratios.append(speed["sweep"] / speed["hand"])
        print(f"| {pair} | {speed['hand']:.3f} | {speed['sweep']:.3f} | {ratios[-1]:.3f} |", flush=True)
    mean, low, high = interval(ratios)
    print(f"\nratio {mean:.3f}, 95 % interval {low:.3f} to {high:.3f}, {len(ratios)} pairs")


if __name__ == "__main__":
    main()
