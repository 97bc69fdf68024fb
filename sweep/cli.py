"""The command line: `python -m sweep CONF [key=value ...]`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from sweep import __version__, baseline, config, interrupt, night
from sweep.adaptive import plan_of
from sweep.definition import Definition, Until
from sweep.errors import EXIT_INTERRUPTED, EXIT_USER, EXIT_VALID, UserError
from sweep.home import RESULTS, results_of
from sweep.options import Options
from sweep.past import find
from sweep.preview import dry_run
from sweep.selection import Selection
from sweep.values import documented
from tasks import workloads
from tasks.arguments import Parser
from tasks.errors import TaskError
from tasks.text import printable

_DESCRIPTION = """\
Run a sweep: every combination of its axes, each repeat a trial under a block-layer tracer, on nodes that really have
the GPU, the drive and the filesystem the trial asks for; then draw the figures and a report.
"""

_EPILOG = """\
examples
  python -m sweep conf/quickstart.yaml                            run it; the report's path is the last line
  python -m sweep conf/quickstart.yaml --dry-run                  show the trials, what each needs, where it would run
  python -m sweep conf/quickstart.yaml repeats=5 'grid.storage.fs=[ext4,btrfs]'
  python -m sweep conf/quickstart.yaml workload.sizes=[1GiB] storage.image_size=4GiB storage.path=/mnt/nvme0
  python -m sweep conf/quickstart.yaml --only 'fs == xfs'         some of its trials; those of a condition on axes
  python -m sweep conf/quickstart.yaml --resume                   go on with the newest run, and say why trials run
  python -m sweep conf/nightly.yaml --baseline latest:7           run it, and compare it with the last seven nights
  python -m sweep.runs                                            the runs that there are
  python -m sweep --keys                                          every key a sweep file may hold, with its meaning
  python -m analysis results/quickstart                           draw the newest run's figures again

a sweep file
  workload: {kind: tensor_io, sizes: [1MiB, 64MiB]}               the job of every trial
  storage: {fs: xfs, image_size: 1GiB}                            the filesystem under test
  grid: {storage.fs: [ext4, xfs], workload.queue_depth: [1, 32]}  axes; their product is the cells
  repeats: 3                                                      trials of each cell; docs/sweeps.md has the rest

exit codes
  0  all trials valid          2  wrong configuration, or no node can run a trial: nothing was started
  3  some failed or invalid    4  slower than the baseline, where that was judged, whatever else failed
  130  interrupted; what had finished is kept
"""


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    p = Parser(prog="python -m sweep", description=_DESCRIPTION, epilog=_EPILOG)
    p.add_argument("conf", metavar="CONF", nargs="?", help="sweep file, or the name of one that comes with the package")
    p.add_argument("overrides", metavar="key=value", nargs="*", help="set a key of the sweep; values are YAML")
    p.add_argument(
        "--dry-run",
        action="store_true",
        help="print what would become of each trial; start nothing",
    )
    p.add_argument(
        "--only",
        metavar="EXPR",
        action="append",
        default=[],
        help="run only trials like this: 'fs == xfs and rep == 1'",
    )
    p.add_argument("--trial", metavar="ID", action="append", default=[], help="run this trial; both can be repeated")
    p.add_argument("--keep", action="store_true", help="leave the offload files; python -m tasks.kept lists them")
    p.add_argument("--results", metavar="DIR", default=RESULTS, help="where runs are kept (default: results)")
    p.add_argument(
        "--address", metavar="ADDR", help="a running Ray cluster, HOST:PORT or auto (default: start Ray here)"
    )
    p.add_argument(
        "--max-failures", metavar="N", type=_count, help="start no more trials once N have failed or are not valid"
    )
    p.add_argument("--fail-fast", action="store_true", help="stop everything at the first trial that is not valid")
    p.add_argument(
        "--resume", action="store_true", help="go on with the newest run: trials that are valid and unchanged are kept"
    )
    p.add_argument("--run", metavar="RUN", help="with --resume: the run to go on with, by its id or folder")
    p.add_argument(
        "--baseline",
        metavar="RUN",
        action="append",
        default=[],
        help="compare the run with an earlier one when it has ended: its id, its folder, latest, or latest:N for the "
        "last N nights; can be repeated; exit code 4 where something regressed",
    )
    p.add_argument(
        "--wait", metavar="TIME", type=_seconds, help="with --baseline: wait so long for another night to end: 30m, 2h"
    )
    p.add_argument("--keys", action="store_true", help="print every key a sweep file may hold, and exit")
    p.add_argument("--version", action="version", version=f"offload-sweep {__version__}")
    return p


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a number of 1 or more, not {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        return night.seconds(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(str(e)) from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    interrupt.install()
    try:
        args = parser().parse_intermixed_args(arguments)
        return _run(args, arguments)
    except (UserError, TaskError) as e:
        print(printable(f"sweep: {e}"), file=sys.stderr)
        return EXIT_USER
    except KeyboardInterrupt:
        print("sweep: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output is gone, as under `| head`; what Python still holds for it goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_INTERRUPTED


def _run(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    if args.keys:
        print_keys()
        return EXIT_VALID
    if not args.conf:
        raise UserError(f"name a sweep file; those of the package: {config.shipped()}. More: python -m sweep --help")
    if "=" in args.conf and not os.path.exists(args.conf):
        raise UserError(f"command line: {args.conf} is no sweep file: name that first, and overrides after it")
    if args.run is not None and not args.resume:
        raise UserError(f"command line: --run {args.run} says which run to go on with: add --resume")
    if args.wait is not None and not args.baseline:
        raise UserError("command line: --wait is for nights, which wait for one another: add --baseline latest")
    baseline.check_words(args.baseline)
    sweep = config.load(args.conf, args.overrides)
    plan, selection = plan_of(sweep), Selection(tuple(args.only), tuple(args.trial))
    plan.select(selection.of(plan.trials, sweep, plan.skipped))
    results = results_of(sweep.shared, args.results)
    if args.dry_run:
        resumed = find(results, sweep.name, args.run, at_head=args.address is not None) if args.resume else None
        return dry_run(sweep, plan, results, args.address, resumed, args.keep, args.baseline)
    from sweep.run import run_sweep

    return run_sweep(sweep, plan, _options(args, arguments, selection, results))


def _options(args: argparse.Namespace, arguments: Sequence[str], selection: Selection, results: Path) -> Options:
    return Options(
        results=results,
        address=args.address,
        argv=tuple(arguments),
        selection=selection,
        keep=args.keep,
        max_failures=args.max_failures,
        fail_fast=args.fail_fast,
        resume=args.resume,
        run=args.run,
        baseline=tuple(args.baseline),
        wait_s=args.wait or 0.0,
    )


def print_keys() -> None:
    """Print every configuration key with type, default and meaning."""
    print("keys of a sweep file (dots stand for nesting; those of workload, storage, trace and limits can be axes)\n")
    for path, text in [*documented(Definition), *documented(Until, "repeats.")]:
        print(f"  {path}\n      {text}")
    for kind in workloads.WORKLOADS:
        print(f"\nworkload, kind: {kind}\n")
        for path, text in documented(workloads.load(kind).Config, "workload."):
            print(f"  {path}\n      {text}")
