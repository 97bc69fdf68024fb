"""The figures of latency and of queue depth: right numbers, marked trials, reasons where there is nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from analysis import load_run, metrics
from analysis.figures import depth, latency
from analysis.profile import read_profile
from analysis.run import Run
from tests.analysis.made_run import MIB, make_run, phase_row, request_row, write_phases, write_record, write_requests
from tests.analysis.test_drawn_figures import numbers_in, texts

MS = 1_000_000


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return load_run(make_run(tmp_path_factory.mktemp("results"), sizes=(MIB, 4 * MIB)))


def one_trial(root: Path, rows: list[dict[str, Any]], recorded: tuple[str, ...] = ("issue", "completion")) -> Run:
    (root / "run.json").write_text('{"schema_version": 1}')
    folder = root / "trials" / "a"
    write_record(folder, tracer={"name": "made", "begin_ns": 0, "end_ns": 100 * MS})
    write_requests(folder / "requests.parquet", rows, recorded=recorded)
    write_phases(folder / "phases.parquet", [phase_row("load", 0, 50 * MS)])
    return load_run(root)


def inline(chart: Any) -> list[dict[str, Any]]:
    """Return all rows of data that a chart holds."""
    found: list[dict[str, Any]] = []

    def visit(node: Any) -> None:
        if isinstance(node, dict):
            if isinstance(node.get("data"), dict):
                found.extend(node["data"].get("values", []))
            for value in node.values():
                visit(value)
        elif isinstance(node, list):
            for value in node:
                visit(value)

    spec = chart.to_dict()
    visit(spec)
    return found + [row for rows in spec.get("datasets", {}).values() for row in rows]


@pytest.mark.parametrize("module", [latency, depth])
def test_there_is_a_panel_per_trial_and_what_is_not_valid_is_marked(made: Run, module: Any) -> None:
    panels = {panel.trial: panel for panel in module.charts(made) if panel.trial}
    assert list(panels) == [trial.slug for trial in made.published]
    for trial in made.published:
        panel = panels[trial.slug]
        if trial.state == "failed":
            assert "no requests.parquet" in str(panel.reason)
        else:
            assert ("INVALID: 1742 events lost by the tracer" in texts(panel.chart)) == (trial.state == "invalid")
            assert panel.reason is None


def test_marks_and_table_tell_the_percentiles_of_the_profile(made: Run) -> None:
    rows = {(r["slug"], r["phase"], r["op"]): r for r in read_profile(made).to_dicts()}
    panel = next(panel for panel in latency.charts(made) if panel.trial)
    marks = {(row["op"], row["mark"]): row["latency"] for row in inline(panel.chart) if "mark" in row}
    for op in ("read", "write"):
        row = rows[panel.trial, "trial", op]
        wanted = {"p50": row["d2c_p50_us"], "p99": row["d2c_p99_us"], "p99.9": row["d2c_p999_us"]}
        assert {name: marks[op, name] for name in wanted} == pytest.approx(wanted, abs=0.001)
    said = {row["text"] for row in inline(panel.chart) if "text" in row}
    assert {"p50", "p99.99", "slowest", f"{rows[panel.trial, 'trial', 'read']['requests']:,}"} <= said


def test_a_line_holds_the_share_of_the_requests_that_took_at_most_so_long(tmp_path: Path) -> None:
    rows = [request_row(n * 1000, n * 1000 + (n + 1) * 1000, "read", 512) for n in range(1000)]
    (panel,) = latency.charts(one_trial(tmp_path, rows))
    corners = [row for row in inline(panel.chart) if "percent" in row and "mark" not in row]
    assert corners[0]["percent"] == 0
    assert corners[-1] == {"op": "read", "latency": 1000.0, "percent": 100.0, "text": "1 ms"}
    for corner in corners[1:]:
        within = sum(n + 1 <= corner["latency"] for n in range(1000)) / 10
        assert within == pytest.approx(corner["percent"], abs=0.1)


def test_cells_are_compared_by_the_requests_of_their_valid_repeats(made: Run) -> None:
    panel = next(panel for panel in latency.charts(made) if panel.trial is None)
    assert "all repeats of a cell together (n = 2)" in texts(panel.chart)
    assert "2 trials not valid, left out" in texts(panel.chart)
    marks = [row for row in inline(panel.chart) if "mark" in row]
    assert {row["cell"] for row in marks} == {"ext4", "xfs"}
    waits = [
        row["complete_ns"] - row["issue_ns"]
        for trial in made.published
        if trial.state == "valid" and trial.cell["fs"] == "xfs"
        for row in made.requests(trial).filter(op="read").collect().to_dicts()
    ]
    median = sorted(waits)[-(-len(waits) // 2) - 1] / 1000
    assert any(row["cell"] == "xfs" and row["latency"] == pytest.approx(median, abs=0.001) for row in marks)


def test_issues_alone_say_why_nothing_is_drawn(tmp_path: Path) -> None:
    run = one_trial(tmp_path, [request_row(1, None, "read", 512)], ("issue",))
    for module in (latency, depth):
        (panel,) = module.charts(run)
        assert "holds no completion events, so nobody knows" in str(panel.reason)


def test_a_trace_without_data_requests(tmp_path: Path) -> None:
    run = one_trial(tmp_path, [request_row(1, 2, "flush", 0)])
    (panel,) = latency.charts(run)
    assert "no read and no write" in str(panel.reason)
    (panel,) = depth.charts(run)
    assert "None was in flight at any time" in texts(panel.chart)


def test_depth_shows_mean_and_most_in_each_bin_and_shares_of_the_time(tmp_path: Path) -> None:
    rows = [request_row(0, 10 * MS, "read", 512), request_row(5 * MS, 10 * MS, "write", 512)]
    (panel,) = depth.charts(one_trial(tmp_path, rows))
    first, second = [row for row in inline(panel.chart) if "most at once" in row][:2]
    assert first == {"begin_s": 0.0, "reads, mean": 1.0, "writes, mean": 0.5, "most at once": 2}
    assert (second["begin_s"], second["reads, mean"], second["most at once"]) == (0.01, 0.0, 0)
    bars = {row["depth"]: row["percent"] for row in inline(panel.chart) if "label" in row}
    assert bars == {"0": 90.0, "1": 5.0, "2": 5.0}
    assert "99 % of the time at most 2; never more than 2. Busy 10.0 % of 100 ms" in texts(panel.chart)


def test_neither_figure_embeds_the_requests(tmp_path: Path) -> None:
    rows = [request_row(n * 2000, n * 2000 + 900 + n % 977, "read", 512) for n in range(40_000)]
    run = one_trial(tmp_path, rows)
    for module in (latency, depth):
        (panel,) = module.charts(run)
        assert numbers_in(panel.chart) < 120_000


def test_trials_that_cannot_be_read_do_not_stop_the_others(tmp_path: Path) -> None:
    run = make_run(tmp_path, sizes=(MIB,), broken=False)
    slug = load_run(run).published[0].slug
    (run / "trials" / slug / "requests.parquet").write_bytes(b"PAR1 not really")
    for module in (latency, depth):
        panels = {panel.trial: panel for panel in module.charts(load_run(run))}
        assert "requests.parquet: " in str(panels[slug].reason)
        if None in panels:
            assert "No latencies of 1 valid trial" in texts(panels[None].chart)
        assert all(panel.reason is None for name, panel in panels.items() if name != slug)
        json.dumps([panel.chart.to_dict() for panel in panels.values()])
    with pytest.raises(Exception, match=r"requests\.parquet"):
        metrics.latencies(run / "trials" / slug)


def test_lines_of_cells_are_drawn_only_while_they_can_be_told_apart(tmp_path: Path) -> None:
    path = make_run(tmp_path, sizes=(MIB,), repeats=4, broken=False)
    records = sorted(path.glob("trials/*/trial.json"))
    for many in (False, True):
        for place, record in enumerate(records):
            content = json.loads(record.read_text())
            record.write_text(json.dumps(content | {"cell": {"batch_size": place if many else place % 2}}))
        panel = next(panel for panel in latency.charts(load_run(path)) if panel.trial is None)
        rows = inline(panel.chart)
        assert any("cell" in row and "mark" not in row for row in rows) is not many
        assert len({row["cell"] for row in rows if "mark" in row}) == (8 if many else 2)
