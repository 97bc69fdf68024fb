"""What a report tells of a run that chose its trials, and the figure of a search."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from analysis import answers, compare, judgement, load_run
from analysis.drawing import figure_names
from analysis.figures import draw, search
from analysis.observed import observed
from analysis.report import markdown, page
from analysis.report.content import gathered
from tests.analysis.made_run import MIB, make_run


def row(value: Any, values: list[float], meets: bool, **more: Any) -> dict[str, Any]:
    median = sorted(values)[len(values) // 2] if values else None
    told = {"value": value, "trials": max(1, len(values)), "values": values, "bad": [], "median": median, "low": None}
    return {**told, "high": None, "why": ["the middle of 1 to 8 (1 trial)"], "meets": meets, "sure": True, **more}


SEARCH = {
    **{"cell": {"fs": "xfs"}, "axis": "depth", "find": "largest", "metric": "read.d2c_p99_us", "at_most": 200},
    **{"at_least": None, "confirm": 3, "max": 6, "values": [1, 2, 4, 8], "state": "found", "answer": 2, "beyond": 4},
    **{"trials": 7, "grid": 12, "contradictions": [[4, 8]]},
    "tried": [
        row(2, [150.0, 160.0, 170.0], True, low=135.0, high=185.0, sure=False),
        row(4, [400.0, 410.0, 420.0], False, low=385.0, high=435.0),
        row(8, [], False, bad=["failed; out of memory"]),
    ],
}
CELL = {
    **{"cell": {"fs": "xfs"}, "metric": "duration_s", "rel": 0.05, "most": 10, "confidence": 0.95, "trials": 10},
    **{"valid": 9, "mean": 10.0, "low": 9.1, "high": 10.9, "within": 0.09, "known": False},
}


def made(tmp_path: Path) -> Path:
    run = make_run(tmp_path, sizes=(MIB,), repeats=1)
    record = json.loads((run / "run.json").read_text())
    told = {**record, "adaptive": {"searches": [SEARCH], "repeats": [CELL]}, "figures": []}
    (run / "run.json").write_text(json.dumps(told))
    return run


def with_search(folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    run = made(folder)
    run = run.rename(run.with_name(folder.name))
    record = json.loads((run / "run.json").read_text())
    sure = {**SEARCH, "tried": [{**row, "sure": True} for row in SEARCH["tried"]]}
    (run / "run.json").write_text(json.dumps({**record, "adaptive": {"searches": [{**sure, **changes}]}}))
    return run


def test_a_comparison_tells_what_a_search_finds_now(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    none: dict[str, Any] = {"state": "none", "answer": None, "beyond": 1}
    other = {"at_most": 300, "answer": 8}
    folders = [with_search(tmp_path / f"b{n}", **told) for n, told in enumerate(({"answer": 8}, none, other, {}))]
    first, second, foreign, now = map(load_run, folders)
    line = "search: Largest depth with read.d2c_p99_us ≤ 200: fs xfs: 2, was"
    assert answers.changed(now, [second, first]) == [f"{line} 8 in {first.path.name} (told, not judged)"]
    assert answers.changed(now, [first, second]) == [f"{line} no value in {second.path.name} (told, not judged)"]
    assert answers.changed(now, [foreign]) == answers.changed(now, [now]) == []
    assert compare.main([str(now.path), str(first.path)]) == compare.NOT_JUDGED  # of one repeat; the search is told
    assert f"{line} 8 in " in capsys.readouterr().out
    told = judgement.judge(now.path, [(first.path.name, str(first.path))])
    assert (told["regressed"], f"{line} 8 in " in told["text"]) == (False, True)


def test_values_and_names_keep_their_letters() -> None:
    told = {**SEARCH, "cell": {"size": "64MiB"}, "axis": "kvSize", "answer": "64MiB", "beyond": "1GiB"}
    assert search.title_of(told) == "Largest kvSize with read.d2c_p99_us ≤ 200: size 64MiB"
    assert search._described(told)[0].startswith("64MiB meets it, 1GiB does not")


def test_page_and_markdown_tell_what_was_tried_and_why(tmp_path: Path) -> None:
    run = load_run(made(tmp_path))
    content = gathered(run, draw(run, ["search"], tmp_path / "figures"))
    pages = [markdown.render(content).replace("\\", ""), page.render(content)]
    for text in pages:
        for words in (
            "Search: Largest depth with read.d2c_p99_us ≤ 200: fs xfs",
            "2 meets it, 4 does not, uncertain (7 trials; the grid has 12)",
            "the middle of 1 to 8 (1 trial)",
            "yes, uncertain: decided by the median, the answer",
            "not valid: 1 (failed; out of memory)",
            "Not monotone: 8 meets the target although 4 does not",
            "not within ±5 % after 10 trials, the most",
            "±9.0 %",
        ):
            assert words in text, words
    assert pages[1].count('id="figure-search-1"') == 1


def test_the_figure_has_the_target_the_trials_and_the_answer(tmp_path: Path) -> None:
    run = load_run(made(tmp_path))
    assert "search" in figure_names(run)[1]
    (panel,) = search.charts(run)
    assert panel.reason is None
    text = json.dumps(panel.chart.to_dict())
    for words in ('"target": 200', "target 200", '"value": 160.0', '"meets": "does not meet it"', "Not drawn, without"):
        assert words in text, words
    assert text.count('"kind": "trial"') == 6


def test_a_run_without_a_search_says_so(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path, sizes=(MIB,), repeats=1))
    (panel,) = search.charts(run)
    assert panel.reason == "this run searched along no axis"
    assert "search" not in figure_names(run)[1]
    assert gathered(run, []).chosen == ()


def test_a_metric_of_one_trial_or_what_there_is_instead(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path, sizes=(MIB,), repeats=1))
    trial = next(trial for trial in run.published if trial.state == "valid")
    frame = run.metrics()
    own = frame[(frame.slug == trial.slug) & (frame.op == "read")]
    for phase in own.phase.unique():
        wanted = own[own.phase == phase].d2c_p99_us.iloc[0]
        if wanted == wanted:
            assert observed(trial.path, f"{phase}/read.d2c_p99_us") == {"value": pytest.approx(wanted)}
    assert observed(trial.path, "duration_s")["value"] > 0
    told = observed(trial.path, "load aio cpu/read.d2c_p99_us")["missing"]
    assert told.startswith("no phase 'load aio cpu'; did you mean load aio cpu 1 MiB? phases: trial, init, store posix")
    assert observed(trial.path, "tokens_per_s")["missing"].startswith("nothing recorded it; its job reports")
