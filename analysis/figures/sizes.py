"""Request sizes by operation, one chart per trial: the share of an operation's requests in each size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import altair as alt
import polars as pl

from analysis import metrics
from analysis.attribution import DATA
from analysis.errors import CannotDraw
from analysis.figures import theme
from analysis.figures.panel import Panel, Tried, per_trial
from analysis.run import Run, Trial
from analysis.units import KIB, bytes_text, count_text, share_text

NAME = "sizes"
TITLE = "Request sizes by operation"

MOST_SIZES = 12
#: Rows of the table, the one for all others included.
MOST_LINES = 7
_HEIGHT = 180
#: Where the columns of the table end, from the left of their half, and the gap between the halves (pixels).
_COLUMNS, _GAP, _ROW = (70, 150, 205, 285, 340), 40, 17


def charts(run: Run) -> Iterator[Panel]:
    """Yield one panel per trial; all share the size categories, so they compare at sight."""
    counts = counted(run.published)
    categories = common(counts)
    yield from per_trial(run.published, NAME, TITLE, lambda trial: chart(trial, counts.of(trial), categories))


def chart(trial: Trial, counted: pl.DataFrame, categories: dict[int, str]) -> alt.TopLevelMixin:
    """Return the chart of one trial; `categories` names the category of each size in bytes."""
    drawn = theme.stack([bars(counted, categories)])
    return theme.finished(drawn, theme.named(TITLE, trial), [described(trial, counted)], theme.alarm(trial))


def counted(trials: Sequence[Trial]) -> Tried[pl.DataFrame]:
    """Return the request sizes of each trial."""
    return Tried(trials, lambda trial: metrics.request_sizes(trial.path))


def common(counts: Tried[pl.DataFrame]) -> dict[int, str]:
    """Return size categories for all these trials together."""
    return categorised(sorted({size for one in counts.all() for size in _data(one)["bytes"].to_list()}))


def bars(counted: pl.DataFrame, categories: dict[int, str]) -> alt.LayerChart:
    """Return bars of the share of an operation's requests in each size category."""
    values = shares(counted, categories)
    if not values:
        raise CannotDraw("the trace holds no read and no write with data")
    names = list(dict.fromkeys(categories.values()))
    operations = [op for op in DATA if any(value["op"] == op for value in values)]
    x = alt.X("size:N", title="Request size (KiB)", sort=names, scale=_bands(names), axis=_labels(names))
    y = alt.Y("share:Q", title="Share of the requests (%)", scale=alt.Scale(domain=[0, 113], nice=False))
    colour = alt.Color(
        "op:N",
        title=None,
        scale=alt.Scale(domain=operations, range=[theme.OPERATIONS[op] for op in operations]),
    )
    offset = alt.XOffset("op:N", sort=operations, scale=alt.Scale(domain=operations, paddingInner=0.08))
    base = alt.Chart(alt.InlineData(values=values)).encode(
        x=x, y=y.axis(values=[0, 20, 40, 60, 80, 100]), xOffset=offset, tooltip=_tooltip()
    )
    text = base.mark_text(dy=-7, fontSize=_text_size(names), fontWeight=500).encode(text="label:N", color=colour)
    layers = alt.LayerChart(layer=[base.mark_bar().encode(color=colour), text])
    return layers.properties(width=theme.WIDTH, height=_HEIGHT)


def table(counted: pl.DataFrame) -> alt.LayerChart:
    """Return the sizes that dominate each operation as a table, reads left and writes right."""
    cells: list[dict[str, Any]] = []
    rules: list[dict[str, float]] = []
    rows = 0
    for place, op in enumerate(DATA):
        left, lines = place * (theme.WIDTH + _GAP) / 2, dominating(counted, op)
        rows = max(rows, 1 + len(lines))
        rules.append({"x": left, "x2": left + (theme.WIDTH - _GAP) / 2, "y": 1})
        for row, texts in enumerate([(op.capitalize(), "requests", "share", "bytes", "share"), *lines]):
            for column, text in zip(_COLUMNS, texts, strict=True):
                weight = "head" if not row else "body"
                cells.append({"x": left + column, "y": row + 0.5, "text": text, "op": op, "weight": weight})
    x = alt.X("x:Q", scale=alt.Scale(domain=[0, theme.WIDTH], nice=False), axis=None)
    y = alt.Y("y:Q", scale=alt.Scale(domain=[rows, 0], nice=False), axis=None)
    base = alt.Chart(alt.InlineData(values=cells)).encode(x=x, y=y, text="text:N")
    colour = alt.Color("op:N", scale=alt.Scale(domain=list(DATA), range=list(theme.OPERATIONS.values())), legend=None)
    head = base.transform_filter("datum.weight == 'head'").encode(color=colour)
    body = base.transform_filter("datum.weight == 'body'")
    line = alt.Chart(alt.InlineData(values=rules)).mark_rule(color=theme.RULE).encode(x=x, x2="x2:Q", y=y)
    layers = [head.mark_text(align="right", fontSize=11, fontWeight=600), line]
    layers.append(body.mark_text(align="right", fontSize=11, color=theme.INK))
    drawn = alt.LayerChart(layer=layers)
    return drawn.properties(width=theme.WIDTH, height=_ROW * rows, view=alt.ViewConfig(stroke=None))


