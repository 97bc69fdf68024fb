"""`python -m sweep.runs`: the runs that there are; `python -m sweep.runs merge RUN RUN...`: one run of several."""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweep import interrupt, lock
from sweep.errors import EXIT_INTERRUPTED, EXIT_USER, EXIT_VALID, ConfigError, UserError
from sweep.merge import merged, taken
from sweep.past import is_run, read_run, runs_of
from sweep.progress import counted
from tasks.arguments import Parser, UsageError
from tasks.text import printable
from tasks.units import format_bytes

_MERGE = "merge"

_USAGE = """\
python -m sweep.runs [-h] [--results DIR] [SWEEP]
       python -m sweep.runs merge [-h] [--into NAME] [--results DIR] RUN RUN..."""

_EPILOG = """\
examples
  python -m sweep.runs                                          all runs below results
  python -m sweep.runs fig5                                     those of one sweep
  python -m sweep.runs merge fig5/20261120-2200 fig5/20261121-2200 --into two-nights
  python -m sweep conf/fig5.yaml --resume --run 20261120-2200   go on with one of them

states
  finished, stopped, interrupted   as its driver left it; stopped: by --max-failures or --fail-fast
  broken                           Ray, the head or its disk gave out; --resume goes on with it
  running                          its driver lives
  died                             its driver was killed, or its machine went down; --resume goes on with it
  merged, imported                 made of other runs, or of other tools' traces

merge links the trials (where it cannot, it copies them) and moves nothing. Of a trial that several runs have, a valid
one is taken before others; two valid ones must have the same fingerprint, and the newest is taken.
"""

#: A verdict, and the mark of a warm-up, as trial.json has them at its top.
_VERDICT = re.compile(rb'\n "verdict": \{\s*"state": "(\w+)"')
_WARMUP = re.compile(rb'\n "warmup": true\b')


