"""What the owner of a node says of it: a file of the node's own, which no sweep can change, or flags of `sweep.node`.

# /etc/offload-sweep/node.yaml
scratch:                       # devices that a trial may format: all that is on them is lost
  - /dev/disk/by-id/nvme-SAMSUNG_MZQL21T9_S64GNE0R
storage:                       # where trials without storage.path work: by filesystem; loop: where images are made
  xfs: /mnt/nvme0
  loop: /mnt/nvme0
drives:                        # drives by a name of the node's own: what is on one drive never works at once
  nvme-a: [/mnt/nvme0, /mnt/nvme1]
gpus: [NVIDIA H100 80GB HBM3]  # models, one for each GPU, instead of what the driver tells; [] offers none
memory: 64GiB                  # what jobs may have of it
without: [tracer:bpftrace]     # what the node has and does not offer
name: gpu1                     # what to call it instead of its host name
cache: /opt/offload-sweep      # where builds and converted weights are kept: not on a drive that trials measure
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from tasks.errors import TaskError
from tasks.spec import ANY_FILESYSTEM
from tasks.units import parse_bytes

#: Environment variable with the flags of `sweep.node`, as JSON: what its Ray's workers know them by.
FLAGS_VARIABLE = "OFFLOAD_SWEEP_NODE_FLAGS"

#: Key of `storage` that names the folder of loop images.
IMAGES = "loop"


class NodeConfigError(TaskError):
    """The node's own configuration cannot be read, or says something that it cannot say."""


@dataclass(frozen=True)
class NodeConfig:
    """The keys of node.yaml, as its example above shows them; None: as detected."""

    scratch: tuple[str, ...] = ()
    storage: Mapping[str, str] = field(default_factory=dict)
    drives: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    gpus: tuple[str, ...] | None = None
    memory: int | None = None
    without: tuple[str, ...] = ()
    name: str | None = None
    cache: str | None = None

    @property
    def folders(self) -> dict[str, str]:
        """The folders for trials without a path, by filesystem."""
        return {name: folder for name, folder in self.storage.items() if name != IMAGES}

    def folder_for(self, fs: str) -> str | None:
        """Return the folder for trials on the filesystem `fs`, the first one for `auto`; None: the state folder.

        A node that names folders uses no other: raises NodeConfigError where none of them is for `fs`.
        """
        if not self.folders:
            return None
        if fs != ANY_FILESYSTEM and fs not in self.folders:
            names = ", ".join(self.folders)
            raise NodeConfigError(f"storage.fs: this node names no folder for {fs}, only for {names}: say storage.path")
        return next(iter(self.folders.values())) if fs == ANY_FILESYSTEM else self.folders[fs]

    @property
    def images(self) -> str | None:
        """The folder where loop images are made; None: the state folder."""
        return self.storage.get(IMAGES)


def node_file() -> Path:
    """Return where this node's configuration lies: `OFFLOAD_SWEEP_NODE`, or else /etc/offload-sweep/node.yaml."""
    return Path(os.environ.get("OFFLOAD_SWEEP_NODE") or "/etc/offload-sweep/node.yaml")


def load() -> NodeConfig:
    """Return this node's configuration, flags over the file; without both it has no keys. Raises NodeConfigError."""
    return checked(source(), {**_of_file(node_file()), **_flags()})


def source() -> str:
    """Return where this node's configuration comes from, for messages."""
    return f"{node_file()} or a flag of sweep.node" if _flags() else str(node_file())


def _flags() -> dict[str, Any]:
    told: dict[str, Any] = json.loads(os.environ.get(FLAGS_VARIABLE) or "{}")
    return told


def _of_file(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as e:
        raise NodeConfigError(f"{file}: cannot be read: {e}") from None
    import yaml  # here, for most nodes have no such file

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise NodeConfigError(f"{file}: is no valid YAML: {' '.join(str(e).split())}") from None
    if value is not None and not isinstance(value, dict):
        raise NodeConfigError(f"{file}: must be a mapping with the keys {', '.join(_CHECKS)}")
    return value or {}


def checked(source: str, value: Mapping[str, Any]) -> NodeConfig:
    """Return the configuration that `value` says; raise NodeConfigError, `source` first, where it cannot be that."""
    for key in value:
        if key not in _CHECKS:
            raise NodeConfigError(f"{source}: {key}: unknown key; valid: {', '.join(_CHECKS)}")
    try:
        return NodeConfig(**{key: _CHECKS[key](told) for key, told in value.items() if told is not None})
    except ValueError as e:
        raise NodeConfigError(f"{source}: {e}") from None


def _texts(key: str, what: str, begin: str = "") -> Callable[[Any], tuple[str, ...]]:
    def check(value: Any) -> tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(v, str) and v and v.startswith(begin) for v in value):
            raise ValueError(f"{key}: must be a list of {what}, not {value!r}")
        return tuple(value)

    return check


def _storage(value: Any) -> dict[str, str]:
    said = "storage: must map filesystems to folders, such as {xfs: /mnt/nvme0}"
    if not isinstance(value, dict) or not all(isinstance(v, str) and v.startswith("/") for v in value.values()):
        raise ValueError(f"{said}, not {value!r}")
    return {str(fs): os.path.realpath(folder) for fs, folder in value.items()}


def _drives(value: Any) -> dict[str, tuple[str, ...]]:
    said = "drives: must map names to lists of folders or devices, such as {nvme-a: [/mnt/nvme0]}"
    if not isinstance(value, dict):
        raise ValueError(f"{said}, not {value!r}")
    for name, paths in value.items():
        if not isinstance(paths, list) or not all(isinstance(p, str) and p.startswith("/") for p in paths):
            raise ValueError(f"{said}, not {name}: {paths!r}")
    return {str(name): tuple(paths) for name, paths in value.items()}


def _name(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", value):
        raise ValueError(f"name: must be letters, digits, '.', '_' and '-', not {value!r}")
    return value


def _folder(value: Any) -> str:
    if not isinstance(value, str) or not value.startswith("/"):
        raise ValueError(f"cache: must be a folder, such as /opt/offload-sweep, not {value!r}")
    return value


def _memory(value: Any) -> int:
    try:
        return parse_bytes(value)
    except ValueError as e:
        raise ValueError(f"memory: {e}") from None


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "scratch": _texts("scratch", "devices, such as [/dev/disk/by-id/nvme-...]", "/dev/"),
    "storage": _storage,
    "drives": _drives,
    "gpus": _texts("gpus", "models, such as [NVIDIA H100 80GB HBM3]"),
    "memory": _memory,
    "without": _texts("without", "capabilities, such as [tracer:bpftrace, gpu]"),
    "name": _name,
    "cache": _folder,
}
assert list(_CHECKS) == [f.name for f in fields(NodeConfig)]
