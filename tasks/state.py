"""Where a node keeps what outlives a process: leases of running attempts, images, locks."""

from __future__ import annotations

import os
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
    return folder.resolve()


def default_image_dir() -> Path:
    """Return where loop images on a disk are made unless the sweep names a folder."""
    return state_dir()