@dataclass(frozen=True)
class Row:
    """What the list says of one run."""

    run: str
    sweep: str
    state: str
    started: str
    trials: str
    size: str
    host: str


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    interrupt.install()
    try:
        merging = arguments[:1] == [_MERGE]
        return _merge(arguments[1:]) if merging else _list(arguments)
    except (UserError, UsageError) as e:
        print(printable(f"sweep.runs: {e}"), file=sys.stderr)
        return EXIT_USER
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_INTERRUPTED
    except OSError as e:
        print(f"sweep.runs: {e.filename or 'the results folder'}: {e.strerror or e}", file=sys.stderr)
        return EXIT_USER
    except KeyboardInterrupt:
        print("sweep.runs: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


# --- the list --------------------------------------------------------------------------------------------------------


def _list(arguments: Sequence[str]) -> int:
    p = Parser(
        prog="python -m sweep.runs",
        usage=_USAGE,
        description="List runs, or merge some of them: python -m sweep.runs merge RUN RUN... [--into NAME]",
        epilog=_EPILOG,
    )
    p.add_argument("sweep", metavar="SWEEP", nargs="?", help="list only the runs of this sweep")
    p.add_argument("--results", metavar="DIR", default="results", help="where runs are kept (default: results)")
    args = p.parse_intermixed_args(arguments)
    results = Path(args.results)
    runs = [run for folder in _sweeps(results, args.sweep) for run in runs_of(folder)]
    if not runs:
        print(f"no runs in {results}" + (f"/{args.sweep}" if args.sweep else ""))
        return EXIT_VALID
    for line in _table([_row(run) for run in runs]):
        print(printable(line))
    return EXIT_VALID


def _sweeps(results: Path, name: str | None) -> list[Path]:
    try:
        known = sorted(path for path in results.iterdir() if path.is_dir())
    except OSError as e:
        raise ConfigError("--results", None, f"{results} cannot be read: {e.strerror}") from None
    if name is None:
        return known
    found = [path for path in known if path.name == name]
    if not found:
        listed = ", ".join(path.name for path in known) or "none"
        raise ConfigError("--results", None, f"{results} has no runs of {name}", f"sweeps there: {listed}")
    return found


def _row(run: Path) -> Row:
    try:
        record = read_run(run)
    except ConfigError:
        return Row(run.name, run.parent.name, "unreadable", "", "", format_bytes(_size_bytes(run)), "")
    mark = "*" if (run.parent / "latest").resolve() == run.resolve() else ""
    return Row(
        f"{run.name}{mark}",
        str(record.get("sweep")),
        state(run, record),
        str(record.get("started") or "unknown").replace("T", " ")[:16],
        _verdicts(run, record),
        format_bytes(_size_bytes(run)),
        str(record.get("host") or "unknown"),
    )


def state(run: Path, record: dict[str, Any]) -> str:
    """Return the state of a run in one word: of one whose driver is gone without a word, that it died."""
    if lock.driver(run):
        return "running"
    told = str(record.get("state") or "unknown")
    return "died" if told == "running" else told


def _verdicts(run: Path, record: dict[str, Any]) -> str:
    planned = sum(not entry.get("warmup") for entry in record.get("plan") or [])
    counts = Counter(_published(run))
    words = [f"{counts[name]} {name}" for name in ("valid", "invalid", "failed", "unreadable") if counts[name]]
    if (left := planned - counts.total()) > 0:
        words.append(f"{left} unfinished")
    return ", ".join(words) or "none"


def _published(run: Path) -> Iterator[str]:
    """Yield the verdict of every published trial that counts."""
    for file in run.glob("trials/*/trial.json"):
        try:
            content = file.read_bytes()
            if _WARMUP.search(content):
                continue
            found = _VERDICT.search(content)
            yield found[1].decode() if found else str(json.loads(content)["verdict"]["state"])
        except (OSError, ValueError, KeyError, TypeError):
            yield "unreadable"


def _size_bytes(folder: Path) -> int:
    found = 0
    for at, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # of a run that goes on
                found += (Path(at) / name).lstat().st_size
    return found


def _table(rows: Sequence[Row]) -> Iterator[str]:
    cells = [tuple(name.upper() for name in Row.__dataclass_fields__), *(tuple(vars(row).values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        yield "  ".join(f"{text:<{width}}" for text, width in zip(line, widths, strict=True)).rstrip()


# --- merging ---------------------------------------------------------------------------------------------------------


def _merge(arguments: Sequence[str]) -> int:
    p = Parser(prog="python -m sweep.runs merge", description="Make one run of several of the same sweep.")
    p.add_argument("runs", metavar="RUN", nargs="+", help="a run's folder, or SWEEP/ID or ID of one below --results")
    p.add_argument("--into", metavar="NAME", help="name of the merged run (default: the newest's, with -merged)")
    p.add_argument("--results", metavar="DIR", default="results", help="where runs are kept (default: results)")
    args = p.parse_intermixed_args(arguments)
    found = taken([_find(Path(args.results), word) for word in args.runs])
    path = merged(found, args.into, ["python", "-m", "sweep.runs", _MERGE, *arguments])
    for run in found.runs:
        print(f"{run.path.name}: {counted(len(found.of(run)), 'trial')} of {len(run.trials)}")
    for note in found.notes:
        print(printable(f"note: {note}"))
    print(f"merged: {_relative(path)}", flush=True)
    _draw(found, path)
    return EXIT_VALID


def _draw(found: Any, path: Path) -> None:
    """Write the summary and draw the report; what cannot be drawn is a message, for the run itself is whole."""
    from analysis import AnalysisError, draw_run, write_summary

    try:
        write_summary(path, {run.path: {one.slug for one in found.of(run)} for run in found.runs})
        report = draw_run(path)["report"]
    except (AnalysisError, OSError) as e:
        again = f"once mended, draw it with: python -m analysis {_relative(path)}"
        print(printable(f"sweep.runs: the report cannot be drawn: {e}\n  {again}"), file=sys.stderr)
        return
    print(f"report: {_relative(Path(report))}")


def _find(results: Path, word: str) -> Path:
    """Return the run that a person names: its folder, or what it is called below `results`."""
    places = [Path(word), results / word, *(sorted(results.glob(f"*/{word}")) if _is_name(word) else [])]
    found = list(dict.fromkeys(place.resolve() for place in places if is_run(place)))
    if len(found) == 1:
        return found[0]
    if found:
        text = ", ".join(map(str, found))
        raise UserError(f"merge: {word} could be any of {text}\n  name its folder")
    raise UserError(f"merge: {word} is no run\n  python -m sweep.runs lists those of {results}")


def _is_name(word: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9._-]+", word) is not None and word not in (".", "..")


def _relative(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    sys.exit(main())
