"""Where a node keeps what outlives a process: leases of running attempts, images, locks."""

from __future__ import annotations

import os
import tempfile
from functools import cache
from pathlib import Path

from tasks.errors import StorageError

#: How the folders and tracing instances of attempts begin.
FOLDER_PREFIX = "offload-sweep-"


def state_dir() -> Path:
    """Return the node's state folder, made if it is missing.

    `OFFLOAD_SWEEP_STATE` names another one; root uses /var/lib, everybody else the XDG state folder.
    """
    named = os.environ.get("OFFLOAD_SWEEP_STATE")
    if named:
        folder = Path(named)
    elif os.geteuid() == 0:
        folder = Path("/var/lib/offload-sweep")
    else:
        folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "offload-sweep"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        text = f"cannot make the folder {folder} for this node's state: {e.strerror}; OFFLOAD_SWEEP_STATE names another"
        raise StorageError(text) from None
    found = folder.resolve()
    _check_writable(found)
    return found


@cache
def _check_writable(folder: Path) -> None:
    """Raise StorageError where no file can be made; once for a process, for many ask for the folder."""
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as e:
        text = f"cannot write to the folder {folder} of this node's state: {e.strerror}"
        raise StorageError(f"{text}; OFFLOAD_SWEEP_STATE names another") from None


def default_image_dir() -> Path:
    """Return where loop images on a disk are made unless the sweep names a folder."""
    return state_dir()
