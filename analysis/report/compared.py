"""A comparison as a page of text: what regressed first, with its cause, then what else a reader must know."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from analysis.matching import cell_words
from analysis.observations import MEASURED
from analysis.units import count_text, duration_text, latency_text, number_text

if TYPE_CHECKING:
    from analysis.compare import Change, Comparison

#: So many of each kind are listed.
_MOST_CHANGES, _MOST_GROUPS, _MOST_OTHERS = 8, 2, 5


def page(told: Comparison) -> list[str]:
    """Return the lines: a heading, the verdict, regressions, what was lost, improvements, environment, and the rest."""
    head = [f"{told.run} against {', '.join(told.bases)}", *_verdict(told)]
    return [
        *head,
        *_section("Lost: valid in a base, not now", told.lost),
        *_changes("Slower", told.regressions, causes=True),
        *_changes("Faster", told.improvements, causes=False),
        *_section("Changed around it", [str(one) for one in told.environment], _MOST_CHANGES),
        *_section("Failed, invalid or unreadable now, and not counted", told.failed),
        *_section("Not judged", _unjudged(told)),
        *_section("Not compared", told.unmatched),
        *_notes(told),
    ]


def _verdict(told: Comparison) -> list[str]:
    measures = count_text(told.judged, "measure")
    level = f"beyond {_share(told.threshold)}"
    if not told.judged:
        return ["NOT JUDGED: " + ("too few repeats" if told.unjudged else "nothing of it can be compared")]
    if not told.regressed:
        least = [f"{share * 100:.0f} %" for share in told.visible]
        seen = f"{least[0]} of everything or {least[-1]} of one measure" if len(least) > 1 else "".join(least)
        return [f"No regression {level} in {measures} judged; a slow-down of {seen} would have been one"]
    single = sum(one.members == 1 for one in told.regressions)
    slower = f"{single} of {measures} slower {level}" if single else f"slower {level} as a whole, no measure by itself"
    return [f"REGRESSION: {slower}"]


def _changes(title: str, changes: Sequence[Change], causes: bool) -> list[str]:
    if not changes:
        return []
    lines = ["", f"{title} (change, 95 % interval; p adjusted for all measures; repeats now/base)"]
    for one in _leading(changes):
        low, high = (f"{edge * 100:+.0f}" for edge in one.interval)
        values = "" if one.base is None else f"  {_value(one.metric, one.base)} -> {_value(one.metric, one.value)}"
        lines.append(
            f"  {one.where}{values}  {one.change * 100:+.0f} % ({low} ... {high} %)"
            f"  p {_p(one.p)}  {one.repeats[0]}/{one.repeats[1]}"
        )
        if causes and one.cause and f"      {one.cause}" not in lines:
            lines.append(f"      {one.cause}")
    hidden = len(changes) - len(_leading(changes))
    return [*lines, f"  and {hidden} more (--json has all)"] if hidden else lines


def _leading(changes: Sequence[Change]) -> list[Change]:
    """Return the changes that are listed: the widest groups, and the greatest of the single measures."""
    groups = [one for one in changes if one.members > 1]
    singles = [one for one in changes if one.members == 1]
    groups = groups[: _MOST_GROUPS if singles else _MOST_CHANGES // 2]
    return [*groups, *singles[: _MOST_CHANGES - len(groups)]]


def _value(metric: str, value: float | None) -> str:
    if value is None:
        return "unknown"
    bare = metric.removeprefix(MEASURED)
    if bare.endswith("gib_s"):
        return f"{number_text(value)} GiB/s"
    if bare.endswith("_us"):
        return latency_text(value)
    if bare.endswith("per_s"):
        return f"{number_text(value)} {'tokens/s' if 'tokens' in bare else '/s'}"
    return duration_text(value) if bare.endswith("_s") else number_text(value)


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _share(value: float) -> str:
    return f"{value * 100:g} %"


def _percent(value: float) -> str:
    return f"{value * 100:.1f} %"


def _section(title: str, lines: Sequence[str], most: int = _MOST_OTHERS) -> list[str]:
    if not lines:
        return []
    more = [f"  and {len(lines) - most} more (--json has all)"] if len(lines) > most else []
    return ["", f"{title}", *(f"  {line}" for line in lines[:most]), *more]


def _unjudged(told: Comparison) -> list[str]:
    """Return the reasons with how many measures each is of."""
    by_reason: dict[str, list[str]] = {}
    for one in told.unjudged:
        by_reason.setdefault(one.reason, []).append(f"{cell_words(one.cell)} {one.phase}".strip())
    return [f"{_first(places)}: {reason}" for reason, places in by_reason.items()]


def _first(places: Sequence[str]) -> str:
    return places[0] if len(places) == 1 else f"{places[0]} and {len(places) - 1} more"


def _notes(told: Comparison) -> Iterable[str]:
    if not told.judged:
        return []
    spread, bases = told.spread, len(told.bases)
    if spread.seen is None:
        few = "One base" if bases == 1 else f"The {bases} bases share no measure"
        note = f"{few}: how much runs differ by themselves cannot be told, and a drift looks like a change; "
        note += f"{_percent(spread.whole)} are taken for granted."
    else:
        which = f"The {bases} bases" if spread.bases == bases else f"{spread.bases} of the {bases} bases"
        note = f"{which} differ by {_percent(spread.seen)} as a whole and {_percent(spread.single)} "
        note += "in single measures, beyond their repeats; as much is expected of a run."
    return ["", f"{note} Of unchanged runs at most {_share(told.alpha)} raise an alarm."]
