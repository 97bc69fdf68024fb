"""The table that runs are compared by: rows, keys to match by, facts of the environment."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis import AnalysisError, load_run
from analysis.observations import canonical, flat, of_run
from analysis.schema import EXTENTS
from tests.analysis.made_run import MIB, make_run

leaves = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(0, 2) | st.text(max_size=4)
names = st.text("abc", min_size=1, max_size=3)
trees = st.recursive(leaves, lambda inner: st.dictionaries(names, inner, max_size=3), max_leaves=8)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("results"), sizes=(MIB, 2 * MIB))


def changed(run: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Change each trial.json of a run."""
    for path in run.glob("trials/*/trial.json"):
        record = json.loads(path.read_text())
        change(record)
        path.write_text(json.dumps(record))
    return run


def test_rows_are_those_of_the_metrics_with_who_and_when(run: Path) -> None:
    frame, metrics = of_run(run), load_run(run).metrics()
    pd.testing.assert_frame_equal(frame[list(metrics.columns)], metrics)
    assert {*frame.sweep} == {"quickstart"}
    assert {*frame.run} == {run.name}
    assert {*frame.run_started} == {pd.Timestamp("2026-11-20T10:33:48Z")}
    assert {*frame.started} == {pd.Timestamp("2026-11-20T10:33:50Z")}
    assert {*frame.cell} == {'{"fs":"ext4"}', '{"fs":"xfs"}'}
    assert {*frame.ceiling_read_gib_s.dropna()} == {2.6}


def test_trials_that_did_not_do_well_have_rows_and_reasons(run: Path) -> None:
    frame = of_run(run)
    assert {*frame.verdict} == {"valid", "invalid", "failed"}
    (reason,) = {*frame[frame.verdict == "failed"].reasons}
    assert "No space left on device" in reason


def test_what_the_engine_measured_stands_on_the_row_of_the_whole_window(run: Path) -> None:
    frame = of_run(run)
    known = frame["metrics.resident_pages_before_load"].notna()
    assert known.any()
    assert {*frame[known].phase} == {"trial"}
    assert {*frame[known].op} == {"read", "write", "all"}


def test_two_trials_of_a_cell_have_one_environment_and_one_configuration(run: Path) -> None:
    frame = of_run(run)
    good = frame[frame.verdict == "valid"].groupby("cell")
    assert {*good.environment.nunique()} == {*good.configuration.nunique()} == {1}
    facts = json.loads(frame[frame.cell == '{"fs":"xfs"}'].environment.iloc[0])
    assert facts["kernel"] == "6.18.2-amd64"
    assert facts["packages.torch"] == "2.13.0+cpu"
    assert facts["storage.queue.max_sectors_kb"] == 128
    assert facts["storage.fs"] == "xfs"
    assert facts["driver.offload-sweep"] == "0.1.0"


def test_what_is_another_each_time_is_no_fact(tmp_path: Path) -> None:
    run = make_run(tmp_path, sizes=(MIB,), repeats=1, broken=False)
    before = of_run(run).environment[0]

    def passing(record: dict[str, Any]) -> None:
        record["node"] |= {"uptime_s": 9.0, "load_average": [9, 9, 9]}
        record["device"] |= {"name": "loop9", "dev": "7:9", "mount": "118 30 7:9 /", "image_free_bytes": 1}
        record["storage"] |= {"image": "/mnt/b/disk.img", "source": "/dev/loop9", "free_bytes": 3, "drives": ["loop9"]}

    assert of_run(changed(run, passing)).environment[0] == before


def test_the_fingerprint_tells_the_node_and_files_of_the_job_do_not_count(tmp_path: Path) -> None:
    run = make_run(tmp_path, sizes=(MIB,), repeats=1, broken=False)
    drives = [{"model": "PM9A3", "firmware": "GDC7", "queue": {"nr_requests": "64"}}]
    files = {"python3": "a8e6", "log.txt": "written by the job"}
    node = {"kernel": "6.19", "settings": {"vm": {"swappiness": 1}}, "files": files, "storage": {"drives": drives}}

    def fingerprint(record: dict[str, Any]) -> None:
        record["fingerprint"] = {"plan": {"config": "c", "code": "f5a4"}, "node": node}

    facts = json.loads(of_run(changed(run, fingerprint)).environment[0])
    assert facts["kernel"] == "6.19"
    assert facts["vm.swappiness"] == 1
    assert facts["code"] == "f5a4"
    assert facts["beneath.drives.0.firmware"] == "GDC7"
    assert facts["beneath.drives.0.queue.nr_requests"] == "64"
    assert facts["files.python3"] == "a8e6"
    assert "files.log.txt" not in facts


def test_whose_bytes_they_were_stands_beside_spans_and_operations(tmp_path: Path) -> None:
    run = make_run(tmp_path, sizes=(MIB, 2 * MIB), repeats=1, broken=False)
    for trial in (run / "trials").iterdir():
        extent = {"role": "tensor", "file": "t", "dev": "7:0", "sector": 0, "sectors": 1024, "logical_bytes": 0}
        rows = [extent | {"seen_from_ns": 0, "seen_to_ns": 1 << 62}]
        pq.write_table(pa.Table.from_pylist(rows, schema=EXTENTS), trial / "extents.parquet")
    frame = of_run(run)
    own = frame[frame.phase.isin(["trial", "load aio cpu 2 MiB"])]
    assert (own["role.tensor_bytes"] > 0).any()
    names = [name for name in frame.columns if name.startswith("role.")]
    for _, one in own[own.op != "write"].iterrows():
        assert one[names].sum() == one.bytes


def test_the_tracer_that_was_taken_stands_in_the_configuration(run: Path) -> None:
    told = json.loads(of_run(run).configuration[0])
    assert told["trace.tracer"] == "bpftrace"
    assert told["workload.kind"] == "tensor_io"


def test_a_sweep_without_axes_has_one_cell(tmp_path: Path) -> None:
    run = make_run(tmp_path, sizes=(MIB,), repeats=1, broken=False)
    assert {*of_run(changed(run, lambda record: record.update(cell={}))).cell} == {"{}"}


def test_a_run_without_trials_has_the_columns_and_no_rows(tmp_path: Path) -> None:
    run = make_run(tmp_path, sizes=(MIB,), repeats=1, broken=False)
    (run / "trials").rename(tmp_path / "gone")
    (run / "metrics.parquet").unlink(missing_ok=True)
    frame = of_run(run)
    assert len(frame) == 0
    assert {"cell", "environment", "run", "phase", "bandwidth_gib_s"} <= {*frame.columns}


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AnalysisError, match="neither a run"):
        of_run(tmp_path)


@given(trees)
def test_canonical_text_does_not_depend_on_order_and_can_be_read(value: Any) -> None:
    def turned(one: Any) -> Any:
        return {key: turned(one[key]) for key in reversed(list(one))} if isinstance(one, dict) else one

    assert canonical(value) == canonical(turned(value))
    assert json.loads(canonical(value)) == value


def test_whole_numbers_are_one_text() -> None:
    assert canonical({"batch": 8.0, "on": True}) == canonical({"on": True, "batch": 8}) == '{"batch":8,"on":true}'


@given(st.dictionaries(names, trees, max_size=3))
def test_flattening_names_every_leaf_once(tree: dict[str, Any]) -> None:
    def leaves_of(one: Any) -> int:
        return sum(map(leaves_of, one.values())) if isinstance(one, dict) else 1

    found = list(flat(tree))
    assert len(found) == leaves_of(tree)
