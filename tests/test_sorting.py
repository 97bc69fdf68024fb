"""The external sort against `sorted`: any rows in any pieces, with runs small enough to spill and merge."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.sorting import SortedWriter

SCHEMA = pa.schema(
    [
        pa.field("key", pa.int64()),
        pa.field("serial", pa.int64(), nullable=False),
        pa.field("word", pa.dictionary(pa.int32(), pa.string())),
    ]
).with_metadata({"made_by": "the test"})
PLAIN = pa.schema([("key", pa.int64()), ("serial", pa.int64()), ("word", pa.string())])

Row = tuple[int, int, str]


def rows_of(keys: list[int]) -> list[Row]:
    return [(key, serial, f"w{key % 3}") for serial, key in enumerate(keys)]


def table(rows: list[Row]) -> pa.Table:
    return pa.table([list(column) for column in zip(*rows, strict=True)] or [[], [], []], schema=PLAIN)


def write(path: Path, pieces: list[list[Row]], run_rows: int) -> None:
    with SortedWriter(path, SCHEMA, "key", run_rows) as writer:
        for piece in pieces:
            writer.write(table(piece))


def read(path: Path) -> list[Row]:
    return [tuple(row.values()) for row in pq.read_table(path).to_pylist()]


@settings(deadline=None)
@given(
    keys=st.lists(st.integers(-5, 5) | st.integers(-(2**63), 2**63 - 1), max_size=120),
    run_rows=st.integers(1, 40),
    cuts=st.lists(st.integers(0, 120), max_size=4),
)
def test_equals_a_stable_sort(
    keys: list[int], run_rows: int, cuts: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = rows_of(keys)
    edges = [0, *sorted(cuts), len(rows)]
    path = tmp_path_factory.mktemp("sorted") / "rows.parquet"
    write(path, [rows[a:b] for a, b in pairwise(edges)], run_rows)
    assert read(path) == sorted(rows, key=lambda row: row[0])
    assert [p.name for p in path.parent.iterdir()] == ["rows.parquet"]


@pytest.mark.parametrize(
    "keys", [[n * 7919 % 5000 for n in range(5000)], [5] * 3000 + [4] * 3000], ids=["mixed", "same"]
)
def test_many_runs_are_merged_in_slices(tmp_path: Path, keys: list[int]) -> None:
    rows = rows_of(keys)
    write(tmp_path / "rows.parquet", [rows], 500)
    assert read(tmp_path / "rows.parquet") == sorted(rows, key=lambda row: row[0])
    assert pq.ParquetFile(tmp_path / "rows.parquet").num_row_groups > 1


def test_distinct_keys_are_merged_in_slices_of_about_a_run(tmp_path: Path) -> None:
    write(tmp_path / "rows.parquet", [rows_of([n * 7919 % 20000 for n in range(20000)])], 1000)
    metadata = pq.ParquetFile(tmp_path / "rows.parquet").metadata
    assert max(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)) <= 2000


@pytest.mark.parametrize("pieces", [[], [[]], [[], []]])
def test_nothing_written_is_an_empty_file(tmp_path: Path, pieces: list[list[Row]]) -> None:
    write(tmp_path / "rows.parquet", pieces, 10)
    assert read(tmp_path / "rows.parquet") == []


@pytest.mark.parametrize("run_rows", [2, 100], ids=["spilled", "in memory"])
def test_schema_and_metadata_are_kept(tmp_path: Path, run_rows: int) -> None:
    write(tmp_path / "rows.parquet", [rows_of([3, 1, 2, 1])], run_rows)
    schema = pq.read_schema(tmp_path / "rows.parquet")
    assert schema.metadata[b"made_by"] == b"the test"
    assert schema.remove_metadata() == SCHEMA.remove_metadata()


def test_an_exception_leaves_nothing_behind(tmp_path: Path) -> None:
    def spill_and_fail() -> None:
        with SortedWriter(tmp_path / "rows.parquet", SCHEMA, "key", 2) as writer:
            writer.write(table(rows_of([3, 2, 1, 0])))
            assert list(tmp_path.glob("sort-*/*"))
            raise KeyError

    with pytest.raises(KeyError):
        spill_and_fail()
    assert list(tmp_path.iterdir()) == []


def test_rows_that_do_not_fit_the_schema_leave_no_spill_folder(tmp_path: Path) -> None:
    with pytest.raises(pa.ArrowInvalid), SortedWriter(tmp_path / "rows.parquet", SCHEMA, "key", 2) as writer:
        writer.write(table(rows_of([3, 2, 1])).set_column(0, "key", pa.array(["a", "b", "c"])))
    assert list(tmp_path.iterdir()) == []
