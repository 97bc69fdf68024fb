"""Writes `requests.parquet` for the tracers and counts what goes into it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from analysis import schema
from tasks.device import SECTOR_BYTES, Device, Devices
from tasks.sorting import SortedWriter
from tasks.tracers import Capture

_COUNTED = ("read", "write", "discard")
_OPERATIONS = pa.array(schema.OPERATIONS, pa.string())


class RequestWriter:
    """Takes requests in any order; the file is sorted by issue time."""

    def __init__(self, path: Path, facts: Mapping[str, Any], devices: Devices, recorded: Sequence[str]) -> None:
        """Write the requests of `devices` to `path`; `facts` describe the tracer, `recorded` what it records."""
        provenance = {"tracer": dict(facts), "devices": {d.dev: d.name for d in devices}}
        self._writer = SortedWriter(path, schema.described(schema.REQUESTS, provenance, recorded), "issue_ns")
        self._rows = self._errors = 0
        self._bytes, self._counts = dict.fromkeys(_COUNTED, 0), dict.fromkeys(_COUNTED, 0)
        self._again: int | None = None
        self._by_thread: Counter[int] = Counter()

    def __enter__(self) -> RequestWriter:
        self._writer.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._writer.__exit__(kind, error, tb)

    def write(self, table: pa.Table, device: Device) -> None:
        """Add requests of `device`: issue_ns, complete_ns, insert_ns, rwbs, sector, sectors, error, comm and pid.

        A request whose complete_ns is null is kept, and its bytes count as not moved. insert_ns may be left out, and so
        may issued_sectors, which tells a request that completed in part: its rest is another row.
        """
        rwbs = _coded(table["rwbs"])
        known = pa.array(
            [schema.OPERATIONS.index(schema.operation(v)) for v in rwbs.dictionary.to_pylist()], pa.int32()
        )
        op = known.take(rwbs.indices)
        columns = {name: table[name] for name in table.column_names if name in schema.REQUESTS.names}
        columns |= {
            "rwbs": rwbs,
            "op": pa.DictionaryArray.from_arrays(op, _OPERATIONS),
            "bytes": pc.multiply(table["sectors"], SECTOR_BYTES),
            "dev": pa.DictionaryArray.from_arrays(np.zeros(table.num_rows, np.int32), [device.dev]),
        }
        columns.setdefault("insert_ns", pa.nulls(table.num_rows, pa.int64()))
        rows = pa.table({name: columns[name] for name in schema.REQUESTS.names})
        partial = np.zeros(table.num_rows, bool)
        if "issued_sectors" in table.column_names:
            partial = (table["sectors"].to_numpy() < table["issued_sectors"].to_numpy()).astype(bool)
        self._count(rows, op.to_numpy(), partial)
        self._writer.write(rows)

    def _count(self, rows: pa.Table, op: np.ndarray, partial: np.ndarray) -> None:
        self._rows += rows.num_rows
        done = rows["complete_ns"].is_valid().to_numpy()
        moved = rows["bytes"].to_numpy()
        failed = pc.fill_null(rows["error"], 0).to_numpy() != 0
        for name in _COUNTED:
            chosen = done & (op == schema.OPERATIONS.index(name))
            self._bytes[name] += int(moved[chosen].sum())
            self._counts[name] += int(np.count_nonzero(chosen & (moved > 0) & ~partial))
            self._errors += int(np.count_nonzero(failed & chosen))
        threads, place = np.unique(pc.fill_null(rows["pid"], 0).to_numpy(), return_inverse=True)
        sums = np.zeros(threads.size, np.int64)
        np.add.at(sums, place, np.where(done, moved, 0))
        self._by_thread.update(dict(zip(threads.tolist(), sums.tolist(), strict=True)))

    def count_again(self, count: int) -> None:
        """Take note of completions that moved nothing, some of which the device counts as writes."""
        self._again = (self._again or 0) + count

    def capture(self, faults: Mapping[str, int]) -> Capture:
        """Return what was written, with the tracer's `faults` and the requests that failed on the device."""
        faults = {**faults, "errors": self._errors}
        return Capture(self._rows, dict(self._bytes), dict(self._counts), self._again, faults, dict(self._by_thread))


def _coded(column: pa.ChunkedArray) -> pa.DictionaryArray:
    whole = column.combine_chunks()
    return whole if pa.types.is_dictionary(whole.type) else whole.dictionary_encode()
