"""What can go wrong here, as one line for a reader."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_MOST_NAMES = 12


class AnalysisError(Exception):
    """A folder, file or request of the user that the analysis cannot work with."""


class CannotDraw(AnalysisError):
    """A figure that this data rules out; the message is the reason, as the report shows it."""


def nearest(name: str, valid: Iterable[str], most: int = _MOST_NAMES) -> str:
    """Return the hint that ends a message about an unknown name: the nearest valid one, or `most` of all there are."""
    names = list(dict.fromkeys(valid))
    near = difflib.get_close_matches(name, names, n=1)
    if near:
        return f"did you mean {near[0]}?"
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return f"there are {', '.join(names[:most])}{more}" if names else "there are none"
