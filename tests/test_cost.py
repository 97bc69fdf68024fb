"""What tracing costs, measured on a trial's own storage."""

import pytest

from tasks import cost
from tasks.fio import Load
from tests.conftest import trial_config

pytestmark = [pytest.mark.root]

PATTERN = [(0, 128 << 10), (1 << 20, 64 << 10)]


@pytest.fixture
def brief(monkeypatch):
    """Shorter runs: whether the numbers are good is not a test's question."""
    monkeypatch.setattr(cost, "_SECONDS", 0.3)
    monkeypatch.setattr(cost, "_FILE_BYTES", 32 << 20)


def traced_trial(run_here, tracer, **trace):
    workload = {"kind": "pattern", "pattern": PATTERN}
    record, folder = run_here(trial_config(tracer, workload=workload, trace={"measure_cost": True, **trace}))
    assert record["verdict"] == {"state": "valid", "reasons": []}
    return record, folder


@pytest.mark.slow
@pytest.mark.parametrize("tracer", ["ftrace", "bpftrace"])
def test_the_same_job_with_and_without_the_trials_own_tracer(run_here, left_behind, brief, tracer):
    record, folder = traced_trial(run_here, tracer)
    found = record["tracer"]["cost"]
    assert (found["state"], found["reason"], found["trouble"]) == ("measured", None, None)
    assert [(row["block_bytes"], row["depth"]) for row in found["loads"]] == [(4096, 32), (131072, 8)]
    for row in found["loads"]:
        ratios = [t / u for t, u in zip(row["traced_iops"], row["untraced_iops"], strict=True)]
        assert len(ratios) == 3
        assert row["ratio"] == sorted(ratios)[1]
        assert (row["least_ratio"], row["greatest_ratio"]) == (min(ratios), max(ratios))
        assert row["requests"] > 100
        assert row["missed"] == 0 or tracer == "bpftrace"
        assert row["tracer_cpu_s_per_million_events"] > 0
    assert record["tracer"]["requests"] < 2000  # the trial's own
    assert record["bytes"]["traced"] == record["bytes"]["counted"]
    token = folder.parent.name
    assert [entry for entry in left_behind() if entry != token] == []
    assert not [p for p in folder.parent.rglob("*") if "cost" in p.name and p.is_dir() and p.name != "cost-fio"]


def test_without_a_tracer_there_is_no_cost(run_here):
    record, _ = traced_trial(run_here, "none")
    assert record["tracer"]["cost"]["state"] == "off"


def test_what_stands_in_the_way_is_recorded_and_the_trial_goes_on(run_here, monkeypatch, left_behind, brief):
    monkeypatch.setattr(cost, "LOADS", (Load("randread", 1000, 32),))
    record, folder = traced_trial(run_here, "ftrace")
    found = record["tracer"]["cost"]
    assert found["state"] == "failed"
    assert "Invalid argument" in found["reason"]
    assert [entry for entry in left_behind() if entry != folder.parent.name] == []


def test_nothing_is_measured_unless_asked_for(run_here):
    record, _ = run_here(trial_config(workload={"kind": "pattern", "pattern": PATTERN}))
    assert "cost" not in record["tracer"]
