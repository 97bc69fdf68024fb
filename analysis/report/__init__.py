"""What was run, on what, and what came of it: `report.html`, one self-contained page, and `report.md`.

Both tell the same facts (`content`), in the same tables (`table`); `html` and `markdown` only say how they look.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.files import write_bytes
from analysis.report import html, markdown
from analysis.report.content import gathered

if TYPE_CHECKING:
    from analysis.figures import Drawn
    from analysis.run import Run

__all__ = ["render", "write_report"]


def write_report(run: Run, drawn: Sequence[Drawn]) -> dict[str, Path]:
    """Write `report.html` and `report.md` into the run's folder, with the given figures; return their paths by format.

    A file that cannot be written is an OSError.
    """
    told = gathered(run, drawn)
    texts = {"html": html.page(told), "md": markdown.document(told)}
    paths = {kind: run.path / f"report.{kind}" for kind in texts}
    for kind, path in paths.items():
        # half a surrogate pair, which JSON can hold, is no text
        write_bytes(path, texts[kind].encode("utf-8", "replace"))
    return paths


def render(run: Run, drawn: Sequence[Drawn]) -> str:
    """Return the text of `report.html`."""
    return html.page(gathered(run, drawn))
