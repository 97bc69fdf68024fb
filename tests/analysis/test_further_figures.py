"""Timeline, sectors, tokens, measures against axes, and rooflines: right numbers, and why a panel is not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import vl_convert
from hypothesis import given
from hypothesis import strategies as st

from analysis import draw_run, load_run, metrics
from analysis.drawing import figure_names
from analysis.figures import draw, figure, metric, overview, profiled, roofline, sectors, theme, tokens
from analysis.figures.cells import repeats_text
from analysis.figures.table import table
from analysis.intervals import interval
from analysis.run import Run
from analysis.steps import steps
from analysis.summary import read_summary
from analysis.units import number_text
from tests.analysis.made_engines import KV_ON_DISK, WEIGHTS_ON_DISK, Shape, make_engine_run
from tests.analysis.made_run import MIB, make_run, write_record
from tests.analysis.test_drawn_figures import texts
from tests.analysis.test_engine_figures import axes, change, rows_with, words
from tests.analysis.test_trace_metrics import LIGHT

SMALL: dict[str, Any] = {"steps": 4, "data_mib": 4, "step_s": 0.1}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two cells of a KV cache on the drive: three repeats of one, one of the other."""
    shapes = {
        "batch_size=8": [Shape(**SMALL, seed=seed) for seed in (1, 2)] + [Shape(**SMALL | {"step_s": 0.2})],
        "batch_size=16": [Shape(**SMALL | {"step_s": 0.15, "data_mib": 8}, gpus=1)],
    }
    return load_run(make_engine_run(tmp_path_factory.mktemp("results"), shapes, ["tokens"]))


@pytest.fixture
def tensors(tmp_path: Path) -> Run:
    return load_run(make_run(tmp_path, sizes=(MIB, 4 * MIB), broken=True))


def strips(chart: Any) -> list[int]:
    """Return at which places of a stack the strips of phases stand."""
    parts = chart.to_dict()["vconcat"]
    return [
        place for place, part in enumerate(parts) if (part.get("encoding") or {}).get("y", {}).get("field") == "row"
    ]


# --- timeline --------------------------------------------------------------------------------------------------------


def test_a_timeline_has_its_phases_on_top_and_one_labelled_time_axis(made: Run) -> None:
    for panel in overview.charts(made):
        assert (panel.reason, panel.holds) == (None, ("bandwidth",))
        assert strips(panel.chart) == [0]
        labelled = ["Time since the traced window began (s)" in str(part) for part in panel.chart.to_dict()["vconcat"]]
        assert labelled == [False, False, True]
        told = texts(panel.chart)
        assert "4 MiB" in told or "read," in told
        assert "opt-6.7b" in told


def test_a_timeline_of_counters_alone_has_what_there_is(tmp_path: Path) -> None:
    run = load_run(make_engine_run(tmp_path, {"": [Shape(**SMALL)]}, []))
    change(run.published[0], tracer={"name": "none"})
    (run.published[0].path / "requests.parquet").unlink()
    (panel,) = overview.charts(load_run(run.path))
    assert panel.reason is None
    assert "Not drawn" in words(panel.chart)
    assert "CPUs busy" in words(panel.chart)


def test_a_trial_with_nothing_over_time_says_why(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"schema_version": 1}')
    write_record(tmp_path / "trials" / "a", tracer={"name": "none", "begin_ns": 0, "end_ns": 10})
    (panel,) = overview.charts(load_run(tmp_path))
    assert "records no single requests" in str(panel.reason)


def test_an_invalid_trial_is_marked_in_every_figure_of_one_trial(tmp_path: Path) -> None:
    run = load_run(make_engine_run(tmp_path, {"": [Shape(**SMALL)]}, []))
    change(run.published[0], verdict={"state": "invalid", "reasons": ["7 events were lost"]})
    for one in (overview, sectors):
        (panel,) = one.charts(load_run(run.path))
        assert texts(panel.chart).startswith("INVALID: 7 events were lost")


# --- sectors ---------------------------------------------------------------------------------------------------------


def test_the_sectors_of_all_trials_share_the_axis_of_the_device(made: Run) -> None:
    panels = list(sectors.charts(made))
    assert [panel.trial for panel in panels] == [trial.slug for trial in made.published]
    assert len({str(axes(panel.chart, "y")["Read offset (GiB)"]) for panel in panels}) == 1
    assert all(len(strips(panel.chart)) == 1 for panel in panels)
    assert "white: not accessed" in texts(panels[0].chart)


# --- tokens ----------------------------------------------------------------------------------------------------------


