"""The figures, by name. A figure is a module with

- `NAME`, `TITLE`;
- `charts(run)`: its panels, one for the run or one per trial, each a chart or the reason why there is none: a run that
  holds nothing the figure is about gets one panel that says so.

A new figure is one such file and one line in FIGURES. One that draws what its name asks for (`metric:MEASURE@AXIS`) has
`asked(text)` too, which returns such a figure; its `check(run)` raises AnalysisError where the run lacks it altogether.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from analysis import measures
from analysis.errors import AnalysisError, CannotDraw, nearest

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
    "timeline": "analysis.figures.overview",
    "sectors": "analysis.figures.sectors",
    "tokens": "analysis.figures.tokens",
    "metric": "analysis.figures.metric",
    "roofline": "analysis.figures.roofline",
    "search": "analysis.figures.search",
}
#: Drawn for every trial, whatever a sweep asks for, unless a figure that was asked for holds them.
ALWAYS = ("timeline", "sizes")

#: So many charts of a figure are drawn unasked: those of thousands of trials would take hours, and fill no screen.
MOST_BESIDES = 200
#: Drawn too where a trial of the run has this table.
WITH_TABLE = {"roles": "extents"}
#: Names that may go on, after a colon, with what is to be drawn.
ASKED = ("metric",)
FORMATS = ("html", "svg", "pdf", "png")


class Figure(Protocol):
    NAME: str
    TITLE: str

    def charts(self, run: Run) -> Iterator[Panel]: ...


class Asked(Figure, Protocol):
    def check(self, run: Run) -> None: ...


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


def check(name: str, axes: Collection[str] | None = None) -> None:
    """Raise AnalysisError where no figure has this name, or where what it asks for after a colon cannot be.

    `axes` are those of the sweep; without them any is taken. Imports no figure.
    """
    base, colon, asked = name.partition(":")
    if base not in FIGURES:
        raise AnalysisError(f"no figure is called {name!r}; {nearest(base, FIGURES, len(FIGURES))}")
    if not colon:
        return
    if base not in ASKED:
        raise AnalysisError(f"no figure {name!r}; {base} takes nothing after a colon")
    try:
        wanted = measures.parse(asked)
        if axes is not None:
            measures.axis_of(wanted.axis, axes)
    except AnalysisError as error:
        raise AnalysisError(f"{name}: {error}") from None


def figure(name: str) -> Figure:
    """Return the figure called `name`."""
    check(name)
    base, _, asked = name.partition(":")
    module = importlib.import_module(FIGURES[base])
    return cast(Figure, module.asked(asked) if asked else module)


def by_hand(run: Run, name: str) -> Figure:
    """Return the figure that someone asks for of this run; AnalysisError where what is asked for is not in the run.

    A sweep's own list is not checked so: there the picture says why it is not drawn.
    """
    one = figure(name)
    if ":" in name:
        try:
            cast(Asked, one).check(run)
        except AnalysisError as error:
            raise AnalysisError(f"{name}: {error}") from None
    return one


def draw(run: Run, names: Sequence[str], out_dir: Path, besides: Sequence[str] = ()) -> list[Drawn]:
    """Draw the named figures of `run` into `out_dir`, each chart as HTML, SVG, PDF and PNG.

    Those of `besides` follow, but for charts that are parts of one that is drawn by then: each takes half a second and
    more than a megabyte. Of each of these, the first `MOST_BESIDES` are drawn.
    """
    drawn: list[Drawn] = []
    held: set[tuple[str, str | None]] = set()
    for name in dict.fromkeys([*names, *besides]):
        one = figure(name)
        for panel in islice(one.charts(run), None if name in names else MOST_BESIDES):
            if name in names or (name, panel.trial) not in held:
                drawn.append(_save(one.NAME, panel, out_dir))
                held |= {(part, panel.trial) for part in drawn[-1].holds if drawn[-1].reason is None}
    return drawn


def _save(name: str, panel: Panel, out_dir: Path) -> Drawn:
    """Write a chart in all formats; one that cannot be converted becomes the picture that says why."""
    from analysis.figures.panel import ruled_out
    from analysis.files import write_bytes

    try:
        spec, svg, contents = _converted(panel)
    except CannotDraw as error:
        panel = ruled_out(panel.name, panel.title, str(error), panel.trial)
        spec, svg, contents = _converted(panel)
    files = {kind: out_dir / f"{panel.name}.{kind}" for kind in FORMATS}
    for kind, path in files.items():
        write_bytes(path, contents[kind])
    return Drawn(name, panel.name, panel.title, panel.trial, panel.reason, spec, svg, files, panel.holds)


def _converted(panel: Panel) -> tuple[dict[str, Any], str, dict[str, bytes]]:
    """Return a chart's specification, its SVG, and its content in each format."""
    from analysis import vega

    spec = vega.plain(panel.chart.to_dict())
    svg = vega.svg(spec)
    page = vega.page(spec, panel.title).encode()
    return spec, svg, {"html": page, "svg": svg.encode(), "pdf": vega.pdf(svg), "png": vega.png(svg)}
