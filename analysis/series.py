"""Measures by night, from the ledger: one series for each cell, phase and measure, and what changed between nights."""

from __future__ import annotations

import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from zlib import crc32

from analysis.matching import measured_phases
from analysis.measures import Measure
from analysis.metrics import WHOLE
from analysis.observations import MEASURED, flat
from analysis.shift import MOST_SHUFFLES, Shift, shifts

if TYPE_CHECKING:
    import pandas as pd

#: What is followed of each phase, of the operation that moves most, and of what engines report.
OF_PHASES = ("bandwidth_gib_s", "d2c_p99_us")
OF_ENGINES = ("tokens_per_s", "prefill_tokens_per_s", "decode_tokens_per_s")
#: Of histories in which nothing changed, at most this share have a step at all, with up to a thousand series: a p is
#: of so many shuffles, and each further series adds 0.005 %.
_ALPHA = 0.05


@dataclass(frozen=True)
class Night:
    """One run's repeats of a cell: their values of one measure."""

    run: str
    at: datetime
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The night's value, as it is drawn and judged."""
        return statistics.median(self.values)


@dataclass(frozen=True)
class Series:
    """One measure of one cell by night, the oldest first. `shifts` are its steps, by the place of the first night."""

    cell: str
    measure: Measure
    nights: tuple[Night, ...]
    shifts: tuple[Shift, ...]

    @property
    def title(self) -> str:
        """What is measured, of which phase, in words without the unit."""
        alone = self.measure.op is not None or self.measure.phase == WHOLE
        return self.measure.title if alone else f"{self.measure.title} of {self.measure.phase}"


@dataclass(frozen=True)
class Change:
    """A fact that was another from a night on, and in how many of that night's cells; None: it was not there."""

    run: str
    at: datetime
    fact: str
    before: str | None
    after: str | None
    cells: tuple[str, ...]


def series(rows: pd.DataFrame) -> list[Series]:
    """Return all series of a sweep's results, measure by measure; `rows` are those of `ledger.results`.

    Valid trials only. Of each phase of a cell the operation that moved most is followed; of one of which no bytes are
    known, its duration.
    """
    valid = rows[rows.verdict == "valid"]
    parts = [
        (str(cell), measure, nights)
        for measure, own in _measured(valid)
        for cell, part in sorted(own.groupby("cell", observed=True), key=lambda pair: _order(str(pair[0])))
        if (nights := _nights(part, own.attrs["column"]))
    ]
    alpha = max(_ALPHA / len(parts), 1 / (MOST_SHUFFLES + 1)) if parts else _ALPHA
    return [
        Series(cell, measure, nights, _shifts(nights, alpha, crc32(f"{cell} {measure}".encode())))
        for cell, measure, nights in parts
    ]


def _shifts(nights: Sequence[Night], alpha: float, seed: int) -> tuple[Shift, ...]:
    """Return the steps of a series; with a seed of its own, or all would be shuffled alike and err together."""
    values = [value for night in nights for value in night.values]
    groups = [place for place, night in enumerate(nights) for _ in night.values]
    return tuple(shifts(values, groups, alpha=alpha, seed=seed))


def _measured(valid: pd.DataFrame) -> Iterator[tuple[Measure, pd.DataFrame]]:
    """Yield each measure that is followed with the rows that have it; the column is in the rows' `attrs`."""
    whole = valid[(valid.phase == WHOLE) & (valid.op == "all")]
    for name in OF_ENGINES:
        column = f"{MEASURED}{name}"
        if column in valid and whole[column].notna().any():
            yield Measure(name, ""), _with(whole, column)
    for phase in measured_phases(valid):
        own = valid[valid.phase == phase]
        busier = {str(cell): _busier(part) for cell, part in own.groupby("cell", observed=True)}
        for op in dict.fromkeys(busier.values()):
            part = own[own.cell.isin([cell for cell, one in busier.items() if one == op]) & (own.op == (op or "all"))]
            for name in OF_PHASES if op else ("duration_s",):
                if part[name].notna().any():
                    yield Measure(name, "", op, phase), _with(part, name)


