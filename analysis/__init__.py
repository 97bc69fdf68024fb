"""Parquet in; metrics, figures and a report out.

    from analysis import load_run
    load_run("results/quickstart").trials()

Names load on first use: importing `analysis` or `analysis.schema` imports no polars, pandas, Altair or Ray.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from analysis.drawing import draw_run
    from analysis.errors import AnalysisError
    from analysis.run import Run, Trial, load_run, load_trial
    from analysis.summary import write_summary

__all__ = ["AnalysisError", "Run", "Trial", "draw_run", "load_run", "load_trial", "write_summary"]

_HOMES = {
    "AnalysisError": "errors",
    "Run": "run",
    "Trial": "run",
    "draw_run": "drawing",
    "load_run": "run",
    "load_trial": "run",
    "write_summary": "summary",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'analysis' has no attribute {name!r}")
    return getattr(importlib.import_module(f"analysis.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
