"""The profile of a trial against the slow, obvious way of computing each of its columns."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis import load_run, schema, trace
from analysis import profile as profile_module
from analysis.metrics import Phase
from analysis.profile import profile, read_profile
from analysis.spans import kinds_of, spans
from tests.analysis.made_run import MIB, make_run, phase_row, request_row, write_phases, write_record, write_requests
from tests.analysis.test_depth import OPS, depth_at
from tests.analysis.test_trace_metrics import LIGHT, nearest_rank

GIB = 1 << 30
times = st.integers(0, 60)
request = st.tuples(
    times,
    st.none() | st.integers(0, 30),
    st.sampled_from(["read", "write", "flush"]),
    st.sampled_from([512, 4096, 8192]),
    st.integers(0, 6),
    st.sampled_from(["7:0", "7:0", "7:1"]),
    st.sampled_from([True, True, True, False]),
)


def rows_of(requests: list[Any]) -> list[dict[str, Any]]:
    rows = []
    for issue, latency, op, size, at, dev, issued in requests:
        complete = None if latency is None else issue + latency
        row = request_row(issue if issued or complete is None else None, complete, op, size, at * 8)
        rows.append(row | {"dev": dev})
    return sorted(rows, key=lambda row: (row["issue_ns"] is None, row["issue_ns"] or 0))


def make_trial(folder: Path, rows: list[dict[str, Any]], phases: list[dict[str, Any]], end: int = 100) -> Path:
    write_record(folder, tracer={"name": "made", "begin_ns": 0, "end_ns": end})
    write_requests(folder / "requests.parquet", rows)
    write_phases(folder / "phases.parquet", phases)
    return folder


def wanted_columns(rows: list[dict[str, Any]], ops: tuple[str, ...], moments: set[int]) -> dict[str, Any]:
    """Return what the profile should say of the requests of some operations in a set of moments."""

    def inside(row: dict[str, Any]) -> bool:
        return (row["complete_ns"] if row["issue_ns"] is None else row["issue_ns"]) in moments

    mine = [row for row in rows if row["op"] in ops and inside(row)]
    waits = [r["complete_ns"] - r["issue_ns"] for r in mine if None not in (r["issue_ns"], r["complete_ns"])]
    sizes = Counter(row["bytes"] for row in mine)
    depths = [depth_at(rows, ops, moment) for moment in moments]
    row: dict[str, Any] = {
        "bytes": sum(row["bytes"] for row in mine if row["complete_ns"] is not None),
        "requests": len(mine),
        "request_bytes_mean": sum(sizes.elements()) / len(mine) if mine else None,
        "request_bytes_p50": sorted(sizes.elements())[-(-len(mine) // 2) - 1] if mine else None,
        "request_mode_share": max(sizes.values()) / len(mine) if mine else None,
        "d2c_mean_us": sum(waits) / len(waits) / 1000 if waits else None,
        **{f"d2c_{n}_us": nearest_rank(waits, s) for n, s in (("p50", 0.5), ("p90", 0.9), ("p9999", 0.9999))},
        "depth_mean": sum(depths) / len(depths),
        "depth_max": max(depths),
        "busy_share": sum(depth > 0 for depth in depths) / len(depths),
    }
    return row | wanted_steps(rows, ops, inside) | wanted_footprint(mine, row["bytes"])


def wanted_steps(rows: list[dict[str, Any]], ops: tuple[str, ...], inside: Any) -> dict[str, Any]:
    gaps, seeks = [], []
    issued = [row for row in rows if row["op"] in ops and row["issue_ns"] is not None]
    for place, row in enumerate(issued):
        if place and inside(row) and inside(issued[place - 1]):
            gaps.append(row["issue_ns"] - issued[place - 1]["issue_ns"])
        alike = [one for one in issued[:place] if (one["op"], one["dev"]) == (row["op"], row["dev"])]
        if alike and inside(row) and inside(alike[-1]):
            seeks.append(abs(row["sector"] * 512 - alike[-1]["sector"] * 512 - alike[-1]["bytes"]))
    far = {share: nearest_rank(seeks, share) for share in (0.5, 0.99)}
    return {
        "interarrival_p50_us": nearest_rank(gaps, 0.5),
        "interarrival_p99_us": nearest_rank(gaps, 0.99),
        "sequential_share": seeks.count(0) / len(seeks) if seeks else None,
        "seek_p50_bytes": None if far[0.5] is None else far[0.5] * 1000,
        "seek_p99_bytes": None if far[0.99] is None else far[0.99] * 1000,
    }


def wanted_footprint(mine: list[dict[str, Any]], moved: int) -> dict[str, Any]:
    sectors = {(r["dev"], at) for r in mine for at in range(r["sector"], r["sector"] + -(-r["bytes"] // 512))}
    return {
        "footprint_bytes": len(sectors) * 512,
        "accesses_mean": moved / (len(sectors) * 512) if sectors else None,
    }


@LIGHT
@given(
    requests=st.lists(request, max_size=40),
    phases=st.lists(st.tuples(st.sampled_from(["load", "store", "decode"]), times, st.integers(1, 30)), max_size=6),
    batch=st.integers(1, 9),
)
def test_each_column_is_what_its_definition_says(
    requests: list[Any],
    phases: list[Any],
    batch: int,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trace, "BATCH_ROWS", batch)
    rows = rows_of(requests)
    told = [phase_row(name, begin, begin + length) for name, begin, length in phases]
    folder = make_trial(tmp_path_factory.mktemp("trial"), rows, told)
    moments = {"trial": set(range(100))}
    for name, begin, length in phases:
        moments.setdefault(name, set()).update(range(begin, begin + length))
    if steps := [(begin, begin + length) for name, begin, length in phases if name == "decode"]:
        moments["generation"] = set(range(min(b for b, _ in steps), max(e for _, e in steps)))
    found = {(row["phase"], row["op"]): row for row in profile(folder)}
    assert set(found) == {(name, op) for name in moments for op in OPS}
    for (name, op), row in found.items():
        wanted = wanted_columns(rows, OPS[op], moments[name])
        assert {column: row[column] for column in wanted} == pytest.approx(wanted), (name, op)
        assert row["duration_s"] == len(moments[name]) / 1e9
        assert row["iops"] == pytest.approx(wanted["requests"] / row["duration_s"])
        assert row["bandwidth_gib_s"] == pytest.approx(wanted["bytes"] / GIB / row["duration_s"])
        peak = row["bandwidth_peak_gib_s"]
        assert peak is None or peak >= row["bandwidth_gib_s"] * (1 - 1e-9)


def test_bandwidth_percentiles_are_of_bins_that_follow_the_span(tmp_path: Path) -> None:
    ms = 1_000_000
    done = [5, 15, 16, 25, 35, 47]  # ms; bins of 10 ms or as little more as cuts the span evenly
    rows = [request_row(t * ms - 5, t * ms, "read", GIB // 100) for t in done]
    folder = make_trial(tmp_path / "t", rows, [phase_row("load", 8 * ms, 45 * ms)], 48 * ms)
    found = {(row["phase"], row["op"]): row for row in profile(folder)}
    whole, load = found["trial", "read"], found["load", "read"]
    assert (whole["bin_ns"], load["bin_ns"]) == (12 * ms, 37 * ms // 3)
    assert (whole["bandwidth_peak_gib_s"], whole["bandwidth_p50_gib_s"]) == pytest.approx((10 / 6, 5 / 6), rel=1e-6)
    assert (load["bandwidth_peak_gib_s"], load["bandwidth_p5_gib_s"]) == pytest.approx((60 / 37, 30 / 37), rel=1e-6)
    assert found["load", "write"]["bandwidth_peak_gib_s"] == 0
    assert found["trial", "all"]["byte_share"] == found["trial", "read"]["byte_share"] == 1


def test_the_peak_of_short_phases_is_not_below_their_mean(tmp_path: Path) -> None:
    ms = 1_000_000
    rows = [request_row(t * ms + 5, t * ms + 900_000, "read", GIB // 100) for t in (3, 20, 40, 61)]
    told = [phase_row("load", t * ms, (t + 1) * ms) for t in (3, 20, 40, 61)]
    late = [request_row(80 * ms + 5, 95 * ms, "write", GIB // 100)]
    folder = make_trial(tmp_path / "t", rows + late, [*told, phase_row("store", 80 * ms, 81 * ms)], 100 * ms)
    found = {(row["phase"], row["op"]): row for row in profile(folder)}
    load, store = found["load", "read"], found["store", "write"]
    assert load["bin_ns"] == 4 * ms
    assert load["bandwidth_peak_gib_s"] == pytest.approx(load["bandwidth_gib_s"]) == pytest.approx(10, rel=1e-6)
    assert store["bandwidth_gib_s"] > 0
    assert store["bandwidth_peak_gib_s"] is store["bandwidth_p50_gib_s"] is store["bin_ns"] is None
    assert found["trial", "write"]["bandwidth_peak_gib_s"] == pytest.approx(1, rel=1e-6)


def test_issues_alone_count_bytes_and_know_no_latency_depth_or_busy_time(tmp_path: Path) -> None:
    folder = make_trial(tmp_path / "t", [], [])
    rows = [request_row(10, None, "read", 4096), request_row(60, None, "read", 512, 8)]
    write_requests(folder / "requests.parquet", rows, recorded=("issue",))
    read, write, both = profile(folder)
    assert (read["bytes"], write["bytes"], both["bytes"]) == (4608, 0, 4608)
    assert (read["sequential_share"], read["interarrival_p50_us"], read["footprint_bytes"]) == (1, 0.05, 4608)
    for name in ("d2c_mean_us", "d2c_p9999_us", "d2c_max_us", "depth_mean", "depth_p99", "depth_max", "busy_share"):
        assert read[name] is None


def test_a_trial_without_requests_knows_what_its_device_counted(tmp_path: Path) -> None:
    s = 10**9
    write_record(tmp_path / "t", tracer={"name": "diskstats", "begin_ns": 0, "end_ns": s})
    write_phases(tmp_path / "t" / "phases.parquet", [phase_row("load", s // 2, s)])
    samples = [("device", "read_bytes", 0, 0.0), ("device", "read_bytes", s, 2.0 * GIB)]
    write_samples(tmp_path / "t", [*samples, ("device", "write_bytes", 0, 0.0), ("device", "write_bytes", s, 0.0)])
    found = {(row["phase"], row["op"]): row for row in profile(tmp_path / "t")}
    assert (found["trial", "read"]["bytes"], found["load", "all"]["bytes"]) == (2 * GIB, GIB)
    assert found["load", "read"]["bandwidth_gib_s"] == pytest.approx(2)
    assert found["load", "read"]["bandwidth_p95_gib_s"] == pytest.approx(2, rel=1e-6)
    for name in ("requests", "iops", "d2c_p50_us", "depth_max", "footprint_bytes", "sequential_share"):
        assert found["trial", "read"].get(name) is None


def test_a_failed_trial_without_anything_says_none(tmp_path: Path) -> None:
    write_record(tmp_path / "t", tracer=None, verdict={"state": "failed", "reasons": ["x"]})
    rows = profile(tmp_path / "t")
    assert [(row["phase"], row["op"], row["duration_s"]) for row in rows] == [("trial", op, None) for op in OPS]
    assert all(row.get(name) is None for row in rows for name in ("bytes", "requests", "bandwidth_gib_s", "busy_share"))


def write_samples(folder: Path, rows: list[tuple[str, str, int, float]]) -> None:
    names = ("source", "name", "t_ns", "value")
    listed = [dict(zip(names, row, strict=True)) | {"unit": "1", "process": None} for row in rows]
    pq.write_table(pa.Table.from_pylist(listed, schema=schema.SAMPLES), folder / "samples.parquet")


def test_samples_speak_for_the_spans_they_lie_in(tmp_path: Path) -> None:
    folder = make_trial(tmp_path / "t", [], [phase_row("load", 20, 40), phase_row("store", 60, 61)])
    gpus = [(f"gpu{n}", "utilisation", t, value) for n, t, value in ((0, 30, 50.0), (1, 40, 100.0), (0, 90, 0.0))]
    waits = [("cpu", "iowait", 30, 10.0), ("cpu", "iowait", 50, 30.0)]
    stalled = [("pressure", "io_some_stalled", t, t / 1e9) for t in (0, 100)]
    write_samples(folder, [*gpus, *waits, *stalled])
    found = {row["phase"]: row for row in profile(folder) if row["op"] == "all"}
    assert found["trial"]["gpu_busy_share"] == pytest.approx(0.5)
    assert found["load"]["gpu_busy_share"] == pytest.approx(0.75)
    assert (found["load"]["iowait_share"], found["trial"]["iowait_share"]) == pytest.approx((0.1, 0.2))
    assert (found["store"]["gpu_busy_share"], found["store"]["iowait_share"]) == (None, None)
    assert found["load"]["io_stalled_s"] == pytest.approx(20e-9)
    assert found["load"]["io_stalled_share"] == pytest.approx(1)
    write_samples(folder, [*stalled, *(("cgroup", "io_some_stalled", t, 0.0) for t in (0, 100))])
    assert {row["io_stalled_s"] for row in profile(folder)} == {0}


def test_phases_of_several_processes_keep_their_bare_name_and_process(tmp_path: Path) -> None:
    write_record(tmp_path, tracer={"name": "made", "begin_ns": 0, "end_ns": 100})
    write_requests(tmp_path / "requests.parquet", [request_row(10, 20, "read", 4096)])
    write_phases(tmp_path / "phases.parquet", [phase_row("decode", 0, 50) | {"process": one} for one in ("a", "b")])
    told = {(row["phase"], row["name"], row["process"]) for row in profile(tmp_path)}
    assert told == {
        ("trial", None, None),
        ("generation", None, None),
        ("a: decode", "decode", "a"),
        ("b: decode", "decode", "b"),
    }


def test_kinds_of_phases_have_their_telling_attributes() -> None:
    told = {"api": "aio", "tensor_device": "cpu", "size_bytes": str(64 * MIB), "loop": "3", "fsync_ns": "812"}
    phases = [Phase("tensor_io", "load", None, told, 0, 1, 1), Phase("engine", "decode", 7, {"batch": "16"}, 0, 1, 1)]
    assert [name for name, _ in kinds_of(phases)] == ["load aio cpu 64 MiB", "decode"]
    both = [Phase(process, "load", None, {}, 0, 1, 1) for process in ("server", "client")]
    assert [name for name, _ in kinds_of(both)] == ["server: load", "client: load"]
    assert kinds_of([Phase("p", "trial", None, {}, 0, 1, 1)])[0][0] == "p: trial"
    many = [Phase("p", "load", None, {"layer": f"layer{n}"}, 0, 1, 1) for n in range(99)]
    assert {name for name, _ in kinds_of(many)} == {"load"}


def test_spans_of_several_phases_are_their_union(tmp_path: Path) -> None:
    phases = [phase_row("decode", 10, 30), phase_row("decode", 20, 40), phase_row("decode", 50, 60)]
    phases += [phase_row("decode", 70, None), phase_row("prefill", 5, 10)]
    found = {span.name: span for span in spans(make_trial(tmp_path / "t", [], phases))}
    decode = found["decode"]
    assert (decode.begin_ns.tolist(), decode.end_ns.tolist(), decode.phases) == ([10, 50], [40, 60], 3)
    assert found["generation"].duration_ns == 55
    assert found["trial"].duration_ns == 100


def test_profiles_are_kept_with_the_run_and_computed_again_where_they_must(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = load_run(make_run(tmp_path, sizes=(MIB,)))
    asked: list[str] = []
    monkeypatch.setattr(profile_module, "profile", lambda path: asked.append(path.name) or profile(path))
    fresh = read_profile(run)
    slugs = [trial.slug for trial in run.published]
    path = run.path / "metrics.parquet"
    assert (asked, path.is_file()) == (slugs, True)
    assert read_profile(run).equals(fresh)
    assert asked == slugs
    record = run.path / "trials" / slugs[1] / "trial.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"attempt": 2}))
    again = read_profile(load_run(run.path))
    assert asked == [*slugs, slugs[1]]
    assert set(again.filter(pl.col("slug") == slugs[1])["attempt"]) == {2}
    path.write_bytes(b"PAR1 not really")
    assert read_profile(load_run(run.path)).equals(again)
    pq.write_table(pq.read_table(path).replace_schema_metadata({"metrics_version": "0"}), path)
    assert read_profile(load_run(run.path)).equals(again)
    assert len(asked) == 3 * len(slugs) + 1
    frame = run.metrics()
    assert str(frame["bytes"].dtype) == str(frame["phases"].dtype) == "Int64"
    assert {"cell.fs", "phase", "op", "depth_p99"} <= set(frame.columns)
    assert not list(run.path.glob(".metrics*"))


def test_a_run_that_cannot_be_written_to_is_read_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = load_run(make_run(tmp_path, sizes=(MIB,), broken=False, repeats=1))

    def refused(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(profile_module, "replacing", refused)
    assert read_profile(run).height > 0
    assert not (run.path / "metrics.parquet").exists()


def test_the_profile_agrees_with_the_summary(tmp_path: Path) -> None:
    from analysis.summary import read_summary

    run = load_run(make_run(tmp_path, sizes=(MIB, 2 * MIB), broken=False))
    whole = read_summary(run).filter(pl.col("phase") == "trial").to_dicts()
    for op in ("read", "write"):
        mine = read_profile(run).filter(pl.col("phase") == "trial", pl.col("op") == op).to_dicts()
        for row, summed in zip(mine, whole, strict=True):
            assert row["bytes"] == summed[f"traced_{op}_bytes"]
            assert row["requests"] == summed[f"{op}_requests"]
            assert row["d2c_p999_us"] == summed[f"{op}_d2c_p999_us"]
            assert row["ceiling_share"] == pytest.approx(summed[f"{op}_ceiling_share"])
            assert np.isclose(row["expected_share"], row["bytes"] / row["expected_bytes"])


def test_every_column_is_explained(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path, sizes=(MIB,), broken=False, repeats=1))
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    missing = [name for name in run.metrics().columns if f"`{name}`" not in page and not name.startswith("cell.")]
    assert not missing


def test_without_a_stated_window_it_begins_with_the_first_issue(tmp_path: Path) -> None:
    """Requests belong where they were issued, long before the first of them completes."""
    trial = tmp_path / "t"
    write_record(trial)
    write_requests(trial / "requests.parquet", [request_row(1000 + n, 10**8 + n, "read", 4096, n) for n in range(64)])
    row = profile(trial)[0]
    assert (row["phase"], row["requests"], row["bytes"]) == ("trial", 64, 64 * 4096)
    assert row["duration_s"] == pytest.approx((10**8 + 63 + 1 - 1000) / 1e9)


@pytest.mark.parametrize(("seconds", "stalled", "share"), [((8, 9), None, None), ((0.5, 10), 0.5, 0.5 / 9.5)])
def test_time_that_nobody_sampled_is_not_time_without_stalls(
    tmp_path: Path, seconds: tuple[float, float], stalled: float | None, share: float | None
) -> None:
    trial = make_trial(tmp_path / "t", [], [], end=10**10)
    own = {"source": "pressure", "name": "io_some_stalled", "unit": "s", "process": None}
    rows = [own | {"t_ns": int(at * 1e9), "value": value} for at, value in zip(seconds, (3.0, 3.5), strict=True)]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema.SAMPLES), trial / "samples.parquet")
    row = profile(trial)[0]
    assert (row["io_stalled_s"], row["io_stalled_share"]) == (stalled, pytest.approx(share))