def test_steps_have_the_bytes_of_the_requests_issued_in_them(made: Run) -> None:
    trial = made.published[0]
    rows = made.requests(trial).with_columns(pl.col("op").cast(pl.String)).collect()
    spans = {one.step: one for one in metrics.phases(trial.path) if one.name in ("prefill", "decode")}
    found = steps(trial.path)
    assert found["step"].to_list() == sorted(step for step in spans if step is not None)
    for row in found.to_dicts():
        span = spans[row["step"]]
        assert span.end_ns is not None
        assert row["duration_s"] == pytest.approx((span.end_ns - span.begin_ns) / 1e9)
        inside = rows.filter(pl.col("issue_ns").is_between(span.begin_ns, span.end_ns, closed="left"))
        for op in ("read", "write"):
            assert row[f"{op}_bytes"] == inside.filter(pl.col("op") == op)["bytes"].sum()


def test_tokens_show_the_mean_of_the_valid_repeats(made: Run) -> None:
    (panel,) = tokens.charts(made)
    own = pl.concat([steps(trial.path) for trial in made.published[:3]]).filter(phase="decode", step=2)
    row = next(
        row
        for row in rows_with(panel.chart, "cell", "step", "mean")
        if (row["cell"], row["step"]) == ("batch_size 8", 2)
    )
    assert row["mean"] == pytest.approx(own["duration_s"].mean() * 1e3, abs=1e-3)  # type: ignore[operator]
    assert (row["min"], row["max"]) == (
        pytest.approx(own["duration_s"].min() * 1e3, abs=1e-3),  # type: ignore[operator]
        pytest.approx(own["duration_s"].max() * 1e3, abs=1e-3),  # type: ignore[operator]
    )
    assert set(axes(panel.chart, "y")) == {"Step time (ms)", "Read per step (MiB)", "Written per step (KiB)"}
    assert "mean of n = 1 to 3 repeats; band: least to greatest" in texts(panel.chart)
    assert "of fewer than 100 steps p99 is the slowest" in texts(panel.chart)
    cells = {row["text"] for row in rows_with(panel.chart, "text", "head")}
    assert {"batch_size 8", "batch_size 16", "prefill"} <= cells
    assert any(cell.startswith("200 ms (step ") for cell in cells)


def test_invalid_trials_are_in_no_mean_of_tokens(tmp_path: Path) -> None:
    run = load_run(make_engine_run(tmp_path, {f"n={n}": [Shape(**SMALL)] for n in (1, 2)}, []))
    change(run.published[1], verdict={"state": "invalid", "reasons": ["lost"]})
    (panel,) = tokens.charts(load_run(run.path))
    assert {row["cell"] for row in rows_with(panel.chart, "cell", "mean")} == {"n 1"}
    assert "1 trial not valid, left out: n=2,rep=1" in texts(panel.chart)
    change(run.published[0], verdict={"state": "invalid", "reasons": ["lost"]})
    (panel,) = tokens.charts(load_run(run.path))
    assert panel.reason == "none of the 2 trials with decode steps is valid"


def test_tokens_of_a_trial_without_requests_have_their_time(tmp_path: Path) -> None:
    run = load_run(make_engine_run(tmp_path, {"": [Shape(**SMALL)]}, []))
    change(run.published[0], tracer={"name": "diskstats"})
    (run.published[0].path / "requests.parquet").unlink()
    (panel,) = tokens.charts(load_run(run.path))
    assert set(axes(panel.chart, "y")) == {"Step time (ms)"}
    assert "no single requests were traced" in words(panel.chart)
    assert "unknown" in words(panel.chart)


def test_a_run_without_decode_steps_has_no_tokens(tensors: Run) -> None:
    (panel,) = tokens.charts(tensors)
    assert panel.reason == "no trial of this run has decode steps"


def test_more_cells_than_colours_make_more_charts(tmp_path: Path) -> None:
    shape = Shape(steps=2, data_mib=1, step_s=0.05, init_s=0.1)
    run = load_run(make_engine_run(tmp_path, {f"n={n}": [shape] for n in range(9)}, []))
    first, second = tokens.charts(run)
    assert (first.name, second.name) == ("tokens", "tokens-2")
    seen = [{row["cell"] for row in rows_with(one.chart, "cell", "mean")} for one in (first, second)]
    assert [len(cells) for cells in seen] == [len(theme.CELLS), 2]
    assert axes(first.chart, "y") == axes(second.chart, "y")


