"""`python -m analysis.compare RUN BASE [BASE...]`: what became slower, how sure that is, and what goes with it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from analysis import causes, facts, shuffle
from analysis.errors import USAGE_ERROR, AnalysisError, reported
from analysis.matching import Key, Matched, cell_words, match, valid
from analysis.observations import canonical, of_run, planned
from analysis.ratio import shift
from analysis.report.compared import page
from analysis.run import load_run
from analysis.shuffle import Rounds, Spread
from analysis.units import count_text

if TYPE_CHECKING:
    import pandas as pd

#: Exit codes where something regressed, and where nothing could be judged.
REGRESSION, NOT_JUDGED = 4, 3
THRESHOLD, ALPHA = 0.05, 0.05
#: Fewer repeats of the run say nothing of how they vary, and one that is off is the run.
LEAST_REPEATS = 3
#: The spread between runs that is taken for granted, as a part of the threshold, and of the spread of a measure within
#: its run: where phases vary by a fifth, nights were seen to differ by a fifth to two fifths of that.
GRANTED, GRANTED_OF_NOISE = 1 / 3, 1 / 2
#: The metric of a change of several measures together: speed, however each of them tells it.
SPEED = "speed"
#: Families of measures that are judged together: groups over cells; cells, and single measures.
_GROUPS, _SINGLES = 0, 1
#: Of so many members of a group that changed the cause is told.
_WORST = 3


@dataclass(frozen=True)
class Change:
    """A change between bases and run. `cell` is canonical JSON of axis values: all of a cell's, or of a group's cells
    those that they share; `phase` is empty of all phases. `metric` is a column, or `speed` of a group.

    `base` and `value` are medians (None of a group); `change` is value / base - 1 (Hodges and Lehmann), `interval` at
    95 % for it alone; `p` is adjusted for all measures of the run. `repeats` are those of the run and of all bases.
    """

    cell: str
    phase: str
    metric: str
    base: float | None
    value: float | None
    change: float
    interval: tuple[float, float]
    p: float
    repeats: tuple[int, int]
    members: int = 1
    cause: str = ""

    @property
    def where(self) -> str:
        """Cell and phase in words."""
        if self.members == 1:
            return f"{cell_words(self.cell)} {self.phase}".strip()
        cells = cell_words(self.cell) if self.cell != "{}" else ""
        phases = f"every {self.phase}" if self.phase else ""
        return f"{' '.join(part for part in (cells, phases) if part) or 'everything'} ({self.members} measures)"


@dataclass(frozen=True)
class Unjudged:
    """A measure of which the repeats cannot tell anything at the level that was asked for."""

    cell: str
    phase: str
    reason: str


@dataclass(frozen=True)
class Comparison:
    """What a run is beside its bases; the lists are in the order of their weight.

    `visible` are the slow-downs of everything (where there are several measures) and of the middle one of single
    measures that would have been regressions.
    """

    run: str
    bases: tuple[str, ...]
    threshold: float
    alpha: float
    judged: int
    regressions: tuple[Change, ...] = ()
    improvements: tuple[Change, ...] = ()
    unjudged: tuple[Unjudged, ...] = ()
    unmatched: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    environment: tuple[facts.Difference, ...] = ()
    spread: Spread = field(default_factory=lambda: Spread(1, 0.0))
    visible: tuple[float, ...] = ()

    @property
    def regressed(self) -> bool:
        """Whether anything is slower by more than the threshold, beyond what chance explains."""
        return bool(self.regressions)

    @property
    def causes(self) -> tuple[str, ...]:
        """The different causes of the regressions, in words."""
        return tuple(dict.fromkeys(one.cause for one in self.regressions if one.cause))

    def lines(self) -> list[str]:
        """Return the comparison as a page of text."""
        return page(self)

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        told = dataclasses.asdict(self) | {"regressed": self.regressed, "causes": list(self.causes)}
        return dict(json.loads(json.dumps(told)))


def compare(
    now: pd.DataFrame,
    bases: Sequence[pd.DataFrame],
    *,
    threshold: float = THRESHOLD,
    alpha: float = ALPHA,
    metrics: Sequence[str] = (),
    planned: Collection[str] | None = None,
) -> Comparison:
    """Compare a run with one or several earlier ones, frames as `observations.of_run` gives them.

    A measure regressed where it is worse by more than `threshold` and this is beyond chance: of runs in which nothing
    changed, at most the share `alpha` have a regression at all, however many cells and phases they have
    (`analysis.shuffle`). What is judged says `matching.match`; `metrics` are others in its place; `planned` are the
    cells that the run was to measure, where that is known (`observations.planned`). AnalysisError where a metric is
    unknown, there is no base, or one is the run itself.
    """
    runs = [part for base in bases for _, part in base.groupby(["sweep", "run"], sort=False, observed=True)]
    _check(now, runs, threshold, alpha)
    found = match(now, runs, metrics, planned)
    reasons = {one.key: _too_few(*one.repeats, alpha) for one in found.measures}
    judged = [one for one in found.measures if not reasons[one.key]]
    unjudged = [Unjudged(key.cell, key.phase, reason) for key, reason in reasons.items() if reason]
    changes, between = judge(judged, len(runs), threshold, alpha) if judged else ([], Spread(len(runs), 0.0))
    worse, better = ([one for one in changes if one.changed(side, threshold, alpha)] for side in (0, 1))
    current, before = valid(now), [valid(base) for base in runs]
    return Comparison(
        run=_name(now),
        bases=tuple(_name(run) for run in runs),
        threshold=threshold,
        alpha=alpha,
        judged=len(judged),
        regressions=tuple(_told(one, 0, current, before, threshold) for one in _ordered(worse)),
        improvements=tuple(_told(one, 1, current, before, threshold) for one in _ordered(better)),
        unjudged=tuple(unjudged),
        unmatched=tuple(found.unmatched),
        lost=tuple(found.lost),
        failed=tuple(_failed(now)),
        environment=tuple(facts.changes(now, runs)),
        spread=between,
        visible=_visible(changes, threshold),
    )


def _visible(found: Sequence[Judged], threshold: float) -> tuple[float, ...]:
    """Return which change of everything, and of the middle one of single measures, would have been a regression."""
    wide = [one for one in found if one.row.family == _GROUPS][:1]
    single = [one.least for one in found if len(one.row.members) == 1]
    edges = [*(one.least for one in wide), *([float(np.median(single))] if single else [])]
    return tuple(max(threshold, -math.expm1(-edge)) for edge in edges)


def _check(now: pd.DataFrame, runs: Sequence[pd.DataFrame], threshold: float, alpha: float) -> None:
    if not len(now):
        raise AnalysisError("the run has no trials yet: nothing to compare")
    if not runs:
        raise AnalysisError("no base has any trials: nothing to compare with")
    for name, share in (("threshold", threshold), ("alpha", alpha)):
        if not 0 < share < 0.5:
            raise AnalysisError(f"{name} {share:g} makes no sense; it is a share between 0 and 0.5, such as 0.05")
    own, *others = [(_name(run), run.run_started.iloc[0]) for run in (now, *runs)]
    if own in others:
        raise AnalysisError(f"{own[0]} is the run itself: name an earlier run as the base")
    if twice := next((one for one in others if others.count(one) > 1), None):
        raise AnalysisError(f"{twice[0]} is named twice as a base: its repeats would count twice")


def _name(rows: pd.DataFrame) -> str:
    return f"{rows.sweep.iloc[0]}/{rows.run.iloc[0]}"


def _failed(now: pd.DataFrame) -> list[str]:
    bad = now[now.verdict != "valid"].drop_duplicates("slug")
    told = [f"{row.trial}: {row.verdict} ({row.reasons or 'no reason recorded'})" for row in bad.itertuples()]
    if "unreadable" not in now:
        return told
    broken = now[(now.verdict == "valid") & now.unreadable.notna()].drop_duplicates("slug")
    return [*told, *(f"{row.trial}: valid, but cannot be read ({row.unreadable})" for row in broken.itertuples())]


def _too_few(now: int, base: int, alpha: float) -> str:
    """Return why so many repeats against so many tell nothing; empty where they do."""
    best = shuffle.least_p(now, base)
    if best > alpha:
        needed = max(shuffle.repeats_needed(alpha), LEAST_REPEATS)
        return f"{now} against {base} repeats reach p = {best:.2g} at best, not {alpha:g}; {needed} in each would do"
    if now < LEAST_REPEATS:
        return f"{count_text(now, 'valid repeat')} now; {LEAST_REPEATS} are needed, however many the bases have"
    return ""


# --- judging ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Row:
    """A measure or a group of them: its members, and the values of its rounds as logarithms of speed."""

    cell: str
    phase: str
    family: int
    members: tuple[Matched, ...]


@dataclass(frozen=True)
class Judged:
    """A row with how much faster it became (a logarithm, with its interval), the p of being slower and faster, and how
    much slower it must be to be beyond chance."""

    row: _Row
    speed: float
    interval: tuple[float, float]
    p: tuple[float, float]
    least: float
    members: tuple[tuple[float, Matched], ...]

    def changed(self, side: int, threshold: float, alpha: float) -> bool:
        """Say whether it became slower (side 0) or faster (1) by more than the threshold and beyond chance."""
        return self.p[side] <= alpha and (1 if side else -1) * self.speed > -math.log1p(-threshold)


def judge(measures: Sequence[Matched], bases: int, threshold: float, alpha: float) -> tuple[list[Judged], Spread]:
    """Return every measure and every group of them with its shift and its p, and how much runs differ by themselves.

    The measures have enough repeats; `bases` is how many runs they are compared with.
    """
    single, run = _speeds(measures, bases)
    rows = [_Row(one.key.cell, one.key.phase, _SINGLES, (one,)) for one in measures]
    place = {one.key: number for number, one in enumerate(measures)}
    between = _between(Rounds(single, run, np.zeros(len(single), np.int64)), threshold * GRANTED)
    groups = _groups(measures)
    parts = [shuffle.together(single, _chosen(group, place)) for group in groups]
    values = np.vstack([single, *parts])
    family = np.array([one.family for one in (*rows, *groups)], np.int64)
    worse, better, least = shuffle.judged(Rounds(values, run, family), between, alpha)
    alone = [_shift(values[number], run) for number in range(len(single))]
    found = []
    for number, row in enumerate((*rows, *groups)):
        own = alone[number] if number < len(alone) else _shift(values[number], run)
        members = tuple((alone[place[one.key]][0], one) for one in row.members)
        ps = float(worse[number]), float(better[number])
        found.append(Judged(row, own[0], (own[1], own[2]), ps, float(least[number]), members))
    return found, between


def _chosen(group: _Row, place: dict[Key, int]) -> npt.NDArray[np.bool_]:
    found = np.zeros(len(place), bool)
    found[[place[one.key] for one in group.members]] = True
    return found


def _speeds(measures: Sequence[Matched], bases: int) -> tuple[shuffle.Floats, shuffle.Ints]:
    """Return logarithms of speed, measures by rounds, and the run of each round: 0, and bases from 1."""
    held = [one.now for one in measures], *([one.bases.get(n, {}) for one in measures] for n in range(bases))
    columns = [(run, r) for run, own in enumerate(held) for r in sorted({r for values in own for r in values})]
    values = np.full((len(measures), len(columns)), np.nan)
    for place, one in enumerate(measures):
        sign = 1 if one.key.falls else -1
        for column, (run, repeat) in enumerate(columns):
            if repeat in held[run][place]:
                values[place, column] = sign * math.log(held[run][place][repeat])
    return values, np.array([run for run, _ in columns], np.int64)


def _between(rounds: Rounds, granted: float) -> Spread:
    """Return how much runs differ by themselves: as bases do, and as whole rounds within them at least."""
    moved = shuffle.aligned(rounds)[1]
    everything = shuffle.together(rounds.values, np.ones(len(rounds.values), bool))[None, :]
    granted = max(granted, float(shuffle.scales(Rounds(everything, rounds.run, rounds.family[:1]))[0]))
    within = shuffle.scales(rounds)
    granted = max(granted, GRANTED_OF_NOISE * float(np.median(within)))
    known = (~np.isnan(rounds.values[:, rounds.run > 0])).sum(axis=1)
    repeats = float(np.median(known / np.maximum((~np.isnan(moved)).sum(axis=1), 1)))
    return shuffle.spread(moved, within, repeats, granted)


def _shift(values: shuffle.Floats, run: shuffle.Ints) -> tuple[float, float, float]:
    known = ~np.isnan(values)
    told = shift(values[known & (run == 0)].tolist(), values[known & (run > 0)].tolist())
    return told.estimate, told.low, told.high


def _groups(measures: Sequence[Matched]) -> list[_Row]:
    """Return the groups that are judged beside single measures: everything, the cells of each value of an axis, the
    phases of each name; and each cell with several phases."""
    found: dict[tuple[str, ...], _Row] = {}

    def add(cell: dict[str, Any], phase: str, family: int, members: Iterable[Matched]) -> None:
        chosen = tuple(members)
        names = tuple(sorted(f"{one.key.cell} {one.key.phase} {one.key.metric}" for one in chosen))
        if len(chosen) > 1:
            found.setdefault(names, _Row(canonical(cell), phase, family, chosen))

    add({}, "", _GROUPS, measures)
    for axis, value in _axis_values(measures):
        own = [one for one in measures if axis in one.key.axes and canonical(one.key.axes[axis]) == value]
        if len({one.key.cell for one in own}) > 1:
            add({axis: json.loads(value)}, "", _GROUPS, own)
    for name in dict.fromkeys(one.key.phase.partition(" ")[0] for one in measures):
        add({}, name, _GROUPS, (one for one in measures if one.key.phase.partition(" ")[0] == name))
    for cell in dict.fromkeys(one.key.cell for one in measures):
        add(json.loads(cell), "", _SINGLES, (one for one in measures if one.key.cell == cell))
    return list(found.values())


def _axis_values(measures: Sequence[Matched]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((axis, canonical(value)) for one in measures for axis, value in one.key.axes.items()))


# --- telling ---------------------------------------------------------------------------------------------------------


def _ordered(found: Sequence[Judged]) -> list[Judged]:
    """Return groups before single measures, the greatest change first."""
    return sorted(found, key=lambda one: (len(one.row.members) == 1, -len(one.row.members), -abs(one.speed)))


def _told(one: Judged, side: int, now: pd.DataFrame, bases: Sequence[pd.DataFrame], threshold: float) -> Change:
    sign, first = 1 if side else -1, one.row.members[0]
    p, members = one.p[side], len(one.row.members)
    if members > 1:
        change, interval = math.expm1(one.speed), (math.expm1(one.interval[0]), math.expm1(one.interval[1]))
        worst = sorted(one.members, key=lambda pair: -sign * pair[0])[:_WORST]
        most = ", ".join(f"{of.key.where} {_percent(math.expm1(speed))}" for speed, of in worst)
        cause = f"most in {most}" if most else ""
        repeats = min(of.repeats[0] for of in one.row.members), min(of.repeats[1] for of in one.row.members)
        return Change(one.row.cell, one.row.phase, SPEED, None, None, change, interval, p, repeats, members, cause)
    turn = 1 if first.key.falls else -1
    low, high = sorted(math.expm1(turn * edge) for edge in one.interval)
    return Change(
        cell=first.key.cell,
        phase=first.key.phase,
        metric=first.key.metric,
        base=float(np.median(first.base_values())),
        value=float(np.median([*first.now.values()])),
        change=math.expm1(turn * one.speed),
        interval=(low, high),
        p=p,
        repeats=first.repeats,
        cause="" if side else str(causes.cause(first.key, now, bases, threshold)),
    )


def _percent(change: float) -> str:
    return f"{change * 100:+.0f} %"


# --- the command -----------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, print the page, and return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        run = load_run(options.run)
        told = compare(
            of_run(run),
            [of_run(load_run(base)) for base in options.bases],
            threshold=options.threshold,
            alpha=options.alpha,
            metrics=options.metric or (),
            planned=planned(run),
        )
        text = json.dumps(told.as_json(), indent=2, ensure_ascii=False) if options.json else _page(told, options)
        if options.output:
            Path(options.output).write_text(f"{text}\n", encoding="utf-8")
    except (AnalysisError, OSError) as error:
        return reported(error, options.output or options.run)
    if not options.output:
        print(text)
    if not told.judged:
        return NOT_JUDGED
    return REGRESSION if told.regressed else 0


def _page(told: Comparison, options: argparse.Namespace) -> str:
    from analysis import answers  # of the figures, which --json needs not

    return "\n".join([*told.lines(), *answers.changed(load_run(options.run), [*map(load_run, options.bases)])])


def _share(text: str) -> float:
    """Return `0.05` or `5%` as a number."""
    try:
        return float(text.removesuffix("%").strip()) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no share; write 0.05 or 5%") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.compare",
        description="Compare a run with earlier runs of the same sweep, cell by cell and phase by phase. "
        f"Exit code: 0 no regression, {REGRESSION} regression, {NOT_JUDGED} nothing could be judged, "
        f"{USAGE_ERROR} a run cannot be read.",
        epilog="examples: python -m analysis.compare results/nightly results/nightly/20261120-220009; "
        "python -m analysis.compare RUN BASE --metric '*/read.d2c_p99_us' (docs/compare.md)",
    )
    parser.add_argument("run", metavar="RUN", help="a run folder, or a sweep's folder (its latest run is taken)")
    parser.add_argument("bases", metavar="BASE", nargs="+", help="an earlier run; several tell how much runs differ")
    parser.add_argument(
        "--metric",
        metavar="M",
        action="append",
        help="judge this in place of speed, such as decode/read.d2c_p99_us or tokens_per_s (docs/metrics.md); "
        "*/ is every measured phase; may be given several times",
    )
    parser.add_argument(
        "--threshold", metavar="X", type=_share, default=THRESHOLD, help="smaller changes do not matter (default 5%%)"
    )
    parser.add_argument(
        "--alpha", metavar="X", type=_share, default=ALPHA, help="the share of false alarms, of runs (default 5%%)"
    )
    parser.add_argument("--json", action="store_true", help="everything as JSON")
    parser.add_argument("-o", "--output", metavar="FILE", help="write there instead of to the terminal")
    return parser


if __name__ == "__main__":
    sys.exit(main())
