"""The steps in which an engine generates tokens: how long each took, and what the drive moved in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from analysis.attribution import attribute
from analysis.metrics import GENERATION, phases
from analysis.run import load_trial
from analysis.units import NS_PER_S

_SCHEMA = {
    "process": pl.String,
    "phase": pl.String,
    "step": pl.Int64,
    "duration_s": pl.Float64,
    "read_bytes": pl.Int64,
    "write_bytes": pl.Int64,
}


def steps(trial_dir: str | Path) -> pl.DataFrame:
    """Return the prefill and the decode steps of a trial in order: `process`, `phase`, `step`, `duration_s`,
    `read_bytes`, `write_bytes`.

    A request belongs to the step in which it was issued: what the page cache writes later counts where it is written.
    Bytes are None where no single requests were traced. Steps that did not end are left out. The trace is streamed.
    """
    path = load_trial(trial_dir).table("requests")
    told = [one for one in phases(trial_dir) if one.name in GENERATION and one.step is not None]
    spans = [(one, (one.begin_ns, one.end_ns)) for one in told if one.end_ns is not None]
    found = attribute(path, [span for _, span in spans]) if path is not None and spans else None
    rows = []
    for place, (one, (begin, end)) in enumerate(spans):
        totals: dict[str, Any] = found.totals(place) if found else {}
        row = {"process": one.process, "phase": one.name, "step": one.step, "duration_s": (end - begin) / NS_PER_S}
        rows.append(row | {f"{op}_bytes": totals.get(f"traced_{op}_bytes") for op in ("read", "write")})
    return pl.DataFrame(rows, schema=_SCHEMA)
