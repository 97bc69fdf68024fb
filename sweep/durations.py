"""How long trials may take: as long as earlier trials of the same cells took."""

from __future__ import annotations

import datetime
import json
import os
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sweep.past import runs_of
from sweep.placement import Placement, Placements
from sweep.plan import Trial

#: How many runs are looked into, the newest first, how many trials of a cell are enough, and how many records are read.
_RUNS, _OF_A_CELL, _RECORDS = 10, 5, 20_000


class Durations:
    """Seconds that earlier trials took, by cell; read from a sweep's folder of runs."""

    def __init__(self, folder: Path, trials: Iterable[Trial]) -> None:
        """Read what the newest runs in `folder` have of the cells of these trials, up to a bound."""
        cells = {trial.slug: id(trial.cell) for trial in trials}
        known: dict[int, list[float]] = {}
        left = _RECORDS
        for run in runs_of(folder)[: -_RUNS - 1 : -1]:
            for slug in _published(run) & cells.keys():
                own = known.setdefault(cells[slug], [])
                if len(own) >= _OF_A_CELL or not left:
                    continue
                left -= 1
                if (took_s := _took_s(run / "trials" / slug / "trial.json")) is not None:
                    own.append(took_s)
        self._median_s = {cell: statistics.median(own) for cell, own in known.items() if own}

    def of(self, trial: Trial) -> float | None:
        """Return the seconds that a trial may take, or None where no earlier one of its cell is known."""
        return self._median_s.get(id(trial.cell))

    def total(self, trials: Iterable[Trial], placements: Placements, cooldown_s: float) -> float:
        """Return the seconds that those trials may take of which something is known, one at a time on each node.

        All trials of a cell run on one node, here the one that has least to do, and a drive rests between two trials.
        What runs in memory lets no drive rest.
        """
        load_s: dict[str | None, float] = {}
        rests_s: dict[str | None, float] = {}
        homes: dict[int, Placement] = {}
        for trial in trials:
            took_s, cell = self.of(trial), id(trial.cell)
            if took_s is None:
                continue
            if cell not in homes:
                able = placements.of(trial)
                homes[cell] = min(able, key=lambda p: load_s.get(p.node.ray_id, 0.0) + rests_s.get(p.node.ray_id, 0.0))
            node = homes[cell].node.ray_id
            load_s[node] = load_s.get(node, 0.0) + took_s
            if homes[cell].drives:
                rests_s[node] = rests_s.get(node, -cooldown_s) + cooldown_s
        return max((s + rests_s.get(node, 0.0) for node, s in load_s.items()), default=0.0)


def _published(run: Path) -> set[str]:
    try:
        with os.scandir(run / "trials") as entries:
            return {entry.name for entry in entries}
    except OSError:
        return set()


def _took_s(path: Path) -> float | None:
    """Return how long a valid trial took, None for any other and what cannot be read."""
    try:
        record: Mapping[str, Any] = json.loads(path.read_bytes())
        if record["verdict"]["state"] != "valid":
            return None
        begin, end = (datetime.datetime.fromisoformat(record[name]) for name in ("started", "ended"))
        return max(0.0, (end - begin).total_seconds())
    except (OSError, ValueError, KeyError, TypeError):
        return None


def in_words(seconds: float) -> str:
    """Return a time as a person would say it: `8 s`, `12 min`, `3 h 20 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 1 else "1 s"
    minutes = round(seconds / 60)
    hours, rest = divmod(minutes, 60)
    return f"{minutes} min" if minutes < 100 else f"{hours} h {rest} min"
