"""Request sizes by operation, one chart per trial: the share of an operation's requests in each size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import altair as alt
import polars as pl

from analysis import metrics
from analysis.attribution import DATA
from analysis.errors import AnalysisError, CannotDraw
from analysis.figures import theme
from analysis.figures.panel import Panel, per_trial
from analysis.run import Run, Trial
from analysis.units import KIB, bytes_text, count_text

NAME = "sizes"
TITLE = "Request sizes by operation"

MOST_SIZES = 12
_HEIGHT = 230


def applies(run: Run) -> bool:
    """Return whether any trial has requests to draw."""
    return any(trial.table("requests") is not None for trial in run.published)


def charts(run: Run) -> Iterator[Panel]:
    """Yield one panel per trial; all share the size categories, so they compare at sight."""
    sizes: set[int] = set()
    for trial in run.published:
        try:
            sizes |= _data_sizes(metrics.request_sizes(trial.path))
        except AnalysisError:
            continue  # its own panel says why
    categories = categorised(sorted(sizes))
    yield from per_trial(run, NAME, TITLE, lambda trial: chart(trial, categories))


def chart(trial: Trial, categories: dict[int, str] | None = None) -> alt.TopLevelMixin:
    """Return the chart of one trial; `categories` names the category of each size in bytes."""
    counted = metrics.request_sizes(trial.path)
    categories = categories or categorised(sorted(_data_sizes(counted)))
    values = shares(counted, categories)
    if not values:
        raise CannotDraw("the trace holds no read and no write with data")
    names = list(dict.fromkeys(categories.values()))
    operations = [op for op in DATA if any(value["op"] == op for value in values)]
    x = alt.X("size:N", title="Request size (KiB)", sort=names, scale=alt.Scale(domain=names), axis=_labels(names))
    y = alt.Y("share:Q", title="Share of the operation's requests (%)", scale=alt.Scale(domain=[0, 108], nice=False))
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
    bars = alt.layer(base.mark_bar().encode(color=colour), text)
    return theme.finished(
        bars.properties(width=theme.WIDTH, height=_HEIGHT),
        theme.named(TITLE, trial),
        _subtitle(trial, counted),
        theme.alarm(trial),
    )


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
    data = counted.filter(pl.col("op").is_in(DATA), pl.col("bytes") > 0)
    grouped = (
        data.with_columns(pl.col("bytes").replace_strict(categories, return_dtype=pl.String).alias("size"))
        .group_by("op", "size", maintain_order=True)
        .agg(pl.col("count").sum(), (pl.col("bytes") * pl.col("count")).sum().alias("total"))
        .with_columns((pl.col("count") / pl.col("count").sum().over("op") * 100).alias("share"))
    )
    return [row | {"label": _percent(row["share"]), "moved": bytes_text(row["total"])} for row in grouped.to_dicts()]


def _data_sizes(counted: pl.DataFrame) -> set[int]:
    return set(counted.filter(pl.col("op").is_in(DATA), pl.col("bytes") > 0)["bytes"].to_list())


def _kib(size: int) -> str:
    return f"{size / KIB:g}" if size % 512 == 0 or size >= KIB else f"{size / KIB:.3g}"


def _range(bucket: Sequence[int]) -> str:
    return _kib(bucket[0]) if len(bucket) == 1 else f"{_kib(bucket[0])}\u2013{_kib(bucket[-1])}"


def _percent(share: float) -> str:
    if share < 0.1:
        return "<0.1"
    return f"{share:.1f}" if share < 9.95 else f"{share:.0f}"


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


def _subtitle(trial: Trial, counted: pl.DataFrame) -> list[str]:
    data = counted.filter(pl.col("op").is_in(DATA), pl.col("bytes") > 0)
    parts = []
    for op in DATA:
        own = data.filter(pl.col("op") == op)
        moved = int((own["bytes"] * own["count"]).sum())
        parts.append(f"{count_text(int(own['count'].sum()), op)} ({bytes_text(moved)})")
    apart = _apart(counted)
    device = trial.section("device").get("name") or "unknown"
    left_out = f" Not in the shares: {', '.join(apart)}." if apart else ""
    return [f"{' and '.join(parts)} on device {device}.{left_out}"]


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
