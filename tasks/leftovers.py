"""What lies about on this machine under our names and belongs to no attempt that this state folder knows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tasks import cgroup, kept, lease, node_config
from tasks.state import FOLDER_PREFIX, state_dir

_TRACING = Path("/sys/kernel/tracing/instances")

#: Where loop images in memory lie (`tasks.storage.TMPFS_DIR`).
_MEMORY = Path("/dev/shm")


def found() -> list[str]:
    """Return the paths of images, folders, tracing instances and cgroups that no attempt accounts for.

    They are of a sweep with another state folder, which may well be running, or of an attempt whose lease was lost.
    What `--keep` left is not among them.
    """
    attempts = (state_dir() / "attempts").glob("*")
    known = tuple(folder.name for folder in attempts if lease.Lease.load(folder) is not None)
    return [str(path) for path in _ours() if not path.name.removeprefix(FOLDER_PREFIX).startswith(known or ("\0",))]


def troubles() -> list[str]:
    """Return in words what of this state folder cannot be read, and so is not known."""
    return kept.unreadable()


def _ours() -> Iterator[Path]:
    hierarchy = cgroup.find()
    own = [Path(folder) for folder in node_config.load().storage.values()]
    for folder in dict.fromkeys([state_dir(), *own, _MEMORY, _TRACING, *([hierarchy.root] if hierarchy else [])]):
        for path in sorted(folder.glob(f"{FOLDER_PREFIX}*")):
            if not path.name.startswith(kept.KEPT_PREFIX):
                yield path
