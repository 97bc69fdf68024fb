"""Where on the device requests went over time, counted in the cells of a grid: never more than the grid in memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from analysis.attribution import DATA
from analysis.metrics import requests_path, round_bin
from analysis.trace import Array, reading, time_column
from analysis.units import KIB, SECTOR_BYTES

#: The grid has at most this many cells over time, and over the device.
MOST_COLUMNS, MOST_ROWS = 300, 128


@dataclass(frozen=True)
class Extent:
    """The bytes of the device between the first and the last that any request of a trial touched."""

    begin: int
    end: int
    largest_request: int


@dataclass(frozen=True)
class Grid:
    """Requests of one operation by time (columns) and offset on the device (rows of `cell_bytes`, from offset 0 on).

    `counts[0]` is the row that begins at `low` x `cell_bytes`; times count from the beginning of the traced window.
    """

    counts: Array
    low: int
    cell_ns: int
    cell_bytes: int

    def coarser(self) -> Grid:
        """Return the grid with cells twice as long and twice as high."""
        rows, columns = self.counts.shape
        padded = np.zeros((rows + self.low % 2 + 2, columns + 2), np.int64)
        padded[self.low % 2 : self.low % 2 + rows, :columns] = self.counts
        even = padded[: padded.shape[0] // 2 * 2, : padded.shape[1] // 2 * 2]
        summed = even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2).sum(axis=(1, 3))
        return Grid(summed, self.low // 2, self.cell_ns * 2, self.cell_bytes * 2)


def device_extent(trial_dir: str | Path) -> Extent | None:
    """Return what of the device the trial's reads and writes span, None where it has none."""
    path = requests_path(trial_dir)
    found = _data(path).select(
        pl.col("sector").min().alias("begin"),
        (pl.col("sector") * SECTOR_BYTES + pl.col("bytes")).max().alias("end"),
        pl.col("bytes").max().alias("largest"),
    )
    with reading(path):
        row = found.collect(engine="streaming").row(0)
    return None if row[0] is None else Extent(row[0] * SECTOR_BYTES, row[1], row[2])


def sector_grids(trial_dir: str | Path, begin_ns: int, duration_ns: int, span: Extent) -> dict[str, Grid]:
    """Return the requests of the trial on a grid over `duration_ns` and `span`, reads and writes apart.

    A request counts when it completed, or was issued where completion was not recorded, in the cell of its first
    sector; no request is larger than a cell.
    """
    path = requests_path(trial_dir)
    cell_ns, cell_bytes = round_bin(duration_ns, MOST_COLUMNS), _cell_bytes(span)
    low, high = span.begin // cell_bytes, (span.end - 1) // cell_bytes
    told = _data(path).select(
        pl.col("op").cast(pl.String),
        ((pl.col(time_column(path)) - begin_ns) // cell_ns).alias("column"),
        (pl.col("sector") // (cell_bytes // SECTOR_BYTES) - low).alias("row"),
    )
    kept = told.filter(pl.col("column").is_between(0, duration_ns // cell_ns))
    with reading(path):
        counted = kept.group_by("op", "column", "row").agg(pl.len().alias("count")).collect(engine="streaming")
    grids = {}
    for op in DATA:
        own = counted.filter(pl.col("op") == op)
        counts = np.zeros((high - low + 1, duration_ns // cell_ns + 1), np.int64)
        counts[own["row"].to_numpy(), own["column"].to_numpy()] = own["count"].to_numpy()
        grids[op] = Grid(counts, low, cell_ns, cell_bytes)
    return grids


def rectangles(levels: Array) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield row begin, row end, column begin, column end and level of rectangles of equal level above 0.

    Together they cover every such cell once.
    """
    runs = []
    for column in range(levels.shape[1]):
        own = levels[:, column]
        edges = np.concatenate(([0], np.flatnonzero(np.diff(own)) + 1, [own.size]))
        runs += [(int(a), int(b), int(own[a]), column) for a, b in itertools.pairwise(edges) if own[a]]
    runs.sort()
    first = 0
    for place, (begin, end, level, column) in enumerate(runs):
        following = runs[place + 1] if place + 1 < len(runs) else None
        if following != (begin, end, level, column + 1):
            yield begin, end, runs[first][3], column + 1, level
            first = place + 1


def _data(path: Path) -> pl.LazyFrame:
    return pl.scan_parquet(path).filter(pl.col("op").cast(pl.String).is_in(DATA), pl.col("bytes") > 0)


def _cell_bytes(span: Extent) -> int:
    """Return the height of a cell: a power of two, no smaller than the largest request."""
    cell = 4 * KIB
    while cell < span.largest_request or (span.end - span.begin) / cell > MOST_ROWS - 1:
        cell *= 2
    return cell
