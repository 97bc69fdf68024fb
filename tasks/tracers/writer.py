"""Writes `requests.parquet` for the tracers and counts what goes into it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from analysis import schema
from tasks.device import SECTOR_BYTES, Device, Devices
from tasks.sorting import SortedWriter
from tasks.tracers import Capture

_COUNTED = ("read", "write", "discard")


class RequestWriter:
    """Takes requests in any order; the file is sorted by issue time."""

    def __init__(self, path: Path, facts: Mapping[str, Any], devices: Devices) -> None:
        """Write the requests of `devices` to `path`; `facts` describe the tracer."""
        provenance = {"tracer": dict(facts), "devices": {d.dev: d.name for d in devices}}
        described = schema.described(schema.REQUESTS, provenance, ["issue", "completion"])
        self._writer = SortedWriter(path, described, "issue_ns")
        self._rows = self._errors = 0
        self._bytes = dict.fromkeys(_COUNTED, 0)

    def __enter__(self) -> RequestWriter:
        self._writer.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._writer.__exit__(kind, error, tb)

    def write(self, table: pa.Table, device: Device) -> None:
        """Add requests of `device` with the columns issue_ns, complete_ns, rwbs, sector, sectors, error, comm and pid.

        A request whose complete_ns is null is kept, and its bytes count as not moved.
        """
        n = table.num_rows
        rwbs = table["rwbs"].combine_chunks().dictionary_encode()
        op = pa.array([schema.operation(v) for v in rwbs.dictionary.to_pylist()], pa.string()).take(rwbs.indices)
        columns = {name: table[name] for name in table.column_names if name in schema.REQUESTS.names}
        columns |= {
            "op": op,
            "bytes": pc.multiply(table["sectors"], SECTOR_BYTES),
            "insert_ns": pa.nulls(n, pa.int64()),
            "dev": pa.repeat(device.dev, n),
        }
        rows = pa.table({name: columns[name] for name in schema.REQUESTS.names})
        self._count(rows)
        self._writer.write(rows)

    def _count(self, rows: pa.Table) -> None:
        self._rows += rows.num_rows
        done = rows.filter(pc.and_(pc.is_valid(rows["complete_ns"]), pc.is_in(rows["op"], pa.array(_COUNTED))))
        self._errors += pc.sum(pc.not_equal(done["error"], 0)).as_py() or 0
        moved = done.group_by("op").aggregate([("bytes", "sum")])
        for op, total in zip(moved["op"].to_pylist(), moved["bytes_sum"].to_pylist(), strict=True):
            self._bytes[op] += total

    def capture(self, faults: Mapping[str, int]) -> Capture:
        """Return what was written, with the tracer's `faults` and the requests that failed on the device."""
        return Capture(self._rows, dict(self._bytes), {**faults, "errors": self._errors})
