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

#: Rows sorted in memory at a time, and about as many in a Parquet row group. About 70 bytes a row.
RUN_ROWS = 500_000

#: A run is read back in so many pieces, so that merging holds a small part of each.
_PIECES = 8


class SortedWriter:
    """Write tables to one zstd Parquet file sorted by the int64 column `key`.

    Sorted runs of `run_rows` rows are spilled beside `path` and merged at the end (an external merge sort). A run is
    opened only once the merge has come to its first key, so rows that come almost in order take the memory of a few
    pieces, however many there are. A file that fits one run is not spilled.
    """

    def __init__(self, path: Path, schema: pa.Schema, key: str, run_rows: int = RUN_ROWS) -> None:
        """Write rows of `schema` to `path`. Dictionary columns may come with any dictionary, or as plain values."""
        self._path, self._schema, self._key, self._run_rows = path, schema, key, run_rows
        self._words: dict[str, dict[str, int]] = {f.name: {} for f in schema if pa.types.is_dictionary(f.type)}
        coded = [pa.field(f.name, pa.int32() if f.name in self._words else f.type, f.nullable) for f in schema]
        self._coded = pa.schema(coded)
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0
        self._spill_dir = Path(tempfile.mkdtemp(prefix="sort-", dir=path.parent))
        self._runs: list[_Run] = []

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
            piece = self._with_codes(rows.slice(begin, self._run_rows))
            self._waiting.append(piece)
            self._waiting_rows += piece.num_rows
            if self._waiting_rows >= self._run_rows:
                self._spill()

    def _with_codes(self, rows: pa.Table) -> pa.Table:
        """Return the rows with whole numbers for the values of dictionary columns, the same ones in every table."""
        columns = {}
        for name in self._schema.names:
            column = rows[name]
            if name in self._words:
                column = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
                chunks = [self._codes(name, chunk) for chunk in column.chunks]
                column = pa.chunked_array(chunks, pa.int32())
            columns[name] = column
        return pa.table(columns).cast(self._coded)

    def _codes(self, name: str, values: pa.DictionaryArray) -> pa.Array:
        words = self._words[name]
        known = pa.array([words.setdefault(word, len(words)) for word in values.dictionary.to_pylist()], pa.int32())
        return known.take(values.indices)

    def _with_words(self, rows: pa.Table) -> pa.Table:
        """Return the rows as `schema` has them."""
        columns = {}
        for field in self._schema:
            column = rows[field.name].combine_chunks()
            if field.name in self._words:
                column = pa.DictionaryArray.from_arrays(
                    column, pa.array(self._words[field.name], field.type.value_type)
                )
            columns[field.name] = column
        return pa.table(columns).cast(self._schema)

    def _sorted(self, tables: list[pa.Table]) -> pa.Table:
        table = pa.concat_tables(tables) if tables else self._coded.empty_table()
        keys = table.column(self._key).to_numpy()
        if (keys[1:] >= keys[:-1]).all():
            return table
        # A stable sort: rows of equal key stay in the order they came.
        return table.take(pa.array(np.argsort(keys, kind="stable")))

    def _spill(self) -> None:
        table, self._waiting, self._waiting_rows = self._sorted(self._waiting), [], 0
        path = self._spill_dir / f"{len(self._runs)}.arrow"
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, self._coded) as writer:
            writer.write_table(table.combine_chunks(), max_chunksize=max(1, self._run_rows // _PIECES))
        self._runs.append(_Run(path, self._key, table[self._key][0].as_py()))

    def _finish(self) -> None:
        if self._runs and self._waiting_rows:
            self._spill()
        pieces = self._merged() if self._runs else iter([self._sorted(self._waiting)])
        self._waiting = []
        with pq.ParquetWriter(self._path, self._schema, compression="zstd", use_dictionary=self._dictionaries()) as out:
            for table in _in_groups(pieces, self._run_rows):
                out.write_table(self._with_words(table), row_group_size=self._run_rows)

    def _dictionaries(self) -> list[str]:
        """Return the columns worth a dictionary; times and sectors hardly repeat."""
        return [f.name for f in self._schema if f.name in self._words or f.name in ("bytes", "error", "pid")]

    def _merged(self) -> Iterator[pa.Table]:
        """Yield the union of all runs in order, in pieces."""
        waiting = sorted(self._runs, key=lambda run: run.first)[::-1]
        active: list[_Run] = []
        while active or waiting:
            if not active:
                active.append(waiting.pop().opened())
            bound = min(run.last for run in active)
            while waiting and waiting[-1].first <= bound:
                active.append(waiting.pop().opened())
                bound = min(bound, active[-1].last)
            # In the order in which the runs were written: equal keys stay in the order they came.
            active.sort(key=lambda run: run.serial)
            yield self._sorted([piece for run in active for piece in run.up_to(bound)])
            active = [run for run in active if not run.empty]


class _Run:
    """One sorted run on disk, read back piece by piece."""

    def __init__(self, path: Path, key: str, first: int) -> None:
        self.first, self.serial, self.empty = first, int(path.stem), False
        self._path, self._key, self._next = path, key, 0

    def opened(self) -> _Run:
        """Return the run with its first piece in memory."""
        self._file = pa.OSFile(str(self._path), "rb")
        self._reader = pa.ipc.open_file(self._file)
        self._load()
        return self

    def _load(self) -> None:
        if self._next == self._reader.num_record_batches:
            self.empty = True
            self._file.close()
            return
        self._piece = pa.Table.from_batches([self._reader.get_batch(self._next)])
        self._keys = self._piece[self._key].to_numpy()
        self._next += 1
        self.last = int(self._keys[-1])

    def up_to(self, bound: int) -> Iterator[pa.Table]:
        """Yield, and forget, all rows whose key is at most `bound`."""
        while not self.empty and self.last <= bound:
            yield self._piece
            self._load()
        if not self.empty:
            count = int(np.searchsorted(self._keys, bound, "right"))
            yield self._piece.slice(0, count)
            self._piece, self._keys = self._piece.slice(count), self._keys[count:]


def _in_groups(tables: Iterator[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Yield the rows of `tables` in groups of `rows` or more, but for the last."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        if sum(t.num_rows for t in held) >= rows:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)
