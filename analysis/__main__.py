"""`python -m analysis RUN`: draw a run's figures and report again."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from analysis.errors import AnalysisError
from analysis.figures import FIGURES

_USAGE_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw and print the paths; return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        from analysis.drawing import draw_run

        names = [name.strip() for name in options.figures.split(",") if name.strip()] if options.figures else None
        paths = draw_run(options.run, names)
    except AnalysisError as error:
        print(f"error: {error}", file=sys.stderr)
        return _USAGE_ERROR
    except OSError as error:
        print(f"error: {error.filename or options.run}: {error.strerror or error}", file=sys.stderr)
        return _USAGE_ERROR
    for name, files in paths["figures"].items():
        reason = paths["ruled_out"].get(name)
        print(f"{files['html']}" + (f"  (not drawn: {reason})" if reason else ""))
    if paths["report"]:
        print("\n".join([*_judged(options.run), paths["report"]]))
    return 0


def _judged(run: str) -> list[str]:
    """Return what the run says of the study's statements, a line for each that it can test, and its advice."""
    from analysis.advice import advice
    from analysis.findings import NOT_TESTABLE, findings
    from analysis.run import load_run

    opened = load_run(run)
    found = findings(opened)
    tested = [one for one in found if one.state != NOT_TESTABLE]
    lines = [f"{one.state}: {one.claim}" for one in tested]
    if len(tested) < len(found):
        lines.append(f"{NOT_TESTABLE}: {len(found) - len(tested)} of the study's {len(found)} statements")
    codes = [one.code for one in advice(opened)]
    return [*lines, f"advice: {', '.join(codes)}"] if codes else lines


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis",
        description="Draw the figures and the report of a run again. "
        "Each figure is saved as HTML (interactive), SVG, PDF and PNG under RUN/figures.",
        epilog="examples: python -m analysis results/quickstart --figures fig2,sizes; "
        "python -m analysis results/fig5 --figures metric:tokens_per_s@batch_size (any measure against any axis, "
        "see docs/figures.md)",
    )
    parser.add_argument("run", metavar="RUN", help="a run folder, or a sweep's folder (its latest run is taken)")
    parser.add_argument(
        "--figures", metavar="A,B", help=f"draw just these and leave the report as it is ({', '.join(FIGURES)})"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
