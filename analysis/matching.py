"""What of a run can be set beside what of earlier ones: measures of the same cell, phase and configuration."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.errors import AnalysisError
from analysis.measures import OPERATIONS, OWN, PROFILE, SUMMARY, Measure, parse
from analysis.metrics import WHOLE
from analysis.observations import MEASURED
from analysis.selection import cell_text
from analysis.spans import GENERATION

if TYPE_CHECKING:
    import pandas as pd

ALL = "all"
#: Phases around the work, which nobody measures; `job` is all of a job that tells no phases of its own.
_AROUND, _JOB = ("init", "warmup", "drain"), "job"
#: What engines report, and the phase that it is of.
_TOKENS = {"prefill_tokens_per_s": "prefill", "decode_tokens_per_s": "decode", "tokens_per_s": GENERATION}
BANDWIDTH, DURATION = "bandwidth_gib_s", "duration_s"
#: Bytes or times that differ by less are the same.
_SAME = 0.01
#: Keys whose change is told and does not forbid to compare: where, and how it was watched; not what was done.
_TOLERATED = (
    *("ceiling.", "node.", "limits.time_limit_s", "storage.path", "storage.device", "storage.allow_format"),
    *("trace.buffer_size", "trace.spool_memory", "trace.sample_interval_ms", "trace.measure_cost"),
)
#: Every phase that is measured, in `*/read.d2c_p99_us`.
_EVERY = "*"


@dataclass(frozen=True)
class Key:
    """Which measure: `cell` is the canonical text of the axis values, `metric` the column, `op` of which operation."""

    cell: str
    phase: str
    metric: str
    op: str = ALL

    @cached_property
    def axes(self) -> dict[str, Any]:
        """The axis values."""
        return dict(json.loads(self.cell))

    @property
    def where(self) -> str:
        """Cell and phase as people write them: `fs=xfs,batch_size=16 decode`."""
        return f"{cell_words(self.cell)} {self.phase}".strip()

    @property
    def falls(self) -> bool:
        """Whether less of it is worse."""
        return lower_is_worse(self.metric)


@dataclass(frozen=True)
class Matched:
    """A measure of the run under test, and of the bases that have it: values by repeat, of valid trials alone."""

    key: Key
    now: Mapping[int, float]
    bases: Mapping[int, Mapping[int, float]]

    @property
    def repeats(self) -> tuple[int, int]:
        """How many values there are, of the run under test and of all bases."""
        return len(self.now), sum(map(len, self.bases.values()))

    def base_values(self) -> list[float]:
        """Return the values of all bases."""
        return [value for own in self.bases.values() for value in own.values()]


@dataclass
class Matching:
    """What could be matched, and what could not, in words; `lost` is what bases have of valid trials and the run lacks:
    cells, measures, and values of single trials."""

    measures: list[Matched] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


def cell_words(cell: str) -> str:
    """Return a cell's canonical text as trial ids show it; `the only cell` of a sweep without axes."""
    return ",".join(f"{axis}={cell_text(value)}" for axis, value in json.loads(cell).items()) or "the only cell"


@cache
def lower_is_worse(metric: str) -> bool:
    """Say in which direction a metric gets worse; AnalysisError of one that has no better and worse."""
    bare = metric.removeprefix(MEASURED)
    if bare.endswith(("gib_s", "per_s", "iops", "ceiling_share")):
        return True
    if bare.endswith(("_us", "_s", "stalled_share")):
        return False
    raise AnalysisError(
        f"--metric: {bare!r} is neither better nor worse when it grows; "
        "those with a direction are rates (..._gib_s, ..._per_s, iops) and times (..._us, ..._s)"
    )


