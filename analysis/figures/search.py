"""What a search tried along its axis: each trial's metric, the target, and the value that was found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import altair as alt

from analysis.figures import theme
from analysis.figures.panel import Panel, ruled_out
from analysis.measures import Measure, named
from analysis.run import Run
from analysis.selection import cell_text
from analysis.units import count_text, sentence

NAME = "search"
TITLE = "A search along an axis"

_HEIGHT = 240
#: Values that differ by more than this factor stand on a logarithmic axis.
_WIDE = 50
_MEETS = {True: "meets the target", False: "does not meet it"}
_COLOURS = {_MEETS[True]: theme.GREEN, _MEETS[False]: theme.VERMILLION}
_SHAPES = {_MEETS[True]: "circle", _MEETS[False]: "cross"}


def searches(run: Run) -> list[Mapping[str, Any]]:
    """Return the searches of a run as its record tells of them."""
    told = run.record.get("adaptive")
    found = told.get("searches") if isinstance(told, Mapping) else None
    return [one for one in found or [] if isinstance(one, Mapping) and one.get("tried")]


def name_of(place: int) -> str:
    """Return the name of the chart of a run's search by its place among them."""
    return f"{NAME}-{place + 1}"


def title_of(told: Mapping[str, Any]) -> str:
    """Return what a search is for, in words."""
    cell = ", ".join(f"{name} {cell_text(value)}" for name, value in (told.get("cell") or {}).items())
    sign, limit = ("≤", told.get("at_most")) if told.get("at_most") is not None else ("≥", told.get("at_least"))
    text = f"{told['find']} {told['axis']} with {told['metric']} {sign} {limit:.15g}"
    return sentence(f"{text}: {cell}" if cell else text)


def answer_of(told: Mapping[str, Any]) -> str:
    """Return what a search found, in words."""
    spent = f"{count_text(int(told['trials']), 'trial')}; the grid has {told['grid']}"
    ends = {
        "found": f"{cell_text(told.get('answer'))} meets it, {cell_text(told.get('beyond'))} does not",
        "none": f"no value meets it: {cell_text(told.get('beyond'))} does not",
        "all": f"{cell_text(told.get('answer'))} meets it, the last that there is: the border was not found",
    }
    return f"{ends.get(str(told.get('state')), 'not found yet')}{'' if is_sure(told) else ', uncertain'} ({spent})"


def is_sure(told: Mapping[str, Any]) -> bool:
    """Say whether both values beside the border were settled."""
    sides = (told.get("answer"), told.get("beyond"))
    return all(row["sure"] for row in told["tried"] if row["value"] in sides)


def charts(run: Run) -> Iterator[Panel]:
    """Yield one panel for each search of the run."""
    found = searches(run)
    if not found:
        yield ruled_out(NAME, TITLE, "this run searched along no axis")
    for place, told in enumerate(found):
        name, title = name_of(place), title_of(told)
        if any(row.get("values") for row in told["tried"]):
            yield Panel(name, title, _chart(told, title))
        else:
            yield ruled_out(name, title, "none of its trials is valid")


def _chart(told: Mapping[str, Any], title: str) -> alt.TopLevelMixin:
    rows, measure = _rows(told), named(str(told["metric"]))
    order = [cell_text(value) for value in told["values"]]
    order = order[::-1] if told["find"] == "smallest" else order
    target = told["at_most"] if told["at_most"] is not None else told["at_least"]
    label = measure.title + (f" ({measure.unit})" if measure.unit not in ("", "1") else "")
    base = alt.Chart(alt.InlineData(values=rows))
    x = alt.X("x:N", title=str(told["axis"]), sort=order, scale=alt.Scale(domain=order), axis=_axis(order))
    y = alt.Y("value:Q", title=label, scale=_scale(rows, target))
    words = list(_COLOURS)
    colour = alt.Color("meets:N", title=None, scale=alt.Scale(domain=words, range=list(_COLOURS.values())))
    shape = alt.Shape("meets:N", title=None, scale=alt.Scale(domain=words, range=[_SHAPES[word] for word in words]))
    spans = base.transform_filter("datum.kind == 'value' && datum.low != null")
    ones = base.transform_filter("datum.kind == 'trial'")
    medians = base.transform_filter("datum.kind == 'value' && datum.value != null")
    layers: list[Any] = [
        *_found(base, x, target, told),
        spans.mark_rule(strokeWidth=1.8).encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=colour),
        ones.mark_point(size=26, filled=False, strokeWidth=1, opacity=0.8).encode(x=x, y=y, color=colour, shape=shape),
        medians.mark_point(size=80, filled=True, opacity=1).encode(
            x=x, y=y, color=colour, shape=shape, tooltip=_tooltip(str(told["axis"]), measure)
        ),
        medians.mark_text(dx=9, dy=-8, align="left", fontSize=11, color=theme.FAINT_INK).encode(
            x=x, y=y, text="order:N"
        ),
    ]
    drawn = alt.LayerChart(layer=layers, data=base.data).properties(width=theme.WIDTH, height=_HEIGHT)
    return theme.finished(drawn, title, _described(told))