def _with(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    found = rows[rows[column].notna()].copy()
    found.attrs["column"] = column
    return found


def _busier(rows: pd.DataFrame) -> str | None:
    """Return the operation that moved more bytes in a phase, None where neither moved any."""
    moved = {op: int(rows[rows.op == op].bytes.fillna(0).sum()) for op in ("read", "write")}
    op = max(moved, key=lambda one: moved[one])
    return op if moved[op] else None


def _nights(rows: pd.DataFrame, column: str) -> tuple[Night, ...]:
    found = [
        Night(str(run), own.run_started.min().to_pydatetime(), tuple(map(float, own[column])))
        for run, own in rows.groupby("run", observed=True)
    ]
    return tuple(sorted(found, key=lambda night: (night.at, night.run)))


def _order(cell: str) -> tuple[tuple[int, float, str], ...]:
    """Return what cells are sorted by: numbers as numbers, sizes and words as text."""
    return tuple(
        (0, float(value), "") if isinstance(value, (int, float)) else (1, 0.0, str(value))
        for _, value in sorted(json.loads(cell).items())
    )


# --- what changed ----------------------------------------------------------------------------------------------------


def changes(rows: pd.DataFrame) -> list[Change]:
    """Return what was another than the night before in the environment or configuration of a cell, night by night."""
    found: dict[tuple[str, str, str | None, str | None], list[str]] = defaultdict(list)
    began: dict[str, datetime] = {}
    for cell, own in rows.groupby("cell", observed=True):
        before: dict[str, str] | None = None
        for at, run, facts in _facts(own):
            began[run] = min(at, began.get(run, at))
            for fact in sorted({*facts, *before}) if before is not None else ():
                assert before is not None
                if facts.get(fact) != before.get(fact):
                    found[run, fact, before.get(fact), facts.get(fact)].append(str(cell))
            before = facts
    told = [Change(run, began[run], fact, a, b, tuple(cells)) for (run, fact, a, b), cells in found.items()]
    return sorted(told, key=lambda one: (one.at, one.fact, -len(one.cells)))


def _facts(rows: pd.DataFrame) -> Iterator[tuple[datetime, str, dict[str, str]]]:
    """Yield by night what the trials of a cell ran on, by name; of facts that its trials differ in, the commonest."""
    nights = [(own.run_started.min(), str(run), own) for run, own in rows.groupby("run", observed=True)]
    for at, run, own in sorted(nights, key=lambda night: night[:2]):
        trials = own.drop_duplicates("trial")
        told: dict[str, Counter[str]] = defaultdict(Counter)
        for environment, configuration in zip(trials.environment, trials.configuration, strict=True):
            for name, value in (*_told(environment), *((f"sweep: {key}", v) for key, v in _told(configuration))):
                told[name][_text(value)] += 1
        if told:
            yield at.to_pydatetime(), run, {name: values.most_common(1)[0][0] for name, values in told.items()}


def _told(text: Any) -> Iterator[tuple[str, Any]]:
    value = json.loads(text) if isinstance(text, str) else {}
    if isinstance(value, Mapping):
        yield from flat(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def labels(cells: Sequence[str]) -> dict[str, str]:
    """Return cells in words, by the axes in which they differ, with no more of an axis' name than tells it."""
    values = {cell: json.loads(cell) for cell in cells}
    axes = list(dict.fromkeys(axis for own in values.values() for axis in own))
    differ = [axis for axis in axes if len({_text(own.get(axis)) for own in values.values()}) > 1] or axes
    short = {axis: axis.rpartition(".")[2] for axis in differ}
    names = {axis: short[axis] if [*short.values()].count(short[axis]) == 1 else axis for axis in differ}
    return {
        cell: ", ".join(f"{names[axis]}={_text(own[axis])}" for axis in differ if axis in own) or "all trials"
        for cell, own in values.items()
    }
