"""Queue depth against counting, at every moment, who is in flight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis import AnalysisError, trace
from analysis.depth import queue_depth
from analysis.errors import CannotDraw
from tests.analysis.made_run import request_row, write_record, write_requests
from tests.analysis.test_trace_metrics import LIGHT, make_trial, request, rows_of

OPS = {"read": ("read",), "write": ("write",), "all": ("read", "write")}


def depth_at(rows: list[dict[str, Any]], ops: tuple[str, ...], moment: int) -> int:
    """Return who is in flight in [moment, moment + 1)."""
    return sum(
        row["op"] in ops
        and row["issue_ns"] is not None
        and row["issue_ns"] <= moment
        and (row["complete_ns"] is None or row["complete_ns"] > moment)
        for row in rows
    )


@LIGHT
@given(requests=st.lists(request, max_size=40), end=st.integers(1, 100), width=st.integers(1, 30), n=st.integers(1, 9))
def test_depth_is_who_is_in_flight_at_every_moment(
    requests: list[Any],
    end: int,
    width: int,
    n: int,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trace, "BATCH_ROWS", n)
    rows = rows_of(requests)
    found = queue_depth(make_trial(tmp_path_factory.mktemp("trial"), rows, [], end), width)
    assert (found.begin_ns, found.bin_ns) == (0, width)
    for op, ops in OPS.items():
        depths = [depth_at(rows, ops, moment) for moment in range(found.end_ns)]
        spread = found.distribution[op]
        assert spread.time_ns.tolist()[: max(depths) + 1] == [depths.count(d) for d in range(max(depths) + 1)]
        assert spread.total_ns == len(depths)
        assert spread.mean() == pytest.approx(sum(depths) / len(depths))
        assert spread.maximum() == max(depths)
        assert spread.busy_share() == pytest.approx(sum(d > 0 for d in depths) / len(depths))
        for share in (0.5, 0.99):
            wanted = min(d for d in range(max(depths) + 1) if sum(x <= d for x in depths) >= share * len(depths))
            assert spread.percentile(share) == wanted
        bins = [depths[at : at + width] for at in range(0, len(depths), width)]
        mine = found.over_time.filter(pl.col("op") == op)
        assert mine["mean"].to_list() == pytest.approx([sum(one) / len(one) for one in bins])
        assert mine["max"].to_list() == [max(one) for one in bins]


def test_what_never_completes_is_in_flight_to_the_end_and_a_lost_issue_never(tmp_path: Path) -> None:
    rows = [request_row(10, None, "read", 512), request_row(20, 30, "write", 512), request_row(None, 40, "read", 512)]
    found = queue_depth(make_trial(tmp_path / "t", rows, []), 50)
    assert found.distribution["all"].time_ns.tolist() == [10, 80, 10]
    assert found.distribution["write"].time_ns.tolist() == [90, 10]


def test_issues_alone_have_no_depth(tmp_path: Path) -> None:
    folder = make_trial(tmp_path / "t", [], [])
    write_requests(folder / "requests.parquet", [request_row(1, None, "read", 512)], recorded=("issue",))
    with pytest.raises(CannotDraw, match="holds no completion events"):
        queue_depth(folder)
    write_record(tmp_path / "u", tracer={"name": "diskstats", "begin_ns": 0, "end_ns": 9})
    with pytest.raises(CannotDraw, match="diskstats, records no single requests"):
        queue_depth(tmp_path / "u")


def test_requests_out_of_order_are_refused(tmp_path: Path) -> None:
    folder = make_trial(tmp_path / "t", [], [])
    write_requests(folder / "requests.parquet", [request_row(5, 6, "read", 1), request_row(4, 6, "read", 1)])
    with pytest.raises(AnalysisError, match=r"requests\.parquet: requests are not sorted by issue_ns"):
        queue_depth(folder)
