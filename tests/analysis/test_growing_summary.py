"""A summary that grows trial by trial: the same as one made at once, seldom written, not held in memory."""

import itertools
import tracemalloc

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import summary
from analysis.summary import Growing, summary_table

VALUES = {"whole": 1, "number": 1.5, "text": "x", "truth": True, "none": None}


def row(slug, **columns):
    return {"slug": slug, "trial": slug, "attempt": 1, "phase": "trial", **columns}


def at_once(rows):
    return pl.from_arrow(summary_table(rows))


@pytest.mark.parametrize(("first", "second"), [*itertools.product(VALUES, repeat=2)])
def test_an_axis_has_the_type_it_would_have_at_once(tmp_path, first, second):
    rows = [row("one", **{"cell.a": VALUES[first], "metric.z": 1.0}), row("two", **{"cell.a": VALUES[second]})]
    path = tmp_path / "summary.parquet"
    for one in rows:
        growing = Growing(path)
        growing.add(one["slug"], [one])
        growing.write()
    assert pl.read_parquet(path).equals(at_once(rows))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("abcdef"),
            st.dictionaries(st.sampled_from(["cell.a", "metric.m", "attr.t", "role.kv_read_bytes"]), st.integers(0, 9)),
            st.booleans(),
        ),
        min_size=1,
    )
)
def test_it_holds_the_last_attempt_of_each_trial(tmp_path_factory, steps):
    path = tmp_path_factory.mktemp("run") / "summary.parquet"
    growing, last = Growing(path), {}
    for slug, columns, due in steps:
        growing.add(slug, [row(slug, **columns)])
        last[slug] = row(slug, **columns)
        if due:
            growing.write()
    growing.write()
    grown, whole = pl.read_parquet(path).sort("slug"), at_once(last.values()).sort("slug")
    assert grown.select(whole.columns).equals(whole)
    # a column that only a superseded attempt had stays, empty
    assert grown.drop(whole.columns).null_count().row(0) == (len(whole),) * (grown.width - whole.width)


def test_a_broken_file_is_begun_again(tmp_path):
    path = tmp_path / "summary.parquet"
    growing = Growing(path)
    growing.add("one", [row("one")])
    growing.write()
    content = bytearray(path.read_bytes())
    content[4:40] = bytes(36)  # its pages, not its footer
    path.write_bytes(content)
    growing.add("two", [row("two")])
    growing.write()
    assert "two" in pl.read_parquet(path)["slug"].to_list()


def test_many_small_trials_are_written_seldom_and_not_kept(tmp_path, monkeypatch):
    writes = []
    append = summary._append
    monkeypatch.setattr(summary, "_append", lambda path, rows: (writes.append(len(rows)), append(path, rows)))
    monkeypatch.setattr(summary, "_MOST_ROWS", 5000)
    growing = Growing(tmp_path / "summary.parquet")
    tracemalloc.start()
    for place in range(2000):
        growing.add(f"t{place}", [row(f"t{place}", step=step) for step in range(50)])
    growing.write()
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(writes) == 2000
    assert len(writes) <= 30
    assert peak_bytes < 16 << 20  # all 100 000 rows at once are three times that
    assert pl.scan_parquet(tmp_path / "summary.parquet").select(pl.len()).collect().item() == 100_000
