"""The diskstats tracer: the devices' own counters over time, which every user can read, and no single requests.

The trial's sampler reads the counters (`trace.sample_interval_ms`) and the window's edges are exact; so bandwidth over
time is known to the interval, and request sizes, latencies and sectors are not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks.device import Devices
from tasks.lease import Lease
from tasks.spec import Trace
from tasks.tracers import Capture, Window


class Tracer:
    """Leaves the recording to the sampler."""

    def __init__(self, trace: Trace, devices: Devices, lease: Lease, environment: dict[str, str]) -> None:
        """Take note of the interval at which the counters are read."""
        self.facts: dict[str, Any] = {"name": "diskstats", "interval_ms": trace.sample_interval_ms}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Run the body."""
        yield

    def write(self, window: Window, path: Path) -> Capture:
        """Write no file: there are no single requests."""
        return Capture()
