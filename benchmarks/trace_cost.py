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
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tasks import calibration, machine, tracers  # noqa: E402
from tasks.lease import Lease  # noqa: E402
from tasks.process import child, interrupt  # noqa: E402
from tasks.spec import Backing, Storage, Trace  # noqa: E402
from tasks.storage import flush, volume  # noqa: E402
from tasks.tracers import Window  # noqa: E402
from tasks.units import parse_bytes  # noqa: E402

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


def fio_argv(folder, block, depth, seconds):
    """Return direct random reads of one file for some seconds."""
    return [
        "fio",
        "--name=cost",
        f"--filename={folder}/cost.dat",
        "--rw=randread",
        f"--bs={parse_bytes(block)}",
        f"--iodepth={depth}",
        "--ioengine=libaio",
        "--direct=1",
        f"--size={512 << 20}",
        "--time_based",
        f"--runtime={seconds}",
        "--ramp_time=0.5",
        "--output-format=json",
    ]


def run_fio(argv):
    """Run fio to its end; return its IOPS, its CPU seconds, and the requests it made."""
    process = subprocess.Popen(argv, stdout=subprocess.PIPE)
    out = process.stdout.read()
    _, _, used = os.wait4(process.pid, 0)
    process.returncode = 0
    read = json.loads(out)["jobs"][0]["read"]
    return read["iops"], used.ru_utime + used.ru_stime


def cpu_s():
    """Return the CPU seconds of this process and of its ended children."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in both)


def untraced(found, argv):
    """Return fio's own speed."""
    return Reading(run_fio(argv)[0])


def by_study(found, argv):
    """Return fio's speed under a line for each issue, the published study's way."""
    (device,) = found.devices
    output, log = found.offload_dir.parent.parent / "study.txt", found.offload_dir.parent.parent / "study.log"
    before, counted = cpu_s(), found.devices.counters()
    with child(["bpftrace", "-e", STUDY, str(device.number)], log, os.environ, output) as process:
        while process.poll() is None and b"Attaching" not in output.read_bytes():
            time.sleep(0.1)
        assert process.poll() is None, f"bpftrace ended: {log.read_text()}"
        time.sleep(1)
        iops, fio_s = run_fio(argv)
        interrupt(process)
    done = found.devices.counters().reads - counted.reads
    with output.open("rb") as lines:
        seen = sum(line[:1].isdigit() for line in lines)
    output.unlink()
    return Reading(iops, seen, max(0, done - seen), cpu_s() - before - fio_s)


def traced(name, found, argv):
    """Return fio's speed under one of our tracers, what it missed and what it spent."""
    lease = Lease.take(f"cost-{uuid.uuid4().hex[:8]}")
    try:
        if name == "auto":
            name, _ = calibration.chosen(machine.tracers_of_requests(), lease, dict(os.environ), print)
        tracer = tracers.make(Trace(tracer=name), found.devices, lease, dict(os.environ))
        before = cpu_s()
        with tracer.recording():
            counted, begin_ns = found.devices.settle(), time.monotonic_ns()
            iops, fio_s = run_fio(argv)
            done = found.devices.settle().requests_since(counted)
            window = Window(begin_ns, time.monotonic_ns())
        spent = cpu_s() - before - fio_s
        capture = tracer.write(window, lease.folder / "requests.parquet")
        decode = cpu_s() - before - fio_s - spent
        if capture.bytes is None:
            return Reading(iops, cpu_s=spent)
        # A lost completion is a fault and a request too few: one of both counts.
        missed = max(sum(capture.faults.values()), abs(done["read"] - capture.counts["read"]))
        return Reading(iops, 2 * capture.requests, missed, spent, decode)
    finally:
        lease.clean()


def variants(names):
    """Return each variant's function by name."""
    known = {"untraced": untraced, "study": by_study}
    return {n: known.get(n) or (lambda found, argv, n=n: traced(n, found, argv)) for n in names}


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
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--tracers", nargs="+", default=["auto", "ftrace", "bpftrace", "diskstats", "study"])
    args = parser.parse_args()
    names = ["untraced", *args.tracers]
    lease = Lease.take(f"cost-{uuid.uuid4().hex[:8]}")
    storage = Storage(fs="xfs", backing=Backing.tmpfs, image_size="1GiB")
    table = {name: [] for name in names}
    try:
        with volume(storage, lease) as found:
            argv = fio_argv(found.offload_dir, args.block, args.depth, args.seconds)
            untraced(found, argv)  # writes the file
            flush(found.offload_dir)
            for turn in range(args.rounds):
                order = names[turn % len(names) :] + names[: turn % len(names)]
                for name in order:
                    table[name].append(variants(names)[name](found, argv))
                    print(f"round {turn + 1} {name}: {table[name][-1]}", file=sys.stderr, flush=True)
    finally:
        lease.clean()
    print(f"{args.block} random reads, depth {args.depth}, {args.rounds} rounds of {args.seconds} s\n")
    show(table, args.rounds)


if __name__ == "__main__":
    main()
