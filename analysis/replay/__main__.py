"""`python -m analysis.replay TRIAL`: a fio job that replays a trial's requests on any drive, or these as text."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis.errors import AnalysisError, reported
from analysis.run import Trial, load_run, load_trial

FORMATS = ("fio", "csv", "snia")


def main(arguments: Sequence[str] | None = None) -> int:
    """Export and print the paths; return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        for path in _export(options):
            print(path)
    except (AnalysisError, OSError) as error:
        return reported(error, options.out)
    return 0


def _export(options: argparse.Namespace) -> Sequence[Path]:
    from analysis.replay import fio, table
    from analysis.replay.source import Source

    _refuse_what_only_fio_has(options)
    trial = find_trial(Path(options.trial), options.id)
    source = Source.of(trial, options.phase, options.dev)
    if trial.state != "valid":
        print(f"warning: the trial is {trial.state}: {'; '.join(trial.reasons)}", file=sys.stderr)
    name = trial.slug + (f"-{re.sub('[^A-Za-z0-9.]+', '-', options.phase).strip('-')}" if options.phase else "")
    folder = Path(options.out) if options.out else Path("replay") / name
    if options.format == "csv":
        return [table.export_csv(source, folder / "requests.csv")]
    if options.format == "snia":
        if not table.knows_utc(source):
            print("warning: the trial does not know UTC: Timestamp counts from the begin of its trace", file=sys.stderr)
        return [table.export_snia(source, folder / "snia.csv")]
    return fio.export(source, folder, options.timing or fio.EXACT, options.iodepth, options.compact)


def _refuse_what_only_fio_has(options: argparse.Namespace) -> None:
    for name in ("timing", "iodepth", "compact"):
        if options.format != "fio" and getattr(options, name):
            raise AnalysisError(f"--{name} is for --format fio")


def find_trial(path: Path, name: str | None) -> Trial:
    """Return the trial in the folder `path`, or the one called `name` (its only one without a name) of that run."""
    if (path / "trial.json").is_file():
        if name is not None:
            raise AnalysisError(f"{path} is a trial's folder already: leave out {name!r}, or give the run's folder")
        return load_trial(path)
    run = load_run(path)
    if name is not None:
        return run.trial(name)
    if len(run.published) != 1:
        told = "; ".join(trial.id for trial in run.published) or "it has none"
        raise AnalysisError(f"{run.path}: which of its trials? {told}")
    return run.published[0]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.replay",
        description="Write a fio job and its iolog, which issue the block requests of a trial again on any drive: no "
        "GPU, no engine, no model. The head of the job says what it does to the target and how to run it. Or write the "
        "requests as text.",
        epilog='example: python -m analysis.replay results/fig6 "fs=xfs,rep=1" --phase decode --out decode',
    )
    parser.add_argument("trial", metavar="TRIAL", help="a trial's folder, or a run's or a sweep's with ID")
    parser.add_argument("id", metavar="ID", nargs="?", help="which trial of the run, by id or folder name")
    parser.add_argument("--out", metavar="DIR", help="where to write (default: replay/<trial>)")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="fio",
        help="fio: job and iolog (default); csv: every column of ours; snia: the MSR Cambridge block trace's columns",
    )
    parser.add_argument(
        "--phase", metavar="NAME", help="only what was issued in it: decode, 'load aio cpu 64 MiB', 'decode step=3'"
    )
    parser.add_argument(
        "--timing", choices=("exact", "fast"), help="fio: each request in its millisecond (default), or without waits"
    )
    parser.add_argument(
        "--iodepth", metavar="N", type=_positive, help="fio: requests in flight (default: the trace's most)"
    )
    parser.add_argument("--compact", action="store_true", help="fio: move the used parts together, for a smaller drive")
    parser.add_argument("--dev", metavar="MAJ:MIN", help="only the requests of this device, where several were traced")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
