"""The figures: right numbers, nothing unmarked, files that open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from analysis import AnalysisError, load_run
from analysis.drawing import draw_run
from analysis.figures import FIGURES, FORMATS, draw, fig2, figure, sizes
from analysis.figures import bandwidth as bandwidth_figure
from analysis.figures.spans import merged, strip_rows
from analysis.metrics import Phase
from analysis.run import Run
from tests.analysis.made_run import (
    BEGIN_NS,
    MIB,
    make_run,
    phase_row,
    request_row,
    write_phases,
    write_record,
    write_requests,
)

SMALL = (MIB, 4 * MIB)
MAGIC = {"html": b"<!DOCTYPE html>", "svg": b"<svg", "pdf": b"%PDF", "png": b"\x89PNG"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return load_run(make_run(tmp_path_factory.mktemp("results"), sizes=SMALL))


def texts(chart: Any) -> str:
    title = chart.to_dict()["title"]
    return " ".join([*title["text"], *title.get("subtitle", [])])


def numbers_in(chart: Any) -> int:
    return len(json.dumps(chart.to_dict()))


def test_the_registry_knows_its_figures_and_the_nearest_name() -> None:
    for name in FIGURES:
        assert name == figure(name).NAME
    with pytest.raises(AnalysisError, match="no figure is called 'bandwith'; did you mean bandwidth"):
        figure("bandwith")
    with pytest.raises(AnalysisError, match="there are fig2, fig3, fig4, fig5, fig6, "):
        figure("42")


def test_of_many_trials_some_are_drawn_unasked_and_all_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, sizes=SMALL)
    for module in ("analysis.figures", "analysis.drawing"):
        monkeypatch.setattr(f"{module}.MOST_BESIDES", 1)
    told = draw_run(run)
    assert len([name for name in told["figures"] if name.startswith("timeline")]) == 1
    assert "the first 1 are drawn unasked" in told["ruled_out"]["timeline and sizes of every trial"]
    assert Path(told["report"]).exists()
    asked = draw_run(run, ["timeline"])
    assert len(asked["figures"]) == len(load_run(run).published) > 1


def test_fig2_means_total_bytes_over_total_time_of_valid_repeats(made: Run) -> None:
    repeats = fig2.bandwidth_per_repeat(made)
    valid = {trial.slug: trial for trial in made.published if trial.state == "valid"}
    assert set(repeats["slug"]) == set(valid)
    assert repeats.height == len(valid) * 2 * 2 * len(SMALL)
    names = {"Store (write)": "store", "Load (read)": "load"}
    for row in repeats.to_dicts():
        moved = taken = 0
        for phase in made.phases(row["slug"]).collect().to_dicts():
            attributes = dict(phase["attributes"])
            own = phase["name"] == names[row["phase"]] and attributes["api"] == row["api"].lower()
            if own and int(attributes["size_bytes"]) == row["size"]:
                moved += phase["bytes"]
                taken += phase["end_ns"] - phase["begin_ns"]
        assert row["gib_s"] == pytest.approx(moved / taken * 1e9 / 2**30)
        assert row["loops"] == 3
        assert row["row"] == valid[row["slug"]].cell["fs"]


def test_fig2_states_n_its_bars_the_gpu_and_what_it_left_out(made: Run) -> None:
    said = texts(fig2.chart(made))
    assert "mean of n = 2 repeats; bars: least to greatest" in said
    assert "no GPU on the nodes" in said
    assert "2 trials not valid, left out: fs=ext4,rep=3; fs=xfs,rep=3" in said
    assert "1 of 7 planned trials have no result" in said


def test_fig2_with_a_gpu_has_its_lines_and_one_repeat_no_spread(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path, sizes=SMALL, devices=("cpu", "cuda"), repeats=1, broken=False))
    said = texts(fig2.chart(run))
    assert "n = 1" in said
    assert "no spread" in said
    assert "GPU on the nodes" not in said
    assert set(fig2.bandwidth_per_repeat(run)["device"]) == {"CPU tensor", "GPU tensor"}


def test_fig2_never_averages_over_an_axis(tmp_path: Path) -> None:
    path = make_run(tmp_path, sizes=SMALL, broken=False)
    for place, record in enumerate(sorted(path.glob("trials/*/trial.json"))):
        content = json.loads(record.read_text())
        content["cell"] |= {"block_kib": [128, 1024][place % 2], "api": "aio", "same": 1}
        record.write_text(json.dumps(content))
    rows = set(fig2.bandwidth_per_repeat(load_run(path))["row"])
    assert rows == {f"{fs}, block_kib {kib}" for fs in ("ext4", "xfs") for kib in (128, 1024)}


def test_fig2_without_valid_trials_says_so(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"schema_version": 1}')
    (panel,) = fig2.charts(load_run(tmp_path))
    assert panel.reason == "no trial has finished"
    write_record(tmp_path / "trials" / "a")
    (panel,) = fig2.charts(load_run(tmp_path))
    assert "no trial stored or loaded tensors" in str(panel.reason)
    rows = [phase_row("load", 0, 10**9, MIB, api="aio", tensor_device="cpu", size_bytes=str(MIB))]
    write_phases(tmp_path / "trials" / "a" / "phases.parquet", rows)
    write_record(tmp_path / "trials" / "a", verdict={"state": "invalid", "reasons": ["x"]})
    (panel,) = fig2.charts(load_run(tmp_path))
    assert panel.reason == "none of the 1 trial is valid"


@pytest.mark.parametrize("module", [bandwidth_figure, sizes])
def test_per_trial_figures_mark_what_is_not_valid(made: Run, module: Any) -> None:
    panels = {panel.trial: panel for panel in module.charts(made)}
    assert list(panels) == [trial.slug for trial in made.published]
    for trial in made.published:
        panel = panels[trial.slug]
        assert panel.name == f"{module.NAME}-{trial.slug}"
        if trial.state == "failed":
            assert "no requests.parquet" in str(panel.reason)
        else:
            assert ("INVALID: 1742 events lost by the tracer" in texts(panel.chart)) == (trial.state == "invalid")
            assert panel.reason is None


def test_no_figure_embeds_the_requests(tmp_path: Path) -> None:
    rows = [
        request_row(BEGIN_NS + n * 5000, BEGIN_NS + n * 5000 + 900, "read", 512 * (1 + n % 600)) for n in range(40_000)
    ]
    phases = [phase_row("decode", BEGIN_NS + n * 50_000, BEGIN_NS + n * 50_000 + 40_000, 1) for n in range(4000)]
    (tmp_path / "run.json").write_text('{"schema_version": 1}')
    folder = tmp_path / "trials" / "a"
    write_record(folder, tracer={"name": "made", "begin_ns": BEGIN_NS, "end_ns": BEGIN_NS + 2 * 10**8})
    write_requests(folder / "requests.parquet", rows)
    write_phases(folder / "phases.parquet", phases)
    run = load_run(tmp_path)
    for module in (bandwidth_figure, sizes):
        (panel,) = module.charts(run)
        assert numbers_in(panel.chart) < 120_000


def test_bandwidth_charts_of_a_run_share_their_axis(made: Run) -> None:
    tops = set()
    for panel in bandwidth_figure.charts(made):
        if panel.reason is None:
            lines = panel.chart.to_dict()["vconcat"][0]["layer"][1]
            tops.add(lines["encoding"]["y"]["scale"]["domain"][1])
    assert len(tops) == 1


def test_sizes_stay_exact_until_there_are_too_many() -> None:
    few = [512, 4096, 131072]
    assert sizes.categorised(few) == {512: "0.5", 4096: "4", 131072: "128"}
    many = [1024 * n for n in (4, 8, 12, 16, 20, 24, 28, 32, 64, 128, 132, 252, 256, 1280)]
    named = sizes.categorised(many)
    assert list(dict.fromkeys(named.values())) == [
        "4", "8\u201312", "16\u201328", "32", "64", "128\u2013252", "256", "1280",
    ]  # fmt: skip


def test_shares_add_up_per_operation_and_leave_flushes_out(made: Run) -> None:
    from analysis import metrics

    trial = made.published[0]
    counted = metrics.request_sizes(trial.path)
    values = sizes.shares(counted, sizes.categorised(sorted(set(counted["bytes"]) - {0})))
    for op in ("read", "write"):
        assert sum(value["share"] for value in values if value["op"] == op) == pytest.approx(100)
    assert {value["op"] for value in values} == {"read", "write"}
    assert "Not in the shares: 6 flushes of 0 bytes" in sizes.described(trial, counted)


def test_spans_too_close_to_see_become_one() -> None:
    phases = [Phase("p", "decode", n, {}, n * 100, n * 100 + 99, 10) for n in range(1000)]
    phases.append(Phase("p", "drain", None, {}, 150_000, None, None))
    spans = merged(strip_rows(phases), 0, 200_000)
    assert [(span["row"], span["count"]) for span in spans] == [("decode", 1000), ("drain", 1)]
    assert spans[0]["moved"] == "9.77 KiB"
    assert spans[1]["end_s"] == pytest.approx(200_000 / 1e9)
    assert spans[1]["moved"] == "not stated"


def test_steps_long_enough_to_see_can_be_counted() -> None:
    steps = [Phase("p", "decode", n, {}, n * 10_000_000, n * 10_000_000 + 9_999_999, None) for n in range(1, 31)]
    spans = merged(strip_rows(steps), 0, 310_000_000)
    assert [(span["count"], span["attributes"]) for span in spans] == [(1, f"step {n}") for n in range(1, 31)]
    hundreds = [Phase("p", "decode", n, {}, n * 1000, n * 1000 + 999, None) for n in range(400)]
    assert [span["count"] for span in merged(strip_rows(hundreds), 0, 400_000)] == [400]


def test_strip_rows_tell_apis_apart_and_fall_back_when_too_many() -> None:
    both = [Phase("p", "load", None, {"api": api, "loop": "0", "device": "cpu"}, 0, 1, 1) for api in ("aio", "posix")]
    assert [name for name, _ in strip_rows(both)] == ["load aio", "load posix"]
    many = [Phase("p", "load", None, {"layer": f"layer{n}"}, 0, 1, 1) for n in range(40)]
    assert {name for name, _ in strip_rows(many)} == {"load"}
    others = [Phase(process, "load", None, {}, 0, 1, 1) for process in ("server", "client")]
    assert [name for name, _ in strip_rows(others)] == ["server: load", "client: load"]


def test_every_chart_is_saved_in_four_formats(made: Run, tmp_path: Path) -> None:
    drawn = draw(made, ["fig2", "bandwidth", "sizes", "fig2"], tmp_path)
    assert len(drawn) == 1 + 2 * len(made.published)
    for one in drawn:
        for kind in FORMATS:
            content = one.files[kind].read_bytes()
            assert content.startswith(MAGIC[kind])
            assert len(content) > 1000
    assert {path.name for path in tmp_path.iterdir()} == {path.name for one in drawn for path in one.files.values()}
    page = drawn[0].files["html"].read_text()
    assert "src=" not in page.split("<script>")[0]
    assert "cdn.jsdelivr" not in page


def test_fig2_leaves_out_only_what_it_is_about(tmp_path: Path) -> None:
    path = make_run(tmp_path, sizes=SMALL)
    for record in sorted(path.glob("trials/*/trial.json")):
        content = json.loads(record.read_text())
        if content["verdict"]["state"] == "failed":
            content["config"]["workload"] = {"kind": "flexgen"}
            record.write_text(json.dumps(content))
    assert "1 trial not valid, left out: fs=ext4,rep=3." in texts(fig2.chart(load_run(path)))