@LIGHT
@given(count=st.integers(1, 3000), repeats=st.integers(1, 3))
def test_any_number_of_steps_makes_few_points(count: int, repeats: int) -> None:
    one = pl.DataFrame({"step": range(1, count + 1)}).with_columns(
        (pl.col("step") * 0.001).alias("duration_s"),
        pl.col("step").alias("read_bytes"),
        pl.lit(None, dtype=pl.Int64).alias("write_bytes"),
        pl.lit("decode").alias("phase"),
        pl.lit("a").alias("cell"),
    )
    points, width = tokens.binned(pl.concat([one] * repeats))
    assert points.height == -(-count // width) <= tokens.MOST_POINTS
    assert points["read_bytes_min"].min() == 1
    assert points["read_bytes_max"].max() == count
    assert points["write_bytes_mean"].is_null().all()


# --- measures against axes -------------------------------------------------------------------------------------------


def test_a_measure_is_drawn_by_repeat_mean_and_interval(made: Run) -> None:
    (panel,) = figure("metric:tokens_per_s@workload.batch_size").charts(made)
    assert panel.name == "metric-tokens_per_s-by-workload.batch_size"
    whole = {row["slug"]: row for row in read_summary(made).filter(pl.col("phase") == "trial").to_dicts()}
    values = [whole[trial.slug]["metric.tokens_per_s"] for trial in made.published[:3]]
    rows = rows_with(panel.chart, "kind", "value")
    (mean,) = [row for row in rows if (row["kind"], row["x"]) == ("mean", 8)]
    assert mean["value"] == pytest.approx(sum(values) / 3)
    assert (mean["low"], mean["high"]) == pytest.approx(interval(values))
    assert sorted(row["value"] for row in rows if (row["kind"], row["x"]) == ("repeat", 8)) == pytest.approx(
        sorted(values)
    )
    (alone,) = [row for row in rows if (row["kind"], row["x"]) == ("mean", 16)]
    assert (alone["n"], alone["low"], alone["high"]) == (1, None, None)
    assert "95 % confidence interval of the mean (Student's t); of one repeat alone there is none" in texts(panel.chart)
    (domain,) = [part for title, part in axes(panel.chart, "x").items() if title == "batch_size"]
    assert domain[0] < 8 < 16 < domain[1]
    assert '"type": "log", "base": 2' in words(panel.chart) or '"base": 2' in words(panel.chart)


def test_single_repeats_say_that_there_is_no_interval(tmp_path: Path) -> None:
    run = load_run(make_engine_run(tmp_path, {f"n={n}": [Shape(**SMALL)] for n in (1, 3)}, []))
    (panel,) = figure("metric:generation_read_bytes@n").charts(run)
    assert "One repeat (n = 1) of each cell: no confidence interval can be given." in texts(panel.chart)
    assert "Generation read bytes (MiB)" in axes(panel.chart, "y")
    assert '"base": 2' not in words(panel.chart)  # 3 is no power of two


def test_no_interval_leaves_an_axis_that_does_not_begin_at_zero(tmp_path: Path) -> None:
    run = load_run(make_engine_run(tmp_path, {f"n={n}": [Shape(**SMALL)] for n in (1, 2)}, []))
    for trial, value in zip(run.published, (0.01, 4.0), strict=True):
        change(trial, metrics={"tokens_per_s": {"value": value, "unit": "1/s"}})
    (panel,) = figure("metric:tokens_per_s@n").charts(load_run(run.path))
    assert axes(panel.chart, "y")["Tokens per second (tokens/s), log scale"][0] > 0
    assert "axis cuts" not in words(panel.chart)


def test_an_interval_that_leaves_the_axis_is_told(tmp_path: Path) -> None:
    run = load_run(make_engine_run(tmp_path, {f"n={n}": [Shape(**SMALL), Shape(**SMALL)] for n in (1, 2)}, []))
    for trial, value in zip(run.published, (10.0, 90.0, 50.0, 51.0), strict=True):
        change(trial, metrics={"tokens_per_s": {"value": value, "unit": "1/s"}})
    (panel,) = figure("metric:tokens_per_s@n").charts(load_run(run.path))
    assert "Bars that the axis cuts reach -458 and 558 tokens/s. One that reaches below 0" in texts(panel.chart)
    assert axes(panel.chart, "y")["Tokens per second (tokens/s)"] == [0, pytest.approx(1.05 * 1.5 * 90)]


@LIGHT
@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=6))
def test_the_axis_of_values_holds_them_all(values: list[float]) -> None:
    low, high = metric._domain([{"value": value} for value in values])
    assert low <= min(values) <= max(values) <= high
    assert low < high or values == [0.0]


