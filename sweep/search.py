"""The search for the border along one axis: which value to try next, and what the tried ones say.

Values are taken to meet the target up to a border, and none beyond it. Bisection with one trial each finds a border;
the two values beside it are confirmed by repeats. A decision of the bisection that was wrong ends there too: if a value
was taken to fail that meets the target, all values before it meet it, so it is the one beside the border, and its
repeats put the search right. All is computed from the trials that have ended: a run that is gone on with decides the
same.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sweep.definition import Find, Search
from sweep.errors import ConfigError
from sweep.repeats import Tally, check_metric
from sweep.values import nearest, refuse_references, shown, typed
from tasks.units import parse_bytes

#: So many trials of a value that all fail are enough: one may be an accident.
_FAILED_ENOUGH = 2

#: A range of more values than this is a slip of the hand.
_MOST_VALUES = 10_000


# --- the keys --------------------------------------------------------------------------------------------------------


def axis_in(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the axis that a sweep searches over with its values, as a grid has them; nothing where there is none."""
    told = raw.get("search")
    axis = told.get("axis") if isinstance(told, Mapping) else None
    if not isinstance(axis, str) or not isinstance(told, Mapping):
        return {}
    values = told.get("values")
    return {axis: _ranged(values) if isinstance(values, Mapping) else values}


def checked(source: str, told: Any, repeats: Any) -> Search | None:
    """Return what `search` states; None where it names no axis. Raises ConfigError where it makes no sense."""
    if told is None:
        return None
    if not isinstance(told, Mapping):
        raise ConfigError(source, "search", f"must hold keys, not {shown(told)}", "its keys: axis, values, metric, ...")
    refuse_references(source, told, "search")
    own = typed(source, Search, {name: value for name, value in told.items() if name != "values"}, "search.")
    search = Search(**own | {"find": Find[own["find"]], "values": told.get("values")})
    if search.axis is None:
        if others := [name for name in told if told[name] is not None and name != "axis"]:
            if "axis" in told:
                return None  # taken away, in a scenario say
            raise ConfigError(source, "search.axis", f"is missing: search.{others[0]} is there")
        return None
    if repeats != 1:
        text = "would not be used: search.confirm and search.max say how many trials a value has"
        hint = "leave it out beside search; in a scenario of a sweep that has it, write repeats: 1"
        raise ConfigError(source, "repeats", text, hint)
    search.values = _checked_values(source, search.values)
    _check_target(source, search)
    return search


def _check_target(source: str, search: Search) -> None:
    if search.metric is None:
        raise ConfigError(source, "search.metric", "is missing", "such as read.d2c_p99_us, or load/read.d2c_p99_us")
    check_metric(source, "search.metric", search.metric)
    stated = [name for name in ("at_most", "at_least") if vars(search)[name] is not None]
    if len(stated) != 1:
        raise ConfigError(source, f"search.{stated[0] if stated else 'at_most'}", "state one of at_most and at_least")
    if not math.isfinite(vars(search)[stated[0]]):
        raise ConfigError(source, f"search.{stated[0]}", f"must be a number, not {vars(search)[stated[0]]}")
    if search.confirm < 1:
        raise ConfigError(source, "search.confirm", f"must be 1 or more, not {search.confirm}")
    if not search.confirm <= search.max <= _MOST_VALUES:
        text = f"must be search.confirm, which is {search.confirm}, to {_MOST_VALUES}, not {search.max}"
        raise ConfigError(source, "search.max", text)


def _ranged(values: Mapping[str, Any]) -> list[int]:
    """Return the values of a range; none of one that makes no sense."""
    try:
        first, last = int(values["from"]), int(values["to"])
        step, factor = int(values.get("step") or 0), int(values.get("factor") or 0)
    except (KeyError, TypeError, ValueError, OverflowError):
        return []
    found: list[int] = []
    while first <= last and len(found) <= _MOST_VALUES:
        found.append(first)
        following = first + step if step else first * factor
        if following <= first:
            return []
        first = following
    return found


