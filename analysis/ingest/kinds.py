"""The kinds of files that can be imported, and which of them a file is, by its content."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

from analysis.errors import AnalysisError
from analysis.ingest import bite_size, blkparse, commands, deepnvme, fio_log, generation, nvidia, text
from analysis.ingest.part import Part, Source

#: Those with requests: `read(source, folder)` writes them; the others have `read(source)`.
TRACES = {module.KIND: module for module in (bite_size, blkparse, fio_log)}
_OTHERS = {module.KIND: module for module in (nvidia, deepnvme, generation, commands)}
#: In the order in which they are tried.
KINDS: dict[str, Any] = {**_OTHERS, **TRACES}


def kind_of(path: Path) -> str | None:
    """Return the kind of a file by what is in it, None where it is of none; AnalysisError where it cannot be read."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise AnalysisError(f"{path}: not a regular file")
        content = text.ends(path)
    except OSError as error:
        raise AnalysisError(f"{path}: cannot be read ({error.strerror})") from None
    return next((kind for kind, module in KINDS.items() if module.recognises(content)), None)


def read(kind: str, source: Source, folder: Path) -> Part:
    """Read a file of a kind; requests go to `requests.parquet` in `folder`."""
    part: Part = KINDS[kind].read(source, folder) if kind in TRACES else KINDS[kind].read(source)
    return part


def described() -> str:
    """Return what is looked for, one line a kind."""
    return "\n".join(f"  {kind}: {module.ABOUT}" for kind, module in KINDS.items())
