"""Runs compared: what is matched, what is judged, what raises an alarm and what does not, and how it is told."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import AnalysisError
from analysis.compare import Comparison, compare, main
from analysis.observations import of_run
from tests.analysis.made_run import MIB, make_run

CELLS = [{"fs": fs, "batch": batch} for fs in ("ext4", "xfs") for batch in (1, 8, 32)]
PHASES = ("load aio cpu 64 MiB", "store aio cpu 64 MiB")


def made(
    seed: int,
    *,
    repeats: int = 5,
    cells: Sequence[Mapping[str, Any]] = CELLS,
    phases: Sequence[str] = PHASES,
    noise: float = 0.02,
    slow: Mapping[str, float] | None = None,
    facts: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    **columns: float,
) -> pd.DataFrame:
    """Return the table of a made run: `slow` is the speed left by the canonical text of a cell; `columns` are set."""
    rng = np.random.default_rng(seed)
    rows = []
    for cell in cells:
        text = json.dumps(dict(sorted(cell.items())), separators=(",", ":"))
        for repeat in range(1, repeats + 1):
            for phase in ("trial", "init", *phases):
                speed = 2.0 * (slow or {}).get(text, 1.0) * np.exp(noise * rng.standard_t(4))
                for op in ("read", "write", "all"):
                    moved = op == "all" or (op == "read") == phase.startswith("load")
                    rows.append(_row(seed, text, repeat, phase, op, speed if moved else 0.0) | columns)
    frame = pd.DataFrame(rows)
    frame["environment"] = json.dumps({"kernel": "6.18", **(facts or {})})
    frame["configuration"] = json.dumps({"workload.loops": 3, **(config or {})})
    return frame


def _row(seed: int, cell: str, repeat: int, phase: str, op: str, speed: float) -> dict[str, Any]:
    started = pd.Timestamp("2026-11-01T22:00:00Z") + pd.Timedelta(days=seed)
    trial = {"trial": f"{cell},rep={repeat}", "slug": f"{cell}-{repeat}", "repeat": repeat, "attempt": 1}
    return {
        **{"sweep": "nightly", "run": f"night-{seed}", "run_started": started, "started": started, "cell": cell},
        **{**trial, "verdict": "valid", "reasons": "", "phase": phase, "name": phase.split(" ")[0], "op": op},
        **{"duration_s": 1 / speed if speed else 1.0, "bytes": 1 << 30 if speed else 0, "bandwidth_gib_s": speed},
        **{"requests": 8192 if speed else 0, "request_bytes_mean": 131072.0, "request_bytes_mode": 131072},
        **{"depth_mean": 8.0, "d2c_mean_us": 200 / speed if speed else None, "busy_share": 0.9},
        **{"d2c_p50_us": 170 / speed if speed else None},
        **{"d2c_p99_us": 400 / speed if speed else None, "sequential_share": 0.9, "unreadable": None},
        **{"ceiling_read_gib_s": 3.0, "ceiling_write_gib_s": 3.0, "ceiling_measured_at": started},
    }


def text_of(cell: Mapping[str, Any]) -> str:
    return json.dumps(dict(sorted(cell.items())), separators=(",", ":"))


def all_slow(speed: float) -> dict[str, float]:
    return {text_of(cell): speed for cell in CELLS}


def judged(told: Comparison) -> set[tuple[str, str]]:
    return {(one.cell, one.phase) for one in told.regressions if one.members == 1}


# --- judging ---------------------------------------------------------------------------------------------------------


def test_an_equal_run_raises_no_alarm() -> None:
    told = compare(made(2), [made(1)])
    assert not told.regressed
    assert told.judged == len(CELLS) * len(PHASES)
    assert told.lines()[1].startswith("No regression beyond 5 % in 12 measures judged; a slow-down of ")
    assert all(0.05 <= share < 0.2 for share in told.visible)


def test_a_slower_run_names_cells_change_confidence_and_cause() -> None:
    told = compare(made(2, slow=all_slow(0.85)), [made(1)])
    assert told.regressed
    assert judged(told) == {(text_of(cell), phase) for cell in CELLS for phase in PHASES}
    (one, *_) = (one for one in told.regressions if one.phase == PHASES[0])
    assert one.change == pytest.approx(-0.15, abs=0.05)
    assert one.interval[0] < one.change < one.interval[1] < -0.05
    assert one.p <= 0.05
    assert one.repeats == (5, 5)
    assert one.metric == "bandwidth_gib_s"
    assert one.base == pytest.approx(2.0, rel=0.05)
    assert "D2C mean +" in one.cause
    assert "request sizes and depth unchanged: the drive answered slower" in one.cause
    assert told.regressions[0].where == "everything (12 measures)"


def test_one_slow_cell_among_many_is_found_and_is_the_only_one() -> None:
    slow = text_of(CELLS[4])
    told = compare(made(2, slow={slow: 0.85}), [made(1)])
    assert {cell for cell, _ in judged(told)} == {slow}
    assert {one.cell for one in told.regressions} == {slow}


def test_one_axis_value_is_named() -> None:
    xfs = {text_of(cell): 0.85 for cell in CELLS if cell["fs"] == "xfs"}
    told = compare(made(2, slow=xfs), [made(1)])
    assert '{"fs":"xfs"}' in {one.cell for one in told.regressions if one.members > 1}
    assert {cell for cell, _ in judged(told)} <= {*xfs}


def test_a_faster_run_is_an_improvement_and_no_regression() -> None:
    told = compare(made(2, slow=all_slow(1.2)), [made(1)])
    assert not told.regressed
    assert len([one for one in told.improvements if one.members == 1]) == 12


def test_a_change_below_the_threshold_does_not_matter_however_sure_it_is() -> None:
    now, base = made(2, slow=all_slow(0.97), noise=0.001), made(1, noise=0.001)
    assert not compare(now, [base]).regressed
    assert compare(now, [base], threshold=0.01).regressed


def test_too_few_repeats_are_not_judged_and_say_how_many_would_do() -> None:
    told = compare(made(2, repeats=3, slow=all_slow(0.5)), [made(1, repeats=3)])
    assert not told.regressed
    assert told.judged == 0
    assert len(told.unjudged) == 12
    assert told.unjudged[0].reason == "3 against 3 repeats reach p = 0.1 at best, not 0.05; 4 in each would do"
    assert told.lines()[1] == "NOT JUDGED: too few repeats"


def test_bases_are_pooled_so_that_fewer_repeats_do() -> None:
    told = compare(made(4, repeats=3, slow=all_slow(0.8)), [made(n, repeats=3) for n in (1, 2, 3)])
    assert told.judged == 12
    assert told.regressed


def test_bases_that_differ_as_a_whole_raise_the_bar() -> None:
    nights = [made(n, slow=all_slow(speed)) for n, speed in enumerate((1.0, 0.88, 1.1, 0.93), 1)]
    now = made(9, slow=all_slow(0.88))
    assert compare(now, [nights[0]]).regressed
    told = compare(now, nights)
    assert not told.regressed
    assert told.spread.seen == pytest.approx(0.09, abs=0.03)
    assert "The 4 bases differ by" in told.lines()[-1]


@pytest.mark.parametrize("noise", [0.003, 0.02])
@pytest.mark.parametrize("bases", [4, 7])
def test_beside_many_steady_bases_a_slow_run_is_no_outlier(bases: int, noise: float) -> None:
    nights = [made(n, noise=noise, slow=all_slow(1 + 0.02 * (-1) ** n)) for n in range(1, bases + 1)]
    assert compare(made(20, noise=noise, slow=all_slow(0.5)), nights).regressed
    told = compare(made(20, noise=noise, slow={text_of(CELLS[0]): 0.5}), nights)
    assert {one.cell for one in told.regressions} >= {text_of(CELLS[0])}
    assert not compare(made(20, noise=noise), nights).regressed


def test_the_order_of_rows_and_of_bases_does_not_matter() -> None:
    now, bases = made(3, slow=all_slow(0.9)), [made(1), made(2)]
    one = compare(now, bases)
    other = compare(now.sample(frac=1, random_state=7), [base.sample(frac=1, random_state=8) for base in bases])
    assert {(c.cell, c.phase, round(c.change, 9)) for c in one.regressions if c.members == 1} == {
        (c.cell, c.phase, round(c.change, 9)) for c in other.regressions if c.members == 1
    }


def test_a_longer_time_is_worse() -> None:
    now, base = made(2, slow=all_slow(0.8)), made(1)
    told = compare(now, [base], metrics=["*/all.duration_s"])
    single = [one for one in told.regressions if one.members == 1]
    assert {one.metric for one in single} == {"duration_s"}
    assert all(one.change > 0.05 for one in single)


def test_more_bytes_at_the_same_bandwidth_take_longer_and_are_told_as_such() -> None:
    now = made(2)
    load = now.phase == PHASES[0]
    now.loc[load, ["bytes", "duration_s"]] *= 2
    now = now.astype({"bytes": "int64"})
    told = compare(now, [made(1)])
    assert {phase for _, phase in judged(told)} == {PHASES[0]}
    (one, *_) = (one for one in told.regressions if one.members == 1)
    assert one.metric == "duration_s"
    assert one.change == pytest.approx(1.0, abs=0.1)
    assert "more bytes were moved for the same work" in one.cause


def test_an_engine_is_judged_by_its_tokens() -> None:
    frames = [made(n, phases=("prefill", "decode")) for n in (1, 2)]
    for frame, rate in zip(frames, (100.0, 80.0), strict=True):
        jitter = 1 + 0.01 * np.sin(np.arange(len(frame)))
        frame["metrics.decode_tokens_per_s"] = np.where(frame.phase == "trial", rate * jitter, np.nan)
    told = compare(frames[1], [frames[0]])
    assert told.judged == len(CELLS)
    assert {(one.phase, one.metric) for one in told.regressions if one.members == 1} == {
        ("decode", "metrics.decode_tokens_per_s")
    }


# --- causes ----------------------------------------------------------------------------------------------------------


AS_BEFORE = {"d2c_mean_us": 100.0, "d2c_p50_us": 85.0, "d2c_p99_us": 200.0}


def cause_of(**columns: float) -> str:
    told = compare(made(2, slow=all_slow(0.8), **columns), [made(1)])
    return next(one.cause for one in told.regressions if one.members == 1)


def test_smaller_requests_are_a_cause() -> None:
    told = cause_of(request_bytes_mean=65536.0, **AS_BEFORE)
    assert "request sizes -50 % (128 KiB -> 64 KiB)" in told
    assert "the path above the drive splits or no longer merges them" in told


def test_a_drive_that_is_asked_less_is_a_cause() -> None:
    told = cause_of(depth_mean=4.0, **AS_BEFORE)
    assert "depth -50 % (8 -> 4)" in told
    assert "asked less" in told


def test_nothing_in_the_trace_is_told_too() -> None:
    assert "outside the drive" in cause_of(**AS_BEFORE)


def test_a_throttled_drive_is_slower_though_its_median_is_not() -> None:
    told = cause_of(d2c_mean_us=110.0, d2c_p50_us=75.0, d2c_p99_us=200.0, depth_mean=7.5)
    assert re.search(r"D2C mean \+1\d % \(.* -> 110 µs\), D2C p50 -1\d % \(.* -> 75 µs\)", told)
    assert "the drive answered slower" in told


def test_a_longer_median_is_slower_though_fewer_were_in_flight() -> None:
    told = cause_of(depth_mean=6.4, d2c_mean_us=97.0, d2c_p50_us=95.0, d2c_p99_us=200.0)
    assert "depth -20 %" in told
    assert "the drive answered slower" in told


def test_a_few_late_requests_are_not_the_cause_where_fewer_were_in_flight() -> None:
    told = cause_of(depth_mean=6.4, d2c_mean_us=100.0, d2c_p50_us=85.0, d2c_p99_us=260.0)
    assert "D2C p99 +" in told
    assert "asked less" in told


def test_fio_beside_it_tells_the_drive_from_the_path_above() -> None:
    assert "fio beside it fell too (-17 %, 3 -> 2.50 GiB/s), so the drive itself" in cause_of(
        ceiling_read_gib_s=2.5, ceiling_write_gib_s=2.5
    )
    assert "fio beside it reached as much" in cause_of()


def test_a_ceiling_that_was_not_measured_anew_tells_nothing() -> None:
    now, base = made(2, slow=all_slow(0.8)), made(1)
    now["ceiling_measured_at"] = base["ceiling_measured_at"] = base.started.iloc[0]
    assert not any("fio" in one.cause for one in compare(now, [base]).regressions)


def test_a_ceiling_that_was_kept_from_before_the_run_tells_nothing() -> None:
    now, base = made(2, slow=all_slow(0.8)), made(1)
    now["ceiling_measured_at"] = now.run_started.iloc[0] - pd.Timedelta(days=40)  # not of a base, and not of this night
    assert not any("fio" in one.cause for one in compare(now, [base]).regressions)


def test_a_change_that_explains_nothing_is_not_called_none() -> None:
    told = cause_of(depth_mean=10.0, **AS_BEFORE)
    assert "depth +25 %" in told
    assert "nothing in the trace changed" not in told
    assert "what changed in the trace does not explain it" in told


def test_an_improvement_has_no_cause() -> None:
    told = compare(made(2, slow=all_slow(1.2)), [made(1)])
    assert {one.cause for one in told.improvements if one.members == 1} == {""}


def test_whose_bytes_became_more_is_told() -> None:
    now, base = made(2, slow=all_slow(0.8)), made(1)
    now["role.kv_bytes"], base["role.kv_bytes"] = 3 << 30, 2 << 30
    told = compare(now, [base])
    assert any("bytes by file: kv 2 GiB -> 3 GiB" in one.cause for one in told.regressions)


# --- matching --------------------------------------------------------------------------------------------------------


def test_another_configuration_is_not_compared_and_says_what_differs() -> None:
    told = compare(made(2, config={"workload.loops": 10}, slow=all_slow(0.5)), [made(1)])
    assert not told.regressed
    assert told.judged == 0
    assert told.unmatched[0] == "batch=1,fs=ext4: configured otherwise in night-1: workload.loops 3 -> 10"
    assert any("workload.loops: 3 -> 10" in str(one) for one in told.environment)


def test_where_and_how_it_was_watched_may_differ_and_is_told() -> None:
    told = compare(made(2, config={"storage.path": "/mnt/b"}), [made(1, config={"storage.path": "/mnt/a"})])
    assert told.judged == 12
    assert [str(one) for one in told.environment] == ["storage.path: /mnt/a -> /mnt/b"]


def test_a_cell_that_is_new_or_gone_is_told() -> None:
    told = compare(made(2, cells=CELLS[1:]), [made(1, cells=CELLS[:-1])])
    assert told.lost == ("batch=1,fs=ext4: no trial of it in this run",)
    assert told.unmatched == ("batch=32,fs=xfs: no base has this cell",)
    assert "Lost: valid in a base, not now" in told.lines()


def test_a_phase_that_the_run_lacks_is_lost() -> None:
    told = compare(made(2, phases=PHASES[:1]), [made(1)])
    assert told.judged == len(CELLS)
    assert len(told.lost) == len(CELLS)
    assert told.lost[0] == "batch=1,fs=ext4 store aio cpu 64 MiB: no valid trial of this run has this phase"


def test_tokens_that_the_engine_reports_no_more_are_lost_and_its_phases_are_judged() -> None:
    now, base = (made(n, phases=("prefill", "decode")) for n in (2, 1))
    base["metrics.decode_tokens_per_s"] = np.where(base.phase == "trial", 100.0, np.nan)
    told = compare(now, [base])
    assert "batch=1,fs=ext4 decode: no valid trial of this run has metrics.decode_tokens_per_s" in told.lost
    assert told.judged == 2 * len(CELLS)
    other = compare(
        base.assign(run="other", run_started=now.run_started.iloc[0]), [made(3, phases=("prefill", "decode"))]
    )
    assert other.judged == 2 * len(CELLS)
    assert any("no base has metrics.decode_tokens_per_s" in one for one in other.unmatched)


def test_a_measure_that_one_base_had_and_the_run_lacks_is_lost_when_it_is_asked_for() -> None:
    now, base = made(2), made(1)
    now["d2c_p99_us"] = None
    told = compare(now, [base], metrics=["load/read.d2c_p99_us", "load/read.d2c_p50_us"])
    assert "batch=1,fs=ext4 load aio cpu 64 MiB: no valid trial of this run has d2c_p99_us" in told.lost


def test_a_run_that_has_nothing_of_what_is_asked_for_has_lost_it() -> None:
    unmeasured, failed = made(2), made(3)
    unmeasured["d2c_p99_us"] = None
    failed["verdict"] = "failed"
    for now, why in ((unmeasured, "load aio cpu 64 MiB: no valid trial of this run has"), (failed, "none of 5 trials")):
        told = compare(now, [made(1)], metrics=["load/read.d2c_p99_us"])
        assert (told.judged, len(told.lost)) == (0, len(CELLS))
        assert why in told.lost[0]


def test_values_of_nothing_are_told() -> None:
    now = made(2)
    stopped = (now.cell == text_of(CELLS[0])) & (now.phase == PHASES[0]) & (now["repeat"] == 2)
    now.loc[stopped, "bandwidth_gib_s"] = 0.0
    told = compare(now, [made(1)])
    assert told.lost == (
        "batch=1,fs=ext4 load aio cpu 64 MiB: 1 of 5 valid trials have no bandwidth_gib_s above 0 and do not count",
    )


def test_a_valid_trial_that_cannot_be_read_is_listed() -> None:
    now = made(2)
    broken = (now.cell == text_of(CELLS[0])) & (now["repeat"] == 2)
    now["unreadable"] = now["unreadable"].astype(object)
    now.loc[broken, "unreadable"] = "requests.parquet is cut off"
    told = compare(now, [made(1)])
    assert told.failed == ('{"batch":1,"fs":"ext4"},rep=2: valid, but cannot be read (requests.parquet is cut off)',)
    now.loc[now.cell == text_of(CELLS[0]), "unreadable"] = "requests.parquet is cut off"
    assert compare(now, [made(1)]).lost == ("batch=1,fs=ext4: none of 5 trials valid (requests.parquet is cut off)",)


def test_what_a_search_did_not_try_this_time_is_not_lost() -> None:
    planned = {text_of(cell) for cell in CELLS[:-1]}
    told = compare(made(2, cells=CELLS[1:-1]), [made(1)], planned=planned)
    assert told.lost == ("batch=1,fs=ext4: no trial of it in this run",)
    assert told.unmatched == ("batch=32,fs=xfs: not in this run's plan",)


def test_two_valid_repeats_are_not_judged_however_many_bases_there_are() -> None:
    nights = [made(n) for n in range(1, 9)]
    told = compare(made(20, repeats=1, slow=all_slow(0.5)), nights)
    assert (told.regressed, told.judged) == (False, 0)
    assert told.unjudged[0].reason == "1 valid repeat now; 3 are needed, however many the bases have"
    assert compare(made(20, repeats=2, slow=all_slow(0.5)), nights).judged == 0
    assert compare(made(20, repeats=3, slow=all_slow(0.5)), nights).regressed


def test_a_cell_without_a_valid_trial_now_is_told_with_its_reason_and_is_no_regression() -> None:
    now = made(2)
    gone = now.cell == text_of(CELLS[0])
    now.loc[gone, ["verdict", "reasons"]] = ["failed", "No space left on device"]
    told = compare(now, [made(1)])
    assert not told.regressed
    assert told.lost == ("batch=1,fs=ext4: none of 5 trials valid (No space left on device)",)
    assert len(told.failed) == 5


def test_invalid_trials_do_not_count() -> None:
    now = made(2)
    bad = (now.cell == text_of(CELLS[0])) & (now["repeat"] == 3)
    now.loc[bad, ["verdict", "bandwidth_gib_s"]] = ["invalid", 0.001]
    told = compare(now, [made(1)])
    assert not told.regressed
    assert len(told.failed) == 1


def test_trials_without_a_number_are_compared_too() -> None:
    frames = [made(1), made(2, slow=all_slow(0.8))]
    for frame in frames:
        frame["repeat"] = pd.array([pd.NA] * len(frame), dtype="Int64")
    assert len(judged(compare(frames[1], [frames[0]]))) == 12


def test_traces_without_bytes_or_latencies_are_judged_by_their_time() -> None:
    frames = [made(1), made(2, slow=all_slow(0.8))]
    for frame in frames:
        for name in ("bytes", "requests"):
            frame[name] = pd.array([pd.NA] * len(frame), dtype="Int64")
        for name in ("bandwidth_gib_s", "d2c_p50_us", "d2c_p99_us", "depth_mean", "request_bytes_mean"):
            frame[name] = np.nan
    one = next(one for one in compare(frames[1], [frames[0]]).regressions if one.members == 1)
    assert one.metric == "duration_s"
    assert one.cause == "the trials hold no single requests, so the trace tells no cause"


def test_what_changed_in_the_environment_names_the_cells_it_touches() -> None:
    now, base = made(2, facts={"kernel": "6.19", "code": "b"}), made(1, facts={"code": "a"})
    xfs = now.cell.str.contains("xfs")
    now.loc[xfs, "environment"] = json.dumps({"kernel": "6.19", "code": "b", "tools.mkfs.xfs": "6.2"})
    told = [str(one) for one in compare(now, [base]).environment]
    assert told[0] == "kernel: 6.18 -> 6.19"
    assert told[1].startswith("tools.mkfs.xfs: (none) -> 6.2 (batch=1,fs=xfs; ")
    assert told[-1] == "code: a -> b"


def test_what_changed_is_read_off_a_valid_trial() -> None:
    now = made(2)
    crashed = now["repeat"] == 5
    now.loc[crashed, ["verdict", "environment"]] = ["failed", "{}"]
    assert not compare(now, [made(1)]).environment


def test_a_fact_that_some_base_had_did_not_change() -> None:
    bases = [made(1, facts={"kernel": "6.19"}), made(2)]
    assert not compare(made(3, facts={"kernel": "6.19"}), bases).environment


def test_a_ledger_of_several_runs_is_taken_apart() -> None:
    told = compare(made(3), [pd.concat([made(1), made(2)])])
    assert told.bases == ("nightly/night-1", "nightly/night-2")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": 5.0}, "threshold 5 makes no sense"),
        ({"alpha": 0.0}, "alpha 0 makes no sense"),
        ({"metrics": ["read.request_bytes_mean"]}, "neither better nor worse"),
        ({"metrics": ["generation_s"]}, "column of the summary.*write generation/all.duration_s"),
        ({"metrics": ["read_d2c_p99_us"]}, "write read.d2c_p99_us"),
        ({"metrics": ["generation_write_ceiling_share"]}, "write generation/write.ceiling_share"),
        ({"metrics": ["ceiling_random_read_gib_s"]}, "docs/metrics.md"),
        ({"metrics": ["read.d2c_p98_us"]}, "did you mean read.d2c_p99_us"),
        ({"metrics": ["lod/read.d2c_p99_us"]}, "no cell that the runs share has it"),
    ],
)
def test_what_cannot_be_asked_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(AnalysisError, match=message):
        compare(made(2), [made(1)], **change)


def test_a_run_is_not_its_own_base() -> None:
    with pytest.raises(AnalysisError, match="the run itself"):
        compare(made(1), [made(1)])
    with pytest.raises(AnalysisError, match="no base"):
        compare(made(1), [])
    with pytest.raises(AnalysisError, match="night-1 is named twice"):
        compare(made(2), [made(1), made(1)])


def test_a_base_that_lacks_cells_serves_for_the_others() -> None:
    bases = [made(1), made(2, cells=CELLS[:2]), made(3, cells=CELLS[:1])]
    told = compare(made(4, slow=all_slow(0.8)), bases)
    assert told.judged == 12
    single = {one.cell: one.repeats for one in told.regressions if one.members == 1}
    assert single[text_of(CELLS[0])] == (5, 15)
    assert single[text_of(CELLS[1])] == (5, 10)
    assert single[text_of(CELLS[5])] == (5, 5)
    assert compare(made(4), bases[1:]).judged == 4


def test_nights_that_were_cut_short_do_not_hide_what_the_others_differ_by() -> None:
    level = (1.0, 0.88, 1.1, 0.93)
    whole = [made(n, slow=all_slow(speed)) for n, speed in enumerate(level, 1)]
    short = [made(11, cells=CELLS[:1]), made(12, cells=CELLS[1:2])]
    told = compare(made(20, slow=all_slow(0.88)), [*whole, *short])
    assert told.spread.bases == 4
    assert told.spread.seen == pytest.approx(0.09, abs=0.03)
    assert "4 of the 6 bases differ by" in told.lines()[-1]
    assert not told.regressed
    told = compare(made(20), short)
    assert told.spread.seen is None
    assert "The 2 bases share no measure" in told.lines()[-1]


def test_the_page_fits_a_screen_and_json_has_all() -> None:
    told = compare(made(2, slow=all_slow(0.8), facts={f"fact{n}": n for n in range(30)}), [made(1)])
    assert len(told.lines()) <= 40
    held = told.as_json()
    assert held["regressed"] is True
    assert len(held["regressions"]) == len(told.regressions)
    assert len(held["environment"]) == 30
    assert held["causes"]


# --- the command -----------------------------------------------------------------------------------------------------


def slower(run: Path, factor: float) -> Path:
    """Make every phase of a run's metrics slower by a factor."""
    of_run(run)
    path = run / "metrics.parquet"
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    frame = table.to_pandas()
    frame["bandwidth_gib_s"] *= factor
    frame["duration_s"] /= factor
    pq.write_table(type(table).from_pandas(frame, schema=table.schema, preserve_index=False), path)
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("results")
    made = [make_run(root, (MIB, 2 * MIB), repeats=5, broken=False, name=f"2026112{n}-220000") for n in range(2)]
    for place, run in enumerate(made):
        record = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps(record | {"started": f"2026-11-2{place}T22:00:00+00:00"}))
    return [made[0], slower(made[1], 0.7)]


def test_the_command_exits_4_on_a_regression_and_0_without(
    runs: list[Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    base, now = runs
    assert main([str(now), str(base)]) == 4
    assert "REGRESSION" in capsys.readouterr().out
    assert main([str(base), str(now)]) == 0
    page = tmp_path / "page.txt"
    assert main([str(now), str(base), "--json", "-o", str(page), "--threshold", "40%"]) == 0
    assert json.loads(page.read_text())["threshold"] == 0.4


def test_the_command_exits_3_where_nothing_can_be_judged(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    base, now = runs
    assert main([str(now), str(base), "--alpha", "0.1%"]) == 3
    assert "NOT JUDGED: too few repeats" in capsys.readouterr().out


def test_a_mistake_is_one_line_and_exit_2(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(runs[0]), str(runs[0].parent / "nowhere")]) == 2
    assert main([str(runs[0]), str(runs[0])]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_a_run_is_itself_by_the_link_to_it_too(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    latest = runs[0].with_name("same")
    latest.symlink_to(runs[0].name)
    try:
        assert main([str(runs[0]), str(latest)]) == 2
        assert "is the run itself" in capsys.readouterr().err
    finally:
        latest.unlink()