def valid(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of valid, readable trials, of each trial those of its last attempt."""
    last = frame.attempt == frame.groupby("slug").attempt.transform("max")
    readable = frame.unreadable.isna() if "unreadable" in frame else True
    return frame[last & (frame.verdict == "valid") & readable]


def match(
    now: pd.DataFrame,
    bases: Sequence[pd.DataFrame],
    metrics: Sequence[str] = (),
    planned: Collection[str] | None = None,
) -> Matching:
    """Match each measure of each cell of a run with those of its bases, frames of `observations.of_run`.

    By default one measure of each measured phase: what a user of the engine waits for. `metrics` are others, as
    `analysis.measures` has them, `decode/read.d2c_p99_us`; `*/` is every measured phase. `planned` are the cells of the
    run's plan, where it is known: what a search did not try this time is not lost.
    """
    found = Matching()
    tables, current = [valid(base) for base in bases], valid(now)
    asked = [parse(f"{text}@cell") for text in metrics]
    for measure in asked:
        lower_is_worse(measure.name)
        _check_column(measure, now)
    for cell in dict.fromkeys(now.cell):
        mine = current[current.cell == cell]
        theirs = {n: own for n, table in enumerate(tables) if len(own := table[table.cell == cell])}
        if not len(mine):
            _none_now(cell, now[now.cell == cell], bool(theirs), found)
            continue
        kept = _alike(cell, mine, theirs, bases, found)
        if kept:
            others = list(kept.values())
            keys = _asked(mine, others, cell, asked) if metrics else _keys(mine, others, cell)
            found.measures += [one for key in keys if (one := _matched(key, mine, kept, found)) is not None]
        elif not theirs:
            found.unmatched.append(f"{cell_words(cell)}: {_absent(cell, bases)}")
    for cell in dict.fromkeys(cell for table in tables for cell in table.cell):
        if cell in set(now.cell):
            continue
        if planned is None or cell in planned:
            found.lost.append(f"{cell_words(cell)}: no trial of it in this run")
        else:
            found.unmatched.append(f"{cell_words(cell)}: not in this run's plan")
    if metrics and not (found.measures or found.unmatched or found.lost):
        raise AnalysisError(f"--metric {', '.join(metrics)}: no cell that the runs share has it in a valid trial")
    return found


def _none_now(cell: str, rows: pd.DataFrame, known: bool, found: Matching) -> None:
    broken = rows.unreadable.dropna() if "unreadable" in rows else []
    reasons = [str(reason) for reason in dict.fromkeys([*rows.reasons, *broken]) if reason]
    trials = rows.slug.nunique()
    told = f"{cell_words(cell)}: none of {trials} trials valid ({reasons[0] if reasons else 'no reason recorded'})"
    (found.lost if known else found.unmatched).append(told if known else f"{told}, nor is there one in a base")


def _absent(cell: str, bases: Sequence[pd.DataFrame]) -> str:
    if any((base.cell == cell).any() for base in bases):
        return "no base has a valid trial of it"
    return "no base has this cell"


def _alike(
    cell: str, mine: pd.DataFrame, theirs: Mapping[int, pd.DataFrame], bases: Sequence[pd.DataFrame], found: Matching
) -> dict[int, pd.DataFrame]:
    """Return the bases whose trials of a cell were configured as those now; say of the others what differs."""
    own = _configuration(mine)
    kept = {}
    for number, rows in theirs.items():
        changes = [
            f"{name} {_shown(before)} -> {_shown(after)}"
            for name, before, after in differences(_configuration(rows), own)
            if not name.startswith(_TOLERATED)
        ]
        if not changes:
            kept[number] = rows
            continue
        run = bases[number].run.iloc[0]
        more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
        found.unmatched.append(f"{cell_words(cell)}: configured otherwise in {run}: {'; '.join(changes[:3])}{more}")
    return kept


def _configuration(rows: pd.DataFrame) -> dict[str, Any]:
    return dict(json.loads(str(rows.configuration.iloc[-1])))


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield the names that both have with another value, before and after.

    A key that only one of them has is of another version of this program, which had or has no such choice.
    """
    for name, value in before.items():
        if name in after and after[name] != value:
            yield name, value, after[name]


def _shown(value: Any) -> str:
    text = cell_text(value)
    return text if len(text) <= 40 else f"{text[:19]}…{text[-20:]}"


def _keys(mine: pd.DataFrame, theirs: Sequence[pd.DataFrame], cell: str) -> Iterator[Key]:
    """Yield what is judged of a cell by default: an engine's tokens, else each measured phase's speed or time.

    What only the run or only the bases have is yielded too, and with it what both have in place of all tokens.
    """
    own, other = _tokens(mine), [name for rows in theirs for name in _tokens(rows)]
    yield from (Key(cell, _TOKENS[name], f"{MEASURED}{name}") for name in _TOKENS if name in own or name in other)
    if {*own} & {*other}:
        return
    before = _joined(theirs)
    for phase in measured_phases(_joined([mine, *theirs])):
        yield Key(
            cell, phase, _speed_or_time(*(rows[(rows.phase == phase) & (rows.op == ALL)] for rows in (mine, before)))
        )


def _tokens(rows: pd.DataFrame) -> list[str]:
    whole = rows[(rows.phase == WHOLE) & (rows.op == ALL)]
    return [name for name in _TOKENS if f"{MEASURED}{name}" in rows and whole[f"{MEASURED}{name}"].notna().any()]


def _joined(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    import pandas as pd

    return pd.concat([frame[["phase", "name", "op", "bytes", DURATION, BANDWIDTH]] for frame in frames])


def measured_phases(rows: pd.DataFrame) -> list[str]:
    """Return the phases of a cell that are work: not those around it, nor those that hold others."""
    names = dict(zip(rows.phase, rows.name, strict=True))
    work = [phase for phase, name in names.items() if name not in (*_AROUND, _JOB) and phase not in (WHOLE, GENERATION)]
    jobs = [phase for phase, name in names.items() if name == _JOB]
    return work or jobs or [WHOLE]


def _speed_or_time(own: pd.DataFrame, other: pd.DataFrame) -> str:
    """Return how a phase is judged: by its bandwidth, unless it moved other bytes in a time of its own choosing.

    A phase that reads twice as much at the same bandwidth takes twice as long: its time tells. A job that runs for a
    stated time moves as much as it can: its bandwidth tells.
    """
    now, before = (float(part.bytes.astype("float64").median()) for part in (own, other))  # none known: not NA
    if not (now > 0 and before > 0):
        return DURATION
    times = np.concatenate([own[DURATION], other[DURATION]])
    stated = np.nanmax(times) <= (1 + _SAME) * np.nanmin(times)
    return BANDWIDTH if stated or abs(now / before - 1) <= _SAME else DURATION


def _asked(mine: pd.DataFrame, theirs: Sequence[pd.DataFrame], cell: str, asked: Sequence[Measure]) -> Iterator[Key]:
    every = _joined([mine, *theirs])
    for one in asked:
        if one.op is None:
            name = one.name.removeprefix(OWN[0])
            own = f"{MEASURED}{name}"
            yield Key(cell, WHOLE, own if any(own in rows for rows in (mine, *theirs)) else name)
            continue
        phases = measured_phases(every) if one.phase == _EVERY else _named(every, one.phase)
        yield from (Key(cell, phase, one.name, one.op) for phase in phases)


def _named(rows: pd.DataFrame, phase: str) -> list[str]:
    """Return the phases of this name, or the kinds of phases with this bare name."""
    return [phase] if (rows.phase == phase).any() else list(dict.fromkeys(rows[rows.name == phase].phase))


def _check_column(measure: Measure, now: pd.DataFrame) -> None:
    """Raise AnalysisError of a column of the summary that is called otherwise here."""
    name = measure.name
    if measure.op is not None or name not in SUMMARY or name in now:
        return
    phase, rest = (f"{GENERATION}/", name.removeprefix("generation_")) if name.startswith("generation_") else ("", name)
    rest = {"s": DURATION}.get(rest, rest)
    op, _, column = rest.partition("_")
    told = f"{phase}{op}.{column}" if column in PROFILE and op in OPERATIONS else f"{phase}all.{rest}"
    hint = f"write {told}" if told.rpartition(".")[2] in PROFILE else "docs/metrics.md has what can"
    raise AnalysisError(f"--metric: {name!r} is a column of the summary, of which runs are not compared; {hint}")


def _matched(key: Key, mine: pd.DataFrame, theirs: Mapping[int, pd.DataFrame], found: Matching) -> Matched | None:
    now = values_of(key, mine)
    bases = {number: values for number, rows in theirs.items() if (values := values_of(key, rows))}
    if now and bases:
        trials, before = mine.slug.nunique(), sum(rows.slug.nunique() for rows in theirs.values())
        if (trials - len(now)) * before > (before - sum(map(len, bases.values()))) * trials:
            told = f"{trials - len(now)} of {trials} valid trials have no {key.metric} above 0 and do not count"
            found.lost.append(f"{key.where}: {told}")
        return Matched(key, now, bases)
    if bases:
        what = key.metric if len(rows_of(key, mine)) else "this phase"
        found.lost.append(f"{key.where}: no valid trial of this run has {what}")
    elif now:
        what = key.metric if any(len(rows_of(key, rows)) for rows in theirs.values()) else "this phase"
        found.unmatched.append(f"{key.where}: no base has {what}")
    return None


def rows_of(key: Key, rows: pd.DataFrame, op: str | None = None) -> pd.DataFrame:
    """Return the rows of a cell's phase; what the engine measured stands on those of the whole trial."""
    phase = WHOLE if key.metric.startswith(MEASURED) and op is None else key.phase
    return rows[(rows.cell == key.cell) & (rows.phase == phase) & (rows.op == (op or key.op))]


def values_of(key: Key, rows: pd.DataFrame) -> dict[int, float]:
    """Return the values of a measure by repeat; those that are unknown or nothing have no logarithm and no place."""
    own = rows_of(key, rows)
    if key.metric not in own:
        return {}
    told = own[key.metric].astype("float64").to_numpy()
    # imported trials have no numbers: each is a round of its own
    repeats = own["repeat"].astype("float64").to_numpy()
    rounds = repeats if np.isfinite(repeats).all() else np.arange(len(own))
    return {int(n): float(value) for n, value in zip(rounds, told, strict=True) if value > 0}
