"""The profile of a run's trials, as figures take it."""

from __future__ import annotations

import importlib

import polars as pl

from analysis.errors import CannotDraw
from analysis.run import Run


def profile(run: Run) -> pl.DataFrame:
    """Return `analysis.profile.read_profile` of the run; raise CannotDraw where it holds nothing."""
    try:
        frame: pl.DataFrame = importlib.import_module("analysis.profile").read_profile(run)
    except ModuleNotFoundError:
        raise CannotDraw("metrics by phase and operation are not computed here (analysis.profile is missing)") from None
    if frame.is_empty():
        raise CannotDraw("no trial of this run has metrics by phase and operation")
    return frame
