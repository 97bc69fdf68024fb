"""What does tracing cost the job? fio's IOPS under each tracer as a share of the untraced, in turn.

    python benchmarks/trace_cost.py --rounds 9

Direct random reads on xfs on a loop device backed by tmpfs, the fastest device there is here, so the cost shows most.
Each round runs every variant once, in an order that rotates, and divides by the round's own untraced run. Printed are
the median of the rounds' ratios and, for nine rounds, the second smallest and second largest: a 96 % interval of the
median (order statistics of the binomial distribution). `study` prints a line for each issue from bpftrace, as the
published study did. `auto` is what the calibration of this machine chooses. CPU time is the tracer's own, during the
window and for decoding after it, by rusage; what the kernel spends in the job's context is in the ratio.
Needs root and fio. Run it alone: the machine's noise is in the figures.
"""

import argparse
import os
import statistics
import sys
import time
import uuid
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tasks import calibration, cost, fio, machine  # noqa: E402
from tasks.fio import Load  # noqa: E402
from tasks.lease import Lease  # noqa: E402
from tasks.process import child, interrupt  # noqa: E402
from tasks.spec import Backing, Storage, Trace  # noqa: E402
from tasks.storage import volume  # noqa: E402
from tasks.units import parse_bytes  # noqa: E402

FILE_BYTES = 512 << 20
STUDY = """
tracepoint:block:block_rq_issue /args->dev == $1/
{ printf("%llu %s %d %llu %u %s\\n", nsecs, comm, args->bytes, args->sector, args->nr_sector, args->rwbs); }
"""


@dataclass
class Reading:
    """One run of fio: its IOPS, and what the tracer saw and spent."""

    iops: float
    events: int | None = None
    missed: int | None = None
    cpu_s: float = 0.0
    decode_cpu_s: float = 0.0


@dataclass
class Bench:
    """What every variant runs: a load on a file of a volume, for some seconds."""

    found: object
    file: object
    load: Load
    seconds: float
    lease: Lease

    def fio(self):
        """Return fio's IOPS."""
        return fio.run(self.load, self.file, self.seconds).iops


def untraced(bench):
    """Return fio's own speed."""
    return Reading(bench.fio())


def by_study(bench):
    """Return fio's speed under a line for each issue, the published study's way."""
    (device,), folder = bench.found.devices, bench.lease.folder
    output, log = folder / "study.txt", folder / "study.log"
    before, counted = cost.processor_s(), bench.found.devices.counters()
    with child(["bpftrace", "-e", STUDY, str(device.number)], log, os.environ, output) as process:
        while process.poll() is None and b"Attaching" not in output.read_bytes():
            time.sleep(0.1)
        assert process.poll() is None, f"bpftrace ended: {log.read_text()}"
        time.sleep(1)
        began = cost.processor_s()
        iops = bench.fio()
        fio_s = cost.processor_s() - began
        interrupt(process)
    done = bench.found.devices.counters().reads - counted.reads
    with output.open("rb") as lines:
        seen = sum(line[:1].isdigit() for line in lines)
    output.unlink()
    return Reading(iops, seen, max(0, done - seen), cost.processor_s() - before - fio_s)


def traced(name, bench):
    """Return fio's speed under one of our tracers, what it missed and what it spent."""
    if name == "auto":
        name, _ = calibration.chosen(machine.tracers_of_requests(), bench.lease, dict(os.environ), print)
    corner = bench.lease.corner(f"{name}-{uuid.uuid4().hex[:8]}")
    run = cost.under_tracer(
        Trace(tracer=name), bench.found, corner, dict(os.environ), bench.load, bench.file, bench.seconds
    )
    if not run.requests:  # it counts, and records none
        return Reading(run.result.iops, cpu_s=run.cpu_s)
    return Reading(run.result.iops, 2 * run.requests, run.missed, run.cpu_s, run.decode_cpu_s)


def variants(names):
    """Return each variant's function by name."""
    known = {"untraced": untraced, "study": by_study}
    return {n: known.get(n) or partial(traced, n) for n in names}


def show(table, rounds):
    """Print medians and intervals as a table."""
    cut = 1 if rounds >= 9 else 0
    print("| tracer | IOPS | of the untraced | interval | missed | CPU s per M events | decoding, CPU s per M events |")
    print("|---|---|---|---|---|---|---|")
    for name, readings in table.items():
        ratios = sorted(r.iops / u.iops for r, u in zip(readings, table["untraced"], strict=True))
        events = sum(r.events or 0 for r in readings) / 1e6
        missed = "-" if readings[0].missed is None else sum(r.missed for r in readings)
        cost = [
            f"{sum(values) / events:.2f}" if events else "-"
            for values in ([r.cpu_s for r in readings], [r.decode_cpu_s for r in readings])
        ]
        low, high = ratios[cut], ratios[-1 - cut]
        iops = statistics.median(r.iops for r in readings)
        middle = statistics.median(ratios)
        print(f"| {name} | {iops:,.0f} | {middle:.3f} | {low:.3f}-{high:.3f} | {missed} | {cost[0]} | {cost[1]} |")


def main():
    """Run the rounds and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--block", default="4KiB")
    parser.add_argument("--depth", type=int, default=32)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--tracers", nargs="+", default=["auto", "ftrace", "bpftrace", "diskstats", "study"])
    args = parser.parse_args()
    names = ["untraced", *args.tracers]
    load = Load("randread", parse_bytes(args.block), args.depth)
    lease = Lease.take(f"cost-{uuid.uuid4().hex[:8]}")
    storage = Storage(fs="xfs", backing=Backing.tmpfs, image_size="2GiB")
    table = {name: [] for name in names}
    try:
        with (
            volume(storage, lease) as found,
            fio.scratch(found, FILE_BYTES, load, lease.folder / "fio", dict(os.environ)) as file,
        ):
            bench = Bench(found, file, load, args.seconds, lease)
            for turn in range(args.rounds):
                order = names[turn % len(names) :] + names[: turn % len(names)]
                for name in order:
                    table[name].append(variants(names)[name](bench))
                    print(f"round {turn + 1} {name}: {table[name][-1]}", file=sys.stderr, flush=True)
    finally:
        lease.clean()
    print(f"{args.block} random reads, depth {args.depth}, {args.rounds} rounds of {args.seconds} s\n")
    show(table, args.rounds)


if __name__ == "__main__":
    main()
