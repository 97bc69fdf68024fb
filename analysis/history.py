"""`results/<sweep>/history.html`: every measure by night, cell by cell, with its steps and what else changed.

`python -m analysis.history RESULTS/SWEEP` draws it of the ledger; a run with a baseline does so at its end.
"""

from __future__ import annotations

import argparse
import base64
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import jinja2

from analysis import ledger, vega
from analysis.errors import AnalysisError, reported
from analysis.figures import theme
from analysis.files import write_bytes
from analysis.measures import Measure
from analysis.multiples import Figure, Mark, change_text, drawn, marked, scale
from analysis.series import Series, changes, labels, series
from analysis.units import count_text, number_text

PAGE, FOLDER = "history.html", "history"
_TEMPLATES = Path(__file__).parent / "templates"

#: Facts that are told of one night; a new system changes hundreds.
_MOST_FACTS = 12


@dataclass(frozen=True)
class Step:
    """One row of the table of steps."""

    at: datetime
    run: str
    cell: str
    what: str
    change: float
    before: str
    after: str
    p: float
    mark: str


def write(folder: Path) -> Path:
    """Draw the history of the sweep whose runs are in `folder`; return its page. Figures are in `FOLDER` beside it.

    Raises AnalysisError where the ledger has no valid trial of the sweep, or is damaged.
    """
    rows = ledger.results(ledger.read(ledger.of_results(folder.parent), folder.name))
    found = series(rows) if len(rows) else []
    if not found:
        text = "has no valid trial of it yet: python -m analysis.ledger enters the runs that are there"
        raise AnalysisError(f"{folder}: no history: {ledger.of_results(folder.parent)} {text}")
    marks = marked(changes(rows[rows.verdict == "valid"]))
    names = labels(list(dict.fromkeys(one.cell for one in found)))
    figures = [drawn(own, names, marks) for own in _by_measure(found).values()]
    write_bytes(folder / PAGE, _page(folder.name, found, figures, marks, names).encode(errors="replace"))
    _keep(folder / FOLDER, figures)
    return folder / PAGE


def _by_measure(found: Sequence[Series]) -> dict[Measure, list[Series]]:
    by_measure: dict[Measure, list[Series]] = {}
    for one in found:
        by_measure.setdefault(one.measure, []).append(one)
    return by_measure


def _keep(folder: Path, figures: Sequence[Figure]) -> None:
    """Write each figure as SVG and PNG in a folder that has those of this history and no others."""
    shutil.rmtree(folder, ignore_errors=True)
    for figure in figures:
        write_bytes(folder / f"{figure.name}.svg", figure.svg.encode())
        write_bytes(folder / f"{figure.name}.png", vega.png(figure.svg))


# --- the page --------------------------------------------------------------------------------------------------------


def _page(
    sweep: str, found: Sequence[Series], figures: Sequence[Figure], marks: Sequence[Mark], names: Mapping[str, str]
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    nights = sorted({(night.at, night.run) for one in found for night in one.nights})
    return environment.get_template("history.html.j2").render(
        sweep=sweep,
        nights=nights,
        cells=len(names),
        series=len(found),
        steps=_steps(found, marks, names),
        marks=marks,
        in_cells=lambda change: "all" if len(change.cells) == len(names) else _few([names[c] for c in change.cells]),
        most=_MOST_FACTS,
        figures=sorted(figures, key=lambda one: one.steps == 0),
        picture=lambda figure: f"data:image/svg+xml;base64,{base64.b64encode(figure.svg.encode()).decode()}",
        change_text=change_text,
        count_text=count_text,
        ink=theme.INK,
        alarm=theme.ALARM,
    )


def _few(words: Sequence[str]) -> str:
    return "; ".join(words[:2]) + (f" and {len(words) - 2} more" if len(words) > 2 else "")


def _steps(found: Sequence[Series], marks: Sequence[Mark], names: Mapping[str, str]) -> list[Step]:
    """Return all steps, the newest night first, and of a night the largest first."""
    letters = {mark.run: mark for mark in marks}
    told = []
    for one in found:
        factor, unit = scale([one])
        for shift in one.shifts:
            night = one.nights[shift.index]
            mark = letters.get(night.run)
            letter = mark.letter if mark and mark.concerns(one) else ""
            before, after = (f"{number_text(value / factor)} {unit}".strip() for value in (shift.before, shift.after))
            what = (names[one.cell], one.title, shift.change, before, after)
            told.append(Step(night.at, night.run, *what, shift.p, letter))
    return sorted(told, key=lambda step: (-step.at.timestamp(), -abs(step.change)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the history of a sweep and print where it is; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.history",
        description="Draw what a sweep measured night by night, of the ledger beside its folder: history.html.",
    )
    parser.add_argument("sweep", metavar="RESULTS/SWEEP", help="the folder of a sweep's runs")
    folder = Path(parser.parse_args(arguments).sweep).absolute()
    try:
        print(write(folder))
    except (AnalysisError, OSError) as error:
        return reported(error, folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
