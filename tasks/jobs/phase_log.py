"""How an offload job says what it is doing: one JSON line per event, flushed at once.

Stands alone (standard library only), because jobs run under whatever interpreter their engine lives in. Any program
can write the same lines to the path in `OFFLOAD_SWEEP_PHASES`:

    {"event": "begin", "id": 1, "name": "load", "t_ns": 123, "bytes": 4096, "step": null, "attributes": {"api": "aio"}}
    {"event": "end", "id": 1, "t_ns": 456, "attributes": {"resident_pages": "0"}}
    {"event": "metric", "name": "tokens_per_s", "value": 3.5, "unit": "1/s"}
    {"event": "error", "reason": "what went wrong, in words"}
    {"event": "done"}

Times are CLOCK_MONOTONIC nanoseconds; attributes of an end are added to those of its begin. A job that ends without
`done` has failed, whatever its exit code says.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PHASES_VARIABLE = "OFFLOAD_SWEEP_PHASES"


class PhaseLog:
    """Writes the events of one process."""

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        """Write to `path`, or to the one in the environment; without either, nowhere."""
        target = path or os.environ.get(PHASES_VARIABLE) or os.devnull
        self._file = Path(target).open("a", buffering=1)  # noqa: SIM115 - lives as long as the process
        self._next_id = 0

    def _write(self, **event: Any) -> None:
        self._file.write(json.dumps(event) + "\n")

    @contextmanager
    def phase(
        self, name: str, size_bytes: int | None = None, step: int | None = None, /, **attributes: object
    ) -> Iterator[dict[str, object]]:
        """Span the body; what the body puts into the yielded dictionary becomes further attributes."""
        number, self._next_id = self._next_id, self._next_id + 1
        found: dict[str, object] = {}
        begun = {"id": number, "name": name, "bytes": size_bytes, "step": step}
        self._write(event="begin", **begun, attributes=_texts(attributes), t_ns=time.monotonic_ns())
        yield found
        t_ns = time.monotonic_ns()
        self._write(event="end", id=number, t_ns=t_ns, attributes=_texts(found))

    def metric(self, name: str, value: float, unit: str) -> None:
        """Report one number that the engine measured."""
        self._write(event="metric", name=name, value=value, unit=unit)

    def error(self, reason: str) -> None:
        """Say in words why the job cannot go on."""
        self._write(event="error", reason=reason)

    def done(self) -> None:
        """Say that the job did all it was asked to."""
        self._write(event="done")


def _texts(attributes: dict[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in attributes.items()}
