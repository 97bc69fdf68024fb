"""What the trials of a run recorded, gathered once for the statements and the rules that judge it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import polars as pl

from analysis import samples
from analysis.metrics import WHOLE, generation_span, phases
from analysis.profile import read_profile
from analysis.run import Run, Trial
from analysis.schema import OPERATIONS
from analysis.spans import GENERATION
from analysis.summary import read_summary
from analysis.units import GIB


@dataclass(frozen=True)
class Evidence:
    """One published trial with its rows of the summary and of the profile; tables are read when they are asked for.

    `whole` is the summary's row of the traced window, `parts` are those of the measured phases, `repeats` counts the
    valid trials of the same cell. What was not recorded is None or has no rows.
    """

    trial: Trial
    whole: Mapping[str, Any]
    parts: Sequence[Mapping[str, Any]]
    profile: Sequence[Mapping[str, Any]]
    repeats: int

    @cached_property
    def generation(self) -> tuple[int, int] | None:
        """The first prefill's begin and the last decode step's end, monotonic ns."""
        begin, end = generation_span(phases(self.trial.path))
        return None if begin is None or end is None or begin >= end else (begin, end)

    @property
    def span(self) -> str:
        """The span that `sizes` and `measured` are of: `generation` where the trial has one, else the whole trial."""
        return GENERATION if self.generation else WHOLE

    @property
    def span_told(self) -> str:
        """Return the span in words."""
        return "while generating" if self.generation else "in the whole trace"

    @property
    def seconds(self) -> float | None:
        """How long the span is."""
        took: float | None = self.whole["generation_s" if self.generation else "duration_s"]
        return took or None

    def moved(self, op: str) -> int | None:
        """Return the bytes traced of `op` in the span, None where no requests were."""
        count: int | None = self.whole[f"{GENERATION if self.generation else 'traced'}_{op}_bytes"]
        return count

    def gib_s(self, op: str) -> float | None:
        """Return the mean bandwidth of `op` in the span."""
        moved = self.moved(op)
        return None if moved is None or self.seconds is None else moved / GIB / self.seconds

    def measured(self, op: str) -> Mapping[str, Any]:
        """Return the profile of `op` in the span; nothing where there is none."""
        own = [row for row in self.profile if row["phase"] == self.span and row["op"] == op]
        return own[0] if own else {}

    @cached_property
    def sizes(self) -> pl.DataFrame:
        """How many requests were issued in the span: `op`, `rwbs`, `bytes` (each), `count`; no rows without a trace."""
        path = self.trial.table("requests")
        columns = {"op": pl.String, "rwbs": pl.String, "bytes": pl.Int64, "count": pl.Int64}
        if path is None:
            return pl.DataFrame(schema=columns)
        told = pl.scan_parquet(path)
        if self.generation:
            begin, end = self.generation
            told = told.filter(pl.col("issue_ns").is_between(begin, end, closed="left"))
        keys = [pl.col("op").cast(pl.String), pl.col("rwbs").cast(pl.String), pl.col("bytes")]
        counted = told.select(keys).group_by("op", "rwbs", "bytes").agg(pl.len().cast(pl.Int64).alias("count"))
        return counted.filter(pl.col("op").is_in(OPERATIONS[:2])).collect(engine="streaming")

    @cached_property
    def samples(self) -> pl.DataFrame:
        """The samples taken in the span: `t_ns`, `source`, `name`, `value`."""
        told = samples.read(self.trial.path)
        begin, end = self.generation or self.trial.window or (None, None)
        return told if begin is None else told.filter(pl.col("t_ns").is_between(begin, end))

    def gauge(self, source: str, name: str) -> pl.Series:
        """Return the values of one gauge or counter in the span, by time."""
        return self.samples.filter((pl.col("source") == source) & (pl.col("name") == name))["value"]

    def queue_limit(self, name: str) -> int | None:
        """Return a whole number among the queue's settings, such as `max_sectors_kb`."""
        queue = self.trial.section("storage").get("queue")
        text = str(queue.get(name)) if isinstance(queue, Mapping) else ""
        return int(text) if text.isdigit() else None


def gathered(run: Run) -> list[Evidence]:
    """Return the evidence of each published trial, in plan order."""
    if not run.published:
        return []
    cells = Counter(_cell(trial) for trial in run.published if trial.state == "valid")
    rows, told = _by_slug(read_summary(run)), _by_slug(read_profile(run))
    return [
        Evidence(trial, rows[trial.slug][0], rows[trial.slug][1:], told.get(trial.slug, []), cells[_cell(trial)])
        for trial in run.published
    ]


def _cell(trial: Trial) -> tuple[tuple[str, str], ...]:
    return tuple((axis, str(value)) for axis, value in trial.cell.items())


def _by_slug(frame: pl.DataFrame) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in frame.to_dicts():
        found.setdefault(row["slug"], []).append(row)
    return found
