"""`report.html`: one page that needs no network."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2

from analysis import vega
from analysis.figures.theme import ALARM, INK
from analysis.findings import DIFFERS, NOT_TESTABLE, REPRODUCED
from analysis.report.table import MISSING, SIGNS
from analysis.run import STATES

if TYPE_CHECKING:
    from analysis.figures import Drawn
    from analysis.report.content import Content

_TEMPLATES = Path(__file__).parents[1] / "templates"
#: With more trials than this each one's section is closed until somebody opens it, and its charts, most of the page's
#: weight, are not there as pictures too: the script draws them.
_MOST_OPEN = 8
#: Classes of the page's stylesheet.
_OUTCOMES = {REPRODUCED: "reproduced", DIFFERS: "differs", NOT_TESTABLE: "untested"}


@dataclass(frozen=True)
class _Chart:
    """A chart as the page holds it: `svg` is a data URL shown at once (empty where the script draws it first), `spec`
    JSON for the interactive one, `file` the path of its PNG from the page."""

    anchor: str
    title: str
    reason: str | None
    svg: str
    spec: str
    file: str


def page(told: Content) -> str:
    """Return the page. All text from the run is escaped; charts travel as JSON that no parser takes for markup."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    many = len(told.trials) > _MOST_OPEN
    charts = {one.name: _chart(told, one, still=not many or one.trial is None) for one in told.drawn}
    return environment.get_template("report.html.j2").render(
        told=told,
        run=told.run,
        states=(*STATES, MISSING),
        signs=SIGNS,
        outcomes=_OUTCOMES,
        figures=[charts[one.name] for one in told.figures_of(None)],
        figures_of=lambda trial: [charts[one.name] for one in told.figures_of(trial)],
        many=many,
        libraries=vega.libraries(vega.version(told.drawn[0].spec)) if told.drawn else "",
        embed_options=vega.json_for_script(vega.EMBED_OPTIONS),
        ink=INK,
        alarm=ALARM,
    )


def _chart(told: Content, drawn: Drawn, still: bool) -> _Chart:
    picture = base64.b64encode(drawn.svg.encode()).decode()
    return _Chart(
        anchor=f"figure-{drawn.name}",
        title=drawn.title,
        reason=drawn.reason,
        svg=f"data:image/svg+xml;base64,{picture}" if still else "",
        spec=vega.json_for_script(drawn.spec),
        file=told.path_of(drawn),
    )
