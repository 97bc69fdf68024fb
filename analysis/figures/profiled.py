"""The profile of a run's trials, as figures take it."""

from __future__ import annotations

import polars as pl

from analysis.errors import CannotDraw
from analysis.profile import read_profile
from analysis.run import Run


def profile(run: Run) -> pl.DataFrame:
    """Return `analysis.profile.read_profile` of the run; raise CannotDraw where it holds nothing."""
    frame = read_profile(run)
    if frame.is_empty():
        raise CannotDraw("no trial of this run has metrics by phase and operation")
    return frame