def _checked_values(source: str, values: Any) -> list[Any]:
    """Return the values of the axis in their order; ConfigError where they are none, or not ascending."""
    where = "search.values"
    if isinstance(values, Mapping):
        _check_range(source, values)
        values = _ranged(values)
    if not isinstance(values, list) or len(values) < 2:
        text = f"must be a list of two values or more, or {{from: 1, to: 128, factor: 2}}, not {shown(values)}"
        raise ConfigError(source, where, text)
    if twice := [text for text, count in Counter(map(shown, values)).items() if count > 1]:
        raise ConfigError(source, where, f"lists {twice[0]} twice; search.max says how many trials a value has at most")
    numbers = [_number(value) for value in values]
    ascending = sorted((number, place) for place, number in enumerate(numbers) if number is not None)
    if len(ascending) < len(values):
        return values  # words: they are searched in the order that they have
    if len({number for number, _ in ascending}) < len(values):
        raise ConfigError(source, where, "lists a value twice")
    if [place for _, place in ascending] != list(range(len(values))):
        hint = f"write {shown([values[place] for _, place in ascending])}"
        raise ConfigError(source, where, "must be in ascending order: a search goes along the axis", hint)
    return values


def _check_range(source: str, values: Mapping[str, Any]) -> None:
    known = ("from", "to", "step", "factor")
    for name, value in values.items():
        if name not in known:
            raise ConfigError(source, f"search.values.{name}", "unknown key", nearest(str(name), known))
        if not isinstance(value, int) or isinstance(value, bool):
            raise ConfigError(source, f"search.values.{name}", f"must be a whole number, not {shown(value)}")
    if not {"from", "to"} <= set(values) or ("step" in values) == ("factor" in values):
        raise ConfigError(source, "search.values", "a range has from, to, and one of step and factor")
    least = {"step": 1, "factor": 2}["step" if "step" in values else "factor"]
    if values.get("step", values.get("factor")) < least or ("factor" in values and values["from"] < 1):
        raise ConfigError(
            source, "search.values", "does not ascend: step is 1 or more, factor 2 or more from 1 or more"
        )
    if len(found := _ranged(values)) > _MOST_VALUES or len(found) < 2:
        count = f"more than {_MOST_VALUES}" if found else "no"
        raise ConfigError(
            source, "search.values", f"makes {count if len(found) != 1 else 'one'} values; 2 to 10000 can be"
        )


