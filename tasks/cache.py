"""What a node keeps because it takes long to make: builds of operators, weights in an engine's own form.

All of it may be deleted. Ceilings and the choice of a tracer are small, and lie with the node's state (`tasks.state`).
"""

from __future__ import annotations

import os
from pathlib import Path

from tasks import node_config


def cache_dir(name: str) -> Path:
    """Return the folder `name` of the node's cache; it need not exist.

    `OFFLOAD_SWEEP_CACHE` says where the cache is, or `cache` in node.yaml, or else it is in the user's cache folder.
    Raises NodeConfigError.
    """
    named = os.environ.get("OFFLOAD_SWEEP_CACHE") or node_config.load().cache
    base = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "offload-sweep"
    return base.resolve() / name
