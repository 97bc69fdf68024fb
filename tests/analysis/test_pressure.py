"""Samples as figures and the report use them: gauges, rates, the figure of memory pressure, drives and settings."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis import draw_run, load_run, provenance, samples
from analysis.figures import draw, pressure, utilisation
from analysis.figures.timeline import timelines
from analysis.run import Run
from analysis.schema import SAMPLES, described
from tests.analysis.made_run import MIB, make_run
from tests.analysis.test_engine_figures import rows_with

STEP_NS = 10_000_000


def frame(rows: list[tuple[int, str, str, float]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=["t_ns", "source", "name", "value"], orient="row")


def test_a_gauge_is_a_mean_and_a_rate_comes_from_the_counter_itself() -> None:
    told = frame([(t, "device", "read_bytes", v) for t, v in ((0, 0.0), (4, 10.0), (9, 30.0), (12, 30.0), (40, 100.0))])
    assert samples.gauge(told, "device", "read_bytes", 0, 10).rows() == [(9, 40 / 3), (12, 30.0), (40, 100.0)]
    per_s = [(9, 30 / 9 * 1e9), (12, 0.0), (40, 70 / 28 * 1e9)]
    assert samples.rate(told, "device", "read_bytes", 0, 10).rows() == [(t, pytest.approx(v)) for t, v in per_s]
    assert samples.rate(told, "drive", "read_bytes", 0, 10).is_empty()


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 1000)), min_size=1, max_size=40), st.integers(1, 200))
def test_rates_add_up_to_what_was_counted_whatever_the_bins(steps: list[tuple[int, int]], bin_ns: int) -> None:
    rows, t_ns, value = [(0, "x", "y", 0.0)], 0, 0.0
    for step_ns, grown in steps:
        t_ns, value = t_ns + step_ns, value + grown
        rows.append((t_ns, "x", "y", value))
    rates = samples.rate(frame(rows), "x", "y", 0, bin_ns).rows()
    ends = [0, *(t for t, _ in rates)]
    spans = [b - a for a, b in pairwise(ends)]
    total = sum(rate * span / 1e9 for (_, rate), span in zip(rates, spans, strict=True))
    assert total == pytest.approx(value)


def sampled_run(tmp_path: Path, limited: bool) -> Run:
    """Return a made run of which the first trial has samples: 1 GiB/s of reads, all of it refaults."""
    run = make_run(tmp_path, sizes=(MIB,), repeats=1, broken=False)
    trial = sorted((run / "trials").iterdir())[0]
    record = json.loads((trial / "trial.json").read_text())
    begin, end = record["tracer"]["begin_ns"], record["tracer"]["end_ns"]
    source = "cgroup" if limited else "memory"
    rows: list[tuple[int, str, str, float]] = []
    for n, t in enumerate(range(begin, end, STEP_NS)):
        read = (t - begin) * (1 << 30) / 1e9
        rows += [
            (t, "device", "read_bytes", read),
            (t, "device", "queue_depth", float(n % 3)),
            (t, "memory", "shared", 3e9),
        ]
        rows += [(t, "cgroup" if limited else "paging", "refault_file_bytes", read)]
        rows += [
            (t, source, "used", 60.0 * MIB),
            (t, source, "page_cache", 3e9 + 40 * MIB if not limited else 40.0 * MIB),
        ]
        rows += [
            (t, "pressure", "io_some_stalled", n * STEP_NS / 2e9),
            (t, "cpu", "busy", 30.0),
            (t, "cpu", "iowait", 20.0),
        ]
    table = [dict(zip(SAMPLES.names, (*row, "", None), strict=True)) for row in rows]
    pq.write_table(pa.Table.from_pylist(table, schema=described(SAMPLES, {})), trial / "samples.parquet")
    if limited:
        record["metrics"] = {"memory_limit_bytes": {"value": 64 * MIB, "unit": "B"}}
    record["sampler"] = {"interval_ms": 10.0, "samples": 30, "missed": 2, "cpu_s": 0.01, "cost_cores": 0.0123}
    (trial / "trial.json").write_text(json.dumps(record))
    return load_run(run)


@pytest.mark.parametrize("limited", [True, False])
def test_pressure_shows_memory_refaults_and_queue(tmp_path: Path, limited: bool) -> None:
    run = sampled_run(tmp_path, limited)
    first, other = pressure.charts(run)
    assert first.reason is None
    assert other.reason == "the trial has no samples of memory or of a queue"
    rows = rows_with(first.chart, "value")
    by_line: dict[str, set[float]] = {}
    for row in rows:
        if "line" in row:
            by_line.setdefault(row["line"], set()).add(row["value"])
    whose = "" if limited else " (machine)"
    cache = "its page cache" if limited else "page cache, without images in memory"
    assert by_line["read from the device"] == by_line[f"pages that had been evicted{whose}"] == {1.0}
    assert by_line["all of the job" if limited else "in use"] == {60.0}
    assert by_line[cache] == {40.0}
    assert by_line["a task waits for I/O"] == {50.0}
    assert by_line["queue depth"] == {0.0, 1.0, 2.0}
    assert ({"value": 64.0} in rows) == limited
    said = " ".join(first.chart.to_dict()["title"]["subtitle"])
    assert "Sampled every 10 ms at the cost of 1.23 % of a core." in said
    assert ("Dashed: the limit, 64 MiB." in said) == limited


def test_pressure_needs_no_requests(tmp_path: Path) -> None:
    run = sampled_run(tmp_path, True)
    (run.published[0].path / "requests.parquet").unlink()
    drawn = draw(load_run(run.path), ["pressure"], tmp_path / "out")
    assert drawn[0].reason is None
    assert "NaN" not in drawn[0].svg


def test_waiting_for_io_is_a_line_of_its_own(tmp_path: Path) -> None:
    run = sampled_run(tmp_path, True)
    chart = utilisation.over_time(timelines(run.published).of(run.published[0]), True)
    lines = {(row["source"], row["percent"]) for row in rows_with(chart, "source")}
    assert lines == {("CPUs busy", 30.0), ("CPUs waiting for I/O", 20.0)}


def health(temperature: float, used: int) -> dict[str, Any]:
    return {"temperature_c": temperature, "percentage_used": used, "data_written_bytes": 10**12}


def drive(begin: float, end: float, **changes: Any) -> dict[str, Any]:
    link = {"current_speed": "8.0 GT/s PCIe", "current_width": "4", "max_speed": "16.0 GT/s PCIe", "max_width": "4"}
    told = {
        "name": "nvme0n1",
        "model": "PM9A3",
        "firmware": "A1",
        "transport": "nvme pcie",
        "numa_node": 1,
        "pcie": link,
    }
    return told | {"health": {"begin": health(begin, 3), "end": health(end, 4)}} | changes


def test_the_report_tells_of_drives_and_settings(tmp_path: Path) -> None:
    run = make_run(tmp_path, sizes=(MIB,), repeats=1, broken=False)
    paths = sorted(run.glob("trials/*/trial.json"))
    for path, one in zip(paths, [drive(35, 52), drive(40, 44, firmware="A2")], strict=True):
        record = json.loads(path.read_text())
        record["device"] |= {"drives": [one], "mount": "43 27 7:0 / /mnt rw - xfs /dev/loop0 rw"}
        record["node"] |= {"cpu_governor": "performance", "numa_nodes": {"0": "0-1", "1": "2-3"}, "cgroup_version": 2}
        record["node"] |= {"tools": {"fio": "3.33"}, "vm": {"dirty_ratio": 20}}
        record["sampler"] = {"interval_ms": 200.0, "samples": 9, "missed": 1, "cost_cores": 0.002}
        path.write_text(json.dumps(record))
    (row,) = provenance.drive_rows(load_run(run))
    assert row["Firmware"] == "A1, A2"
    assert row["Attached by"] == "nvme pcie, PCIe 8.0 GT/s x4 of 16.0 GT/s x4"
    assert row["Temperature"] == "35 → 44 °C, at most 52"
    assert row["Wear"] == "4 % used, 931 GiB written"
    assert (row["NUMA node"], row["Write cache"]) == ("1", "unknown")
    page = Path(draw_run(run)["report"]).read_text()
    for said in ("performance", "fio 3.33", "35 → 52 °C", "9 samples every 200 ms, 1 missed, cost 0.200 % of a core"):
        assert said in page


@pytest.mark.parametrize("odd", [None, [], "x", 7, {}, [None], [{}], {"begin": 1}])
def test_odd_records_are_unknown_not_errors(tmp_path: Path, odd: Any) -> None:
    run = make_run(tmp_path, sizes=(MIB,), repeats=1, broken=False)
    for path in run.glob("trials/*/trial.json"):
        record = json.loads(path.read_text())
        record["device"] |= {"drives": odd, "mount": odd}
        record["node"] |= dict.fromkeys(("vm", "numa_nodes", "gpus_detail", "tools", "cgroup_version"), odd)
        record["sampler"] = odd
        path.write_text(json.dumps(record))
    told = load_run(run)
    provenance.drive_rows(told)
    for trial in told.published:
        provenance.health_facts(trial)
        provenance.settings(trial.section("node"))
        provenance.gpu_places(trial.section("node"))
    record["device"]["drives"] = [drive(1, 2, pcie=odd, health=odd, model=odd)]
    path.write_text(json.dumps(record))
    provenance.drive_rows(load_run(run))
