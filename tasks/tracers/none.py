"""No tracer: the device's own counters say how much moved, and nothing is known of single requests."""

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
    """Records nothing and disturbs nothing."""

    def __init__(self, trace: Trace, devices: Devices, lease: Lease, environment: dict[str, str]) -> None:
        """Take the arguments every tracer takes; none is needed."""
        self.facts: dict[str, Any] = {"name": "none"}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Run the body."""
        yield

    def write(self, window: Window, path: Path) -> Capture:
        """Write no file."""
        return Capture()
