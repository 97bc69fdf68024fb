"""What can go wrong here, as one line for a reader."""

from __future__ import annotations


class AnalysisError(Exception):
    """A folder, file or request of the user that the analysis cannot work with."""


class CannotDraw(AnalysisError):
    """A figure that this data rules out; the message is the reason, as the report shows it."""
