"""`report.html` and `report.md`: what was run, on what, and what came of it. Both are made of one `Content`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.files import write_bytes
from analysis.report import markdown, page
from analysis.report.content import gathered
from analysis.run import Run

if TYPE_CHECKING:
    from analysis.figures import Drawn


def render(run: Run, drawn: Sequence[Drawn]) -> str:
    """Return the page of a run with the given figures."""
    return page.render(gathered(run, drawn))


def write_report(run: Run, drawn: Sequence[Drawn]) -> Path:
    """Write `report.html` and `report.md` into the run's folder, with the given figures; return the page's path."""
    content = gathered(run, drawn)
    # half a surrogate pair, which JSON can hold, is no text
    write_bytes(run.path / "report.md", markdown.render(content).encode(errors="replace"))
    path = run.path / "report.html"
    write_bytes(path, page.render(content).encode(errors="replace"))
    return path
