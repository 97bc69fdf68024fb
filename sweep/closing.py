"""What becomes of a run that has ended: the ledger, the comparison with its baseline, the history, older runs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sweep.baseline import Baseline
from sweep.definition import Retention
from sweep.errors import first_line
from sweep.record import shown
from tasks.text import printable


def enter(actor: Any, folder: Path, limit_s: float | None = None) -> None:
    """Enter the run's trials in the ledger; trouble with it is a message, for the run itself is whole."""
    hint = f"once mended, enter it with: python -m analysis.ledger {shown(folder.parent.parent)}"
    _tried(actor.enter.remote(), "this run is not in the ledger", hint, limit_s)


def judge(actor: Any, folder: Path, baseline: Baseline) -> dict[str, Any] | None:
    """Return how the run compares with its baseline; None, with a message, where that cannot be told."""
    hint = f"the run itself is whole: python -m analysis.compare {shown(folder)} BASE"
    told: dict[str, Any] | None = _tried(actor.judge.remote(baseline.told()), "the run cannot be compared", hint)
    return told


def tell(actor: Any, folder: Path, judged: Mapping[str, Any] | None) -> None:
    """Print the summary of a night, and where its sweep's history is."""
    print()
    if judged:
        print(printable(judged["text"]))
    hint = f"draw it with: python -m analysis.history {shown(folder.parent)}"
    if page := _tried(actor.refresh_history.remote(), "the history cannot be drawn", hint):
        print(f"history: {shown(Path(page))}")


def retire(actor: Any, folder: Path, retention: Retention, baseline: Baseline | None) -> None:
    """Remove the sweep's runs that are too many or too large, and say which."""
    if retention.runs is None and retention.size is None:
        return
    used = [str(one.folder) for one in baseline.bases if one.folder] if baseline else []
    lines = _tried(actor.retire.remote(retention.runs, retention.size, used), "no run was removed", "")
    for line in lines or []:
        print(printable(line), flush=True)


def _tried(call: Any, failed: str, hint: str, limit_s: float | None = None) -> Any:
    """Return what the actor answers; where it cannot, say so and return None."""
    import ray

    try:
        return ray.get(call, timeout=limit_s)
    except ray.exceptions.RayError as e:
        text = first_line(getattr(e, "cause", None) or e)
        print(printable(f"sweep: {failed}: {text}" + (f"\n  {hint}" if hint else "")), file=sys.stderr, flush=True)
        return None
