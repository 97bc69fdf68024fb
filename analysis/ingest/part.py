"""What one file tells of a trial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.ingest.skipped import Skipped

#: The clocks that files tell time by. Two of different kinds have nothing in common but that both were running.
BOOT, WALL, DURATIONS = "ns since boot", "wall clock of the machine", "durations only"


@dataclass
class Source:
    """A file to import: its path, and the name it is called by in messages and `trial.json`."""

    path: Path
    name: str


@dataclass
class PhaseRow:
    """A row of `phases.parquet`, its times in ns of the part's clock."""

    name: str
    begin_ns: int
    end_ns: int
    step: int | None = None
    bytes: int | None = None
    attributes: dict[str, str] = field(default_factory=dict)


@dataclass
class SampleRow:
    """A row of `samples.parquet`, its time in ns of the part's clock."""

    t_ns: int
    source: str
    name: str
    value: float
    unit: str


@dataclass
class Part:
    """What one file tells of a trial.

    `clock` is what the times of its phases and samples are told by. `tracer` describes the requests, which the importer
    has written already. `reasons` make the trial invalid, `failures` failed; `notes` stand in the report.
    """

    source: Source
    kind: str
    lines: int = 0
    skipped: Skipped = field(default_factory=Skipped)
    clock: str | None = None
    phases: list[PhaseRow] = field(default_factory=list)
    samples: list[SampleRow] = field(default_factory=list)
    metrics: dict[str, tuple[float, str]] = field(default_factory=dict)
    workload: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, Any] = field(default_factory=dict)
    command: Sequence[str] | None = None
    tracer: dict[str, Any] | None = None
    moved: dict[str, int] | None = None
    reasons: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
