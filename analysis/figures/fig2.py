"""Fig. 2 of the study: bandwidth of tensor stores and loads against tensor size."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import altair as alt
import polars as pl

from analysis.ceiling import ceiling_of, percent
from analysis.errors import CannotDraw
from analysis.figures import rules, theme
from analysis.figures.cells import label, left_out
from analysis.figures.panel import Panel, ruled_out
from analysis.run import Run, Trial
from analysis.summary import read_summary
from analysis.units import GIB, bytes_text, count_text, number_text
from analysis.workload import settings

NAME = "fig2"
TITLE = "Bandwidth of tensor stores and loads by tensor size"

_APIS = {"posix": "POSIX", "aio": "aio", "gds": "GDS"}
_API_COLOURS = {"POSIX": theme.PURPLE, "aio": theme.GREEN, "GDS": theme.ORANGE}
_DEVICES = {"cpu": "CPU tensor", "cuda": "GPU tensor"}
_PHASES = {"store": "Store (write)", "load": "Load (read)"}
_KEYS = ["row", "phase", "api", "device", "size"]
_PANEL_WIDTH, _PANEL_HEIGHT = 330, 190
_MOST_SIZE_LABELS = 7


def charts(run: Run) -> Iterator[Panel]:
    try:
        yield Panel(NAME, TITLE, chart(run))
    except CannotDraw as reason:
        yield ruled_out(NAME, TITLE, str(reason))


def chart(run: Run) -> alt.TopLevelMixin:
    """Return the figure; raise CannotDraw where no valid trial moved tensors."""
    repeats = bandwidth_per_repeat(run)
    if repeats.is_empty():
        raise CannotDraw(_nothing(run))
    means = spread(repeats)
    sizes = sorted(means["size"].unique().to_list())
    x = alt.X("size:Q", title="Tensor size", scale=_size_scale(sizes), axis=_size_axis(sizes))
    api = _api_colour(set(means["api"]))
    devices = [name for name in _DEVICES.values() if name in means["device"].to_list()]
    several = len(devices) > 1
    shape = alt.Shape("device:N", sort=devices, legend=_device_legend() if several else None)
    dash = alt.StrokeDash("device:N", sort=devices, legend=None)
    highest, ceilings = float(means["high"].max()), _ceilings(run, repeats)  # type: ignore[arg-type]
    top = rules.top(1.06 * highest, [row["gib_s"] for row in ceilings])
    scale = alt.Scale(domain=[0, top], nice=False)
    y = _bandwidth("gib_s", scale)
    points = alt.InlineData(values=[*_values(means, repeats), *(row for row in ceilings if row["gib_s"] <= top)])
    base = alt.Chart(points).encode(x=x, color=api)
    mean, one = base.transform_filter("datum.kind == 'mean'"), base.transform_filter("datum.kind == 'repeat'")
    dashed = alt.Chart(points).transform_filter("datum.kind == 'ceiling'").encode(y=y)
    layers = alt.layer(
        rules.rule(dashed).encode(color=alt.value(theme.FAINT_INK)),
        mean.mark_rule(strokeWidth=1.5, opacity=0.8).encode(y=_bandwidth("low", scale), y2="high:Q"),
        mean.mark_line(strokeWidth=2).encode(y=y, strokeDash=dash),
        one.mark_point(size=18, opacity=0.7, filled=False, strokeWidth=1).encode(y=y, shape=shape),
        mean.mark_point(size=34, filled=True, opacity=1).encode(y=y, shape=shape, tooltip=_tooltip()),
        *rules.labels(dashed, _PANEL_WIDTH - 5, -7, alt.value(theme.FAINT_INK)),
    ).properties(width=_PANEL_WIDTH, height=_PANEL_HEIGHT)
    faceted = layers.facet(
        row=alt.Row(
            "row:N",
            title=None,
            sort=_rows(means),
            header=alt.Header(labelAngle=-90, labelPadding=4, labelLimit=_PANEL_HEIGHT),
        ),
        column=alt.Column("phase:N", title=None, sort=list(_PHASES.values())),
        spacing=16,
    )
    return theme.finished(faceted, TITLE, [*_subtitle(run, repeats), *_against(ceilings, repeats, top)])


def bandwidth_per_repeat(run: Run) -> pl.DataFrame:
    """Return the mean bandwidth (total bytes / total duration over the loops) of each repeat; valid trials only.

    Columns: row (the cell, in words), phase, api, device, size (bytes), slug, repeat, loops, gib_s.
    """
    tensors = _tensors(read_summary(run))
    valid = tensors.filter(pl.col("verdict") == "valid", pl.col("duration_s") > 0)
    if valid.is_empty():
        return pl.DataFrame()
    rows = {trial.slug: label(trial.cell, _row_axes(tensors)) for trial in run.published}
    named = valid.with_columns(
        pl.col("slug").replace_strict(rows, default="").alias("row"),
        pl.col("phase").replace(_PHASES),
        pl.col("attr.api").replace(_APIS).alias("api"),
        _device(valid).alias("device"),
        _size(valid).alias("size"),
        _loops(valid).alias("loops"),
    )
    return named.group_by(*_KEYS, "slug", "repeat", maintain_order=True).agg(
        pl.col("loops").sum(), (pl.col("bytes").sum() / pl.col("duration_s").sum() / GIB).alias("gib_s")
    )


def spread(repeats: pl.DataFrame) -> pl.DataFrame:
    """Return mean, least and greatest bandwidth (GiB/s) over the repeats of each point, with their number n."""
    value = pl.col("gib_s")
    return repeats.group_by(_KEYS, maintain_order=True).agg(
        value.mean().alias("gib_s"),
        value.min().alias("low"),
        value.max().alias("high"),
        pl.len().alias("n"),
        pl.col("loops").sum(),
    )


def _ceilings(run: Run, repeats: pl.DataFrame) -> list[dict[str, Any]]:
    """Return the mean ceiling of each panel over its trials, in GiB/s; none where one of them has none."""
    trials = {trial.slug: trial for trial in run.published}
    ops = dict(zip(_PHASES.values(), ("write", "read"), strict=True))
    found = []
    for (row, phase), own in repeats.group_by("row", "phase", maintain_order=True):
        tops = [ceiling_of(trials[slug]) for slug in own["slug"].unique(maintain_order=True)]
        speeds = [top.gib_s[ops[str(phase)]] for top in tops if top is not None]
        if len(speeds) == len(tops):
            mean = sum(speeds) / len(speeds)
            said = f"fio {ops[str(phase)]}s {number_text(mean)}"
            found.append({"kind": "ceiling", "row": row, "phase": phase, "gib_s": mean, "said": said})
    return found


def _against(ceilings: list[dict[str, Any]], repeats: pl.DataFrame, top: float) -> list[str]:
    """Return in words how close the fastest tensor of each panel came to the ceiling, and which are off the axis."""
    said = []
    for one in ceilings:
        own = repeats.filter((pl.col("row") == one["row"]) & (pl.col("phase") == one["phase"]))
        best = percent(float(own["gib_s"].max()) / one["gib_s"])  # type: ignore[arg-type]
        off = "" if one["gib_s"] <= top else f" of {number_text(one['gib_s'])} GiB/s, far above the axis"
        said.append(f"{one['row']} {one['phase'].split()[0].lower()} {best}{off}")
    return (
        [f"Fastest tensors against what fio reaches on the same storage (dashed): {'; '.join(said)}."] if said else []
    )


def _tensors(summary: pl.DataFrame) -> pl.DataFrame:
    if "attr.api" not in summary.columns:
        return summary.clear()
    return summary.filter(pl.col("phase").is_in(list(_PHASES)), pl.col("attr.api").is_not_null())


def _own(run: Run) -> list[Trial]:
    """Return the trials that stored or loaded tensors, or were to."""
    slugs = set(_tensors(read_summary(run))["slug"])
    return [trial for trial in run.published if trial.slug in slugs or settings(trial).get("kind") == "tensor_io"]


def _device(frame: pl.DataFrame) -> pl.Expr:
    if "attr.tensor_device" not in frame.columns:
        return pl.lit(_DEVICES["cpu"])
    return pl.col("attr.tensor_device").str.replace(r":\d+$", "").replace(_DEVICES)


def _size(frame: pl.DataFrame) -> pl.Expr:
    if "attr.size_bytes" not in frame.columns:
        return pl.col("bytes")
    return pl.coalesce(pl.col("attr.size_bytes").cast(pl.Int64, strict=False), "bytes")


def _loops(frame: pl.DataFrame) -> pl.Expr:
    """Return how many loops a phase stands for: one, unless it tells."""
    if "attr.loops" not in frame.columns:
        return pl.lit(1, pl.Int64)
    return pl.col("attr.loops").cast(pl.Int64, strict=False).fill_null(1)


def _row_axes(tensors: pl.DataFrame) -> list[str]:
    """Return the axes that tell panels apart: those that vary, save those a phase states itself (api, device, size)."""
    own = [pl.col(name) for name in tensors.columns if name.startswith("attr.")]
    axes = []
    for name in (column for column in tensors.columns if column.startswith("cell.")):
        text = pl.col(name).cast(pl.String)
        stated = any(tensors.select((text == attribute).all()).item() for attribute in own)
        if tensors[name].n_unique() > 1 and not stated:
            axes.append(name.removeprefix("cell."))
    fs = [axis for axis in ("fs", *axes) if axis.rpartition(".")[2] == "fs" and f"cell.{axis}" in tensors.columns]
    return list(dict.fromkeys([*fs, *axes]))


def _rows(means: pl.DataFrame) -> list[str]:
    return means["row"].unique(maintain_order=True).to_list()


def _size_scale(sizes: list[int]) -> alt.Scale:
    """Return a log2 scale with room for half a label on each side."""
    margin = 2 ** (0.25 + 0.07 * math.log2(sizes[-1] / sizes[0]))
    return alt.Scale(type="log", base=2, domain=[sizes[0] / margin, sizes[-1] * margin], nice=False)


def _size_axis(sizes: list[int]) -> alt.Axis:
    step = math.ceil(len(sizes) / _MOST_SIZE_LABELS)
    labelled = sizes[(len(sizes) - 1) % step :: step]
    names = " : ".join(f"datum.value == {size} ? '{bytes_text(size)}'" for size in labelled)
    return alt.Axis(values=labelled, labelExpr=f"{names} : ''", grid=True, labelFlush=False, labelOverlap=False)


def _bandwidth(field: str, scale: alt.Scale) -> alt.Y:
    return alt.Y(f"{field}:Q", title="Bandwidth (GiB/s)", scale=scale, axis=alt.Axis(tickCount=5))


def _api_colour(used: set[str]) -> alt.Color:
    legend = alt.Legend(symbolType="stroke", symbolStrokeWidth=3, symbolSize=120)
    names = [name for name in _API_COLOURS if name in used]
    scale = alt.Scale(domain=names, range=[_API_COLOURS[name] for name in names])
    return alt.Color("api:N", title="API", scale=scale, legend=legend)


def _device_legend() -> alt.Legend:
    names = f"datum.label == '{_DEVICES['cuda']}' ? 'GPU (dashed)' : 'CPU'"
    ink = theme.FAINT_INK
    return alt.Legend(
        title="    Tensor on", labelExpr=names, symbolFillColor=ink, symbolStrokeColor=ink, symbolSize=120
    )


def _values(means: pl.DataFrame, repeats: pl.DataFrame) -> list[dict[str, Any]]:
    """Return what the figure embeds: the means, then the single repeats where there are several."""
    values = [row | {"kind": "mean", "size_name": bytes_text(row["size"])} for row in means.to_dicts()]
    if means["n"].max() != 1:
        single = repeats.select(*_KEYS, "repeat", "gib_s").to_dicts()
        values += [row | {"kind": "repeat"} for row in single]
    return values


def _tooltip() -> list[alt.Tooltip]:
    return [
        alt.Tooltip("size_name:N", title="Tensor size"),
        alt.Tooltip("row:N", title="Cell"),
        alt.Tooltip("api:N", title="API"),
        alt.Tooltip("device:N", title="Tensor on"),
        alt.Tooltip("gib_s:Q", title="Mean (GiB/s)", format=".3f"),
        alt.Tooltip("low:Q", title="Least (GiB/s)", format=".3f"),
        alt.Tooltip("high:Q", title="Greatest (GiB/s)", format=".3f"),
        alt.Tooltip("n:Q", title="Repeats"),
        alt.Tooltip("loops:Q", title="Loops in all"),
    ]


def _subtitle(run: Run, repeats: pl.DataFrame) -> list[str]:
    counts = sorted(spread(repeats)["n"].unique().to_list())
    n = f"n = {_span(counts)}"
    loops = sorted(repeats["loops"].unique().to_list())
    each = f"total bytes / total time over {_span(loops)} loop{'' if loops[-1] == 1 else 's'}"
    if counts[-1] > 1:
        shown = f"Lines: mean of {n} repeats; bars: least to greatest; small marks: single repeats ({each})."
    else:
        shown = f"One repeat ({n}), so no spread; each point is {each}."
    return [line for line in (shown, _gpu_fact(run, repeats), left_out(run, _own(run))) if line]


def _span(counts: list[int]) -> str:
    return f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _gpu_fact(run: Run, repeats: pl.DataFrame) -> str:
    """Return why there is no GPU line, from what the nodes said of themselves."""
    if _DEVICES["cuda"] in repeats["device"].to_list():
        return ""
    nodes = [*(run.record.get("nodes") or []), *(trial.section("node") for trial in run.published)]
    told = [node["gpus"] for node in nodes if isinstance(node, dict) and isinstance(node.get("gpus"), list)]
    if any(told):
        return "CPU tensors only: the nodes have a GPU, but no GPU tensor was measured."
    return "CPU tensors only: no GPU on the nodes." if told else "CPU tensors only: GPUs of the nodes unknown."


def _nothing(run: Run) -> str:
    if not run.published:
        return "no trial has finished"
    if _tensors(read_summary(run)).is_empty():
        return "no trial stored or loaded tensors (phases store and load with their api)"
    return f"none of the {count_text(len(run.published), 'trial')} is valid"
