"""Everything that is drawn of a run: its figures and its report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis import stacks
from analysis.figures import ALWAYS, MOST_BESIDES, WITH_TABLE, Drawn, by_hand, draw, figure
from analysis.figures.metric import numeric_axes
from analysis.figures.search import searches
from analysis.report import write_report
from analysis.run import Run, load_run


def figure_names(run: Run) -> tuple[list[str], list[str]]:
    """Return the figures a run asks for, and besides them those that every trial gets and those of what it recorded."""
    asked = [str(name) for name in run.record.get("figures") or []]
    besides = [name for name, table in WITH_TABLE.items() if any(trial.table(table) for trial in run.published)]
    if not any(name.partition(":")[0] == "metric" for name in asked) and numeric_axes(run.published):
        besides.append("metric")
    if searches(run):
        besides.append("search")
    if any(stacks.recorded(trial) for trial in run.published):
        besides.append("flamegraph")
    return asked, [*ALWAYS, *besides]


def draw_run(run_dir: str | Path, figures: Sequence[str] | None = None) -> dict[str, Any]:
    """Draw the figures of a run and its report; with `figures`, draw just those and leave the report as it is.

    Returns the paths: `{"run": ..., "report": ..., "figures": {chart name: {format: path}}, "ruled_out": {chart name:
    reason}}`.
    """
    run = load_run(run_dir)
    names, besides = figure_names(run) if figures is None else (list(figures), [])
    for name in [*names, *besides]:
        # an unknown one is refused before anything is drawn
        figure(name) if figures is None else by_hand(run, name)
    drawn: list[Drawn] = draw(run, names, run.path / "figures", besides)
    report = write_report(run, drawn) if figures is None else None
    ruled_out = {one.name: one.reason for one in drawn if one.reason}
    if besides and len(run.published) > MOST_BESIDES:
        asked = f"python -m analysis {run.path} --figures timeline,sizes draws all"
        ruled_out["timeline and sizes of every trial"] = f"the first {MOST_BESIDES} are drawn unasked; {asked}"
    return {
        "run": str(run.path),
        "report": str(report) if report else None,
        "figures": {one.name: {kind: str(path) for kind, path in one.files.items()} for one in drawn},
        "ruled_out": ruled_out,
    }