def _number(value: Any) -> float | None:
    """Return a value as a number, a size by its bytes; None for any other."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    try:
        return float(parse_bytes(value)) if isinstance(value, str) else None
    except ValueError:
        return None


# --- what trials say -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """Whether a value meets the target; `sure` once as many valid trials as confirm it say so, unless their interval
    holds the target, or once enough of its trials failed."""

    meets: bool
    sure: bool


def judge(search: Search, told: Tally) -> Judged:
    """Judge a value by the median of its valid trials; one that has none is taken not to meet the target."""
    if told.median is None:
        return Judged(False, told.cannot_run and told.ended >= min(_FAILED_ENOUGH, search.confirm))
    target = search.at_most if search.at_most is not None else search.at_least
    assert target is not None
    ends = told.interval()
    straddles = ends is not None and ends[0] <= target <= ends[1] and ends[0] < ends[1]
    meets = told.median <= target if search.at_most is not None else told.median >= target
    return Judged(meets, len(told.values) >= search.confirm and not straddles)


def lacking(search: Search, told: Tally) -> int:
    """Return how many more trials a value beside the border needs before it is settled."""
    left = search.max - told.ended
    if told.cannot_run:
        return min(left, max(0, min(_FAILED_ENOUGH, search.confirm) - told.ended))
    if len(told.values) < search.confirm:
        return min(left, search.confirm - len(told.values))
    return 0 if judge(search, told).sure else min(left, 1)


@dataclass(frozen=True)
class Step:
    """What is tried at one point: how many trials of which value (by place), and why."""

    place: int
    trials: int
    why: str


@dataclass
class Path:
    """The steps of a search, the trials they had by value, and the border they led to: the place of the last value that
    meets the target, -1 where none does; None as long as `open` steps are to be made."""

    steps: list[Step] = field(default_factory=list)
    seen: list[Tally] = field(default_factory=list)
    open: list[Step] = field(default_factory=list)
    border: int | None = None


def followed(search: Search, names: Sequence[str], ended: Sequence[Sequence[Tally]]) -> Path:
    """Follow a search along values called `names`, from the one that is sure to meet the target to the last.

    `ended` has for each value the trials that have ended, in their order, each as a tally of one. The search takes of
    them what it asks for; it stops where it asks for one that has not ended.
    """
    path = Path(seen=[Tally() for _ in names])
    used = [0] * len(names)
    while True:
        asked, path.border = _next(search, names, path.seen)
        if not asked:
            return path
        missing = [step for step in asked if used[step.place] + step.trials > len(ended[step.place])]
        if missing:
            path.open = asked
            return path
        for step in asked:
            begin, used[step.place] = used[step.place], used[step.place] + step.trials
            path.seen[step.place] = _joined([path.seen[step.place], *ended[step.place][begin : used[step.place]]])
        path.steps += asked


def _joined(parts: Sequence[Tally]) -> Tally:
    return Tally(tuple(v for part in parts for v in part.values), tuple(b for part in parts for b in part.bad))


def _next(search: Search, names: Sequence[str], seen: Sequence[Tally]) -> tuple[list[Step], int | None]:
    """Return what is to be tried given what was seen, and the border once nothing is."""
    low, high = -1, len(names)
    while high - low > 1:
        middle = (low + high) // 2
        if not seen[middle].ended:
            return [Step(middle, 1, _between(names, low, high))], None
        low, high = (middle, high) if judge(search, seen[middle]).meets else (low, middle)
    sides = [place for place in (low, high) if 0 <= place < len(names)]
    more = [(place, lacking(search, seen[place])) for place in sides]
    steps = [Step(place, count, _beside(search, seen[place], place == low)) for place, count in more if count]
    return steps, None if steps else low


def _between(names: Sequence[str], low: int, high: int) -> str:
    if low < 0 and high == len(names):
        return f"the middle of {names[0]} to {names[-1]}"
    if low < 0:
        return f"before {names[high]}, which does not meet it"
    if high == len(names):
        return f"beyond {names[low]}, which meets it"
    return f"between {names[low]}, which meets it, and {names[high]}, which does not"


def _beside(search: Search, told: Tally, meets: bool) -> str:
    if told.values and len(told.values) >= search.confirm:
        return "its interval holds the target"
    return f"confirms {'the last that meets it' if meets else 'the first that does not'}"


def contradictions(judged: Mapping[int, Judged]) -> list[tuple[int, int]]:
    """Return the places of values of which the first does not meet the target and the second, beyond it, does.

    Each that fails stands with the first beyond it that meets the target: along a monotone axis there are none.
    """
    found = []
    for place in sorted(judged):
        beyond = next((other for other in sorted(judged) if other > place and judged[other].meets), None)
        if not judged[place].meets and beyond is not None:
            found.append((place, beyond))
    return found


def lengths(search: Search, count: int) -> tuple[int, int]:
    """Return how many trials a search over `count` values takes at least, and at most where the axis is monotone."""
    probes = []
    for border in range(-1, count):
        low, high, own = -1, count, 0
        while high - low > 1:
            middle, own = (low + high) // 2, own + 1
            low, high = (middle, high) if middle <= border else (low, middle)
        probes.append((own, sum(0 <= place < count for place in (border, border + 1))))
    least = min(own + sides * (min(search.confirm, _FAILED_ENOUGH) - 1) for own, sides in probes)
    return least, max(own + sides * (search.max - 1) for own, sides in probes)
