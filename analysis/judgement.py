"""What a night came to: its run compared with those before it, in the run's folder and for whoever is told."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis import ledger
from analysis.errors import AnalysisError
from analysis.files import write_bytes
from analysis.run import STATES, Run, load_run
from analysis.units import count_text

if TYPE_CHECKING:
    import pandas as pd

#: The summary, plain text of one page, in the run's folder, and all of the comparison for programs.
FILE, JSON = "comparison.txt", "comparison.json"

FIRST = "There is no earlier run: this is the first, and there is nothing to compare it with."


def judge(path: Path, bases: Sequence[tuple[str, str | None]]) -> dict[str, Any]:
    """Compare a run with its bases, each its id and its folder (None: what the ledger has of it); write both files.

    Returns `{"regressed": ..., "text": ...}`. Raises AnalysisError where the run or a base cannot be read.
    """
    from analysis import answers
    from analysis.compare import compare
    from analysis.observations import of_run, planned

    run = load_run(path)
    forget(run.path)
    regressed, lines = False, [FIRST]
    if bases:
        now = of_run(run)
        rows = [_rows(run, name, folder, list(now.columns)) for name, folder in bases]
        found = compare(now, rows, planned=planned(run))
        regressed, lines = found.regressed, list(found.lines())
        there = [load_run(folder) for _, folder in bases if folder is not None and Path(folder).is_dir()]
        lines += answers.changed(run, there)
        write_bytes(run.path / JSON, json.dumps(found.as_json(), indent=1).encode())
    text = "\n".join([*lines, "", _tally(run), f"report: {run.path / 'report.html'}"]) + "\n"
    write_bytes(run.path / FILE, text.encode(errors="replace"))
    return {"regressed": regressed, "text": text}


def forget(run: Path) -> None:
    """Remove what a run came to, which is of the trials that it had then."""
    for name in (FILE, JSON):
        (run / name).unlink(missing_ok=True)


def told(run: Run) -> str | None:
    """Return the summary of a run that was judged, None of another."""
    try:
        return (run.path / FILE).read_text(encoding="utf-8", errors="replace").rstrip()
    except OSError:
        return None


def _rows(run: Run, name: str, folder: str | None, columns: Sequence[str]) -> pd.DataFrame:
    from analysis.observations import of_run

    if folder is not None and Path(folder).is_dir():
        return of_run(Path(folder))
    frame = ledger.read(ledger.of_run_folder(run.path), run.sweep)
    rows = frame[frame.run == name]
    if rows.empty:
        raise AnalysisError(f"{name}: its folder was removed, and the ledger has no trial of it")
    found = ledger.results(rows)
    # a column that was empty in all runs is not in the ledger
    return found.reindex(columns=list(dict.fromkeys([*columns, *found.columns])))


def _tally(run: Run) -> str:
    states = [trial.state for trial in run.published]
    counts = [f"{states.count(state)} {state}" for state in STATES if state in states]
    bad = [trial.id for trial in run.published if trial.state != "valid"]
    named = f" ({', '.join(bad[:3])}{f' and {len(bad) - 3} more' if len(bad) > 3 else ''})" if bad else ""
    missing = f", {len(run.missing)} without a result" if run.missing else ""
    return f"{run.sweep}, run {run.path.name}: {count_text(len(states), 'trial')}: {', '.join(counts)}{named}{missing}"
