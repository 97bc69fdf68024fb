"""What `samples.parquet` tells of a trial's processors over time."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.errors import AnalysisError

#: Source of the machine's own processors; GPUs are gpu0, gpu1, ...
CPU = "cpu"


def utilisation(trial_dir: str | Path) -> pl.DataFrame:
    """Return how busy GPUs and CPUs were: `source`, `t_ns`, `percent`, by time; a value speaks for the time before it.

    No rows where the trial has no samples.
    """
    path = Path(trial_dir) / "samples.parquet"
    schema = {"source": pl.String, "t_ns": pl.Int64, "percent": pl.Float64}
    if not path.is_file():
        return pl.DataFrame(schema=schema)
    try:
        table = pq.read_table(path, columns=["t_ns", "source", "name", "value"])
        told = pl.DataFrame({name: pl.from_arrow(table[name]) for name in ("t_ns", "source", "name", "value")})
    except (pa.ArrowException, OSError, KeyError) as error:
        raise AnalysisError(f"{path}: cannot be read as samples ({str(error).splitlines()[0]})") from None
    source, name = pl.col("source").cast(pl.String), pl.col("name").cast(pl.String)
    gpu = source.str.contains(r"^gpu\d+$") & (name == "utilisation")
    chosen = told.filter(gpu | ((source == CPU) & (name == "busy")))
    return chosen.select(source.alias("source"), "t_ns", pl.col("value").alias("percent")).sort("source", "t_ns")


def thinned(told: pl.DataFrame, begin_ns: int, bin_ns: int) -> pl.DataFrame:
    """Return `told` with one mean per source and bin of time, at the last sample in it."""
    place = ((pl.col("t_ns") - begin_ns) // bin_ns).alias("bin")
    means = told.group_by("source", place).agg(pl.col("t_ns").max(), pl.col("percent").mean())
    return means.select("source", "t_ns", "percent").sort("source", "t_ns")
