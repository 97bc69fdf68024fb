"""Workloads: the kinds of job a trial executes.

A workload is one file here (what its configuration is, what it needs, what it should cause on the device), usually
one script in `tasks/jobs/`, and one line in `WORKLOADS`; `docs/extending.md` shows how. Nothing here imports an engine.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

#: Name in `workload.kind` to the module that holds a class `Workload`.
WORKLOADS = {
    "tensor_io": "tasks.workloads.tensor_io",
    "deepspeed_model": "tasks.workloads.deepspeed_model",
    "flexgen": "tasks.workloads.flexgen",
    "command": "tasks.workloads.command",
}

#: What offload files hold, in the words that figures and tables know.
ROLES = ("weights", "kv", "activations", "tensor", "file")


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a workload's configuration: the key within `workload`, and what to do about it."""

    key: str
    text: str


@dataclass
class Job:
    """A child process to start: an argument list, and what it needs in its environment."""

    process: str
    argv: list[str]
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Span:
    """One phase as the job reported it; `end_ns` is None where the job died inside it."""

    process: str
    name: str
    begin_ns: int
    end_ns: int | None
    size_bytes: int | None = None
    step: int | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)


class Workload(Protocol):
    """One kind of job, with its checked configuration."""

    #: The dataclass that the keys beside `workload.kind` are checked against.
    Config: ClassVar[type]

    #: Whether the job says that it is done; one that does not has failed even with exit code 0.
    says_done: ClassVar[bool]

    #: What repeats and searches look at where a sweep names no metric (`analysis.measures`).
    metric: ClassVar[str]

    def __init__(self, config: Any) -> None: ...

    @property
    def figures(self) -> Sequence[str]:
        """Figures worth drawing of such trials."""
        ...

    def problems(self) -> list[Problem]:
        """Return what is wrong with the configuration beyond its types."""
        ...

    def needs(self) -> dict[str, str]:
        """Return the capabilities a node must have, each with the configuration key that asks for it."""
        ...

    def wants_gpu(self) -> bool:
        """Say whether the job uses a GPU where the node has one, and runs without it elsewhere."""
        ...

    def space_bytes(self) -> int:
        """Return the room the offload directory must have."""
        ...

    def job(self, folder: Path, offload_dir: Path, seed: int) -> Job:
        """Return the child process; files it needs may be written to `folder`."""
        ...

    def role(self, path: str) -> str:
        """Return what a file holds (`weights`, `kv`, `tensor`, ...) by its path within the offload directory.

        One of ROLES where it fits; a word of the workload's own otherwise.
        """
        ...

    def expected(self, spans: Sequence[Span]) -> dict[str, int] | None:
        """Return the bytes the finished phases should have moved on the device, or None where nobody can say."""
        ...

    def shares(self) -> Mapping[str, float]:
        """Return, by operation, the share of the expected bytes that the device must have seen.

        1 where nothing stands between the job and the device; less where the page cache may answer some of it.
        """
        ...

    def doubts(self, spans: Sequence[Span]) -> list[str]:
        """Return reasons, in words, why the measured phases cannot be used."""
        ...

    def python(self) -> str | None:
        """Return the interpreter of an environment of the job's own, or None for ours."""
        ...

    def packages(self) -> Sequence[str]:
        """Return the distributions that interpreter must have, and whose versions belong to the result."""
        ...

    def files(self) -> Sequence[str]:
        """Return the program, then the paths, of files that are not ours and whose content belongs to the result."""
        ...


def load(kind: str) -> type[Workload]:
    """Return the workload class named `kind`; KeyError where there is none."""
    found: type[Workload] = importlib.import_module(WORKLOADS[kind]).Workload
    return found


def of_config(config: Mapping[str, Any]) -> Workload:
    """Return the workload of a trial's resolved configuration."""
    section = dict(config["workload"])
    cls = load(section.pop("kind"))
    return cls(cls.Config(**section))
