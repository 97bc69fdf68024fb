"""`report.html`: one page that opens from a file, with no network."""

from __future__ import annotations

import base64
from pathlib import Path

import jinja2

from analysis import vega
from analysis.figures import Drawn
from analysis.figures.cells import varying
from analysis.figures.theme import ALARM, INK
from analysis.report.content import MISSING, Content

_TEMPLATES = Path(__file__).parent.parent / "templates"
_SIGNS = {"valid": "✓", "invalid": "!", "failed": "✕", MISSING: "–"}
#: The sections of single trials are open where there are no more of them than a page can show.
_MOST_OPEN = 3
#: An axis gets a list to choose from where it has no more values than one looks through.
_MOST_CHOICES = 40


def render(content: Content) -> str:
    """Return the page. All text from the run is escaped; charts travel as JSON that no parser takes for markup."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    chosen = [one.figure for one in content.chosen if one.figure]
    figures = (*chosen, *content.figures, *(figure for part in content.parts for figure in part.figures))
    specs = [one.spec for one in figures]
    return environment.get_template("report.html.j2").render(
        content=content,
        run=content.run,
        signs=_SIGNS,
        script=(_TEMPLATES / "report.js").read_text(encoding="utf-8"),
        filters=vega.json_for_script(_filters(content)),
        axes=_choices(content),
        picture=_picture,
        spec=lambda one: vega.json_for_script(one.spec),
        open_parts=len(content.parts) <= _MOST_OPEN,
        libraries=vega.libraries(vega.version(specs[0])) if specs else "",
        embed_options=vega.json_for_script(vega.EMBED_OPTIONS),
        ink=INK,
        alarm=ALARM,
    )


def _picture(drawn: Drawn) -> str:
    """Return the chart as a data URL, shown until the interactive one is there."""
    return f"data:image/svg+xml;base64,{base64.b64encode(drawn.svg.encode()).decode()}"


def _choices(content: Content) -> dict[str, list[str]]:
    """Return the values of each axis that trials differ in, in the order of the plan."""
    trials = content.run.published
    values = {axis: list(dict.fromkeys(str(one.cell.get(axis)) for one in trials)) for axis in varying(trials)}
    return {axis: own for axis, own in values.items() if len(own) <= _MOST_CHOICES}


def _filters(content: Content) -> dict[str, dict[str, object]]:
    """Return what the filter looks at, by the name that rows and sections of a trial carry."""
    axes = varying(content.run.published)
    return {
        row.trial: {
            "state": row.cells[1].text,
            "text": " ".join(cell.text for cell in row.cells[:1]) + " " + row.cells[1].hint,
            "cell": {axis: str(_cell(content, row.trial).get(axis)) for axis in axes},
        }
        for row in content.trials.rows
    }


def _cell(content: Content, slug: str) -> dict[str, object]:
    for trial in content.run.published:
        if trial.slug == slug:
            return trial.cell
    for entry in content.run.missing:
        if f"{MISSING} {entry.get('slug')}" == slug:
            return dict(entry.get("cell") or {})
    return {}