def _rows(told: Mapping[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for place, row in enumerate(told["tried"], 1):
        own = {"x": cell_text(row["value"]), "meets": _MEETS[bool(row["meets"])]}
        found += [own | {"kind": "trial", "value": value} for value in row["values"]]
        whole = {"kind": "value", "value": row["median"], "low": row["low"], "high": row["high"]}
        found.append(own | whole | {"order": f"{place}.", "trials": row["trials"], "why": "; ".join(row["why"])})
    return found


def _found(base: alt.Chart, x: alt.X, target: float, told: Mapping[str, Any]) -> list[Any]:
    """Return the line of the target with its name, and a band at the value that was found."""
    line = alt.Chart(alt.InlineData(values=[{"target": target}]))
    rule = line.mark_rule(strokeDash=[6, 4], color=theme.INK, strokeWidth=1.3).encode(y="target:Q")
    words = line.mark_text(align="right", dx=-4, dy=-6, fontSize=11, color=theme.INK, text=f"target {target:,.15g}")
    name = words.encode(y="target:Q", x=alt.value(theme.WIDTH))
    if told.get("answer") is None:
        return [rule, name]
    band = alt.Chart(alt.InlineData(values=[{"x": cell_text(told["answer"])}]))
    mark = band.mark_bar(color=theme.GREEN, opacity=0.12, width=alt.RelativeBandSize(0.9))
    return [mark.encode(x=x, y=alt.value(0), y2=alt.value(_HEIGHT)), rule, name]


def _axis(order: Sequence[str]) -> alt.Axis:
    crowded = max(map(len, order)) * 6.5 > theme.WIDTH / len(order)
    return alt.Axis(labelAngle=-35 if crowded else 0, labelLimit=160, grid=False)


def _scale(rows: Sequence[Mapping[str, Any]], target: float) -> alt.Scale:
    """Return an axis of values that holds all trials and the target; what of an interval is beyond it is cut."""
    values = [row["value"] for row in rows if row["value"] is not None] + [target]
    least, most = min(values), max(values)
    if 0 < least * _WIDE < most:
        return alt.Scale(type="log", domain=[least / 1.4, most * 1.4], nice=False, clamp=True)
    return alt.Scale(domain=[min(least, 0.0), most * 1.15 or 1.0], nice=False, clamp=True)


def _tooltip(axis: str, measure: Measure) -> list[alt.Tooltip]:
    named_ = [("x:N", axis), ("value:Q", f"median {measure.measured}"), ("trials:Q", "trials"), ("why:N", "why")]
    return [alt.Tooltip(field, title=title) for field, title in named_]


def _described(told: Mapping[str, Any]) -> list[str]:
    lines = [sentence(answer_of(told)) + "."]
    bad = [row for row in told["tried"] if row["bad"] and not row["values"]]
    if bad:
        lines.append("Not drawn, without a valid trial: " + ", ".join(cell_text(row["value"]) for row in bad) + ".")
    return [
        *lines,
        "Filled: medians, numbered as they were first tried, with the 95 % interval of the mean. Open: trials.",
    ]
