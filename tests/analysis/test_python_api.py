"""`load_run` in Python: tables of many trials in one question, unread until collected; figures; what is refused."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis import AnalysisError, load_run
from analysis.figures import theme
from analysis.metrics import Phase, phases
from analysis.run import Run
from analysis.schema import REQUESTS, SAMPLES
from analysis.selection import inside, phases_like, spans_of
from tests.analysis.made_run import MIB, make_run, phase_row, request_row, write_phases, write_record, write_requests
from tests.analysis.test_flamegraph import FACTS, FOLDED, with_stacks

SIZES = (MIB, 2 * MIB)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return load_run(make_run(tmp_path_factory.mktemp("results"), sizes=SIZES))


def whole(run: Run, name: str) -> pl.DataFrame:
    """Return a trial's requests as they lie on disk, without what this module tests."""
    return pl.read_parquet(run.trial(name).path / "requests.parquet").with_columns(pl.col("op").cast(pl.String))


def test_requests_of_all_valid_trials_carry_trial_and_cell(run: Run) -> None:
    lazy = run.requests()
    assert isinstance(lazy, pl.LazyFrame)
    assert lazy.collect_schema().names() == ["trial", "fs", *REQUESTS.names]
    counts = dict(lazy.group_by(pl.col("trial").cast(pl.String)).len().collect().iter_rows())
    valid = [trial for trial in run.published if trial.state == "valid"]
    assert counts == {trial.id: whole(run, trial.id).height for trial in valid}
    cells = lazy.select(pl.col("trial", "fs").cast(pl.String)).unique().collect()
    assert dict(cells.iter_rows()) == {trial.id: trial.cell["fs"] for trial in valid}


def test_filters_choose_trials_operations_and_phases(run: Run) -> None:
    found = run.requests(fs="xfs", op="read", phase="load aio 2 MiB").collect()
    assert set(found["fs"].cast(pl.String)) == {"xfs"}
    assert set(found["op"].cast(pl.String)) == {"read"}
    expected = 0
    for trial in run.published:
        if trial.state == "valid" and trial.cell["fs"] == "xfs":
            rows = whole(run, trial.id)
            for phase in phases(trial.path):
                if phase.name == "load" and phase.attributes["api"] == "aio" and phase.bytes == 2 * MIB:
                    issued = rows["issue_ns"].is_between(phase.begin_ns, phase.end_ns or 0, closed="left")
                    expected += rows.filter(issued & (rows["op"] == "read")).height
    assert found.height == expected > 0
    both = run.requests(fs=["ext4", "xfs"], op=["read", "write"], phase="load aio 2 MiB")
    assert both.select(pl.len()).collect().item() > expected


def test_a_file_is_read_only_in_the_columns_that_are_asked(run: Run) -> None:
    plan = run.requests(op="read").group_by("fs").agg(pl.col("bytes").sum()).explain()
    assert "PROJECT 2/11 COLUMNS" in plan
    assert "SELECTION" in plan


def test_one_trial_by_name_is_taken_whatever_its_verdict(run: Run) -> None:
    broken = next(trial for trial in run.published if trial.state == "invalid")
    assert run.requests(broken.id).select(pl.len()).collect().item() == whole(run, broken.id).height
    ids = run.requests(fs="ext4", verdict="invalid").select(pl.col("trial").cast(pl.String)).unique().collect()
    assert ids.to_series().to_list() == [broken.id]


def test_phases_and_samples_are_asked_the_same_way(run: Run) -> None:
    found = run.phases(phase="load posix", fs="ext4").collect()
    assert found.columns[:3] == ["trial", "fs", "process"]
    assert set(found["name"]) == {"load"}
    assert found.height == 2 * 3 * len(SIZES)
    assert run.samples(fs="ext4").collect().height == 0


def test_samples_by_source_name_and_phase(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"schema_version": 1}')
    trial = tmp_path / "trials" / "a"
    write_record(trial, cell={"name": "x", "depth": 4})
    series = [(at, source, "busy", float(at)) for at in range(0, 100, 10) for source in ("cpu", "gpu0")]
    rows = [dict(zip(SAMPLES.names, (*one, "%", None), strict=True)) for one in series]
    pq.write_table(pa.Table.from_pylist(rows, schema=SAMPLES), trial / "samples.parquet")
    write_phases(trial / "phases.parquet", [phase_row("decode", 20, 50), phase_row("decode", 70, 80)])
    run = load_run(tmp_path)
    found = run.samples(source="gpu0", name=["busy"], phase="decode", **{"cell.name": "x"}).collect()
    assert found.columns[:3] == ["trial", "cell.name", "depth"]
    assert found["t_ns"].to_list() == [20, 30, 40, 70]
    with pytest.raises(AnalysisError, match="no source is called 'gpu1'; did you mean gpu0"):
        run.samples(source="gpu1")


