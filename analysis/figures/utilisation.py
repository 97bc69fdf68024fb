"""GPU utilisation over time, a part of figures; the CPUs in grey for comparison, or why there is no GPU."""

from __future__ import annotations

import textwrap
from typing import Any

import altair as alt
import polars as pl

from analysis.figures import theme
from analysis.figures.timeline import Timeline
from analysis.run import Trial
from analysis.samples import CPU, IOWAIT, thinned, utilisation
from analysis.units import NS_PER_S

_HEIGHT, _LINE_HEIGHT = 100, 18
_COLOURS = (theme.BLACK, theme.GREEN, theme.PURPLE, theme.ORANGE, theme.SKY, theme.VERMILLION, theme.BLUE, theme.YELLOW)
#: The machine's own processors stand behind the GPUs: name and colour.
_CPUS = {CPU: ("CPUs busy", "#b6bcc4"), IOWAIT: ("CPUs waiting for I/O", "#6b7280")}


def over_time(line: Timeline, labelled: bool) -> alt.LayerChart:
    """Return the utilisation of every sampled GPU over time; without one, the chart says why."""
    told = utilisation(line.trial.path).filter(pl.col("t_ns").is_between(line.begin_ns, line.end_ns))
    gpus = sorted(set(told["source"]) - set(_CPUS), key=lambda name: (len(name), name))
    reason = [] if gpus else textwrap.wrap(f"{why_none(line.trial)}.", 112)
    names = {cpu: name for cpu, (name, _) in _CPUS.items()} | {gpu: f"GPU {gpu.removeprefix('gpu')}" for gpu in gpus}
    shown = [name for name in (*gpus, *_CPUS) if name in set(told["source"])]
    colours = [_CPUS[name][1] if name in _CPUS else _COLOURS[gpus.index(name) % len(_COLOURS)] for name in shown]
    # a legend without entries has no size, and neither has the whole picture then
    legend = alt.Legend(symbolType="stroke", symbolStrokeWidth=3, symbolSize=260) if shown else None
    colour = alt.Color(
        "source:N", title=None, legend=legend, scale=alt.Scale(domain=[names[name] for name in shown], range=colours)
    )
    height = _HEIGHT + _LINE_HEIGHT * len(reason)
    scale = alt.Scale(domain=[0, 104 * height / _HEIGHT], nice=False)
    title = "GPU utilisation (%)" if gpus else "Utilisation (%)"
    y = alt.Y("percent:Q", title=title, scale=scale, axis=alt.Axis(values=[0, 50, 100]))
    base = alt.Chart(alt.InlineData(values=_values(told, names, line))).encode(x=line.x(labelled), y=y, color=colour)
    place = f"indexof({[name for name, _ in _CPUS.values()]}, datum.source)"
    layers: list[alt.Chart] = [
        base.transform_filter(f"{place} >= 0").mark_line(interpolate="step-before", strokeWidth=1, clip=True),
        base.transform_filter(f"{place} < 0").mark_line(interpolate="step-before", strokeWidth=1.3, clip=True),
        _words(reason),
    ]
    return alt.LayerChart(layer=layers).properties(width=theme.WIDTH, height=height)


def why_none(trial: Trial) -> str:
    """Return why the trial has no samples of a GPU, in words."""
    if trial.section("import"):
        return "No readings of a GPU are among the imported files"
    node = trial.section("node")
    name, gpus = node.get("hostname") or "unknown", node.get("gpus")
    if gpus == []:
        return f"No GPU on node {name}: the job ran on CPU tensors"
    has = f", which has {', '.join(map(str, gpus))}" if isinstance(gpus, list) else ", whose GPUs are unknown"
    trouble = trial.record.get("trouble")
    return f"No GPU was sampled on node {name}{has}" + (f" ({trouble})" if trouble else "")


def _values(told: pl.DataFrame, names: dict[str, str], line: Timeline) -> list[dict[str, Any]]:
    means = thinned(told, line.begin_ns, line.bin_ns)
    return means.select(
        pl.col("source").replace(names),
        ((pl.col("t_ns") - line.begin_ns) / NS_PER_S).round(4).alias("begin_s"),
        pl.col("percent").round(1),
    ).to_dicts()


def _words(lines: list[str]) -> alt.Chart:
    words: alt.Chart = alt.Chart(alt.InlineData(values=[{}] if lines else [])).mark_text(
        text=lines or "", align="left", baseline="top", x=8, y=7, fontSize=12, color=theme.INK, lineHeight=_LINE_HEIGHT
    )
    return words
