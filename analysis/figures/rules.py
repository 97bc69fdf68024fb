"""The ceiling in a figure of bandwidth: a dashed rule where the axis has room for it, and always in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt

from analysis.ceiling import Ceiling
from analysis.figures import theme
from analysis.units import number_text

#: An axis grows by this factor at most to hold a ceiling; beyond it the data would lie flat at the bottom.
_ROOM = 1.5
#: Space above the highest rule, as a factor, for its label.
_HEAD = 1.09


def top(data: float, ceilings: Iterable[float]) -> float:
    """Return the end of an axis that holds `data` and each of the `ceilings` (GiB/s) that leaves the data readable."""
    return max([data, *(_HEAD * ceiling for ceiling in ceilings if _fits(data, ceiling))])


def _fits(data: float, ceiling: float) -> bool:
    return 0 < ceiling <= _ROOM * data


def shown(data: float, ceiling: Ceiling | None, operations: Sequence[str]) -> dict[str, float]:
    """Return the ceilings (GiB/s) that get a rule on an axis whose data end at `data`, by operation."""
    found = {op: ceiling.gib_s[op] for op in operations} if ceiling else {}
    return {op: value for op, value in found.items() if _fits(data, value)}


def layers(rules: dict[str, float], factor: float, scale: alt.Scale) -> list[alt.Chart]:
    """Return the layers of `rules` (GiB/s by operation) on a bandwidth axis that counts GiB/s times `factor`."""
    values = [
        {
            "ceiling": value * factor,
            "said": f"fio {op}s {number_text(value * factor)}",
            "colour": theme.OPERATIONS[op],
            # of two that are close the lower one has its label below
            "above": value == max(rules.values()),
        }
        for op, value in rules.items()
    ]
    if not values:
        return []
    base = alt.Chart(alt.InlineData(values=values)).encode(y=alt.Y("ceiling:Q", scale=scale))
    upper, lower = (base.transform_filter(f"datum.above == {word}") for word in ("true", "false"))
    colour = alt.Color("colour:N", scale=None, legend=None)
    x = theme.WIDTH - 6
    return [rule(base).encode(color=colour), *labels(upper, x, -7, colour), *labels(lower, x, 8, colour)]


def rule(base: alt.Chart) -> alt.Chart:
    """Return the dashed rule of each row of `base`."""
    drawn: alt.Chart = base.mark_rule(strokeDash=[6, 4], strokeWidth=1.2, clip=True)
    return drawn


def labels(base: alt.Chart, x: float, dy: float, colour: Any) -> list[alt.Chart]:
    """Return the text `said` of each row of `base`, ending `x` pixels from the left, on a white ground of its own."""
    style: dict[str, Any] = {"align": "right", "baseline": "middle", "dy": dy, "fontSize": 10.5}
    told = base.encode(x=alt.value(x), text="said:N")
    ground = told.mark_text(stroke="white", strokeWidth=3, strokeOpacity=0.85, **style)
    return [ground, told.mark_text(**style).encode(color=colour)]


def described(ceiling: Ceiling | None, data: float) -> str:
    """Return the ceiling in a sentence, and which of it lies above an axis whose data end at `data` (GiB/s)."""
    if ceiling is None:
        return ""
    verbs = {"read": "reads", "write": "overwrites"}
    said = {op: f"{verbs[op]} {number_text(ceiling.gib_s[op])} GiB/s" for op in verbs}
    dashed = [said[op] for op in said if _fits(data, ceiling.gib_s[op])]
    above = [said[op] for op in said if not _fits(data, ceiling.gib_s[op])]
    if not dashed:
        return f"On the same storage fio {' and '.join(above)} ({ceiling.how()}), far above this axis."
    text = f"Dashed: on the same storage fio {' and '.join(dashed)} ({ceiling.how()})"
    return f"{text}; it {above[0]}, far above this axis." if above else f"{text}."
