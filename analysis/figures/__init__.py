"""The figures, by name. A figure is a module with

- `NAME`, `TITLE`;
- `charts(run)`: its panels, one for the run or one per trial, each a chart or the reason why there is none: a run that
  holds nothing the figure is about gets one panel that says so.

A new figure is one such file and one line in FIGURES.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from analysis.errors import AnalysisError

if TYPE_CHECKING:
    from analysis.figures.panel import Panel
    from analysis.run import Run

FIGURES = {
    "fig2": "analysis.figures.fig2",
    "fig3": "analysis.figures.fig3",
    "fig4": "analysis.figures.fig4",
    "fig5": "analysis.figures.fig5",
    "fig6": "analysis.figures.fig6",
    "bandwidth": "analysis.figures.bandwidth",
    "sizes": "analysis.figures.sizes",
    "latency": "analysis.figures.latency",
    "depth": "analysis.figures.depth",
    "flamegraph": "analysis.figures.flamegraph",
    "pressure": "analysis.figures.pressure",
    "roles": "analysis.figures.roles",
}
#: Drawn for every trial, whatever a sweep asks for.
ALWAYS = ("bandwidth", "sizes")
#: Drawn too where a trial of the run has this table.
WITH_TABLE = {"roles": "extents"}
FORMATS = ("html", "svg", "pdf", "png")


class Figure(Protocol):
    NAME: str
    TITLE: str

    def charts(self, run: Run) -> Iterator[Panel]: ...


@dataclass(frozen=True)
class Drawn:
    """A chart that was drawn: its files by format, its Vega-Lite specification and SVG, and `reason` where the
    picture only says why the figure is not there. `trial` is a slug, or None for the whole run; `holds` names figures
    whose charts of the same trial are parts of this one."""

    figure: str
    name: str
    title: str
    trial: str | None
    reason: str | None
    spec: dict[str, Any]
    svg: str
    files: dict[str, Path]
    holds: tuple[str, ...]


def figure(name: str) -> Figure:
    """Return the figure called `name`."""
    if name not in FIGURES:
        near = difflib.get_close_matches(name, FIGURES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(FIGURES)}"
        raise AnalysisError(f"no figure is called {name!r}; {hint}")
    return cast(Figure, importlib.import_module(FIGURES[name]))


def draw(run: Run, names: Sequence[str], out_dir: Path) -> list[Drawn]:
    """Draw the named figures of `run` into `out_dir`, each chart as HTML, SVG, PDF and PNG."""
    figures = [figure(name) for name in dict.fromkeys(names)]
    return [_save(one.NAME, panel, out_dir) for one in figures for panel in one.charts(run)]


def _save(name: str, panel: Panel, out_dir: Path) -> Drawn:
    from analysis import vega
    from analysis.files import write_bytes

    spec = vega.plain(panel.chart.to_dict())
    svg = vega.svg(spec)
    contents = {
        "html": vega.page(spec, panel.title).encode(),
        "svg": svg.encode(),
        "pdf": vega.pdf(svg),
        "png": vega.png(svg),
    }
    files = {kind: out_dir / f"{panel.name}.{kind}" for kind in FORMATS}
    for kind, path in files.items():
        write_bytes(path, contents[kind])
    return Drawn(name, panel.name, panel.title, panel.trial, panel.reason, spec, svg, files, panel.holds)
