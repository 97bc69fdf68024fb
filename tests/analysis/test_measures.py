"""Names of measures: what is asked for is understood or refused with the nearest name; intervals are Student's."""

from __future__ import annotations

import math
import statistics
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis import measures, summary
from analysis.errors import AnalysisError
from analysis.figures import FIGURES, check
from analysis.intervals import interval, student_t
from analysis.measures import ENGINE, OPERATIONS, PROFILE, SUMMARY, Measure, axis_of, parse

AXES = st.from_regex(r"[a-z_][a-z0-9_]{0,8}(\.[a-z_]{1,8}){0,2}", fullmatch=True)
#: Names of phases as `analysis.profile` makes them; a slash would be one of the syntax.
PHASES = st.from_regex(r"[a-z]{1,8}( [A-Za-z0-9.]{1,6}){0,3}", fullmatch=True)


@given(name=st.sampled_from(PROFILE), op=st.sampled_from(OPERATIONS), phase=PHASES, axis=AXES)
def test_a_measure_of_a_phase_is_read_as_it_is_written(name: str, op: str, phase: str, axis: str) -> None:
    measure = Measure(name, axis, op, phase)
    assert parse(str(measure)) == measure
    assert parse(f"  {measure} ") == measure
    assert measure.title


@given(name=st.sampled_from([*ENGINE, *SUMMARY, "metric.my_own", "role.kv_read_bytes"]), axis=AXES)
def test_a_measure_of_a_trial_is_read_as_it_is_written(name: str, axis: str) -> None:
    assert str(parse(f"{name}@{axis}")) == f"{name}@{axis}"


@given(st.text(max_size=60))
def test_any_text_is_understood_or_refused_in_words(text: str) -> None:
    try:
        measure = parse(text)
    except AnalysisError:
        return
    assert parse(str(measure)) == measure


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tokens_per_s", "no measure against an axis; write MEASURE@AXIS, such as"),
        ("@batch_size", "no measure against an axis"),
        ("tokens_per_s@", "no measure against an axis"),
        ("tokens_per_sec@x", "no measure 'tokens_per_sec'; did you mean tokens_per_s"),
        ("d2c_p99_us@x", "did you mean read.d2c_p99_us"),
        ("read.d2c_p9_us@x", "no measure 'read.d2c_p9_us'; did you mean read.d2c_p99_us or"),
        ("decode/d2c_p99_us@x", "names a phase but no operation; write decode/read.d2c_p99_us, write. or all."),
        (
            "decode/reads.d2c_p99_us@x",
            "no operation 'reads'; did you mean decode/read.d2c_p99_us? operations: read, write, all",
        ),
        ("writes.iops@x", "did you mean write.iops?"),
        ("write.nothing_like_it@x", "valid: write.duration_s, write.bytes"),
        ("metric.@x", "metric.NAME"),
    ],
)
def test_what_is_no_measure_is_told_with_the_nearest(text: str, said: str) -> None:
    with pytest.raises(AnalysisError) as told:
        parse(text)
    assert said in str(told.value)


@pytest.mark.parametrize(
    ("text", "title", "unit"),
    [
        ("tokens_per_s@x", "Tokens per second", "tokens/s"),
        ("decode/read.d2c_p99_us@x", "Latency p99 of reads in decode", "µs"),
        ("write.bandwidth_peak_gib_s@x", "Bandwidth peak of writes", "GiB/s"),
        ("all.depth_mean@x", "Depth mean of all requests", "requests"),
        ("read.request_bytes_mean@x", "Request bytes mean of reads", "B"),
        ("generation_read_ceiling_share@x", "Generation read bandwidth as share of the ceiling", "1"),
        ("read.iops@x", "IOPS of reads", "requests/s"),
        ("generation_s@x", "Generation", "s"),
        ("metric.answers@x", "Answers", ""),
    ],
)
def test_a_measure_has_a_title_and_a_unit(text: str, title: str, unit: str) -> None:
    measure = parse(text)
    assert (measure.title, measure.unit) == (title, unit)


def test_measures_of_the_summary_are_columns_of_it() -> None:
    assert set(SUMMARY) <= set(summary._COLUMNS)


def test_an_axis_is_meant_by_its_key_or_its_last_part() -> None:
    axes = ["workload.batch_size", "storage.fs", "queue.depth", "workload.depth"]
    assert axis_of("batch_size", axes) == "workload.batch_size"
    assert axis_of("workload.depth", axes) == "workload.depth"
    assert axis_of("workload.batch_size", ["batch_size", "fs"]) == "batch_size"
    with pytest.raises(
        AnalysisError, match=r"no axis 'workload.batch_sise'; did you mean workload.batch_size\? valid:"
    ):
        axis_of("workload.batch_sise", axes)
    with pytest.raises(AnalysisError, match="no axis 'size'; this sweep has none"):
        axis_of("size", [])


def test_a_figure_is_checked_with_what_it_asks_for() -> None:
    for name in FIGURES:
        check(name)
    check("metric:tokens_per_s@workload.batch_size", ["workload.batch_size"])
    check("metric:tokens_per_s@whatever")
    refused = {
        "metric:tokens_per_s@batch": "metric:tokens_per_s@batch: no axis 'batch'",
        "metric:toks@n": "metric:toks@n: no measure 'toks'",
        "metrics": "did you mean metric",
        "fig2:tokens_per_s@n": "fig2 takes nothing after a colon",
        "metric:": "no measure against an axis",
    }
    for name, said in refused.items():
        with pytest.raises(AnalysisError) as told:
            check(name, ["n"])
        assert said in str(told.value)


def test_checking_a_name_imports_nothing_that_draws() -> None:
    heavy = "import sys; from analysis.figures import check; check('metric:tokens_per_s@n')"
    heavy += "; print([name for name in ('polars', 'altair', 'pandas', 'pyarrow') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (30, 2.042), (99, 1.984)]
)
def test_students_t_is_that_of_the_tables(freedom: int, quantile: float) -> None:
    assert student_t(freedom) == pytest.approx(quantile, abs=5e-4)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20))
def test_an_interval_lies_around_the_mean_and_shrinks_with_the_level(values: list[float]) -> None:
    wide, narrow = interval(values), interval(values, 0.5)
    assert wide is not None
    assert narrow is not None
    mean = statistics.fmean(values)
    assert math.isclose(sum(wide) / 2, mean, abs_tol=1e-6)
    assert wide[0] <= narrow[0] <= narrow[1] <= wide[1]


def test_one_value_has_no_interval() -> None:
    assert interval([1.0]) is None
    assert interval([]) is None


def test_the_profile_has_the_measures_that_can_be_asked_of_it() -> None:
    profile = pytest.importorskip("analysis.profile", reason="metrics by phase are a part of their own")
    assert set(measures.PROFILE) <= set(profile._COLUMNS)
