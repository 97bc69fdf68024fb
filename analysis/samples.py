"""What `samples.parquet` tells of a trial over time: gauges, rates of counters, how busy its processors were."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.errors import AnalysisError
from analysis.units import NS_PER_S

#: Source of the machine's own processors; GPUs are gpu0, gpu1, ...
CPU = "cpu"
#: What `utilisation` calls the share of their time that the processors waited for I/O.
IOWAIT = "cpu iowait"

_COLUMNS = ("t_ns", "source", "name", "value")
_SCHEMA = {"t_ns": pl.Int64, "source": pl.String, "name": pl.String, "value": pl.Float64}


def read(trial_dir: str | Path) -> pl.DataFrame:
    """Return a trial's samples by time: `t_ns`, `source`, `name`, `value`; no rows where it has none.

    Raises AnalysisError where the file is broken.
    """
    path = Path(trial_dir) / "samples.parquet"
    if not path.is_file():
        return pl.DataFrame(schema=_SCHEMA)
    try:
        table = pq.read_table(path, columns=list(_COLUMNS))
        told = pl.DataFrame({name: pl.from_arrow(table[name]) for name in _COLUMNS})
    except (pa.ArrowException, OSError, KeyError) as error:
        raise AnalysisError(f"{path}: cannot be read as samples ({str(error).splitlines()[0]})") from None
    return told.with_columns(pl.col("source", "name").cast(pl.String)).sort("t_ns", maintain_order=True)


def counted_bytes(trial_dir: str | Path) -> pl.DataFrame:
    """Return what the traced device had moved at each sample, in bytes since the first: `op`, `t_ns`, `bytes`."""
    told = read(trial_dir).filter(pl.col("source") == "device")
    parts = [
        told.filter(pl.col("name") == f"{op}_bytes").select(
            pl.lit(op).alias("op"), "t_ns", pl.col("value").alias("bytes")
        )
        for op in ("read", "write")
    ]
    return pl.concat(parts)


def utilisation(trial_dir: str | Path) -> pl.DataFrame:
    """Return how busy GPUs and CPUs were: `source`, `t_ns`, `percent`, by time; a value speaks for the time before it.

    The CPUs' time of waiting for I/O, which is not busy, is a source of its own. No rows where there are no samples.
    """
    told = read(trial_dir)
    source, name = pl.col("source"), pl.col("name")
    waiting = (source == CPU) & (name == "iowait")
    gpu = source.str.contains(r"^gpu\d+$") & (name == "utilisation")
    chosen = told.filter(gpu | waiting | ((source == CPU) & (name == "busy")))
    called = pl.when(waiting).then(pl.lit(IOWAIT)).otherwise(source).alias("source")
    return chosen.select(called, "t_ns", pl.col("value").alias("percent")).sort("source", "t_ns")


def thinned(told: pl.DataFrame, begin_ns: int, bin_ns: int) -> pl.DataFrame:
    """Return `told` with one mean per source and bin of time, at the last sample in it."""
    place = ((pl.col("t_ns") - begin_ns) // bin_ns).alias("bin")
    means = told.group_by("source", place).agg(pl.col("t_ns").max(), pl.col("percent").mean())
    return means.select("source", "t_ns", "percent").sort("source", "t_ns")


def gauge(told: pl.DataFrame, source: str, name: str, begin_ns: int, bin_ns: int) -> pl.DataFrame:
    """Return the means of a gauge in bins of time, at the last sample of each: `t_ns`, `value`."""
    place = ((pl.col("t_ns") - begin_ns) // bin_ns).alias("bin")
    means = _one(told, source, name).group_by(place).agg(pl.col("t_ns").max(), pl.col("value").mean())
    return means.select("t_ns", "value").sort("t_ns")


def rate(told: pl.DataFrame, source: str, name: str, begin_ns: int, bin_ns: int) -> pl.DataFrame:
    """Return how fast a counter grew, per second: `t_ns`, `value`, each from the last sample of a bin to that of the
    next bin with one; a value speaks for the time before it."""
    place = ((pl.col("t_ns") - begin_ns) // bin_ns).alias("bin")
    last = _one(told, source, name).group_by(place).agg(pl.col("t_ns", "value").last()).sort("t_ns")
    first = _one(told, source, name).head(1).select("t_ns", "value")
    points = pl.concat([first, last.select("t_ns", "value")]).unique("t_ns", keep="last").sort("t_ns")
    grown = pl.col("value").diff() * NS_PER_S / pl.col("t_ns").diff()
    return points.select("t_ns", grown.alias("value")).drop_nulls()


def _one(told: pl.DataFrame, source: str, name: str) -> pl.DataFrame:
    return told.filter((pl.col("source") == source) & (pl.col("name") == name))
