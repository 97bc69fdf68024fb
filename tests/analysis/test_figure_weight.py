"""Figures hold what a screen can show, however long the trace."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis import load_run
from analysis.figures import FIGURES, figure
from analysis.run import Run
from analysis.schema import REQUESTS, described
from tests.analysis.made_run import BEGIN_NS, phase_row, write_phases, write_record

COUNT, STEPS, STEP_NS = 200_000, 3_000, 5_000_000
#: Characters of a chart's specification: half a megabyte opens at once.
MOST = 500_000


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One trial of random requests of random sizes, thousands of decode steps, and no order anywhere."""
    root = tmp_path_factory.mktemp("long")
    trial = root / "trials" / "t"
    workload = {"kind": "flexgen", "percent": [0, 0, 0, 0, 100, 0], "batch_size": 1, "gen_len": STEPS}
    tracer = {"name": "made", "begin_ns": BEGIN_NS, "end_ns": BEGIN_NS + STEPS * STEP_NS}
    write_record(trial, config={"workload": workload}, tracer=tracer)
    rng = np.random.default_rng(7)
    issue = BEGIN_NS + np.sort(rng.integers(0, STEPS * STEP_NS, COUNT))
    op = pa.array(rng.choice(["read", "write"], COUNT))
    columns = {
        "issue_ns": issue,
        "complete_ns": issue + rng.integers(10_000, 50_000_000, COUNT),
        "insert_ns": pa.nulls(COUNT, pa.int64()),
        "op": op,
        "rwbs": pa.array(["RS" if one == "read" else "WS" for one in op.to_pylist()]),
        "sector": rng.integers(0, 1 << 31, COUNT) // 8 * 8,
        "bytes": rng.integers(1, 256, COUNT) * 512,
        "error": np.zeros(COUNT, np.int32),
        "dev": pa.array(["7:0"] * COUNT),
        "comm": pa.array(["python"] * COUNT),
        "pid": np.ones(COUNT, np.int32),
    }
    table = pa.table(columns).cast(described(REQUESTS, {"tracer": "made"}, ["issue", "completion"]))
    pq.write_table(table, trial / "requests.parquet")
    begins = [BEGIN_NS + step * STEP_NS for step in range(STEPS)]
    steps = [phase_row("decode", begin, begin + STEP_NS) | {"step": n} for n, begin in enumerate(begins)]
    write_phases(trial / "phases.parquet", steps)
    plan = [{"id": "x=1,rep=1", "slug": "t", "cell": {"x": 1}, "repeat": 1}]
    (root / "run.json").write_text(json.dumps({"schema_version": 1, "plan": plan}))
    return load_run(root)


@pytest.mark.parametrize("name", FIGURES)
def test_no_chart_grows_with_the_trace(long: Run, name: str) -> None:
    for panel in figure(name).charts(long):
        assert len(json.dumps(panel.chart.to_dict())) < MOST, panel.name


def test_the_trace_is_drawn_at_all(long: Run) -> None:
    drawn = {name for name in FIGURES for panel in figure(name).charts(long) if panel.reason is None}
    assert drawn >= {"fig5", "fig6", "bandwidth", "timeline", "sizes", "latency", "depth", "sectors", "tokens"}
