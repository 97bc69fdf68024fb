"""Rows in completion order to a Parquet file in issue order, in memory bounded by the run length."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

#: Rows sorted in memory at a time, and rows of one Parquet row group. About 100 bytes a row.
RUN_ROWS = 1_000_000


class SortedWriter:
    """Write record batches to one zstd Parquet file sorted by the int64 column `key`.

    Sorted runs of `run_rows` rows are spilled beside `path` and merged at the end in slices of about as many rows
    (an external merge sort), so memory does not grow with the number of rows. A file that fits one run is not spilled.
    """

    def __init__(self, path: Path, schema: pa.Schema, key: str, run_rows: int = RUN_ROWS) -> None:
        """Write rows of `schema` to `path`. Dictionary columns may come as their plain values."""
        self._path, self._schema, self._key, self._run_rows = path, schema, key, run_rows
        self._plain = pa.schema([pa.field(f.name, _plain(f.type), f.nullable) for f in schema])
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0
        self._spill_dir = Path(tempfile.mkdtemp(prefix="sort-", dir=path.parent))
        self._runs: list[Path] = []

    def __enter__(self) -> SortedWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            shutil.rmtree(self._spill_dir, ignore_errors=True)

    def write(self, rows: pa.Table) -> None:
        """Add rows in any order."""
        for begin in range(0, rows.num_rows, self._run_rows):
            piece = rows.slice(begin, self._run_rows).cast(self._plain)
            self._waiting.append(piece)
            self._waiting_rows += piece.num_rows
            if self._waiting_rows >= self._run_rows:
                self._spill()

    def _sorted(self, tables: list[pa.Table]) -> pa.Table:
        table = pa.concat_tables(tables) if tables else self._plain.empty_table()
        # A stable sort: rows of equal key stay in the order they came.
        order = np.argsort(table.column(self._key).to_numpy(), kind="stable")
        return table.take(pa.array(order))

    def _take_waiting(self) -> pa.Table:
        table, self._waiting, self._waiting_rows = self._sorted(self._waiting), [], 0
        return table

    def _spill(self) -> None:
        path = self._spill_dir / f"{len(self._runs)}.arrow"
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, self._plain) as writer:
            writer.write_table(self._take_waiting(), max_chunksize=self._run_rows)
        self._runs.append(path)

    def _finish(self) -> None:
        with pq.ParquetWriter(self._path, self._schema, compression="zstd") as writer:
            if not self._runs:
                writer.write_table(self._take_waiting().cast(self._schema))
                return
            if self._waiting_rows:
                self._spill()
            for table in self._merged():
                writer.write_table(table.cast(self._schema))

    def _merged(self) -> Iterator[pa.Table]:
        """Yield the union of all runs in order, in slices cut at keys so that each holds about `run_rows` rows."""
        maps = [pa.memory_map(str(path)) for path in self._runs]
        runs = [pa.ipc.open_file(m).read_all() for m in maps]
        keys = [run.column(self._key).to_numpy() for run in runs]
        at = [0] * len(runs)
        for cut in [*_cuts(keys, self._run_rows), None]:
            ends = [len(k) if cut is None else int(np.searchsorted(k, cut, "right")) for k in keys]
            slices = [run.slice(a, e - a) for run, a, e in zip(runs, at, ends, strict=True) if e > a]
            at = ends
            if slices:
                yield self._sorted(slices)


def _cuts(keys: list[np.ndarray], rows: int) -> list[int]:
    """Return ascending keys that part the union of sorted `keys` into slices of about `rows` each."""
    step = max(1, rows // 64)
    sample = np.sort(np.concatenate([k[::step] for k in keys]))
    return [int(v) for v in np.unique(sample[64::64])]


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind
