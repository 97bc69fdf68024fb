"""A memory limit for a whole job by cgroup v1 or v2, whichever has the memory controller on this machine.

Page cache counts towards the limit, which is what makes a small KV cache reach the drive at all: see memory.rst (v1)
and cgroup-v2.rst (v2) in the kernel's admin guide.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import TaskError
from tasks.lease import Lease
from tasks.mounts import mounts


class LimitError(TaskError):
    """A memory limit cannot be set on this node."""


@dataclass(frozen=True)
class Hierarchy:
    """Where the memory controller is, and how its files are called there."""

    root: Path
    version: int

    @property
    def limit_file(self) -> str:
        """File that holds the limit in bytes."""
        return "memory.max" if self.version == 2 else "memory.limit_in_bytes"

    @property
    def peak_file(self) -> str:
        """File that holds the greatest use so far in bytes."""
        return "memory.peak" if self.version == 2 else "memory.max_usage_in_bytes"

    @property
    def events_file(self) -> str:
        """File with the line `oom_kill N`."""
        return "memory.events" if self.version == 2 else "memory.oom_control"


def find() -> Hierarchy | None:
    """Return the mounted hierarchy that has the memory controller, or None."""
    for mount in mounts():
        root = Path(mount.path)
        if mount.fs == "cgroup" and "memory" in mount.options.split(","):
            return Hierarchy(root, 1)
        if mount.fs == "cgroup2" and "memory" in _words(root / "cgroup.controllers"):
            return Hierarchy(root, 2)
    return None


def obstacle() -> str | None:
    """Return why no memory limit can be set on this machine, or None."""
    if os.geteuid() != 0:
        return "a memory limit needs root: run the sweep as root on this node"
    return None if find() else "no memory cgroup is mounted on this node: a memory limit cannot be set"


@dataclass
class MemoryLimit:
    """A cgroup that a job can be started in, and what it has used."""

    folder: Path
    hierarchy: Hierarchy
    limit_bytes: int

    @property
    def procs(self) -> Path:
        """File that a process writes 0 to in order to enter."""
        return self.folder / "cgroup.procs"

    def use(self) -> dict[str, dict[str, object]]:
        """Return limit, peak use in bytes and number of OOM kills, as metrics of a trial."""
        peak = (self.folder / self.hierarchy.peak_file).read_text().strip()
        return {
            "memory_limit_bytes": {"value": self.limit_bytes, "unit": "B"},
            "memory_peak_bytes": {"value": int(peak), "unit": "B"},
            "oom_kills": {"value": self.oom_kills(), "unit": "1"},
        }

    def oom_kills(self) -> int:
        """Return how many processes the kernel has killed for this limit."""
        lines = (self.folder / self.hierarchy.events_file).read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.split()[0] == "oom_kill")


@contextmanager
def memory_limited(limit_bytes: int, lease: Lease) -> Iterator[MemoryLimit]:
    """Provide a cgroup with this limit, read back; it goes with its processes when the body ends, or after a crash."""
    hierarchy = find()
    if hierarchy is None:
        raise LimitError(f"limits.memory: {obstacle()}")
    folder = hierarchy.root / f"offload-sweep-{lease.token}"
    with lease.hold("cgroup", path=str(folder)):
        try:
            if hierarchy.version == 2 and "memory" not in _words(hierarchy.root / "cgroup.subtree_control"):
                (hierarchy.root / "cgroup.subtree_control").write_text("+memory")
            folder.mkdir()
            (folder / hierarchy.limit_file).write_text(str(limit_bytes))
            got = int((folder / hierarchy.limit_file).read_text())
        except (OSError, ValueError) as e:
            raise LimitError(f"limits.memory: the memory cgroup of this node takes no limit: {e}") from e
        if abs(got - limit_bytes) >= os.sysconf("SC_PAGE_SIZE"):
            raise LimitError(f"limits.memory: the kernel made {got} bytes of {limit_bytes}")
        yield MemoryLimit(folder, hierarchy, got)


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
