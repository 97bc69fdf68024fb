"""Whose bytes requests moved, against asking every extent one by one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis import AnalysisError, trace
from analysis.figures import roles as figure
from analysis.metrics import summarise
from analysis.report import render
from analysis.roles import Owners, owners, requests_with_roles, role_bytes, roles_over_time
from analysis.run import Run, load_run
from analysis.schema import EXTENTS, described
from analysis.summary import read_summary, write_summary
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
from tests.analysis.test_trace_metrics import LIGHT

NAMES = ("weights", "kv", "journal", "swap")
RWBS = {"read": ("R", "RM"), "write": ("W", "WSM"), "flush": ("FF",), "discard": ("D",)}

extent = st.tuples(
    st.sampled_from(NAMES), st.sampled_from(["7:0", "7:1"]), st.integers(0, 30), st.integers(1, 12), st.integers(0, 20)
).flatmap(lambda e: st.tuples(*map(st.just, e), st.integers(e[4], 25)))
request = st.sampled_from(sorted(RWBS)).flatmap(
    lambda op: st.tuples(
        st.just(op),
        st.sampled_from(RWBS[op]),
        st.sampled_from(["7:0", "7:1", "7:9"]),
        st.integers(-1, 50),
        st.none() | st.integers(0, 30),
        st.integers(0, 9),
    )
)


def extent_row(
    role: str, dev: str, sector: int, sectors: int, seen_from: int, seen_to: int, file: str | None = "f"
) -> dict[str, Any]:
    row = {"role": role, "file": file, "dev": dev, "sector": sector, "sectors": sectors, "logical_bytes": 0}
    return row | {"seen_from_ns": seen_from, "seen_to_ns": seen_to}


def write_extents(path: Path, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows, schema=described(EXTENTS, {})), path, compression="zstd")


def table(extents: list[Any]) -> pa.Table:
    return pa.Table.from_pylist([extent_row(*one) for one in extents], schema=EXTENTS)


def asked(extents: list[Any], op: str, rwbs: str, dev: str, sector: int, t_ns: int) -> set[str]:
    """Return the roles that a request may have: several where extents of several roles were seen equally near."""
    if op == "flush":
        return {"flush"}
    near: dict[int, set[str]] = {}
    for role, on, begin, size, first, last in extents:
        if on == dev and begin <= sector < begin + size:
            near.setdefault(max(first - t_ns, t_ns - last, 0), set()).add(role)
    claims = near[min(near)] if near else {"other"}
    return {role if role == "journal" or "M" not in rwbs else "metadata" for role in claims}


def rows_of(requests: list[Any]) -> list[dict[str, Any]]:
    rows = []
    for op, rwbs, dev, sector, issue, took in requests:
        complete = took if issue is None else issue + took if took % 4 else None
        rows.append(request_row(issue, complete, op, 512 * took, sector) | {"rwbs": rwbs, "dev": dev})
    return sorted(rows, key=lambda row: (row["issue_ns"] is None, row["issue_ns"] or 0))


@LIGHT
@given(extents=st.lists(extent, max_size=12), requests=st.lists(request, max_size=40), batch=st.integers(1, 9))
def test_every_request_has_the_role_of_the_extent_seen_nearest(
    extents: list[Any],
    requests: list[Any],
    batch: int,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trace, "BATCH_ROWS", batch)
    folder = tmp_path_factory.mktemp("run") / "trial"
    write_record(folder)
    rows = rows_of(requests)
    write_requests(folder / "requests.parquet", rows)
    write_extents(folder / "extents.parquet", [extent_row(*one) for one in extents])
    found = [row for part in requests_with_roles(folder) for row in part.to_dicts()]
    assert len(found) == len(rows)
    for row, told in zip(rows, found, strict=True):
        assert {name: told[name] for name in row} == row
        t_ns = row["complete_ns"] if row["issue_ns"] is None else row["issue_ns"]
        assert told["role"] in asked(extents, row["op"], row["rwbs"], row["dev"], row["sector"], t_ns)


@LIGHT
@given(
    extents=st.lists(extent, max_size=8),
    requests=st.lists(request, max_size=40),
    spans=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=4),
)
def test_bytes_by_role_add_up(
    extents: list[Any], requests: list[Any], spans: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("run") / "trial"
    write_record(folder)
    write_requests(folder / "requests.parquet", rows_of(requests))
    write_extents(folder / "extents.parquet", [extent_row(*one) for one in extents])
    told = owners(folder)
    found = role_bytes(folder / "requests.parquet", told, spans)
    each = [row for part in requests_with_roles(folder) for row in part.to_dicts()]
    for (begin, end), totals in zip(spans, found, strict=True):
        wanted: Counter[tuple[str, str]] = Counter()
        for row in each:
            key = row["complete_ns"] if row["issue_ns"] is None else row["issue_ns"]
            if row["op"] in ("read", "write") and begin <= key < end and row["complete_ns"] is not None:
                wanted[row["role"], row["op"]] += row["bytes"]
        assert +Counter(totals) == +wanted
    binned = roles_over_time(folder / "requests.parquet", told, 0, 100, 7)
    moved = [row for row in each if row["op"] in ("read", "write") and row["complete_ns"] is not None]
    assert binned["bytes"].sum() == sum(row["bytes"] for row in moved)
    assert all(row["bytes"] > 0 for row in binned.to_dicts())


def test_sectors_that_changed_hands_count_for_whom_they_belonged_to_then(tmp_path: Path) -> None:
    told = Owners(table([("weights", "7:0", 0, 100, 10, 20), ("kv", "7:0", 50, 100, 40, 60)]))
    rows = [request_row(t, t + 1, "read", 512, 60) | {"sector": at} for t, at in ((0, 60), (29, 60), (31, 60), (99, 0))]
    rows.append(request_row(50, 51, "read", 512, 149))
    write_requests(tmp_path / "requests.parquet", rows)
    (part,) = trace.addressed(tmp_path / "requests.parquet")
    assert [told.roles[role] for role in told.of(part)] == ["weights", "weights", "kv", "weights", "kv"]
    assert told.roles == ("weights", "kv", "journal", "metadata", "flush", "other")


# --- in a run --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of which every trial but the first knows the extents."""
    folder = make_run(tmp_path_factory.mktemp("results"), sizes=(MIB, 4 * MIB))
    for trial in load_run(folder).published[1:]:
        if trial.table("requests"):
            end = BEGIN_NS + 10**12
            rows = [
                extent_row("weights", "7:0", 0, 256, BEGIN_NS, end),
                extent_row("kv", "7:0", 256, 7936, BEGIN_NS, end),
                extent_row("journal", "7:0", 8192, 64, BEGIN_NS, end, None),
            ]
            write_extents(trial.path / "extents.parquet", rows)
    return load_run(folder)