def test_other_axes_become_colours_dashes_and_charts(tmp_path: Path) -> None:
    shape = Shape(steps=2, data_mib=1, step_s=0.05, init_s=0.1)
    names = [f"n={n},fs={fs},api={api},x={x}" for n in (1, 2) for fs in ("a", "b") for api in "cd" for x in ("e", "f")]
    run = load_run(make_engine_run(tmp_path, {name: [shape] for name in names}, []))
    (panel,) = figure("metric:tokens_per_s@n").charts(run)
    rows = [row for row in rows_with(panel.chart, "kind", "colour") if row["kind"] == "mean"]
    assert {(row["colour"], row["dash"], row["facet"]) for row in rows} == {
        (fs, api, f"x {x}") for fs in "ab" for api in "cd" for x in "ef"
    }
    assert len(rows) == len(names)
    legends = {legend.get("title") for legend in vl_convert.vegalite_to_vega(panel.chart.to_dict())["legends"]}
    assert legends == {"fs", "api"}
    assert all(one.reason is None for one in draw(run, ["metric:tokens_per_s@n", "metric:tokens_per_s@fs"], tmp_path))


def test_sizes_are_numbers_and_words_are_categories(tmp_path: Path) -> None:
    shape = Shape(steps=2, data_mib=1, step_s=0.05, init_s=0.1)
    run = load_run(
        make_engine_run(tmp_path, {f"memory={m},fs={fs}": [shape] for m in ("512MiB", "1GiB") for fs in "ab"}, [])
    )
    assert metric.numeric_axes(run.published) == ["memory"]
    (panel,) = figure("metric:duration_s@limits.memory").charts(run)
    assert {row["x"] for row in rows_with(panel.chart, "kind", "x")} == {512 * MIB, 1024 * MIB}
    assert "512 MiB" in words(panel.chart)
    (panel,) = figure("metric:duration_s@fs").charts(run)
    assert {row["x"] for row in rows_with(panel.chart, "kind", "x")} == {"a", "b"}


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ("tokens_per_s@queue_depth", "no axis 'queue_depth'; valid: batch_size"),
        ("metric.nothing@batch_size", "no trial of this run has metric.nothing"),
        ("peak_gpu_memory_bytes@batch_size", None),
    ],
)
def test_what_a_run_does_not_have_is_told(made: Run, asked: str, reason: str | None) -> None:
    (panel,) = figure(f"metric:{asked}").charts(made)
    assert panel.reason == reason


def test_a_run_with_an_axis_of_numbers_gets_a_measure_without_asking(made: Run, tensors: Run) -> None:
    assert "metric" in figure_names(made)[1]
    (panel,) = metric.charts(made)
    assert panel.name == "metric-tokens_per_s-by-batch_size"
    assert "metric" not in figure_names(tensors)[1]
    made.record["figures"] = ["metric:duration_s@batch_size"]
    assert "metric" not in figure_names(made)[1]


# --- rooflines -------------------------------------------------------------------------------------------------------


def with_profile(monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]]) -> None:
    """Let runs have these rows as their profile."""
    frame = pl.DataFrame(rows, infer_schema_length=None)
    monkeypatch.setattr(profiled, "read_profile", lambda run: frame)


def profiled_row(slug: str, phase: str, op: str, share: float, busy: float, **changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"slug": slug, "verdict": "valid", "phase": phase, "op": op, "bytes": MIB, "byte_share": 1.0}
    row |= {"name": None if phase in ("trial", "generation") else phase.partition(" ")[0], "process": None}
    row |= {"bandwidth_gib_s": 2.6 * share, "request_bytes_mean": 131072.0, "ceiling_share": share, "busy_share": busy}
    return row | changes


