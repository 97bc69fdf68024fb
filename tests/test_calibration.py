"""What `trace.tracer: auto` becomes on a node, found out once and kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tasks import calibration, machine
from tasks.lease import Lease
from tests.conftest import trial_config

SHARES = {"ftrace": {"share": 0.9, "missed": 0}, "bpftrace": {"share": 0.4, "missed": 3}}


def choose(available: list[str], said: list[str] | None = None) -> tuple[str, dict]:
    lease = Lease.take("t-choose")
    try:
        return calibration.chosen(available, lease, {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}, (said or []).append)
    finally:
        lease.clean()


def test_without_a_tracer_of_requests_the_counters_stand_in(state: Path) -> None:
    name, told = choose([])
    assert name == "diskstats"
    assert "no tracer of single requests" in told["why"]


def test_the_only_one_needs_no_measuring(state: Path) -> None:
    assert choose(["bpftrace"])[0] == "bpftrace"
    assert not (state / "calibration.json").exists()


@pytest.mark.parametrize(
    ("found", "best"),
    [
        (SHARES, "ftrace"),
        ({"ftrace": {"share": 0.5, "missed": 0}, "bpftrace": {"share": 0.9, "missed": 0}}, "bpftrace"),
        ({"ftrace": {"share": 0.5, "missed": 0}, "bpftrace": {"share": 0.9, "missed": 1}}, "ftrace"),
    ],
)
def test_the_one_that_misses_nothing_and_disturbs_least(
    state: Path, monkeypatch: pytest.MonkeyPatch, found: dict, best: str
) -> None:
    monkeypatch.setattr(calibration, "_measured", lambda *_: {"tracers": found})
    monkeypatch.setattr(calibration, "_key", lambda available: {"kernel": "1"})
    name, told = choose(["ftrace", "bpftrace"])
    assert name == best
    assert told["why"].startswith(f"of fio's untraced IOPS {best} kept {found[best]['share']:.2f}")


def test_kept_until_what_it_depends_on_changes(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []
    kernel = {"kernel": "1"}
    monkeypatch.setattr(calibration, "_measured", lambda *_: measured.append(1) or {"tracers": SHARES})
    monkeypatch.setattr(calibration, "_key", lambda available: dict(kernel))
    for _ in range(2):
        assert choose(["ftrace", "bpftrace"])[0] == "ftrace"
    assert len(measured) == 1
    kernel["kernel"] = "2"
    choose(["ftrace", "bpftrace"])
    (state / "calibration.json").write_text("{")
    choose(["ftrace", "bpftrace"])
    assert len(measured) == 3


def test_where_nothing_can_be_measured_the_first_one_is_taken(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(state))
    calibration.fio.version.cache_clear()
    name, told = choose(["ftrace", "bpftrace"])
    assert name == "ftrace"
    assert told["why"].startswith("not calibrated: fio is not installed")


@pytest.mark.root
@pytest.mark.slow
def test_a_trial_calibrates_once_and_records_why(run_here, left_behind, state: Path) -> None:
    assert machine.tracers_of_requests() == ["ftrace", "bpftrace"]
    said: list[str] = []
    record, folder = run_here(trial_config("auto"), said.append)
    chosen = record["tracer"]["chosen"]
    found = chosen["calibration"]["tracers"]
    assert record["verdict"]["state"] == "valid", record["verdict"]
    assert record["tracer"]["name"] == "ftrace"
    assert "ftrace kept" in chosen["why"]
    assert 0.2 < found["ftrace"]["share"] < 1.5
    assert len(found["bpftrace"]["shares"]) == 3
    assert json.loads((state / "calibration.json").read_text()) == chosen["calibration"]
    assert any("which tracer disturbs least" in text for text in said)
    assert [entry for entry in left_behind() if folder.parent.name not in entry] == []
    again: list[str] = []
    assert run_here(trial_config("auto"), again.append)[0]["tracer"]["chosen"] == chosen
    assert not any("disturbs least" in text for text in again)
