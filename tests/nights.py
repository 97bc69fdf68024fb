"""Nights as `observations.of_run` tells of them, simulated: no trial runs, and the noise and the steps are known."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd

FIRST = datetime(2026, 11, 1, 2, 0, tzinfo=UTC)
#: What a fast, steady device repeats within.
NOISE = 0.02
CELLS = tuple({"storage.fs": fs, "workload.batch_size": size} for fs in ("ext4", "xfs") for size in (16, 64))

Level = Callable[[int, Mapping[str, Any]], float]


def night(
    number: int,
    cells: tuple[Mapping[str, Any], ...] = CELLS,
    repeats: int = 5,
    level: Level = lambda number, cell: 1.0,
    kernel: Callable[[int], str] = lambda number: "6.18.1",
    noise: float = NOISE,
    sweep: str = "s",
    seed: int = 7,
    **more: Any,
) -> pd.DataFrame:
    """Return the rows of one night: of each cell a phase `decode`, of which `level` is the share of the usual rate."""
    rng = np.random.default_rng([seed, number])
    started = FIRST + timedelta(days=number)
    rows = []
    for place, cell in enumerate(cells):
        for repeat in range(1, repeats + 1):
            rate = (2.0 + 0.3 * place) * level(number, cell) * float(rng.normal(1, noise))
            rows += _trial(cell, repeat, rate, started + timedelta(minutes=len(rows)))
    frame = pd.DataFrame(rows)
    frame["sweep"], frame["run"], frame["run_started"] = sweep, f"{started:%Y%m%d-%H%M%S}", started
    frame["environment"] = json.dumps({"kernel": kernel(number), "storage.fs": "as stated", "code": "c0de"})
    frame["configuration"] = json.dumps({"workload.gen_len": 32})
    frame["ceiling_read_gib_s"] = frame["ceiling_write_gib_s"] = np.nan
    frame["ceiling_measured_at"] = pd.Series(pd.NaT, index=frame.index, dtype="datetime64[us, UTC]")
    frame["run_state"], frame["run_whole"] = "finished", True
    for name, value in more.items():
        frame[name] = value
    return frame


def _trial(cell: Mapping[str, Any], repeat: int, rate: float, started: datetime) -> list[dict[str, Any]]:
    words = ",".join(f"{axis.rpartition('.')[2]}={value}" for axis, value in cell.items())
    own = {
        "trial": f"{words},rep={repeat}",
        "slug": f"{words}-{repeat}".replace("=", "-"),
        "cell": json.dumps(cell, sort_keys=True, separators=(",", ":")),
        "repeat": repeat,
        "attempt": 1,
        "verdict": "valid",
        "reasons": "",
        "started": started,
        **{f"cell.{axis}": value for axis, value in cell.items()},
    }
    seconds = 8 / rate
    return [
        {
            **own,
            "phase": phase,
            "name": phase,
            "op": op,
            "duration_s": seconds,
            "bytes": 8 << 30 if op != "write" else 0,
            "requests": 65536 if op != "write" else 0,
            "bandwidth_gib_s": rate if op != "write" else 0.0,
            "d2c_mean_us": 900.0 / rate if op != "write" else None,
            "d2c_p50_us": 800.0 / rate if op != "write" else None,
            "d2c_p99_us": 2000.0 / rate if op != "write" else None,
            "request_bytes_mean": 131072.0 if op != "write" else None,
            "request_bytes_p50": 131072 if op != "write" else None,
            "depth_mean": 8.0 if op != "write" else None,
            "unreadable": None,
        }
        for phase in ("trial", "decode")
        for op in ("read", "write", "all")
    ]
