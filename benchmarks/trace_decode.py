"""How long does a capture take to become requests.parquet, and how much memory? Does the memory stay flat?

    python benchmarks/trace_decode.py --events 5 20

Captures millions of events of fio's 4 KiB random reads through the ftrace tracer, on xfs on a loop device backed by
tmpfs, and decodes each capture in a process of its own. Prints wall and CPU seconds, the process's peak memory, and for
scale how many times as long as writing the same number of bytes to a file it takes. Needs root, fio and about 75 bytes
of disk an event, twice. Run it alone: the machine's noise is in the figures.
"""

import argparse
import os
import sys
import time
import traceback
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tasks import fio, tracers  # noqa: E402
from tasks.fio import Load  # noqa: E402
from tasks.lease import Lease  # noqa: E402
from tasks.spec import Backing, Storage, Trace  # noqa: E402
from tasks.storage import volume  # noqa: E402
from tasks.tracers import Window  # noqa: E402

LOAD, FILE_BYTES = Load("randread", 4096, 32), 512 << 20


def in_a_process(work):
    """Run `work` in a fork; return wall seconds, CPU seconds and peak resident bytes."""
    begin = time.monotonic()
    pid = os.fork()
    if not pid:
        try:
            work()
        except BaseException:  # noqa: BLE001 - the parent sees the exit code
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status, used = os.wait4(pid, 0)
    assert status == 0, "decoding failed"
    return time.monotonic() - begin, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024


def captured(found, file, lease, millions):
    """Return a tracer with a capture of about so many million events, and its window."""
    tracer = tracers.make(Trace(tracer="ftrace", buffer_size="16MiB"), found.devices, lease, dict(os.environ))
    with tracer.recording():
        begin_ns, wanted = time.monotonic_ns(), found.devices.counters().reads + millions * 500_000
        while found.devices.counters().reads < wanted:
            fio.run(LOAD, file, 2)
        found.devices.settle()
        window = Window(begin_ns, time.monotonic_ns())
    return tracer, window


def write_plainly(path, size):
    """Write so many bytes to a file, as the alternative that does nothing else."""
    block = bytes(1 << 20)
    with path.open("wb") as f:
        for _ in range(size >> 20):
            f.write(block)


def measure(found, file, millions):
    """Capture, decode and print one row."""
    lease = Lease.take(f"decode-{uuid.uuid4().hex[:8]}")
    try:
        tracer, window = captured(found, file, lease, millions)
        raw = tracer._spool.size_bytes
        out, notes = lease.folder / "requests.parquet", lease.folder / "capture.txt"

        def decode():
            capture = tracer.write(window, out)
            notes.write_text(f"{capture.requests} {sum(capture.faults.values())}")

        wall, cpu, peak = in_a_process(decode)
        requests, faults = map(int, notes.read_text().split())
        copy, _, idle = in_a_process(lambda: write_plainly(lease.folder / "copy", raw))
        events = 2 * requests / 1e6
        sizes = [f"{n >> 20} MiB" for n in (raw, out.stat().st_size)]
        speed = [f"{wall:.1f}", f"{cpu:.1f}", f"{events / wall:.2f} M/s", f"{wall / copy:.1f}"]
        cells = [f"{events:.1f} M", *sizes, *speed, f"{peak >> 20} MiB", f"{idle >> 20} MiB", str(faults)]
        print(f"| {' | '.join(cells)} |", flush=True)
    finally:
        lease.clean()


def main():
    """Decode captures of several sizes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--events", type=int, nargs="+", default=[5, 20], help="millions of events")
    args = parser.parse_args()
    lease = Lease.take(f"decode-{uuid.uuid4().hex[:8]}")
    try:
        with (
            volume(Storage(fs="xfs", backing=Backing.tmpfs, image_size="2GiB"), lease) as found,
            fio.scratch(found, FILE_BYTES, LOAD, lease.folder / "fio", dict(os.environ)) as file,
        ):
            print("| events | raw | Parquet | wall s | CPU s | rate | / writing | peak memory | before | faults |")
            print("|---|---|---|---|---|---|---|---|---|---|")
            for millions in args.events:
                measure(found, file, millions)
    finally:
        lease.clean()


if __name__ == "__main__":
    main()
