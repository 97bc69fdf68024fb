"""The kernel's tracing filesystem."""

from __future__ import annotations

from pathlib import Path

from tasks.errors import TracerError
from tasks.process import tool

TRACEFS = Path("/sys/kernel/tracing")


def ensure_mounted() -> None:
    """Mount tracefs where the machine's boot did not; like the boot, leave it there."""
    if not (TRACEFS / "events").exists():
        tool(["mount", "-t", "tracefs", "tracefs", str(TRACEFS)], TracerError)
