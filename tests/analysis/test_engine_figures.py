"""Figures 3 to 6: which trials they are of, right numbers on shared axes, and why a panel is empty."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis import draw_run, load_run, load_trial, metrics, samples, sectors
from analysis.figures import accesses as accesses_part
from analysis.figures import comparison, draw, fig3, fig4, fig5, fig6, sizes, utilisation
from analysis.figures import sectors as sectors_part
from analysis.figures.cells import label, varying
from analysis.figures.spans import merged, strip_rows
from analysis.figures.timeline import timelines
from analysis.metrics import Phase
from analysis.run import Run, Trial
from analysis.summary import read_summary
from analysis.workload import described, on_disk
from tests.analysis.made_engines import (
    KV_ON_DISK,
    NOTHING_ON_DISK,
    WEIGHTS_ON_DISK,
    Pieces,
    Shape,
    make_engine_run,
)
from tests.analysis.made_run import BEGIN_NS, MIB, write_record
from tests.analysis.test_drawn_figures import texts
from tests.analysis.test_report_page import HOSTILE
from tests.analysis.test_trace_metrics import LIGHT

KV = Shape(gpus=1, batch_size=8)
BOTH = (0, 0, 0, 0, 100, 0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    shapes = {"batch_size=8": [KV], "batch_size=16": [Shape(seed=2), Shape(gpus=1, seed=3, step_s=0.25)]}
    return load_run(make_engine_run(tmp_path_factory.mktemp("results"), shapes, ["fig5", "fig6"]))


def change(trial: Trial, **changes: Any) -> None:
    """Replace keys of a published trial's record, sections key by key."""
    record = dict(trial.record)
    for key, value in changes.items():
        record[key] = (
            {**record[key], **value} if isinstance(value, dict) and isinstance(record.get(key), dict) else value
        )
    (trial.path / "trial.json").write_text(json.dumps(record))


