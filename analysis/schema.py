"""The Parquet schemas of a trial, their one home.

Nodes write these files and the head node reads them, so this module needs pyarrow and nothing else.
All times are CLOCK_MONOTONIC nanoseconds of the node that measured; `trial.json` carries the offset to UTC.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import pyarrow as pa

SCHEMA_VERSION = 1

#: The operations a block request can be, in the order figures and tables list them.
OPERATIONS = ("read", "write", "flush", "discard", "other")

_NAME = pa.dictionary(pa.int32(), pa.string())

#: One row per block-layer request, sorted by `issue_ns`. `sector` counts 512-byte units from the start of the
#: traced device; `bytes` is what completed; `error` is the negative errno of the completion, 0 for success.
REQUESTS = pa.schema(
    [
        pa.field("issue_ns", pa.int64()),
        pa.field("complete_ns", pa.int64()),
        pa.field("insert_ns", pa.int64()),
        pa.field("op", _NAME, nullable=False),
        pa.field("rwbs", _NAME, nullable=False),
        pa.field("sector", pa.int64(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("error", pa.int32()),
        pa.field("dev", _NAME, nullable=False),
        pa.field("comm", _NAME),
        pa.field("pid", pa.int32()),
    ]
)

#: Spans of one process. `end_ns` is null where the process died inside the phase; `bytes` is what the phase moved
#: as the process sees it (tensor bytes), null where that is not known.
PHASES = pa.schema(
    [
        pa.field("process", pa.string(), nullable=False),
        pa.field("name", pa.string(), nullable=False),
        pa.field("step", pa.int32()),
        pa.field("attributes", pa.map_(pa.string(), pa.string()), nullable=False),
        pa.field("begin_ns", pa.int64(), nullable=False),
        pa.field("end_ns", pa.int64()),
        pa.field("bytes", pa.int64()),
    ]
)

#: Counters and gauges over time, long format. `source` is the sampler (cpu, memory, device, gpu0, ...).
SAMPLES = pa.schema(
    [
        pa.field("t_ns", pa.int64(), nullable=False),
        pa.field("source", _NAME, nullable=False),
        pa.field("name", _NAME, nullable=False),
        pa.field("value", pa.float64(), nullable=False),
        pa.field("unit", _NAME, nullable=False),
        pa.field("process", _NAME),
    ]
)


#: Which file lies where on the traced devices, as far as anybody looked; sorted by `dev` and `sector`. `role` is what
#: the file holds, by the workload; rows of the filesystem's journal have the role `journal` and no file. `sector` and
#: `sectors` count 512 bytes as in REQUESTS, `logical_bytes` is the offset in the file. The mapping was first seen at
#: `seen_from_ns` and last at `seen_to_ns`: the file got it some time before, and lost it some time after.
EXTENTS = pa.schema(
    [
        pa.field("role", _NAME, nullable=False),
        pa.field("file", _NAME),
        pa.field("dev", _NAME, nullable=False),
        pa.field("sector", pa.int64(), nullable=False),
        pa.field("sectors", pa.int64(), nullable=False),
        pa.field("logical_bytes", pa.int64()),
        pa.field("seen_from_ns", pa.int64(), nullable=False),
        pa.field("seen_to_ns", pa.int64(), nullable=False),
    ]
)


def described(schema: pa.Schema, provenance: Mapping[str, object], recorded: Sequence[str] = ()) -> pa.Schema:
    """Return `schema` with the metadata every file of ours carries.

    `provenance` says where the rows come from (JSON values only). `recorded` names which of `issue`, `completion`
    and `insert` the tracer recorded at all: a null in another column means "not measured", not "did not happen".
    """
    return schema.with_metadata(
        {
            "schema_version": str(SCHEMA_VERSION),
            "provenance": json.dumps(dict(provenance), sort_keys=True),
            "recorded": json.dumps(list(recorded)),
        }
    )


def recorded_events(schema: pa.Schema) -> tuple[str, ...]:
    """Return which of `issue`, `completion` and `insert` the file with this schema recorded."""
    metadata = schema.metadata or {}
    return tuple(json.loads(metadata.get(b"recorded", b"[]")))


def operation(rwbs: str) -> str:
    """Return the operation of a kernel `rwbs` string (include/trace/events/block.h, blk_fill_rwbs).

    A leading `F` is a preflush flag when another operation letter follows it, and a flush by itself otherwise:
    `FWS` is a write, `FF` and `F` are flushes.
    """
    if not rwbs:
        return "other"
    letter = rwbs[1] if rwbs[0] == "F" and len(rwbs) > 1 else rwbs[0]
    return {"R": "read", "W": "write", "F": "flush", "D": "discard"}.get(letter, "other")