def test_the_summary_has_bytes_by_role_of_trials_that_know_them(run: Run) -> None:
    without, with_roles = (summarise(trial.path) for trial in run.published[:2])
    assert not any(name.startswith("role.") for row in without for name in row)
    names = [name for name in with_roles[0] if name.startswith("role.")]
    assert names == [f"role.{role}_{op}_bytes" for role in ("weights", "kv") for op in ("read", "write")]
    for row in with_roles:
        for op in ("read", "write"):
            assert sum(row[name] for name in names if name.endswith(f"{op}_bytes")) == row[f"traced_{op}_bytes"]
    write_summary(run.path)
    frame = read_summary(run)
    assert frame["role.kv_read_bytes"].dtype == pl.Int64
    assert frame.filter(slug=run.published[0].slug)["role.kv_read_bytes"].is_null().all()


def test_the_figure_stacks_roles_and_says_where_nobody_looked(run: Run) -> None:
    panels = {panel.trial: panel for panel in figure.charts(run)}
    first, second = run.published[:2]
    assert "no extents.parquet" in str(panels[first.slug].reason)
    assert panels[second.slug].reason is None
    text = str(panels[second.slug].chart.to_dict())
    assert "KV cache" in text
    assert "weights" in text


def test_the_report_lists_bytes_by_role(run: Run) -> None:
    page = render(run, [])
    assert "Whose bytes" in page
    assert "KV cache" in page


def test_a_file_that_is_none_is_one_clear_error(tmp_path: Path) -> None:
    write_record(tmp_path / "t")
    write_requests(tmp_path / "t" / "requests.parquet", [request_row(1, 2, "read", 512)])
    write_phases(tmp_path / "t" / "phases.parquet", [phase_row("job", 0, 9, 512)])
    (tmp_path / "t" / "extents.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(AnalysisError, match=r"extents\.parquet: cannot be read as extents"):
        owners(tmp_path / "t")