def test_axes_of_several_types_become_text_and_absent_ones_null(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"schema_version": 1}')
    for slug, cell in {"a": {"size": 8, "fs": "xfs", "on": True}, "b": {"size": "8MiB", "ratio": 0.5}}.items():
        write_record(tmp_path / "trials" / slug, id=f"{slug},rep=1", cell=cell)
        write_requests(tmp_path / "trials" / slug / "requests.parquet", [request_row(1, 2, "read", 512)])
    run = load_run(tmp_path)
    found = run.requests().collect()
    assert found["size"].cast(pl.String).to_list() == ["8", "8MiB"]
    assert found["on"].to_list() == [True, None]
    assert found["ratio"].to_list() == [None, 0.5]
    assert run.requests(size=8.0).collect().height == run.requests(size="8").collect().height == 1


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda run: run.requests(op="raed"), "no operation is called 'raed'; did you mean read?"),
        (lambda run: run.requests(phase="laod"), "no phase is called 'laod'; did you mean load?"),
        (lambda run: run.requests(phase="load aoi"), "no phase load has 'aoi'; did you mean aio?"),
        (lambda run: run.requests(phase="load 3 MiB"), "no phase load has '3MiB'"),
        (lambda run: run.requests(fss="xfs"), "no axis or filter is called 'fss'; did you mean fs?"),
        (lambda run: run.requests(ops="read"), "no axis or filter is called 'ops'; did you mean op?"),
        (lambda run: run.requests(fs="xsf"), "no trial has fs=xsf; did you mean xfs?"),
        (lambda run: run.requests("fs=xfs,rep=7"), "no trial 'fs=xfs,rep=7'; did you mean fs=xfs,rep="),
        (lambda run: run.requests("fs=xfs,rep=1", fs="xfs"), "leave out fs"),
        (lambda run: run.requests(verdict="vaild"), "no verdict is called 'vaild'; did you mean valid?"),
        (lambda run: run.requests(verdict="failed"), "has no requests.parquet"),
        (lambda run: run.requests(fs="xfs", verdict="invalid"), "no invalid trial among the 3 meant"),
        (lambda run: run.phases(fs="zfs"), "no trial has fs=zfs; did you mean xfs?"),
        (lambda run: run.figure("fig22"), "no figure is called 'fig22'; did you mean fig2?"),
        (lambda run: run.figure("fig2", "fs=xfs,rep=1"), "fig2 is one chart for the whole run"),
    ],
)
def test_unknown_names_are_one_line_with_the_nearest(run: Run, ask: Callable[[Run], Any], message: str) -> None:
    with pytest.raises(AnalysisError) as caught:
        ask(run)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_trials_without_the_table_are_left_out_with_a_warning(run: Run) -> None:
    with pytest.warns(UserWarning, match=r"left out, without requests\.parquet: fs=xfs,rep=3"):
        found = run.requests(fs="xfs", verdict=None)
    assert found.select(pl.col("trial").n_unique()).collect().item() == 2


def test_a_figure_shows_itself_in_the_house_theme(run: Run) -> None:
    chart = run.figure("fig2")
    assert chart._repr_mimebundle_()
    assert chart.to_dict()["config"]["font"] == theme.FONT
    one = run.figure("sizes", trial="fs=xfs,rep=1")
    assert "fs=xfs, rep=1" in str(one.to_dict()["title"])


def test_a_figure_of_each_trial_is_a_column_of_them(run: Run) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spec = run.figure("bandwidth").to_dict()
    assert len(spec["vconcat"]) == len(run.published)
    assert spec["config"]["background"] == theme.CONFIG["background"]
    assert not any("config" in part for part in spec["vconcat"])


def test_flame_graphs_stand_one_under_the_other_too(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path, sizes=(MIB,), repeats=1, broken=False))
    for trial in run.published:
        with_stacks(trial, FOLDED, FACTS)
    from analysis import vega

    spec = load_run(run.path).figure("flamegraph").to_dict()
    assert vega.svg(vega.plain(spec)).count("io_submit_one") >= 2


def test_the_summary_is_a_pandas_frame(run: Run) -> None:
    frame = run.summary()
    assert {"trial", "phase", "cell.fs", "bandwidth_gib_s"} <= set(frame.columns)
    assert set(frame["trial"]) == {trial.id for trial in run.published}


SPANS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), min_size=1, max_size=12)


@given(spans=SPANS, times=st.lists(st.integers(-1, 90), max_size=40))
def test_being_in_a_phase_agrees_with_brute_force(spans: list[tuple[int, int]], times: list[int]) -> None:
    told = [Phase("p", "x", None, {}, begin, begin + length, None) for begin, length in spans]
    merged = spans_of(told)
    assert all(first[1] < second[0] for first, second in itertools.pairwise(merged))
    expected = [any(begin <= time < begin + length for begin, length in spans) for time in times]
    assert inside(np.array(times, dtype=np.int64), merged).tolist() == expected


def test_phases_are_described_by_step_and_by_words() -> None:
    told = [
        Phase("p", "decode", step, {"batch": str(step % 2), "size_bytes": "1572864"}, step, step + 1, 1)
        for step in range(6)
    ]
    told.append(Phase("p", "decode late", None, {}, 9, 10, None))
    assert [one.step for one in phases_like(told, "decode step=3")] == [3]
    assert [one.step for one in phases_like(told, "decode batch=1")] == [1, 3, 5]
    assert len(phases_like(told, "decode 1.5 MiB")) == len(phases_like(told, "decode 1.50MiB")) == 6
    assert [one.name for one in phases_like(told, "decode late")] == ["decode late"]
    with pytest.raises(AnalysisError, match=r"no phase decode has all of step=2, batch=1"):
        phases_like(told, "decode step=2 batch=1")