def dominating(counted: pl.DataFrame, op: str) -> list[tuple[str, str, str, str, str]]:
    """Return rows of size, requests, their share, bytes, their share: the sizes that make up most of the requests or
    of the bytes of an operation, all others in one row."""
    own = _data(counted).filter(pl.col("op") == op).with_columns((pl.col("bytes") * pl.col("count")).alias("moved"))
    share = [(pl.col(name) / pl.col(name).sum()).alias(f"of_{name}") for name in ("count", "moved")]
    ranked = own.with_columns(share).sort(-pl.max_horizontal("of_count", "of_moved"), "bytes")
    most = MOST_LINES if ranked.height <= MOST_LINES else MOST_LINES - 1
    rest = ranked.slice(most)
    lines = [_line(f"{_kib(row['bytes'])} KiB", row) for row in ranked.head(most).sort("bytes").to_dicts()]
    if rest.height:
        others = rest.select("count", "moved", "of_count", "of_moved").sum().to_dicts()[0]
        lines.append(_line(f"{rest.height:,} others", others))
    return lines or [("none", "", "", "", "")]


def described(trial: Trial, counted: pl.DataFrame) -> str:
    """Return what was counted, and what the shares leave out, in a sentence or two."""
    parts = []
    for op in DATA:
        own = _data(counted).filter(pl.col("op") == op)
        moved = int((own["bytes"] * own["count"]).sum())
        parts.append(f"{count_text(int(own['count'].sum()), op)} ({bytes_text(moved)})")
    apart = _apart(counted)
    device = trial.section("device").get("name") or "unknown"
    left_out = f" Not in the shares: {', '.join(apart)}." if apart else ""
    return f"{' and '.join(parts)} on device {device}.{left_out}"


def categorised(sizes: Sequence[int]) -> dict[int, str]:
    """Return the category of each size (bytes), in KiB: the size itself, or, where there are more than twelve, the
    sizes seen between one power of two and the next (`132-252`, or the one size seen there)."""
    if len(sizes) <= MOST_SIZES:
        return {size: _kib(size) for size in sizes}
    buckets: dict[int, list[int]] = {}
    for size in sizes:
        buckets.setdefault(size.bit_length(), []).append(size)
    return {size: _range(bucket) for bucket in buckets.values() for size in bucket}


def shares(counted: pl.DataFrame, categories: dict[int, str]) -> list[dict[str, Any]]:
    """Return op, size category, count, bytes and share (% of that operation's requests with data)."""
    grouped = (
        _data(counted)
        .with_columns(pl.col("bytes").replace_strict(categories, return_dtype=pl.String).alias("size"))
        .group_by("op", "size", maintain_order=True)
        .agg(pl.col("count").sum(), (pl.col("bytes") * pl.col("count")).sum().alias("total"))
        .with_columns((pl.col("count") / pl.col("count").sum().over("op") * 100).alias("share"))
    )
    return [row | {"label": _percent(row["share"]), "moved": bytes_text(row["total"])} for row in grouped.to_dicts()]


def _data(counted: pl.DataFrame) -> pl.DataFrame:
    return counted.filter(pl.col("op").is_in(DATA), pl.col("bytes") > 0)


def _line(size: str, row: dict[str, Any]) -> tuple[str, str, str, str, str]:
    shares = (f"{_percent(row[name] * 100)} %" for name in ("of_count", "of_moved"))
    of_count, of_moved = shares
    return size, f"{row['count']:,}", of_count, bytes_text(row["moved"]), of_moved


def _kib(size: int) -> str:
    return f"{size / KIB:g}" if size % 512 == 0 or size >= KIB else f"{size / KIB:.3g}"


def _range(bucket: Sequence[int]) -> str:
    return _kib(bucket[0]) if len(bucket) == 1 else f"{_kib(bucket[0])}\u2013{_kib(bucket[-1])}"


def _percent(share: float) -> str:
    if share < 0.1:
        return "<0.1"
    if 99 < share < 100:  # beside other rows it is not all
        return share_text(share / 100).removesuffix(" %")
    return f"{share:.1f}" if share < 9.95 else f"{share:.0f}"


def _bands(names: Sequence[str]) -> alt.Scale:
    """Return a scale on which one or two categories do not become walls."""
    return alt.Scale(domain=names, padding=max(0.2, 0.8 - 0.2 * len(names)))


def _labels(names: Sequence[str]) -> alt.Axis:
    crowded = max(map(len, names)) * 6.5 > theme.WIDTH / len(names)
    return alt.Axis(labelAngle=-35 if crowded else 0, labelLimit=120, grid=False, labelOverlap=False)


def _text_size(names: Sequence[str]) -> float:
    return 11 if len(names) <= 9 else 9.5


def _tooltip() -> list[alt.Tooltip]:
    return [
        alt.Tooltip("op:N", title="Operation"),
        alt.Tooltip("size:N", title="Size (KiB)"),
        alt.Tooltip("count:Q", title="Requests", format=","),
        alt.Tooltip("share:Q", title="Share (%)", format=".2f"),
        alt.Tooltip("moved:N", title="In all"),
    ]


def _apart(counted: pl.DataFrame) -> list[str]:
    """Return, in words, the requests that the shares leave out."""
    apart = []
    names = {"read": "empty read", "write": "empty write", "discard": "discard", "other": "other request"}
    for op, name in names.items():
        own = counted.filter(pl.col("op") == op, pl.col("bytes") == 0 if op in DATA else pl.lit(True))
        if not own.is_empty():
            moved = int((own["bytes"] * own["count"]).sum())
            apart.append(count_text(int(own["count"].sum()), name) + (f" ({bytes_text(moved)})" if moved else ""))
    flushes = int(counted.filter(pl.col("op") == "flush")["count"].sum())
    return [count_text(flushes, "flush", "flushes") + " of 0 bytes", *apart] if flushes else apart
