"""When a cell has repeats enough: once the mean of a metric is known well enough, or at a bound.

The interval is Student's, of the mean (`analysis.intervals`): it can be told from two repeats on, where an interval of
the median needs six for 95 % (order statistics: 1 - 2 * 0.5**n), which leaves nothing to adapt. To stop once
t * s / sqrt(n) <= rel * mean is the fixed-width rule of Chow and Robbins, On the Asymptotic Theory of Fixed-Width
Sequential Confidence Intervals for the Mean, Ann. Math. Statist. 36 (1965) 457-462. It stops early where the first
repeats happen to agree, so the interval holds the mean somewhat less often than it says; docs/search.md has how often.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from analysis import measures
from analysis.errors import AnalysisError
from analysis.intervals import interval, student_t
from sweep.definition import Stop, Until
from sweep.errors import ConfigError
from sweep.plan import Trial
from sweep.values import refuse_references, typed
from tasks import workloads


def checked(source: str, told: Mapping[str, Any], kind: str, most: int) -> Until:
    """Return the rule that `repeats` states; ConfigError where it makes no sense, or allows more than `most` trials."""
    if "until" not in told:
        raise ConfigError(source, "repeats.until", "is missing", "write {until: ci, rel: 0.05, max: 10}, or a number")
    refuse_references(source, told, "repeats")
    own = typed(source, Until, told, "repeats.")
    rule = Until(**own | {"until": Stop[own["until"]], "metric": own["metric"] or workloads.load(kind).metric})
    check_metric(source, "repeats.metric", rule.metric)
    for name in ("rel", "confidence"):
        if not 0 < vars(rule)[name] < 1:
            raise ConfigError(source, f"repeats.{name}", f"must be more than 0 and less than 1, not {vars(rule)[name]}")
    if rule.min < 2:
        raise ConfigError(source, "repeats.min", f"must be 2 or more, not {rule.min}: one trial has no interval")
    if not rule.min <= rule.max <= most:
        text = f"must be repeats.min, which is {rule.min}, to {most}, not {rule.max}"
        raise ConfigError(source, "repeats.max", text)
    return rule


def check_metric(source: str, key: str, name: str | None) -> None:
    """Refuse a metric that no trial could have, with the nearest one."""
    try:
        measures.named(str(name))
    except AnalysisError as error:
        raise ConfigError(source, key, str(error)) from None


@dataclass(frozen=True)
class Tally:
    """What ended trials of one cell came to: the metric of the valid ones, and what was wrong with the others."""

    values: tuple[float, ...] = ()
    bad: tuple[str, ...] = ()

    @property
    def ended(self) -> int:
        """How many have ended, however they did."""
        return len(self.values) + len(self.bad)

    @property
    def cannot_run(self) -> bool:
        """Whether all failed, which tells of the cell; an invalid trial tells nothing of it."""
        return bool(self.bad) and not self.values and all(text.startswith("failed") for text in self.bad)

    @property
    def median(self) -> float | None:
        """The median of the metric; None where no trial is valid."""
        return statistics.median(self.values) if self.values else None

    def interval(self, confidence: float = 0.95) -> tuple[float, float] | None:
        """Return the confidence interval of the metric's mean; None for fewer than two valid trials."""
        return interval(self.values, confidence)


def tally(trials: Sequence[Trial], finished: Mapping[str, Mapping[str, Any]]) -> Tally:
    """Return what the records of those trials come to that have one; valid ones without the metric are left out."""
    values, bad = [], []
    for record in (finished[trial.id] for trial in trials if trial.id in finished):
        verdict, value = record["verdict"], (record.get("observed") or {}).get("value")
        if verdict["state"] != "valid":
            bad.append("; ".join([str(verdict["state"]), *map(str, verdict.get("reasons") or ())]))
        elif value is not None:
            values.append(float(value))
    return Tally(tuple(values), tuple(bad))


def spread(rule: Until, told: Tally) -> float | None:
    """Return half the interval's width over the mean; None where fewer than two trials are valid, or the mean is 0."""
    n = len(told.values)
    mean = math.fsum(told.values) / n if n else 0.0
    if n < 2 or not mean:
        return 0.0 if n >= 2 and not any(told.values) else None
    return _t(n - 1, rule.confidence) * statistics.stdev(told.values) / math.sqrt(n) / abs(mean)


_t = cache(student_t)


def is_known(rule: Until, told: Tally) -> bool:
    """Say whether the metric of a cell is known as well as the rule asks for."""
    reached = spread(rule, told) if len(told.values) >= rule.min else None
    return reached is not None and reached <= rule.rel


def wanted(rule: Until, told: Tally) -> int:
    """Return how many trials a cell is to have by now, those that have ended among them.

    At first as many as the rule needs to judge, then one at a time: no more than needed are begun.
    """
    if is_known(rule, told) or told.ended >= rule.max:
        return told.ended
    return min(rule.max, max(rule.min, told.ended + max(1, rule.min - len(told.values))))