def test_a_roofline_has_phases_against_the_ceiling_and_the_busy_drive(
    made: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = []
    for place, trial in enumerate(made.published):
        rows.append(profiled_row(trial.slug, "decode", "read", 0.4 + place / 10, 0.5))
        rows.append(profiled_row(trial.slug, "decode", "write", 0.001, 0.01, byte_share=0.005))
        rows += [
            profiled_row(trial.slug, phase, "read", 3.0, 1.0) for phase in ("trial", "generation", "init", "warmup aio")
        ]
    with_profile(monkeypatch, rows)
    (panel,) = roofline.charts(made)
    marks = rows_with(panel.chart, "cell", "while_busy")
    assert {(row["cell"], row["phase"], row["op"], row["n"]) for row in marks} == {
        ("batch_size 8", "decode", "read", 3),
        ("batch_size 16", "decode", "read", 1),
    }
    (first,) = [row for row in marks if row["cell"] == "batch_size 8"]
    assert (first["of_ceiling"], first["busy"], first["while_busy"]) == (pytest.approx(50), pytest.approx(50), "100 %")
    told = texts(panel.chart)
    assert "fio on the same storage, 128 KiB, depth 32" in told
    assert "Above the diagonal or 100 %" in told
    assert "fio, in order: 2.60 GiB/s" in words(panel.chart)
    assert "fio, at random: 2.34 GiB/s" in words(panel.chart)


def test_nothing_above_the_diagonal_needs_no_excuse(made: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with_profile(monkeypatch, [profiled_row(trial.slug, "trial", "write", 0.3, 0.5) for trial in made.published])
    (panel,) = roofline.charts(made)
    assert "Above" not in texts(panel.chart)
    assert {row["phase"] for row in rows_with(panel.chart, "cell", "while_busy")} == {"trial"}


def test_sizes_of_one_phase_are_joined_by_a_line(tensors: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["load aio cpu 1 MiB", "load aio cpu 64 MiB", "store posix cpu 1 MiB"]
    valid = [trial for trial in tensors.published if trial.state == "valid"]
    with_profile(monkeypatch, [profiled_row(trial.slug, name, "read", 0.5, 0.5) for trial in valid for name in names])
    (panel,) = roofline.charts(tensors)
    groups = {(row["phase"], row["group"]) for row in rows_with(panel.chart, "cell", "while_busy")}
    assert groups == set(zip(names, ["load aio cpu", "load aio cpu", "store posix cpu"], strict=True))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ceiling": None}, "no valid trial of this run has a ceiling"),
        ({"verdict": {"state": "invalid", "reasons": ["lost"]}}, "no trial of this run is valid"),
    ],
)
def test_a_roofline_without_a_roof_says_so(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    run = load_run(make_engine_run(tmp_path, {"": [Shape(**SMALL)]}, []))
    change(run.published[0], **changes)
    (panel,) = roofline.charts(load_run(run.path))
    assert panel.reason == reason


def test_an_empty_profile_rules_its_figures_out(made: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with_profile(monkeypatch, [])
    for panel in (*roofline.charts(made), *figure("metric:read.iops@batch_size").charts(made)):
        assert panel.reason == "no trial of this run has metrics by phase and operation"


def test_a_measure_of_a_phase_comes_from_the_profile(made: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [profiled_row(trial.slug, "decode", "read", 0.4, 0.5, iops=100.0) for trial in made.published]
    with_profile(monkeypatch, rows)
    (panel,) = figure("metric:decode/read.iops@batch_size").charts(made)
    assert panel.reason is None
    assert "IOPS of reads in decode (requests/s)" in axes(panel.chart, "y")
    (panel,) = figure("metric:prefill/read.iops@batch_size").charts(made)
    assert "has a phase 'prefill' with read; there are decode" in str(panel.reason)


# --- what is drawn without asking ------------------------------------------------------------------------------------


def test_a_chart_that_is_part_of_another_is_not_drawn_twice(tmp_path: Path) -> None:
    shapes = {"job=a": [Shape(percent=KV_ON_DISK, **SMALL)], "job=b": [Shape(percent=WEIGHTS_ON_DISK, **SMALL)]}
    run = make_engine_run(tmp_path, shapes, ["fig5", "sizes"])
    drawn = draw_run(run)["figures"]
    assert {"fig5-job-a_rep-1", "timeline-job-b_rep-1", "sizes-job-a_rep-1", "sizes-job-b_rep-1"} <= set(drawn)
    assert "timeline-job-a_rep-1" not in drawn
    assert "timeline-job-a_rep-1" in draw_run(run, ["timeline"])["figures"]


def test_a_table_stays_within_the_width_of_a_figure() -> None:
    rows = [["a long name of a cell " * 6, "1", "123,456 GiB/s"], ["b", "2", "3"]]
    cells = rows_with(table(["Cell", "n", "bandwidth"], rows), "head", "text")
    assert max(cell["x"] for cell in cells) <= theme.WIDTH
    assert {cell["text"] for cell in cells} >= {"123,456 GiB/s", "bandwidth"}


def test_repeats_are_told_in_words() -> None:
    assert [repeats_text(counts) for counts in ([1, 1], [3], [1, 3])] == [
        "n = 1 repeat",
        "n = 3 repeats",
        "n = 1 to 3 repeats",
    ]


@pytest.mark.parametrize(("value", "text"), [(9.994, "9.99"), (9.999, "10.0"), (99.97, "100"), (10.0, "10")])
def test_a_number_keeps_its_digits_where_it_rounds_up(value: float, text: str) -> None:
    assert number_text(value) == text
