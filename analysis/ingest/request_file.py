"""Rows that come almost in order to a `requests.parquet` that is in order, exactly, in bounded memory.

The newest rows are held back and sorted with those that follow. A row older than what has been written is late: late
rows are sorted in runs beside the file, and merged into it in a second pass that files without any never need.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.schema import OPERATIONS, REQUESTS, described, operation
from analysis.trace import NEVER

#: Rows held back: bpftrace's buffers, one for each CPU, mix up some thousands.
HELD_ROWS = 1 << 16
#: Rows of a row group, and of a run of late rows.
GROUP_ROWS = 1 << 19
#: Rows of a run of late rows that are in memory while merging.
_PIECE_ROWS = 1 << 15

_TIMES = ("complete_ns", "insert_ns")
_WORDS = ("rwbs", "dev", "comm")
UNKNOWN_DEVICE = "unknown"

Column = npt.NDArray[Any]
#: Rows as columns of whole numbers: names as in REQUESTS, words by their code, a time that is not known as NEVER.
Rows = Mapping[str, Column]


class RequestFile:
    """Writes the requests of one trace; `words` holds the texts of each dictionary column by code."""

    def __init__(
        self,
        path: Path,
        provenance: Mapping[str, object],
        recorded: Sequence[str],
        columns: Sequence[str],
        held_rows: int = HELD_ROWS,
        group_rows: int = GROUP_ROWS,
    ) -> None:
        """Write to `path` rows of `columns`; the other columns of REQUESTS are null, `dev` unknown."""
        self.words: dict[str, list[str]] = {name: [] for name in _WORDS}
        self._codes: dict[str, dict[str, int]] = {name: {} for name in _WORDS}
        self.rows = 0
        self.late = 0
        self.moved = dict.fromkeys(("read", "write", "discard"), 0)
        self.begin_ns: int | None = None
        self.end_ns: int | None = None
        self._path, self._columns = path, tuple(columns)
        self._schema = described(REQUESTS, provenance, recorded)
        self._held_rows, self._group_rows = held_rows, group_rows
        self._held: dict[str, Column] = {name: np.empty(0, np.int64) for name in columns}
        self._group: list[dict[str, Column]] = []
        self._late: list[dict[str, Column]] = []
        self._runs: list[Path] = []
        self._writing: Future[None] | None = None
        self._written = NEVER

    def __enter__(self) -> RequestFile:
        self._folder = Path(tempfile.mkdtemp(prefix=".sort-", dir=self._path.parent))
        self._pool = ThreadPoolExecutor(1)
        self._out = self._writer(self._folder / "sorted.parquet")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._pool.shutdown()
            self._out.close()
            shutil.rmtree(self._folder, ignore_errors=True)

    def code(self, column: str, word: str) -> int:
        """Return the code of a word of a dictionary column."""
        code = self._codes[column].setdefault(word, len(self.words[column]))
        if code == len(self.words[column]):
            self.words[column].append(word)
        return code

    def add(self, rows: Rows) -> None:
        """Add rows in any order; equal times stay in the order they came."""
        if not rows["issue_ns"].size:
            return
        self._tally(rows)
        rows = in_order({name: rows[name] for name in self._columns})
        late = int(np.searchsorted(rows["issue_ns"], self._written))
        if late:
            self._put_aside(_part(rows, 0, late))
            rows = _part(rows, late, None)
        self._hold(_woven(self._held, rows))

    def _hold(self, parts: Sequence[dict[str, Column]]) -> None:
        """Let all but the newest rows of sorted parts go."""
        count = sum(_size(part) for part in parts) - self._held_rows
        held = []
        for part in parts:
            if count > 0 and _size(part):
                self._emit(_part(part, 0, count))
            if count < _size(part):
                held.append(_part(part, max(count, 0), None))
            count -= _size(part)
        self._held = _joined(held) if held else _part(parts[-1], 0, 0)

    def _tally(self, rows: Rows) -> None:
        issue = rows["issue_ns"]
        last = max(int(issue.max()), int(rows["complete_ns"].max()) if "complete_ns" in rows else NEVER) + 1
        first = int(issue.min())
        self.rows += issue.size
        self.begin_ns = first if self.begin_ns is None else min(self.begin_ns, first)
        self.end_ns = last if self.end_ns is None else max(self.end_ns, last)
        done = rows["complete_ns"] != NEVER if "complete_ns" in rows else np.ones(issue.size, bool)
        ops = np.array([operation(word) for word in self.words["rwbs"]])
        for op in self.moved:
            codes = np.flatnonzero(ops == op)
            chosen = (
                np.isin(rows["rwbs"], codes) if codes.size > 1 else rows["rwbs"] == (codes[0] if codes.size else NEVER)
            )
            self.moved[op] += int(rows["bytes"][chosen & done].sum())

    def _emit(self, rows: dict[str, Column]) -> None:
        self._written = int(rows["issue_ns"][-1])
        self._group.append(rows)
        if sum(map(_size, self._group)) >= self._group_rows:
            self._flush()

    def _flush(self) -> None:
        if self._group:
            self._wait()
            self._writing = self._pool.submit(self._write, self._group)
            self._group = []

    def _write(self, group: list[dict[str, Column]]) -> None:
        self._out.write_table(self._table(_joined(group)))

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def _put_aside(self, rows: dict[str, Column]) -> None:
        self.late += _size(rows)
        self._late.append(rows)
        if sum(map(_size, self._late)) >= self._group_rows:
            self._spill()

    def _spill(self) -> None:
        if self._late:
            rows = in_order(_joined(self._late))
            path = self._folder / f"{len(self._runs)}.npy"
            np.save(path, np.stack([rows[name] for name in self._columns]))
            self._runs.append(path)
            self._late = []

    def _finish(self) -> None:
        if _size(self._held):
            self._emit(self._held)
        self._flush()
        self._wait()
        self._out.close()
        self._spill()
        main = self._folder / "sorted.parquet"
        if self._runs:
            whole = self._folder / "merged.parquet"
            with self._writer(whole) as out:
                for table in _merged([_pieces(main), *(self._run(path) for path in self._runs)], self._group_rows):
                    out.write_table(table)
            main = whole
        main.replace(self._path)

    def _writer(self, path: Path) -> pq.ParquetWriter:
        """Times and sectors grow by little: their differences take few bits, and less time than compressing them."""
        numbers = dict.fromkeys(("issue_ns", "complete_ns", "insert_ns", "sector"), "DELTA_BINARY_PACKED")
        return pq.ParquetWriter(
            path,
            self._schema,
            compression="zstd",
            compression_level=1,
            use_dictionary=[name for name in REQUESTS.names if name not in numbers],
            column_encoding=numbers,
            write_statistics=[*numbers, "bytes"],
        )

    def _run(self, path: Path) -> Iterator[pa.Table]:
        rows = np.load(path, mmap_mode="r")
        for begin in range(0, rows.shape[1], _PIECE_ROWS):
            piece = np.array(rows[:, begin : begin + _PIECE_ROWS])
            yield self._table(dict(zip(self._columns, piece, strict=True)))

    def _table(self, rows: Rows) -> pa.Table:
        """Return rows as REQUESTS has them."""
        count = rows["issue_ns"].size
        columns = {}
        for field in REQUESTS:
            if field.name == "op":
                columns["op"] = self._operations(rows["rwbs"])
            elif field.name in _TIMES and field.name in rows:
                times = rows[field.name]
                columns[field.name] = pa.array(times, mask=times == NEVER)
            elif field.name in _WORDS and field.name in rows:
                columns[field.name] = _coded(rows[field.name], self.words[field.name])
            elif field.name == "dev":
                columns["dev"] = _coded(np.zeros(count, np.int32), [UNKNOWN_DEVICE])
            elif field.name in rows:
                columns[field.name] = pa.array(rows[field.name]).cast(field.type)
            else:
                columns[field.name] = pa.nulls(count, field.type)
        return pa.table([columns[name] for name in REQUESTS.names], schema=self._schema)

    def _operations(self, codes: Column) -> pa.DictionaryArray:
        known = np.array([OPERATIONS.index(operation(word)) for word in self.words["rwbs"]], np.int32)
        return _coded(known[codes], OPERATIONS)


def _coded(codes: Column, words: Sequence[str]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(
        pa.array(codes.astype(np.int32, copy=False)), pa.array(list(words), pa.string())
    )


def in_order(rows: dict[str, Column]) -> dict[str, Column]:
    """Return the rows sorted by issue_ns; equal times stay in the order they came."""
    times = rows["issue_ns"]
    if (times[1:] >= times[:-1]).all():
        return rows
    order = np.argsort(times, kind="stable")
    return {name: values[order] for name, values in rows.items()}


def _woven(held: dict[str, Column], rows: dict[str, Column]) -> list[dict[str, Column]]:
    """Return the rows of two sorted parts, the first one older, in sorted parts; only what overlaps is copied."""
    if not (_size(held) and _size(rows)):
        return [held, rows]
    first = int(np.searchsorted(held["issue_ns"], rows["issue_ns"][0], "right"))
    last = int(np.searchsorted(rows["issue_ns"], held["issue_ns"][-1]))
    between = in_order(_joined([_part(held, first, None), _part(rows, 0, last)]))
    return [_part(held, 0, first), between, _part(rows, last, None)]


def _size(rows: Rows) -> int:
    return int(rows["issue_ns"].size)


def _part(rows: Rows, begin: int, end: int | None) -> dict[str, Column]:
    return {name: values[begin:end] for name, values in rows.items()}


def _joined(parts: Sequence[dict[str, Column]]) -> dict[str, Column]:
    return parts[0] if len(parts) == 1 else {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _pieces(path: Path) -> Iterator[pa.Table]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_PIECE_ROWS):
            yield pa.Table.from_batches([batch])


def _merged(sources: Sequence[Iterator[pa.Table]], group_rows: int) -> Iterator[pa.Table]:
    """Yield the rows of sorted sources in order, at least `group_rows` at a time but for the last."""
    waiting: list[pa.Table] = []
    for table in _merged_pieces([_Source(source) for source in sources]):
        waiting.append(table)
        if sum(piece.num_rows for piece in waiting) >= group_rows:
            yield pa.concat_tables(waiting).unify_dictionaries()
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting).unify_dictionaries()


def _merged_pieces(sources: Sequence[_Source]) -> Iterator[pa.Table]:
    active = [source for source in sources if source.rows]
    while active:
        bound = min(source.last for source in active)
        table = pa.concat_tables([piece for source in active for piece in source.up_to(bound)])
        keys = table["issue_ns"].to_numpy()
        yield table.take(pa.array(np.argsort(keys, kind="stable")))
        active = [source for source in active if source.rows]


class _Source:
    """A sorted source, a piece of it in memory."""

    def __init__(self, pieces: Iterator[pa.Table]) -> None:
        self._pieces = pieces
        self._load()

    def _load(self) -> None:
        self._piece = next((piece for piece in self._pieces if piece.num_rows), None)
        self.rows = 0 if self._piece is None else self._piece.num_rows
        if self._piece is not None:
            self._keys = self._piece["issue_ns"].to_numpy()
            self.last = int(self._keys[-1])

    def up_to(self, bound: int) -> Iterator[pa.Table]:
        """Yield, and forget, all rows whose time is at most `bound`."""
        while self._piece is not None and self.last <= bound:
            yield self._piece
            self._load()
        if self._piece is not None:
            count = int(np.searchsorted(self._keys, bound, "right"))
            yield self._piece.slice(0, count)
            self._piece, self._keys = self._piece.slice(count), self._keys[count:]
            self.rows = self._piece.num_rows
