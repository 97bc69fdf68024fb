"""Reading `requests.parquet` in bounded pieces, whatever its length."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from analysis.errors import AnalysisError
from analysis.schema import OPERATIONS, recorded_events

Array = npt.NDArray[np.int64]
T = TypeVar("T")

#: A column of so many rows stays in a processor's cache while it is worked on.
BATCH_ROWS = 1 << 17
#: Stands for a null time: monotonic clocks are never negative.
NEVER = -1


@dataclass(frozen=True)
class Batch:
    """Columns of consecutive rows; `op` is an index into OPERATIONS, a time that was not recorded is NEVER."""

    issue_ns: Array
    complete_ns: Array
    op: Array
    bytes: Array


@dataclass(frozen=True)
class Extents:
    """Where consecutive requests went; `op` is an index into OPERATIONS, `sector` counts 512 bytes, `dev` is an index
    into `devices` (major:minor)."""

    op: Array
    sector: Array
    bytes: Array
    dev: Array
    devices: tuple[str, ...]


@dataclass(frozen=True)
class Addressed:
    """Consecutive requests with what tells whose they are.

    `dev` is an index into `devices` (major:minor), `marked` says which carry the kernel's mark of metadata, the `M` of
    `rwbs` (REQ_META); `rows` are the columns as they were read.
    """

    issue_ns: Array
    complete_ns: Array
    op: Array
    bytes: Array
    sector: Array
    dev: Array
    devices: tuple[str, ...]
    marked: npt.NDArray[np.bool_]
    rows: pa.RecordBatch

    def key_ns(self) -> Array:
        """Return the time by which each request belongs to a span: its issue, or its completion without one."""
        if self.issue_ns.size and self.issue_ns.min() == NEVER:
            return np.where(self.issue_ns == NEVER, self.complete_ns, self.issue_ns)
        return self.issue_ns


def batches(path: Path) -> Iterator[Batch]:
    """Yield the rows of `requests.parquet` in file order, a bounded number at a time."""
    return _read(path, ["issue_ns", "complete_ns", "op", "bytes"], _batch)


def extents(path: Path) -> Iterator[Extents]:
    """Yield operation, device, sector and size of the requests in file order, a bounded number at a time."""
    return _read(path, ["op", "sector", "bytes", "dev"], _extents)


def addressed(path: Path, whole: bool = False) -> Iterator[Addressed]:
    """Yield the requests in file order, a bounded number at a time; with `whole` their `rows` have every column."""
    columns = ["issue_ns", "complete_ns", "op", "bytes", "sector", "dev", "rwbs"]
    return _read(path, None if whole else columns, _addressed)


def _read(path: Path, columns: list[str] | None, made: Callable[[pa.RecordBatch], T]) -> Iterator[T]:
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for part in file.iter_batches(batch_size=BATCH_ROWS, columns=columns):
                yield made(part)
    except (pa.ArrowInvalid, pa.ArrowTypeError, KeyError, OSError) as error:
        raise AnalysisError(f"{path}: cannot be read as requests ({_first_line(error)})") from None


def _batch(part: pa.RecordBatch) -> Batch:
    issue, complete = (_times(part.column(name)) for name in ("issue_ns", "complete_ns"))
    return Batch(issue, complete, _operations(part.column("op")), _whole(part.column("bytes")))


def _extents(part: pa.RecordBatch) -> Extents:
    dev = _encoded(part.column("dev"))
    return Extents(
        _operations(part.column("op")),
        _whole(part.column("sector")),
        _whole(part.column("bytes")),
        _whole(dev.indices),
        _names(dev),
    )


def _addressed(part: pa.RecordBatch) -> Addressed:
    dev, rwbs = (_encoded(part.column(name)) for name in ("dev", "rwbs"))
    marks = np.array(["M" in str(text) for text in rwbs.dictionary.to_pylist()] or [False])
    return Addressed(
        _times(part.column("issue_ns")),
        _times(part.column("complete_ns")),
        _operations(part.column("op")),
        _whole(part.column("bytes")),
        _whole(part.column("sector")),
        _whole(dev.indices),
        _names(dev),
        marks[rwbs.indices.to_numpy(zero_copy_only=False)],
        part,
    )


def events(path: Path) -> tuple[str, ...]:
    """Return which of `issue`, `completion`, `insert` the file recorded; what it does not say, its columns do."""
    file = _metadata(path)
    stated = recorded_events(file.schema.to_arrow_schema())
    if stated:
        return stated
    columns = {"issue": "issue_ns", "completion": "complete_ns", "insert": "insert_ns"}
    return tuple(event for event, column in columns.items() if _range(file, column) is not None)


def time_column(path: Path) -> str:
    """Return the column that tells when bytes moved: completion where it was recorded, else issue."""
    return "complete_ns" if "completion" in events(path) else "issue_ns"


def time_range(path: Path, column: str) -> tuple[int, int] | None:
    """Return the least and greatest time in `column`, from the file's statistics; None where there is none."""
    return _range(_metadata(path), column)


def value_range(path: Path, column: str) -> tuple[Any, Any] | None:
    """Return the least and greatest value in `column` if the file's statistics know them of every row, else None."""
    file = _metadata(path)
    return _range(file, column) if _complete(file, column) else None


def row_count(path: Path) -> int:
    """Return how many rows the file has."""
    return int(_metadata(path).num_rows)


def _metadata(path: Path) -> pq.FileMetaData:
    try:
        return pq.read_metadata(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise AnalysisError(f"{path}: not a Parquet file ({_first_line(error)})") from None


def _range(metadata: pq.FileMetaData, column: str) -> tuple[Any, Any] | None:
    known = [told for told in _statistics(metadata, column) if told is not None and told.has_min_max]
    return (min(one.min for one in known), max(one.max for one in known)) if known else None


def _complete(metadata: pq.FileMetaData, column: str) -> bool:
    """Say whether every row group knows the range of the column."""
    return all(told is not None and told.has_min_max for told in _statistics(metadata, column))


def _statistics(metadata: pq.FileMetaData, column: str) -> list[pq.Statistics | None]:
    names = [metadata.schema.column(place).name for place in range(metadata.num_columns)]
    if column not in names:
        return []
    return [
        metadata.row_group(group).column(names.index(column)).statistics for group in range(metadata.num_row_groups)
    ]


def _names(column: pa.DictionaryArray) -> tuple[str, ...]:
    return tuple(str(name) for name in column.dictionary.to_pylist())


def _times(column: pa.Array) -> Array:
    filled = pc.fill_null(column, NEVER) if column.null_count else column
    return np.asarray(filled.to_numpy(zero_copy_only=False), dtype=np.int64)


def _whole(column: pa.Array) -> Array:
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.int64)


def _operations(column: pa.Array) -> Array:
    encoded = _encoded(column)
    known = {name: place for place, name in enumerate(OPERATIONS)}
    places = np.array([known.get(name, known["other"]) for name in encoded.dictionary.to_pylist()] or [0], np.int64)
    return np.asarray(places[encoded.indices.to_numpy(zero_copy_only=False)], dtype=np.int64)


def _encoded(column: pa.Array) -> pa.DictionaryArray:
    return column if pa.types.is_dictionary(column.type) else column.dictionary_encode()


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
