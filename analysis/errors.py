"""What can go wrong here, as one line for a reader."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable

#: Exit code of a command that was asked for what cannot be done.
USAGE_ERROR = 2
_MOST_NAMES = 12


class AnalysisError(Exception):
    """A folder, file or request of the user that the analysis cannot work with."""


class StoreFull(AnalysisError):
    """The disk of the results has no room for a trial: the run cannot go on, what is published is kept."""


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


def reported(error: AnalysisError | OSError, place: object) -> int:
    """Print an error that ends a command in one line and return its exit code; `place` stands for a file not named."""
    if isinstance(error, OSError):
        print(f"error: {error.filename or place}: {error.strerror or error}", file=sys.stderr)
    else:
        print(f"error: {error}", file=sys.stderr)
    return USAGE_ERROR
