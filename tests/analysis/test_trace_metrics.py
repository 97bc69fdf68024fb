"""Every metric against the slow, obvious way of computing it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analysis import AnalysisError, load_run, metrics, schema, trace, write_summary
from analysis.latency import BUCKETS_PER_OCTAVE, EXACT_VALUES, Latencies
from analysis.summary import read_summary, summary_table
from tests.analysis.made_run import MIB, make_run, phase_row, request_row, write_phases, write_record, write_requests

GIB = 1 << 30
OPS = ("read", "write", "flush", "discard")
LIGHT = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

times = st.integers(0, 60)
request = st.tuples(
    times, st.none() | st.integers(0, 30), st.sampled_from(OPS), st.sampled_from([0, 512, 4096, 131072]), st.booleans()
)
span = st.tuples(times, st.none() | st.integers(0, 40))


def make_trial(folder: Path, requests: list[dict[str, Any]], phases: list[dict[str, Any]], end: int = 100) -> Path:
    write_record(folder, tracer={"name": "made", "begin_ns": 0, "end_ns": end})
    ordered = sorted(requests, key=lambda row: (row["issue_ns"] is None, row["issue_ns"] or 0))
    write_requests(folder / "requests.parquet", ordered, row_group_size=7)
    write_phases(folder / "phases.parquet", phases)
    return folder


def rows_of(requests: list[tuple[int, int | None, str, int, bool]]) -> list[dict[str, Any]]:
    """Return request rows; one without its issue keeps a completion, so that it has some time."""
    rows = []
    for issue, wait, op, size, issued in requests:
        complete = None if wait is None else issue + wait
        rows.append(request_row(issue if issued or complete is None else None, complete, op, size))
    return rows


def nearest_rank(values: list[int], share: float) -> float | None:
    return sorted(values)[max(math.ceil(share * len(values)), 1) - 1] / 1000 if values else None


def expected_totals(rows: list[dict[str, Any]], begin: int, end: int) -> dict[str, Any]:
    totals: dict[str, Any] = {}
    for op in ("read", "write"):
        mine = []
        for row in rows:
            key = row["complete_ns"] if row["issue_ns"] is None else row["issue_ns"]
            if row["op"] == op and begin <= key < end:
                mine.append(row)
        waits = [
            row["complete_ns"] - row["issue_ns"]
            for row in mine
            if row["issue_ns"] is not None and row["complete_ns"] is not None
        ]
        totals[f"traced_{op}_bytes"] = sum(row["bytes"] for row in mine if row["complete_ns"] is not None)
        totals[f"{op}_requests"] = len(mine)
        totals[f"{op}_d2c_p50_us"] = nearest_rank(waits, 0.5)
        totals[f"{op}_d2c_p99_us"] = nearest_rank(waits, 0.99)
        totals[f"{op}_d2c_max_us"] = max(waits) / 1000 if waits else None
    return totals


@LIGHT
@given(requests=st.lists(request, max_size=40), spans=st.lists(span, max_size=6))
def test_phases_get_the_requests_issued_in_them(
    requests: list[Any], spans: list[Any], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "BATCH_ROWS", 5)
    rows = rows_of(requests)
    phases = [phase_row(f"p{n}", b, None if d is None else b + d, 1024, api="aio") for n, (b, d) in enumerate(spans)]
    phases.append(phase_row("init", 0, 50))
    summary = metrics.summarise(make_trial(tmp_path_factory.mktemp("trial"), rows, phases))
    assert summary[0]["phase"] == "trial"
    assert sorted(row["phase"] for row in summary[1:]) == [f"p{n}" for n in range(len(spans))]
    for row in summary:
        nothing = dict.fromkeys(expected_totals([], 0, 0))
        wanted = nothing if row["end_ns"] is None else expected_totals(rows, row["begin_ns"], row["end_ns"])
        assert {name: row[name] for name in wanted} == wanted


@LIGHT
@given(requests=st.lists(request, min_size=1, max_size=40), width=st.integers(1, 50), end=st.integers(1, 100))
def test_bins_hold_the_bytes_completed_in_them(
    requests: list[Any], width: int, end: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = rows_of(requests)
    folder = make_trial(tmp_path_factory.mktemp("trial"), rows, [], end)
    frame = metrics.bandwidth_over_time(folder, width)
    done = [row for row in rows if row["complete_ns"] is not None]
    last = max([end - 1, *(row["complete_ns"] for row in done)])
    for op in ("read", "write"):
        bins = [0] * (last // width + 1)
        for row in done:
            if row["op"] == op:
                bins[row["complete_ns"] // width] += row["bytes"]
        mine = frame.filter(pl.col("op") == op)
        assert mine["bytes"].to_list() == bins
        assert mine["gib_s"].to_list() == pytest.approx([count / GIB / (width / 1e9) for count in bins])
        assert mine["begin_s"].to_list() == pytest.approx([n * width / 1e9 for n in range(len(bins))])


@LIGHT
@given(requests=st.lists(request, max_size=40))
def test_sizes_count_every_request(requests: list[Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    rows = rows_of(requests)
    frame = metrics.request_sizes(make_trial(tmp_path_factory.mktemp("trial"), rows, []))
    wanted: dict[tuple[str, int], int] = {}
    for row in rows:
        wanted[row["op"], row["bytes"]] = wanted.get((row["op"], row["bytes"]), 0) + 1
    assert {(op, size): count for op, size, count in frame.rows()} == wanted


def test_a_tracer_without_completions_counts_issues_and_knows_no_latency(tmp_path: Path) -> None:
    rows = [request_row(10, None, "read", 4096), request_row(60, None, "write", 512)]
    folder = make_trial(tmp_path / "t", rows, [phase_row("load", 0, 50, 4096)])
    write_requests(folder / "requests.parquet", rows, recorded=("issue",))
    whole, load = metrics.summarise(folder)
    assert (whole["traced_read_bytes"], whole["traced_write_bytes"]) == (4096, 512)
    assert (load["traced_read_bytes"], load["traced_write_bytes"]) == (4096, 0)
    assert load["read_d2c_p50_us"] is None
    assert metrics.bandwidth_over_time(folder, 50)["bytes"].to_list() == [4096, 0, 0, 512]


def test_a_trial_without_a_trace_says_none_not_zero(tmp_path: Path) -> None:
    write_record(tmp_path / "t", tracer={"name": "diskstats", "begin_ns": 0, "end_ns": 10**9})
    write_phases(tmp_path / "t" / "phases.parquet", [phase_row("load", 0, 10**9, GIB)])
    whole, load = metrics.summarise(tmp_path / "t")
    assert load["bandwidth_gib_s"] == 1
    assert whole["duration_s"] == 1
    assert whole["traced_read_bytes"] is load["read_requests"] is load["read_d2c_max_us"] is None
    with pytest.raises(AnalysisError, match="diskstats, records no single requests"):
        metrics.request_sizes(tmp_path / "t")
    with pytest.raises(AnalysisError, match="counters were not sampled"):
        metrics.bandwidth_over_time(tmp_path / "t")


@LIGHT
@given(
    steps=st.lists(st.tuples(st.integers(1, 50), st.integers(0, 10**12), st.integers(0, 10**6)), max_size=20),
    width=st.integers(1, 40),
)
def test_counters_over_time_add_up_to_what_was_counted(
    steps: list[tuple[int, int, int]], width: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("trial")
    t, moved, rows = 5, [0, 0], []
    for gap, read, write in [(0, 0, 0), *steps]:
        t, moved = t + gap, [moved[0] + read, moved[1] + write]
        for op, value in zip(("read", "write"), moved, strict=True):
            rows.append({"t_ns": t, "source": "device", "name": f"{op}_bytes", "value": float(value), "unit": "B"})
    table = pa.Table.from_pylist([row | {"process": None} for row in rows], schema=schema.SAMPLES)
    pq.write_table(table, folder / "samples.parquet")
    write_record(folder, tracer={"name": "diskstats", "begin_ns": 0, "end_ns": t + 10, "interval_ms": 50})
    frame = metrics.bandwidth_over_time(folder, width)
    for op, wanted in zip(("read", "write"), moved, strict=True):
        mine = frame.filter(pl.col("op") == op)
        assert mine["bytes"].sum() == wanted
        assert (mine["bytes"] >= 0).all()
        assert mine.height == -(-(t + 10) // width)


def test_a_failed_trial_without_anything_has_one_row_of_none(tmp_path: Path) -> None:
    write_record(tmp_path / "t", tracer=None, verdict={"state": "failed", "reasons": ["x"]})
    (row,) = metrics.summarise(tmp_path / "t")
    assert (row["phase"], row["verdict"], row["begin_ns"], row["duration_s"]) == ("trial", "failed", None, None)


@pytest.mark.parametrize("name", ["requests", "phases"])
def test_broken_tables_are_one_clear_error(tmp_path: Path, name: str) -> None:
    folder = make_trial(tmp_path / "t", [request_row(1, 2, "read", 512)], [])
    (folder / f"{name}.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(AnalysisError, match=rf"{name}\.parquet: ") as caught:
        metrics.summarise(folder)
    assert "\n" not in str(caught.value)


def test_requests_out_of_order_are_refused(tmp_path: Path) -> None:
    folder = make_trial(tmp_path / "t", [], [])
    write_requests(folder / "requests.parquet", [request_row(5, 6, "read", 1), request_row(4, 6, "read", 1)])
    with pytest.raises(AnalysisError, match="not sorted by issue_ns"):
        metrics.summarise(folder)


@given(st.integers(1, 10**14))
def test_the_default_bin_is_round_and_never_too_fine(duration: int) -> None:
    width = metrics.round_bin(duration)
    assert math.ceil(duration / width) <= metrics.MOST_BINS
    assert str(width).rstrip("0") in ("1", "2", "5")
    assert width == 10_000_000 or math.ceil(duration / (width // 2 if str(width)[0] != "5" else width * 2 // 5)) > 600


def test_percentiles_of_many_latencies_stay_within_their_error() -> None:
    values = np.random.default_rng(3).gamma(2.0, 90_000, EXACT_VALUES + 50_000).astype(np.int64)
    latencies = Latencies()
    for part in np.array_split(values, 7):
        latencies.add(part)
    for share in (0.0, 0.5, 0.99, 1.0):
        exact = np.sort(values)[max(math.ceil(share * values.size), 1) - 1]
        assert latencies.percentile(share) == pytest.approx(exact, rel=0.51 / BUCKETS_PER_OCTAVE)
    assert latencies.maximum() == values.max()


@given(
    parts=st.lists(st.lists(st.integers(0, 2**53), max_size=8), min_size=1, max_size=6),
    share=st.floats(0, 1),
    split=st.integers(0, 6),
)
def test_latencies_may_be_merged_exact_or_counted(parts: list[list[int]], share: float, split: int) -> None:
    values = [value for part in parts for value in part]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("analysis.latency.EXACT_VALUES", 5)
        whole, other = Latencies(), Latencies()
        for place, part in enumerate(parts):
            (whole if place < split else other).add(np.array(part, np.int64))
        whole.merge(other)
    assert (whole.count, whole.maximum()) == (len(values), max(values, default=None))
    if not values:
        assert whole.percentile(share) is whole.mean() is None
        return
    exact = sorted(values)[max(math.ceil(share * len(values)), 1) - 1]
    assert whole.mean() == pytest.approx(sum(values) / len(values))
    within = 0 if exact < BUCKETS_PER_OCTAVE else 0.51 / BUCKETS_PER_OCTAVE
    assert whole.percentile(share) == pytest.approx(exact, rel=within, abs=1e-9)


def test_the_summary_of_a_run_is_the_union_of_its_trials(tmp_path: Path) -> None:
    run = make_run(tmp_path, sizes=(MIB, 2 * MIB))
    table = pq.read_table(write_summary(run))
    per_trial = 1 + 2 * 2 * 2 * 3
    assert table.num_rows == 5 * per_trial + 1
    assert {"cell.fs", "attr.api", "attr.loop", "write_d2c_p99_us"} <= set(table.column_names)
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    whole = frame.filter(pl.col("phase") == "trial", pl.col("verdict") == "valid")
    for row, trial in zip(whole.to_dicts(), load_run(run).published, strict=False):
        assert row["traced_read_bytes"] == trial.byte_count("traced", "read")
        assert row["traced_write_bytes"] == trial.byte_count("traced", "write")
    assert not list(run.glob(".summary*"))


def test_reading_the_summary_computes_only_what_the_file_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = load_run(make_run(tmp_path, sizes=(MIB,)))
    fresh = read_summary(run)
    path = write_summary(run.path)
    kept = pl.read_parquet(path).filter(pl.col("slug") != run.published[1].slug).to_dicts()
    pq.write_table(summary_table(kept), path)
    asked = []
    monkeypatch.setattr("analysis.summary.summarise", lambda p: asked.append(p) or metrics.summarise(p))
    assert read_summary(run).equals(fresh)
    assert asked == [run.published[1].path]
    pq.write_table(pq.read_table(path).replace_schema_metadata({"metrics_version": "0"}), path)
    assert read_summary(run).equals(fresh)
    assert len(asked) == 1 + len(run.published)


def test_axes_of_mixed_types_become_text() -> None:
    rows = [{"trial": "a", "cell.n": 1, "cell.m": 1}, {"trial": "b", "cell.n": "auto", "cell.m": 2.5}]
    table = summary_table(rows)
    assert table["cell.n"].to_pylist() == ["1", "auto"]
    assert table["cell.m"].to_pylist() == [1.0, 2.5]
    assert table["bytes"].to_pylist() == [None, None]
