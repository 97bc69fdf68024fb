"""The share of the ceiling: in the summary, in figures without flattening the data, in the report's sentences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis import ceiling, draw_run, load_run, load_trial, metrics
from analysis.figures import bandwidth, fig2, rules
from analysis.figures.timeline import timelines
from analysis.profile import read_profile
from analysis.run import Run
from analysis.summary import read_summary
from tests.analysis.made_run import (
    MIB,
    made_ceiling,
    make_run,
    phase_row,
    request_row,
    write_phases,
    write_record,
    write_requests,
)

GIB = 1 << 30
S = 10**9
SMALL = (MIB, 4 * MIB)


def change(run: Run, **sections: Any) -> Run:
    for trial in run.published:
        record = {**trial.record, **sections}
        (trial.path / "trial.json").write_text(json.dumps(record))
    return load_run(run.path)


def numbers(value: Any) -> list[dict[str, Any]]:
    """Return every data row below a chart's specification that is a ceiling's rule."""
    if isinstance(value, dict):
        found = [value] if "said" in value else []
        return found + [row for part in value.values() for row in numbers(part)]
    return [row for part in value for row in numbers(part)] if isinstance(value, list) else []


# --- the summary -----------------------------------------------------------------------------------------------------


def make_trial(folder: Path, told: Any, tracer: str = "made") -> list[dict[str, Any]]:
    rows = [request_row(n * S, n * S + 5, "read", GIB // 2) for n in range(4)]
    rows.append(request_row(4 * S, 4 * S + 5, "write", GIB // 4))
    counted = {"counted": {"read": 3 * GIB, "write": GIB}}
    tracer_section = {"name": tracer, "begin_ns": 0, "end_ns": 10 * S}
    write_record(folder, tracer=tracer_section, bytes=counted, ceiling=told)
    if tracer == "made":
        write_requests(folder / "requests.parquet", rows)
    spans = [
        phase_row("prefill", 0, 2 * S, 7),
        phase_row("decode", 2 * S, 4 * S, 7),
        phase_row("store", 4 * S, 5 * S, 7),
    ]
    write_phases(folder / "phases.parquet", spans)
    return metrics.summarise(folder)


def test_shares_are_of_device_bytes_over_the_phases_time(tmp_path: Path) -> None:
    whole, prefill, decode, store = make_trial(tmp_path / "t", made_ceiling(2.0, 4.0))
    assert (whole["ceiling_read_gib_s"], whole["ceiling_write_gib_s"]) == (2.0, 4.0)
    assert (whole["ceiling_random_read_gib_s"], whole["ceiling_first_write_gib_s"]) == (1.8, 1.0)
    assert whole["read_ceiling_share"] == pytest.approx(2 / 10 / 2)
    assert prefill["read_ceiling_share"] == decode["read_ceiling_share"] == pytest.approx(1 / 2 / 2)
    assert whole["generation_read_ceiling_share"] == pytest.approx(2 / 4 / 2)
    assert (store["read_ceiling_share"], store["write_ceiling_share"]) == (0, pytest.approx(0.25 / 4))


def test_without_single_requests_the_counters_still_tell_of_the_window(tmp_path: Path) -> None:
    whole, *phases = make_trial(tmp_path / "t", made_ceiling(2.0, 4.0), tracer="none")
    assert whole["read_ceiling_share"] == pytest.approx(3 / 10 / 2)
    assert {row["read_ceiling_share"] for row in phases} == {None}
    assert whole["generation_read_ceiling_share"] is None


@pytest.mark.parametrize(
    "told",
    [
        None,
        "none",
        {"state": "off", "reason": "x"},
        {"state": "failed", "reason": "x"},
        {"state": "measured"},
        made_ceiling(2.0, 4.0) | {"sequential_read_gib_s": 0},
        made_ceiling(2.0, 4.0) | {"sequential_write_gib_s": "fast"},
        made_ceiling(2.0, 4.0) | {"sequential_write_gib_s": True},
    ],
)
def test_without_a_ceiling_there_is_no_share(tmp_path: Path, told: Any) -> None:
    for row in make_trial(tmp_path / "t", told):
        assert (row["read_ceiling_share"], row["ceiling_read_gib_s"]) == (None, None)
    assert ceiling.ceiling_of(load_trial(tmp_path / "t")) is None


def test_the_summary_has_the_shares(tmp_path: Path) -> None:
    summary = read_summary(load_run(make_run(tmp_path, sizes=SMALL, broken=False)))
    loads = summary.filter(pl.col("phase") == "load")
    wanted = loads["traced_read_bytes"] / loads["duration_s"] / GIB / 2.6
    assert loads["read_ceiling_share"].to_list() == pytest.approx(wanted.to_list())


# --- in words --------------------------------------------------------------------------------------------------------


def test_the_busiest_phase_is_the_kind_that_came_closest_and_moved_something() -> None:
    row = {"op": "read", "phases": 1}
    rows = [
        row | {"phase": "trial", "phases": None, "bytes": 2 * GIB, "ceiling_share": 0.9},
        row | {"phase": "prefill", "bytes": GIB, "ceiling_share": 0.25},
        row | {"phase": "decode", "bytes": GIB, "ceiling_share": 0.5},
        row | {"phase": "decode", "op": "write", "bytes": GIB, "ceiling_share": 0.7},
        row | {"phase": "warmup", "bytes": 4096, "ceiling_share": 0.8},
        row | {"phase": "drain", "bytes": 0, "ceiling_share": None},
    ]
    assert ceiling.busiest(rows, "read") == ("decode", 0.5)
    assert ceiling.busiest([], "read") is None


@given(st.floats(0, 3))
def test_percent_never_says_none_or_all_of_what_is_not(share: float) -> None:
    text = ceiling.percent(share)
    assert text.endswith(" %")
    if share > 0:
        assert text not in ("0 %", "0.0 %")


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0.0 %"), (0.0004, "< 0.1 %"), (0.0042, "0.4 %"), (0.0995, "10 %"), (0.37, "37 %"), (1.04, "104 %")],
)
def test_percent(share: float, text: str) -> None:
    assert ceiling.percent(share) == text


def test_the_report_says_how_close_the_job_came(tmp_path: Path) -> None:
    load = {"rw": "randread", "block_bytes": 4096, "depth": 32, "ratio": 0.97, "least_ratio": 0.95}
    load |= {"greatest_ratio": 0.99, "missed": 0, "tracer_cpu_s_per_million_events": 0.37}
    run = load_run(make_run(tmp_path, sizes=SMALL, broken=False, repeats=1))
    cost = {"state": "measured", "reason": None, "loads": [load]}
    run = change(run, tracer=run.published[0].section("tracer") | {"cost": cost})
    trial = run.published[0]
    page = Path(draw_run(run.path)["report"]).read_text()
    profile = [row for row in read_profile(run).to_dicts() if row["slug"] == trial.slug]
    best = ceiling.busiest(profile, "read")
    assert best is not None
    assert best[0].startswith("load aio cpu ")
    assert f"In {best[0]} the job reached {ceiling.percent(best[1])} of what fio reads there." in page
    assert "fio reads 2.60 GiB/s and overwrites 6.40 GiB/s (128 KiB, depth 32; measured 2026-11-20 09:02 UTC" in page
    assert "under bpftrace fio keeps 0.97 of its IOPS (0.95 to 0.99; random reads of 4 KiB, depth 32; " in page
    assert "0 requests or events missed" in page
    failed = change(
        run, ceiling={"state": "failed", "reason": "fio is not installed"}, tracer={"cost": {"state": "off"}}
    )
    page = Path(draw_run(failed.path)["report"]).read_text()
    assert "No ceiling: fio is not installed." in page
    assert "Tracer cost not measured: unknown." in page


@pytest.mark.parametrize("cost", [3, {}, {"state": "measured"}, {"state": "measured", "loads": [{"ratio": 1}]}])
def test_a_cost_in_another_form_does_not_stop_the_report(tmp_path: Path, cost: Any) -> None:
    write_record(tmp_path / "t", tracer={"name": "made", "cost": cost})
    assert len(ceiling.cost_described(load_trial(tmp_path / "t"))) <= 1


# --- figures ---------------------------------------------------------------------------------------------------------


@given(st.floats(0.01, 100), st.lists(st.floats(0.001, 1000), max_size=4))
def test_an_axis_never_grows_so_far_that_the_data_lie_flat(data: float, ceilings: list[float]) -> None:
    top = rules.top(data, ceilings)
    assert data <= top <= 1.7 * data
    for value in ceilings:
        shown = rules.shown(data, ceiling.Ceiling({"read": value}, {}, {}), ["read"])
        assert not shown or value <= top


def test_a_ceiling_that_fits_is_dashed_and_one_that_does_not_is_told(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path, sizes=SMALL, broken=False, repeats=1))
    top = max(timelines(run.published).of(run.published[0]).top.values())
    near, nearer, far = 1.4 * top, 1.3 * top, 10 * top
    for read, write, dashed in ((near, far, ["reads"]), (far, far, []), (near, nearer, ["reads", "writes"])):
        changed = change(run, ceiling=made_ceiling(read, write))
        panel = next(iter(bandwidth.charts(changed)))
        spec = panel.chart.to_dict()
        found = sorted({row["said"].split()[1] for row in numbers(spec)})
        assert found == dashed
        said = " ".join(spec["title"]["subtitle"])
        assert ("far above this axis" in said) == (far in (read, write))
        assert said.count("GiB/s") >= 2
    bare = change(run, ceiling=None)
    assert "fio" not in json.dumps(next(iter(bandwidth.charts(bare))).chart.to_dict())


def test_fig2_has_the_ceiling_of_each_panel(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path, sizes=SMALL, broken=False))
    spec = fig2.chart(run).to_dict()
    rows = {(row["row"], row["phase"], row["gib_s"]) for row in numbers(spec)}
    assert rows == {("ext4", "Load (read)", 2.6), ("xfs", "Load (read)", 2.6)}
    said = " ".join(spec["title"]["subtitle"])
    assert "of 6.40 GiB/s, far above the axis" in said
    (slow,) = [trial for trial in run.published if trial.id == "fs=xfs,rep=1"]
    (slow.path / "trial.json").write_text(json.dumps({**slow.record, "ceiling": {"state": "off", "reason": "x"}}))
    spec = fig2.chart(load_run(run.path)).to_dict()
    assert {row["row"] for row in numbers(spec)} == {"ext4"}
