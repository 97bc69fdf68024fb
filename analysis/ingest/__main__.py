"""`python -m analysis.ingest SOURCE --results DIR`: import what other tools recorded as a run, and draw it."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis.errors import AnalysisError, reported
from analysis.ingest.kinds import KINDS

_NOT_VALID, _INTERRUPTED = 3, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Import, draw and print the paths; return the exit code.

    0 where all trials are valid, 2 for a source that cannot be imported, 3 where some are not valid, 130 interrupted.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    try:
        return _run(options, ["python", "-m", "analysis.ingest", *given])
    except (AnalysisError, OSError) as error:
        return reported(error, options.results)
    except KeyboardInterrupt:
        print("interrupted: a run that was not complete has been removed", file=sys.stderr)
        return _INTERRUPTED


def _run(options: argparse.Namespace, argv: Sequence[str]) -> int:
    from analysis.ingest import kinds, run_folder, tree
    from analysis.run import load_run

    source = Path(options.source)
    found = tree.find(source, options.kind)
    if not found.groups:
        looked = f"nothing that can be imported; looked for\n{kinds.described()}"
        raise AnalysisError(f"{source}: {looked}\n{_left(found.left)}--kind says what a file is taken for".rstrip())
    name = options.name or tree.run_name(source)
    run = run_folder.write(found, source, Path(options.results), name, argv)
    print(run)
    bad = [trial for trial in load_run(run).published if trial.state != "valid"]
    for trial in bad:
        print(f"{trial.state}: {trial.id}: {'; '.join(trial.reasons)}", file=sys.stderr)
    if found.left:
        print(_left(found.left).rstrip(), file=sys.stderr)
    if not options.no_draw:
        from analysis.drawing import draw_run

        print(draw_run(run)["report"])
    return _NOT_VALID if bad else 0


def _left(left: Sequence[tuple[str, str]], most: int = 10) -> str:
    lines = [f"not used: {file} ({reason})" for file, reason in left[:most]]
    return "".join(f"{line}\n" for line in [*lines, *([f"and {len(left) - most} more"] if len(left) > most else [])])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.ingest",
        description="Import what other tools recorded as a run under DIR/NAME, and draw its figures and report.",
        epilog="example: python -m analysis.ingest published/results --results results --name published",
    )
    parser.add_argument("source", metavar="SOURCE", help="a file, or a folder with all files beneath it")
    parser.add_argument("--results", metavar="DIR", default="results", help="where runs are kept (results)")
    parser.add_argument("--name", help="name of the run's folder; default: that of SOURCE")
    parser.add_argument("--kind", choices=list(KINDS), help="take SOURCE for this; default: by its content")
    parser.add_argument("--no-draw", action="store_true", help="leave out figures and report")
    return parser


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
