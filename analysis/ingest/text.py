"""Text files, a line at a time, whatever is in them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from analysis.ingest.part import Part

#: A longer line is read in pieces of this size.
_LINE_BYTES = 1 << 20
_ENDS_BYTES = 1 << 16
EMPTY = "an empty file"


def lines(part: Part) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line of the part's file, and count them; a file without any is counted as empty."""
    with part.source.path.open("rb") as file:
        while line := file.readline(_LINE_BYTES):
            part.lines += 1
            yield part.lines, line.decode("utf-8", errors="replace").rstrip("\r\n")
    if not part.lines:
        part.skipped.add(EMPTY, part.source.name)


def ends(path: Path) -> bytes:
    """Return the beginning and the end of a file, enough to tell what it is."""
    with path.open("rb") as file:
        head = file.read(_ENDS_BYTES)
        size = file.seek(0, 2)
        if size <= len(head):
            return head
        file.seek(max(size - _ENDS_BYTES, len(head)))
        return head[: head.rfind(b"\n") + 1 or len(head)] + file.read().partition(b"\n")[2]