def parts(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every mapping inside a specification."""
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from parts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from parts(inner)


def axes(chart: Any, channel: str) -> dict[str, Any]:
    """Return the domain of each titled axis of a chart."""
    found = {}
    for part in parts(chart.to_dict()):
        encoding = part.get("encoding", {}).get(channel, {}) if isinstance(part.get("encoding"), dict) else {}
        if encoding.get("title") and encoding.get("scale"):
            found[encoding["title"]] = encoding["scale"]["domain"]
    return found


def words(chart: Any) -> str:
    return json.dumps(chart.to_dict(), ensure_ascii=False)


def rows_with(chart: Any, *keys: str) -> list[dict[str, Any]]:
    """Return the data rows that a chart embeds and that have these keys."""
    return [row for row in parts(chart.to_dict()) if set(keys) <= set(row)]


@pytest.mark.parametrize(
    ("figure", "kept"),
    [(fig3, ["deepspeed"]), (fig4, ["weights", "both"]), (fig5, ["cache", "both"]), (fig6, ["cache", "both"])],
)
def test_a_figure_is_of_the_trials_it_is_about(tmp_path: Path, figure: Any, kept: list[str]) -> None:
    small: dict[str, Any] = {"steps": 2, "data_mib": 2, "step_s": 0.05, "init_s": 0.1}
    shapes = {
        "job=deepspeed": [Shape(kind="deepspeed_model", **small)],
        "job=weights": [Shape(percent=WEIGHTS_ON_DISK, **small)],
        "job=cache": [Shape(percent=KV_ON_DISK, **small)],
        "job=both": [Shape(percent=BOTH, **small)],
        "job=none": [Shape(percent=NOTHING_ON_DISK, **small)],
        "job=other": [Shape(kind="tensor_io", **small)],
    }
    run = load_run(make_engine_run(tmp_path, shapes, []))
    drawn = [run.trial(panel.trial).cell["job"] for panel in figure.charts(run) if panel.trial]
    assert sorted(drawn) == sorted(kept)


@pytest.mark.parametrize("figure", [fig3, fig4, fig5, fig6])
def test_a_run_without_such_trials_has_one_panel_that_says_so(tmp_path: Path, figure: Any) -> None:
    (tmp_path / "run.json").write_text('{"schema_version": 1}')
    (panel,) = figure.charts(load_run(tmp_path))
    assert (panel.name, panel.trial, panel.reason) == (figure.NAME, None, "no trial has finished")
    write_record(tmp_path / "trials" / "a", config={"workload": {"kind": "flexgen", "percent": ["x"] * 6}})
    (panel,) = figure.charts(load_run(tmp_path))
    assert "no trial of this run is one of" in str(panel.reason)


@pytest.mark.parametrize("percent", [None, "all", [0, 0], [None] * 6, 7])
def test_a_percent_that_is_none_puts_nothing_on_disk(tmp_path: Path, percent: Any) -> None:
    write_record(tmp_path / "a", config={"workload": {"kind": "flexgen", "percent": percent}})
    trial = load_trial(tmp_path / "a")
    assert on_disk(trial) == {}
    assert "Unknown model" in described(trial)


def test_a_trial_says_what_its_engine_was_told(made: Run) -> None:
    assert described(made.published[0]) == (
        "opt-6.7b, batch 8, prompt 512, 9 generated tokens; on disk: 100 % of the KV cache."
    )


def test_fig5_shows_writes_alone_in_mib_s_on_axes_that_all_trials_share(made: Run) -> None:
    panels = {panel.trial: panel for panel in fig5.charts(made) if panel.trial}
    assert list(panels) == [trial.slug for trial in made.published]
    domains = [axes(panel.chart, "y") for panel in panels.values()]
    assert all(set(one) >= {"Bandwidth (GiB/s)", "Write (MiB/s)"} for one in domains)
    for title in ("Bandwidth (GiB/s)", "Write (MiB/s)"):
        assert len({str(one[title]) for one in domains}) == 1
    ends = {str(axes(panel.chart, "x")) for panel in panels.values()}
    assert len(ends) == 1
    lines = timelines(made.published)
    for trial in made.published:
        line = lines.of(trial)
        alone = [row for row in rows_with(panels[trial.slug].chart, "begin_s", "write") if "read" not in row][:-1]
        total = sum(row["write"] for row in alone) * MIB * line.bin_ns / 1e9
        assert total == pytest.approx(trial.byte_count("traced", "write"), rel=1e-3)
        assert max(row["write"] for row in alone) <= domains[0]["Write (MiB/s)"][1] + 1e-3


def test_trials_of_very_different_length_have_time_axes_of_their_own(tmp_path: Path) -> None:
    shapes = {"batch_size=1": [Shape(steps=2, data_mib=4)], "batch_size=64": [Shape(steps=30, data_mib=4)]}
    run = load_run(make_engine_run(tmp_path, shapes, []))
    lines = timelines(run.published)
    short, long = (lines.of(trial) for trial in run.published)
    assert short.bin_ns == long.bin_ns
    assert short.seconds * 3 < long.seconds
    assert short.seconds == pytest.approx((short.end_ns - short.begin_ns) / 1e9)


def test_gpu_utilisation_stands_on_the_clock_of_the_bandwidth(made: Run) -> None:
    trial = made.published[0]
    panel = next(panel for panel in fig5.charts(made) if panel.trial == trial.slug)
    drawn = {
        round(row["begin_s"], 3): row["percent"] for row in rows_with(panel.chart, "source") if row["source"] == "GPU 0"
    }
    told = made.samples(trial).filter(
        pl.col("source").cast(pl.String) == "gpu0", pl.col("name").cast(pl.String) == "utilisation"
    )
    wanted = {round((row["t_ns"] - BEGIN_NS) / 1e9, 3): round(row["value"], 1) for row in told.collect().to_dicts()}
    assert drawn == wanted
    assert "GPU utilisation (%)" in axes(panel.chart, "y")


def test_many_samples_become_means_in_bins(tmp_path: Path) -> None:
    told = pl.DataFrame({"source": ["gpu0"] * 6, "t_ns": [0, 4, 9, 10, 19, 25], "percent": [0.0, 50, 100, 10, 20, 7]})
    assert samples.thinned(told, 0, 10).rows() == [("gpu0", 9, 50.0), ("gpu0", 19, 15.0), ("gpu0", 25, 7.0)]


def test_without_a_gpu_the_panel_says_why_it_is_empty(made: Run) -> None:
    panels = {panel.trial: panel for panel in fig5.charts(made)}
    without = next(trial for trial in made.published if not trial.section("node")["gpus"])
    said = "No GPU on node bench-01: the job ran on CPU tensors."
    for trial in made.published:
        assert (said in words(panels[trial.slug].chart)) == (trial is without)
    assert not [row for row in rows_with(panels[without.slug].chart, "source") if row["source"].startswith("GPU")]


def test_a_gpu_that_was_not_sampled_is_not_called_absent(tmp_path: Path) -> None:
    run = load_run(make_engine_run(tmp_path, {"": [Shape(steps=2, data_mib=4)]}, []))
    (trial,) = run.published
    change(trial, node={"gpus": ["NVIDIA H200"]}, trouble="GPUs not sampled: Driver/library version mismatch")
    (trial,) = load_run(run.path).published
    assert utilisation.why_none(trial) == (
        "No GPU was sampled on node bench-01, which has NVIDIA H200 (GPUs not sampled: Driver/library version mismatch)"
    )
    change(trial, node={"gpus": None}, trouble=None)
    (trial,) = load_run(run.path).published
    assert utilisation.why_none(trial) == "No GPU was sampled on node bench-01, whose GPUs are unknown"


def test_a_trial_without_samples_or_phases_is_still_drawn(tmp_path: Path) -> None:
    run = load_run(make_engine_run(tmp_path, {"": [Shape(steps=2, data_mib=4)]}, []))
    (trial,) = run.published
    (trial.path / "samples.parquet").unlink()
    (trial.path / "phases.parquet").unlink()
    drawn = draw(run, ["fig5", "fig6"], tmp_path / "out")
    assert [one.reason for one in drawn] == [None, None]
    assert all("NaN" not in one.svg for one in drawn)
    assert "Time since the traced window began (s)" in drawn[0].svg


def test_broken_samples_are_one_clear_reason(made: Run, tmp_path: Path) -> None:
    run = load_run(make_engine_run(tmp_path, {"": [Shape(steps=2, data_mib=4)]}, []))
    (run.published[0].path / "samples.parquet").write_bytes(b"PAR1 no")
    (panel,) = fig5.charts(run)
    assert "samples.parquet: cannot be read as samples" in str(panel.reason)


def test_what_is_not_valid_is_marked_and_what_has_no_trace_says_so(tmp_path: Path) -> None:
    shapes = {"batch_size=1": [Shape(steps=2, data_mib=4), Shape(steps=2, data_mib=4)]}
    run = load_run(make_engine_run(tmp_path, shapes, []))
    change(run.published[0], verdict={"state": "invalid", "reasons": ["7 events were lost"]})
    change(run.published[1], verdict={"state": "failed", "reasons": ["out of memory"]})
    (run.published[1].path / "requests.parquet").unlink()
    run = load_run(run.path)
    for figure in (fig5, fig6):
        marked, ruled_out = figure.charts(run)
        assert texts(marked.chart).startswith("INVALID: 7 events were lost")
        assert "no requests.parquet (tracer: ftrace, verdict: failed)" in str(ruled_out.reason)


def test_the_table_of_sizes_names_what_dominates_and_sums_the_rest() -> None:
    counts = {4096 * n: 10 + n for n in range(1, 20)} | {131072: 5000, 1 << 20: 800}
    counted = pl.DataFrame(
        [("read", size, count) for size, count in sorted(counts.items())], schema=["op", "bytes", "count"], orient="row"
    )
    lines = sizes.dominating(counted, "read")
    assert len(lines) == sizes.MOST_LINES
    assert {"128 KiB", "1024 KiB"} <= {line[0] for line in lines}
    assert lines[-1][0] == "15 others"
    assert sum(int(line[1].replace(",", "")) for line in lines) == sum(counts.values())
    assert [line[0] for line in lines[:-1]] == sorted(
        (line[0] for line in lines[:-1]), key=lambda text: float(text.split()[0])
    )
    assert sizes.dominating(counted, "write") == [("none", "", "", "", "")]


@LIGHT
@given(levels=st.lists(st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=1, max_size=6))
def test_rectangles_cover_every_cell_once(levels: list[list[int]]) -> None:
    grid = np.array(levels)
    covered = np.zeros_like(grid)
    for row, row_end, column, column_end, level in sectors.rectangles(grid):
        assert (grid[row:row_end, column:column_end] == level).all()
        covered[row:row_end, column:column_end] += 1
    assert (covered == (grid > 0)).all()


@LIGHT
@given(data=st.data(), low=st.integers(0, 9))
def test_a_coarser_grid_keeps_its_requests_where_they_are(data: st.DataObject, low: int) -> None:
    shape = (data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6)))
    counts = np.array(
        data.draw(st.lists(st.integers(0, 5), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))
    )
    grid = sectors.Grid(counts.reshape(shape), low, 10, 4096)
    coarse = grid.coarser()
    wanted: Counter[tuple[int, int]] = Counter()
    for row, column in np.argwhere(grid.counts):
        wanted[(low + int(row)) // 2, int(column) // 2] += int(grid.counts[row, column])
    found = {(coarse.low + int(r), int(c)): int(coarse.counts[r, c]) for r, c in np.argwhere(coarse.counts)}
    assert found == wanted
    assert (coarse.cell_ns, coarse.cell_bytes) == (20, 8192)


def test_the_map_of_sectors_counts_every_request_in_its_cell(made: Run) -> None:
    trial = made.published[0]
    line = timelines([trial]).of(trial)
    extent = sectors.device_extent(trial.path)
    assert extent is not None
    rows = made.requests(trial).with_columns(pl.col("op").cast(pl.String)).collect()
    assert extent.begin == rows["sector"].min() * 512
    assert extent.end == (rows["sector"] * 512 + rows["bytes"]).max()
    grids = sectors.sector_grids(trial.path, line.begin_ns, round(line.seconds * 1e9), extent)
    for op, grid in grids.items():
        wanted: Counter[tuple[int, int]] = Counter()
        for row in rows.filter(pl.col("op") == op).iter_rows(named=True):
            wanted[row["sector"] * 512 // grid.cell_bytes, (row["complete_ns"] - line.begin_ns) // grid.cell_ns] += 1
        found = {(grid.low + int(r), int(c)): int(grid.counts[r, c]) for r, c in np.argwhere(grid.counts)}
        assert found == wanted
        assert grid.counts.shape[0] <= sectors.MOST_ROWS + 1
        assert grid.counts.shape[1] <= sectors.MOST_COLUMNS + 1
        assert grid.cell_bytes >= extent.largest_request


def test_fig6_embeds_no_requests_however_scattered(tmp_path: Path) -> None:
    run = load_run(make_engine_run(tmp_path, {"": [Shape(steps=2, data_mib=4)]}, []))
    rng, count = np.random.default_rng(1), 60_000
    pieces = Pieces(rng)
    issue = np.sort(rng.integers(BEGIN_NS, BEGIN_NS + 10**9, count))
    for op, chosen in (("read", slice(0, None, 2)), ("write", slice(1, None, 2))):
        at, size = rng.integers(0, 1 << 28, count) * 8, rng.choice([4096, 8192, 131072], count)
        wait = np.full(count, 1000)
        piece = {"issue": issue, "wait": wait, "sector": at, "size": size}
        pieces.parts.append({"op": op} | {name: values[chosen] for name, values in piece.items()})
    pq.write_table(pieces.table(), run.published[0].path / "requests.parquet")
    (panel,) = fig6.charts(run)
    assert panel.reason is None
    assert len(rows_with(panel.chart, "low", "high")) <= 2 * sectors_part.MOST_RECTANGLES
    assert len(words(panel.chart)) < 1_000_000


def test_maps_share_the_device_axis_and_name_their_unit(made: Run) -> None:
    domains = [axes(panel.chart, "y") for panel in fig6.charts(made)]
    assert all({"Read offset (GiB)", "Write offset (GiB)", "Accessed sectors (%)"} <= set(one) for one in domains)
    assert len({str(one["Read offset (GiB)"]) for one in domains}) == 1
    assert "number of the sector × 512 bytes" in words(next(fig6.charts(made)).chart)


@LIGHT
@given(st.dictionaries(st.integers(1, 5000), st.integers(1, 10**9), min_size=1, max_size=50))
def test_the_distribution_rises_to_all_sectors(counts: dict[int, int]) -> None:
    rows = [("read", times, sectors) for times, sectors in sorted(counts.items())]
    frame = pl.DataFrame(rows, schema=["op", "accesses", "sectors"], orient="row")
    steps = rows_with(accesses_part.distribution(frame, max(counts)), "accesses", "percent")
    shares = [step["percent"] for step in steps]
    assert (shares[0], shares[-1]) == (0, 100)
    assert shares == sorted(shares)
    total = sum(counts.values())
    for step in steps[1:-1]:
        below = sum(sectors for times, sectors in counts.items() if times <= step["accesses"])
        assert step["percent"] == pytest.approx(100 * below / total, abs=1e-3)


def test_the_distribution_says_footprint_and_mean() -> None:
    frame = pl.DataFrame({"op": ["read", "read"], "accesses": [1, 4], "sectors": [2048, 2048]})
    assert accesses_part.described(frame) == "Mean accesses: 2.50 of the 4,096 sectors read (2 MiB)."


def generation(trial: Trial) -> tuple[int, int]:
    steps = [phase for phase in metrics.phases(trial.path) if phase.name in ("prefill", "decode")]
    return min(step.begin_ns for step in steps), max(step.end_ns or 0 for step in steps)


def test_the_summary_has_metrics_bytes_and_what_was_moved_while_generating(made: Run) -> None:
    frame = read_summary(made)
    whole = {row["slug"]: row for row in frame.filter(pl.col("phase") == "trial").to_dicts()}
    for trial in made.published:
        row = whole[trial.slug]
        begin, end = generation(trial)
        assert row["generation_s"] == pytest.approx((end - begin) / 1e9)
        requests = made.requests(trial).with_columns(pl.col("op").cast(pl.String)).collect()
        inside = requests.filter(pl.col("issue_ns").is_between(begin, end, closed="left"))
        for op in ("read", "write"):
            assert row[f"generation_{op}_bytes"] == inside.filter(pl.col("op") == op)["bytes"].sum()
            for kind in ("expected", "counted"):
                assert row[f"{kind}_{op}_bytes"] == trial.byte_count(kind, op)
        assert row["metric.tokens_per_s"] == trial.record["metrics"]["tokens_per_s"]["value"]
        assert row["metric.peak_gpu_memory_bytes"] == (21 << 30 if trial.section("node")["gpus"] else None)


def test_metrics_that_are_no_numbers_stay_out_of_the_summary(tmp_path: Path) -> None:
    told = {"a": {"value": 3, "unit": "1/s"}, "b": {"value": "fast"}, "c": True, "d": 7, "e": {"value": None}, "f": {}}
    write_record(tmp_path / "t", metrics=told)
    (row,) = metrics.summarise(tmp_path / "t")
    assert {name: row[name] for name in row if name.startswith("metric.")} == {"metric.a": 3.0, "metric.d": 7.0}
    assert row["generation_s"] is row["generation_read_bytes"] is row["expected_read_bytes"] is None


def test_cells_are_compared_by_the_mean_of_their_valid_repeats(made: Run) -> None:
    panel = next(fig5.charts(made))
    assert (panel.name, panel.trial) == ("fig5", None)
    said = texts(panel.chart)
    assert "KV cache offloading with FlexGen: by cell" in said
    assert "bars: mean of n = 1 to 2 repeats; dots: each of them" in said
    whole = {row["slug"]: row for row in read_summary(made).filter(pl.col("phase") == "trial").to_dicts()}
    second = [trial.slug for trial in made.published if trial.cell["batch_size"] == 16]
    wanted = sum(whole[slug]["metric.tokens_per_s"] for slug in second) / 2
    means = {(row["cell"], round(row["mean"], 6)) for row in rows_with(panel.chart, "cell", "mean")}
    assert ("batch_size 16", round(wanted, 6)) in means
    assert {cell for cell, _ in means} == {"batch_size 8", "batch_size 16"}
    titles = {
        "Read (GiB/s, % of ceiling)",
        "Write (MiB/s, % of ceiling)",
        "Generated (tokens/s)",
        "GPU utilisation (%)",
    }
    assert titles == set(axes(panel.chart, "x"))
    shares = [whole[slug]["generation_read_ceiling_share"] for slug in second]
    told = {row["text"] for row in rows_with(panel.chart, "cell", "text")}
    assert any(text.endswith(f"({100 * sum(shares) / 2:.1f} %)") for text in told)


def test_the_numbers_beside_the_bars_fit_their_panels(made: Run) -> None:
    drawn = next(fig5.charts(made)).chart.to_dict()
    panels = drawn["hconcat"]
    assert len(panels) == 4
    for panel in panels:
        (numbers,) = (layer for layer in panel["layer"] if layer["mark"]["type"] == "text")
        top = panel["layer"][0]["encoding"]["x"]["scale"]["domain"][1]
        for row in drawn["datasets"][numbers["data"]["name"]]:
            bar = row["end"] / top * panel["width"]
            # digits of a sans serif font are hardly wider than half its size
            assert bar + numbers["mark"]["dx"] + 0.53 * numbers["mark"]["fontSize"] * len(row["text"]) <= panel["width"]


def test_one_cell_is_compared_with_nothing_and_invalid_trials_are_in_no_mean(tmp_path: Path) -> None:
    shapes = {f"batch_size={n}": [Shape(steps=2, data_mib=4, gpus=0)] for n in (1, 2)}
    run = load_run(make_engine_run(tmp_path, shapes, []))
    assert comparison.chart(run, run.published[:1], "x") is None
    change(run.published[1], verdict={"state": "invalid", "reasons": ["lost"]})
    run = load_run(run.path)
    chart = comparison.chart(run, run.published, "x")
    assert {row["cell"] for row in rows_with(chart, "value")} == {"batch_size 1"}
    assert "1 trial not valid, left out: batch_size=2,rep=1" in texts(chart)
    assert "GPU utilisation (%)" not in axes(chart, "x")


def test_cells_are_labelled_by_the_axes_that_vary() -> None:
    trials = [Trial(Path(), {"cell": {"fs": fs, "n": n, "same": 1}}) for fs, n in (("xfs", 1), ("ext4", 2))]
    assert varying(trials) == ["fs", "n"]
    assert [label(trial.cell, varying(trials)) for trial in trials] == ["xfs, n 1", "ext4, n 2"]
    assert label({"a": 1}, []) == "all trials"


def test_phases_of_an_engine_make_few_rows_however_many_steps() -> None:
    names = [("job", None), ("init", None), ("warmup", None), ("prefill", 0), *(("decode", n) for n in range(1, 500))]
    phases = [Phase("flexgen", name, step, {}, n * 1000, n * 1000 + 900, None) for n, (name, step) in enumerate(names)]
    phases.append(Phase("trial", "drain", None, {}, 503_000, 504_000, None))
    spans = merged(strip_rows(phases), 0, 600_000)
    assert len({span["row"] for span in spans}) == 6
    assert len(spans) == 6
    assert max(span["count"] for span in spans) == 499


@pytest.mark.slow
def test_a_run_of_every_kind_is_drawn_and_reported(tmp_path: Path) -> None:
    small: dict[str, Any] = {"steps": 2, "data_mib": 4, "step_s": 0.1}
    shapes = {
        "job=a": [Shape(kind="deepspeed_model", gpus=2, **small)],
        "job=b": [Shape(percent=WEIGHTS_ON_DISK, **small)],
        "job=c": [Shape(percent=KV_ON_DISK, gpus=1, **small), Shape(percent=BOTH, **small)],
    }
    names = ["fig3", "fig4", "fig5", "fig6"]
    run = make_engine_run(tmp_path, shapes, names)
    paths = draw_run(run)
    assert paths["ruled_out"] == {}
    per_trial = [name for name in paths["figures"] if name.startswith("fig")]
    of_c = [f"{name}-job-c_rep-{repeat}" for name in ("fig5", "fig6") for repeat in (1, 2)]
    assert sorted(per_trial) == sorted(["fig3-job-a_rep-1", "fig4", "fig4-job-b_rep-1", "fig4-job-c_rep-2", *of_c])
    page = (run / "report.html").read_text()
    assert "What the engines reported" in page
    assert page.count('id="figure-timeline-') == 0  # each trial's own figures hold them
    for text in ("OOM kills", "12.4 GiB", "21 GiB", "1/s"):
        assert text in page


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    shapes = {f"batch_size={n}": [Shape(steps=2, data_mib=4)] for n in (1, 2)}
    run = load_run(make_engine_run(tmp_path, shapes, []))
    for trial in run.published:
        name = {"hostname": HOSTILE, "gpus": [HOSTILE]}
        change(trial, id=HOSTILE, cell={HOSTILE: trial.slug}, node=name, device={"name": HOSTILE}, trouble=HOSTILE)
        change(load_trial(trial.path), config={"workload": trial.record["config"]["workload"] | {"model": HOSTILE}})
    names = ["fig5", "fig6", "timeline", "sectors", "tokens"]
    for one in draw(load_run(run.path), names, tmp_path / "out"):
        assert one.reason is None
        assert "<script>alert" not in one.svg
        assert one.files["html"].read_text().count("<script>") == 2
