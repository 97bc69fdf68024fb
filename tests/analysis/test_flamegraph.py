"""The flame graph of a trial's stacks: widths that add up, what is missing told, the trial marked in the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis import AnalysisError, draw_run, load_run
from analysis.figures import flamegraph
from analysis.run import Run, Trial, load_trial
from analysis.stacks import BYTES, REQUESTS, Frame, _add, boxes, read, tree
from tests.analysis.made_run import MIB, make_run

FOLDED = (
    "read;fio;syscall (libc.so.6);io_submit_one_[k];submit_bio_[k] 900\n"
    "read;fio;pread (libc.so.6);vfs_read_[k];submit_bio_[k] 90\n"
    "write;kworker;wb_workfn_[k];submit_bio_[k] 9\n"
    "write;sync;syncfs_[k];submit_bio_[k] 1\n"
)
FACTS = {"state": "recorded", "requests": {"read": 990, "write": 10}, "lost": 3, "without_user_stack": 7}
STACKS = st.lists(
    st.tuples(st.lists(st.sampled_from("abc"), min_size=1, max_size=4), st.integers(1, 50)), min_size=1, max_size=12
)


def with_stacks(trial: Trial, folded: str | None, facts: dict[str, Any]) -> Trial:
    record = {**trial.record, "stacks": facts}
    (trial.path / "trial.json").write_text(json.dumps(record))
    if folded is not None:
        (trial.path / REQUESTS).write_text(folded)
        (trial.path / BYTES).write_text(folded.replace("900", "9000000"))
    return load_trial(trial.path)


@pytest.fixture
def made(tmp_path: Path) -> Run:
    return load_run(make_run(tmp_path, sizes=(MIB,)))


@given(STACKS)
def test_boxes_lie_on_their_callers_and_beside_each_other(stacks: list[tuple[list[str], int]]) -> None:
    root = Frame("all", "", "")
    for stack, count in stacks:
        _add(root, stack, requests=count)
    found = boxes(root)
    assert (found[0].begin, found[0].end) == (0, sum(count for _, count in stacks))
    for box in found[1:]:
        assert box.end - box.begin == box.frame.requests
        assert any(b.depth == box.depth - 1 and b.begin <= box.begin and box.end <= b.end for b in found)
        beside = [b for b in found if b.depth == box.depth and b is not box]
        assert all(b.end <= box.begin or box.end <= b.begin for b in beside)


@given(st.text())
def test_any_text_can_be_read(text: str) -> None:
    path = Path("/dev/shm") / f"offload-sweep-test-folded-{id(text)}"
    try:
        path.write_text(text, encoding="utf-8", errors="replace")
        assert all(count >= 0 and stack for stack, count in read(path))
    finally:
        path.unlink()


def test_the_graph_holds_every_request_and_says_what_is_missing(made: Run) -> None:
    trial = with_stacks(made.published[0], FOLDED, FACTS)
    root = tree(trial)
    assert (root.requests, root.bytes) == (1000, 9000100)
    assert {name: frame.requests for name, frame in root.callees.items()} == {"read": 990, "write": 10}
    chart = flamegraph.chart(trial)
    spec = json.dumps(chart.to_dict())
    assert "1,000 requests" in spec
    assert "the stacks of 3 requests, the user stack of 7 requests" in spec
    assert "Recording stacks disturbed this trial" in spec
    assert "wb_workfn" in spec
    assert "syncfs" not in spec  # one request in a thousand is no wider than a hair


def test_only_trials_with_stacks_get_a_graph_and_a_mark(made: Run) -> None:
    with_stacks(made.published[0], FOLDED, FACTS)
    failed = with_stacks(made.published[1], None, {"state": "failed", "reason": "no stacks were recorded: no bpftrace"})
    paths = draw_run(made.path)
    drawn = [name for name in paths["figures"] if name.startswith("flamegraph-")]
    assert drawn == [f"flamegraph-{made.published[0].slug}", f"flamegraph-{failed.slug}"]
    assert paths["ruled_out"][drawn[1]] == "no stacks were recorded: no bpftrace"
    page = Path(paths["report"]).read_text()
    for name in drawn:
        assert f'href="#figure-{name}"' in page
        assert f'id="figure-{name}"' in page
    assert page.count("with stacks: bandwidth and latency are disturbed") == 2
    assert "with stacks (none recorded)" in page


def test_a_run_without_stacks_says_so_only_when_asked(made: Run) -> None:
    assert not [name for name in draw_run(made.path)["figures"] if name.startswith("flamegraph")]
    (panel,) = flamegraph.charts(made)
    assert panel.reason == "no trial recorded stacks (trace.stacks: true records them)"
    with pytest.raises(AnalysisError, match="no stacks were recorded"):
        tree(made.published[0])
