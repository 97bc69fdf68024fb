"""What the owner of a node says of it, in a file of the node's own that no sweep can change.

# /etc/offload-sweep/node.yaml
scratch:                       # devices that a trial may format: all that is on them is lost
  - /dev/disk/by-id/nvme-SAMSUNG_MZQL21T9_S64GNE0R
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tasks.errors import TaskError


class NodeConfigError(TaskError):
    """The node's own configuration cannot be read, or says something that it cannot say."""


@dataclass(frozen=True)
class NodeConfig:
    """The keys of node.yaml. `scratch`: paths of the devices that a trial may format."""

    scratch: tuple[str, ...] = ()


def node_file() -> Path:
    """Return where this node's configuration lies: `OFFLOAD_SWEEP_NODE`, or else /etc/offload-sweep/node.yaml."""
    return Path(os.environ.get("OFFLOAD_SWEEP_NODE") or "/etc/offload-sweep/node.yaml")


def load() -> NodeConfig:
    """Return this node's configuration; a missing file is one without keys. Raises NodeConfigError."""
    file = node_file()
    try:
        text = file.read_text()
    except FileNotFoundError:
        return NodeConfig()
    except (OSError, UnicodeDecodeError) as e:
        raise NodeConfigError(f"{file}: cannot be read: {e}") from None
    return _checked(file, _parsed(file, text))


def _parsed(file: Path, text: str) -> Any:
    import yaml  # here, for most nodes have no such file

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise NodeConfigError(f"{file}: is no valid YAML: {' '.join(str(e).split())}") from None


def _checked(file: Path, value: Any) -> NodeConfig:
    known = [f.name for f in fields(NodeConfig)]
    if value is None:
        return NodeConfig()
    if not isinstance(value, dict):
        raise NodeConfigError(f"{file}: must be a mapping with the keys {', '.join(known)}")
    for key in value:
        if key not in known:
            raise NodeConfigError(f"{file}: {key}: unknown key; valid: {', '.join(known)}")
    scratch = value.get("scratch") or []
    if not isinstance(scratch, list) or not all(isinstance(d, str) and d.startswith("/dev/") for d in scratch):
        raise NodeConfigError(
            f"{file}: scratch: must be a list of devices, such as [/dev/disk/by-id/nvme-...], not {scratch!r}"
        )
    return NodeConfig(tuple(scratch))
