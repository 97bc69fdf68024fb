"""How long does a raw text trace of the study take to become a run, and its sectors to be counted?

    python benchmarks/ingest.py                        # 5 million lines; sectors; 26 million lines with all figures
    python benchmarks/ingest.py --lines 1 --counted 50 --whole 0

Makes traces as bio-bite-size.bt writes them, from a seed: `random` reads of 128 KiB, and `kv`, which reads a growing KV
cache again in every step. Then, each against its alternative in the same process, turn by turn, medians of `--turns`:

- import to requests.parquet, against `pyarrow.csv.read_csv` of the same file;
- accesses per sector, against a dictionary with an entry per sector, on `--counted` thousand requests; both agree;
- the whole command, `python -m analysis.ingest` with every panel of Fig. 5 and 6, on two cores under a memory limit of
  1.5 GiB (a cgroup, where this user may make one; page cache counts), with its peak resident memory.

Run it alone: the machine's noise is in the figures.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from analysis.accesses import access_counts  # noqa: E402
from analysis.ingest import bite_size  # noqa: E402
from analysis.ingest.part import Source  # noqa: E402
from analysis.schema import OPERATIONS  # noqa: E402
from analysis.trace import extents  # noqa: E402
from tasks import cgroup  # noqa: E402
from tasks.lease import Lease  # noqa: E402

MILLION, MIB = 1_000_000, 1 << 20
LIMIT_BYTES = 1536 * MIB
#: One step of the made generation reads the cache as far as it has grown, then writes what the step adds.
CACHE_REQUESTS, STEP_REQUESTS, WRITES = 40_000, 150, 20
BATCH = 500_000
COMMAND = (
    "systemd-run --scope --property=MemoryLimit=10G python3 -m flexllmgen.flex_opt --model facebook/opt-6.7b"
    " --prompt-len 256 --gen-len 256 --num-gpu-batches 1 --percent 100 0 0 0 100 0 --gpu-batch-size 64 > kv.txt 2>&1\n"
)


def random_requests(rng, count):
    """Return op (True: read), sector and sectors of random requests."""
    sectors = np.where(rng.random(count) < 0.9, 256, rng.integers(1, 32, count) * 8)
    return rng.random(count) < 0.97, rng.integers(0, 200_000_000, count) // 8 * 8, sectors


def kv_requests(rng, count):
    """Return op, sector and sectors of a generation whose cache is read from its beginning to its end in every step."""
    op, sector, sectors = [], [], []
    made, step = 0, 0
    while made < count:
        size = CACHE_REQUESTS + step * STEP_REQUESTS
        at = np.concatenate(
            (np.arange(size) * 256, size * 256 + np.sort(rng.integers(0, STEP_REQUESTS * 32, WRITES)) * 8)
        )
        op.append(np.arange(at.size) < size)
        sector.append(at + 1_000_000)
        sectors.append(np.where(op[-1], 256, 8))
        made, step = made + at.size, step + 1
    return tuple(np.concatenate(parts)[:count] for parts in (op, sector, sectors))


def make_trace(path, kind, count, seed=1):
    """Write a trace of `count` lines, nearly in order, as the buffers of several CPUs mix it."""
    rng = np.random.default_rng(seed)
    op, sector, sectors = {"random": random_requests, "kv": kv_requests}[kind](rng, count)
    issue = 45_502_109_053_447 + np.cumsum(rng.integers(1_000, 60_000, count))
    order = np.argsort(np.arange(count) + rng.integers(0, 200, count), kind="stable")
    with path.open("w") as out:
        out.write("Attaching 1 probe...\n")
        for begin in range(0, count, BATCH):
            chosen = order[begin : begin + BATCH]
            rwbs = ["R" if read else "W" for read in op[chosen].tolist()]
            columns = [part[chosen].tolist() for part in (issue, sectors * 512, sector, sectors)]
            rows = zip(columns[0], rwbs, *columns[1:], strict=True)
            out.write("".join("%d, %s, %d, %d, %d\n" % row for row in rows))  # noqa: UP031 - twice as fast


def timed(work):
    """Return wall seconds of `work` and what it returned."""
    begin = time.perf_counter()
    found = work()
    return time.perf_counter() - begin, found


def compare_import(path, folder, turns):
    """Return the median seconds of importing the file, and of reading it as CSV."""
    names = ["issue_ns", "rwbs", "bytes", "sector", "nr_sector"]
    options = pyarrow.csv.ReadOptions(column_names=names, skip_rows=1)
    ours, theirs = [], []
    for _ in range(turns):
        theirs.append(timed(lambda: pyarrow.csv.read_csv(path, options).num_rows)[0])
        ours.append(timed(lambda: bite_size.read(Source(path, path.name), folder))[0])
    return statistics.median(ours), statistics.median(theirs)


def by_dictionary(path):
    """Count with an entry per sector; return the number of sectors by operation and number of accesses."""
    counts = {"read": {}, "write": {}}
    for part in extents(path):
        for op, sector, size in zip(part.op.tolist(), part.sector.tolist(), part.bytes.tolist(), strict=True):
            own = counts.get(OPERATIONS[op])
            if own is not None:
                for one in range(sector, sector + size // 512):
                    own[one] = own.get(one, 0) + 1
    return {
        (op, accesses, sectors) for op, own in counts.items() for accesses, sectors in Counter(own.values()).items()
    }


def compare_counts(path, folder, count, turns):
    """Return the median seconds of counting the accesses of the first requests, and of a dictionary doing so."""
    part = folder / "part.parquet"
    with pyarrow.parquet.ParquetFile(path) as file:
        pyarrow.parquet.write_table(file.read().slice(0, count), part)
    theirs, wanted = timed(lambda: by_dictionary(part))
    ours = []
    for _ in range(turns):
        seconds, found = timed(lambda: access_counts(part))
        ours.append(seconds)
        if set(found.iter_rows()) != wanted:
            sys.exit(f"{path}: the accesses counted by intervals are not those of the dictionary")
    return statistics.median(ours), theirs


@contextmanager
def limited():
    """Provide the memory limit, or None where this user may set none."""
    if cgroup.obstacle():
        yield None
        return
    lease = Lease.take(f"ingest-{uuid.uuid4().hex[:8]}")
    try:
        with cgroup.memory_limited(LIMIT_BYTES, lease) as limit:
            yield limit
    finally:
        lease.clean()


def whole_command(source, results, cores):
    """Import and draw in a child on `cores`; return seconds, peak resident bytes and OOM kills (None: no limit)."""
    command = [sys.executable, "-m", "analysis.ingest", str(source), "--results", str(results), "--name", "kv"]
    with limited() as limit:

        def enter():
            os.sched_setaffinity(0, cores)
            if limit is not None:
                limit.procs.write_text("0")

        begin = time.perf_counter()
        child = subprocess.Popen(command, cwd=ROOT, preexec_fn=enter, stdout=subprocess.PIPE)
        child.stdout.read()
        _, status, used = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - begin
        child.returncode = os.waitstatus_to_exitcode(status)
        kills = None if limit is None else limit.oom_kills()
    if child.returncode:
        sys.exit(f"the import ended with exit code {child.returncode}, {kills} OOM kills")
    return seconds, used.ru_maxrss * 1024, kills


def report_parts(folder, options):
    """Print a row for each kind of trace: importing and counting, each beside its alternative."""
    print("| trace | import s | read_csv s | ratio | counting s | dictionary s | ratio |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for kind in ("random", "kv"):
        path = folder / f"{kind}.txt"
        make_trace(path, kind, round(options.lines * MILLION))
        ours, csv = compare_import(path, folder, options.turns)
        counted, slow = compare_counts(folder / "requests.parquet", folder, options.counted * 1000, options.turns)
        cells = [
            f"{ours:.2f}",
            f"{csv:.2f}",
            f"{ours / csv:.2f}",
            f"{counted:.3f}",
            f"{slow:.1f}",
            f"{slow / counted:.0f}",
        ]
        print(f"| {kind}, {options.lines:g} M lines | {' | '.join(cells)} |", flush=True)
        path.unlink()


def report_whole(folder, options):
    """Print seconds and memory of the whole command on a trace with the study's length."""
    source = folder / "kv-ext4"
    source.mkdir()
    make_trace(source / "kv-bpftrace-block.txt", options.trace, round(options.whole * MILLION))
    (source / "kv-log.txt").write_text(COMMAND)
    size = (source / "kv-bpftrace-block.txt").stat().st_size
    cores = set(sorted(os.sched_getaffinity(0))[:2])
    seconds, peak, kills = whole_command(source, folder / "results", cores)
    figures = {path.stem.split("-")[0] for path in (folder / "results/kv/latest/figures").glob("*.svg")}
    limit = "no memory limit (needs root)" if kills is None else f"{kills} OOM kills under {LIMIT_BYTES // MIB} MiB"
    print(
        f"\n{options.trace}, {options.whole:g} M lines ({size / 1e9:.2f} GB), {len(cores)} cores: imported and drawn "
        f"({', '.join(sorted(figures))}) in {seconds:.1f} s, peak resident memory {peak // MIB} MiB, {limit}"
    )


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lines", type=float, default=5, help="millions of lines to import (0: leave that out)")
    parser.add_argument("--counted", type=int, default=200, help="thousands of requests whose sectors are counted")
    parser.add_argument(
        "--whole", type=float, default=26, help="millions of lines to import and draw (0: leave that out)"
    )
    parser.add_argument("--trace", choices=["kv", "random"], default="kv", help="what is imported and drawn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--folder", help="where the traces are made (1.4 GB); default: a temporary folder")
    options = parser.parse_args()
    kept = nullcontext(options.folder) if options.folder else tempfile.TemporaryDirectory()
    with kept as folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        if options.lines:
            report_parts(Path(folder), options)
        if options.whole:
            report_whole(Path(folder), options)


if __name__ == "__main__":
    main()
