"""Tracers: what records block requests while an offload job runs.

A tracer is one file here and one line in `TRACERS`; `docs/extending.md` shows how.
"""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tasks.device import Devices
from tasks.lease import Lease
from tasks.spec import Trace

#: Name in `trace.tracer` to the module that holds a class `Tracer`.
TRACERS = {
    "ftrace": "tasks.tracers.ftrace",
    "bpftrace": "tasks.tracers.bpftrace",
    "diskstats": "tasks.tracers.diskstats",
    "none": "tasks.tracers.none",
}

#: Those that record single requests: `auto` takes the one that disturbs least (`tasks.calibration`).
OF_REQUESTS = ("ftrace", "bpftrace")


@dataclass(frozen=True)
class Window:
    """The span a trial is judged over, CLOCK_MONOTONIC nanoseconds."""

    begin_ns: int
    end_ns: int


@dataclass
class Capture:
    """What a tracer recorded in a window. `bytes` is None where it sees no single requests."""

    requests: int | None = None
    bytes: dict[str, int] | None = None
    #: Completed requests with data by operation, as the device counts them: one that completes in parts is one.
    counts: dict[str, int] | None = None
    #: Completions that moved nothing (writes that carried a flush complete twice), None where they are not seen.
    again: int | None = None
    #: Events that did not make it into the trace, by kind; any above zero makes the trial invalid.
    faults: dict[str, int] = field(default_factory=dict)
    #: Bytes moved by the thread that issued the requests, where the tracer knows it.
    by_thread: dict[int, int] = field(default_factory=dict)


class Tracer(Protocol):
    """Records the requests of some devices."""

    #: Facts for `trial.json`: name, version, settings.
    facts: dict[str, Any]

    def recording(self) -> AbstractContextManager[None]:
        """Record while the body runs: live before it begins, alive and flushed when it ends, else TracerError."""
        ...

    def write(self, window: Window, path: Path) -> Capture:
        """Write the window's requests to `path` as `analysis.schema.REQUESTS` and say what is missing from them."""
        ...


def make(trace: Trace, devices: Devices, lease: Lease, environment: dict[str, str]) -> Tracer:
    """Return the tracer that `trace.tracer` names, for `devices`, keeping its raw output in the lease's folder."""
    tracer: Tracer = importlib.import_module(TRACERS[trace.tracer]).Tracer(trace, devices, lease, environment)
    return tracer
