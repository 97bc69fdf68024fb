"""`python -m analysis RUN`: draw a run's figures and report again."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from analysis.errors import AnalysisError, reported
from analysis.figures import FIGURES

_ALL = "all"


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw and print the paths; return the exit code."""
    parser = _parser()
    options = parser.parse_intermixed_args(arguments)
    if options.more and options.figures is None:
        parser.error(f"unrecognized arguments: {' '.join(options.more)}; one RUN at a time")
    try:
        from analysis.drawing import draw_run

        paths = draw_run(options.run, None if options.figures is None else _names([options.figures, *options.more]))
    except (AnalysisError, OSError) as error:
        return reported(error, options.run)
    for name, files in paths["figures"].items():
        reason = paths["ruled_out"].get(name)
        print(f"{files['html']}" + (f"  (not drawn: {reason})" if reason else ""))
    if paths["report"]:
        print("\n".join([*_judged(options.run), paths["report"]]))
    return 0


def _names(given: Sequence[str]) -> list[str]:
    """Return the figures that were asked for, in one list with commas or in several words."""
    names = [name.strip() for one in given for name in one.split(",") if name.strip()]
    if not names:
        raise AnalysisError(f"--figures names no figure; write one or more of {', '.join(FIGURES)}, or all")
    return list(dict.fromkeys(figure for name in names for figure in (FIGURES if name == _ALL else [name])))


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
    parser.add_argument("more", nargs="*", help=argparse.SUPPRESS)  # the words after the first of --figures
    parser.add_argument(
        "--figures",
        metavar="A,B",
        help=f"draw just these and leave the report as it is ({', '.join(FIGURES)}, or all)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
