"""What this machine is and has: facts for the record, and the offer that trials are placed by.

Looks at files and PATH only, so that a dry run is quick and needs no root.
"""

from __future__ import annotations

import difflib
import getpass
import glob
import importlib.util
import os
import platform
import shutil
import socket
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from tasks import async_io, cgroup, fio, kept, node_config, scratch
from tasks.device import Device, leaf_drives
from tasks.discard import can_discard
from tasks.errors import StorageError
from tasks.mounts import device_numbers, mount_of, mounts
from tasks.node_config import NodeConfig, NodeConfigError
from tasks.scratch import Scratch
from tasks.spec import FILESYSTEMS
from tasks.state import FOLDER_PREFIX, state_dir
from tasks.storage import TMPFS_DIR
from tasks.tracers import OF_REQUESTS

_APT = {"ext4": "e2fsprogs", "xfs": "xfsprogs", "btrfs": "btrfs-progs"}


#: Filesystems that show the kernel's own things, not files.
_NO_FILES = frozenset(
    [
        "proc",
        "sysfs",
        "devtmpfs",
        "devpts",
        "cgroup",
        "cgroup2",
        "tracefs",
        "debugfs",
        "securityfs",
        "configfs",
        "pstore",
        "bpf",
        "mqueue",
        "hugetlbfs",
        "autofs",
        "binfmt_misc",
        "efivarfs",
        "fusectl",
        "nsfs",
        "rpc_pipefs",
    ]
)


#: How the obstacle begins that is not being root.
NEEDS_ROOT = "needs root"


@dataclass(frozen=True)
class Place:
    """A folder where offload files could lie, and what is beneath it."""

    path: str
    fs: str
    drives: tuple[str, ...]
    free_bytes: int
    ram_backed: bool
    options: str = ""
    discards: bool = False
    kept_bytes: int = 0


@dataclass
class Offer:
    """What a node has. `capabilities` are names such as `fs:xfs`; `missing` says why another one is not among them.

    `storage` holds the node's folders for trials without a path, by filesystem and `loop`; `memory_bytes` is what jobs
    may have, None where nobody knows.
    """

    hostname: str
    facts: dict[str, Any]
    places: list[Place]
    state_dir: str
    capabilities: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    scratch: list[Scratch] = field(default_factory=list)
    storage: dict[str, str] = field(default_factory=dict)
    memory_bytes: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, the inverse of `Offer.from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Offer:
        """Return the offer that `to_json` described."""
        places = [Place(**{**p, "drives": tuple(p["drives"])}) for p in value["places"]]
        scratch = [Scratch(**{**s, "names": tuple(s["names"]), "drives": tuple(s["drives"])}) for s in value["scratch"]]
        return cls(**{**value, "places": places, "scratch": scratch})

    def place_of(self, path: str) -> Place | None:
        """Return the place that `path` lies in: the one with the longest matching folder."""
        holding = [p for p in self.places if path == p.path or path.startswith(p.path.rstrip("/") + "/")]
        return max(holding, key=lambda p: len(p.path), default=None)

    def folder_for(self, fs: str) -> str:
        """Return where a trial without a path works on an existing filesystem; raises NodeConfigError: nowhere."""
        return NodeConfig(storage=self.storage).folder_for(fs) or self.state_dir

    @property
    def image_dir(self) -> str:
        """Where loop images on a disk are made for a trial without a path."""
        return NodeConfig(storage=self.storage).images or self.state_dir


@cache
def facts() -> dict[str, Any]:
    """Return what a reader of a result needs to know of the machine; `unknown` where it cannot be read.

    Raises NodeConfigError.
    """
    memory_kib = next(line.split()[1] for line in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line)
    return {
        "hostname": node_config.load().name or socket.gethostname(),
        "user": user_name(),
        "kernel": platform.release(),
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "memory_bytes": int(memory_kib) * 1024,
        "gpus": gpus(),
        "python": platform.python_version(),
    }


def user_name() -> str:
    """Return the name of this process's user, or the number of one that has no name, as in many containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine() or "unknown"


@cache
def gpus() -> list[str]:
    """Return the models of the machine's NVIDIA GPUs, as their kernel driver lists them."""
    found = []
    for path in sorted(glob.glob("/proc/driver/nvidia/gpus/*/information")):
        model = [line.partition(":")[2].strip() for line in Path(path).read_text().splitlines() if "Model" in line]
        found += model or ["unknown"]
    return found or ["unknown"] * len(glob.glob("/dev/nvidia[0-9]*"))


def offer() -> Offer:
    """Return what this machine has, as its owner says and else as detected, and why the rest is missing.

    Raises NodeConfigError.
    """
    said = node_config.load()
    known = facts() | ({} if said.gpus is None else {"gpus": list(said.gpus)})
    found = Offer(known["hostname"], known, _places(), str(state_dir()), storage=dict(said.storage))
    found.memory_bytes = said.memory or known["memory_bytes"]
    checks = _obstacles(known["gpus"])
    _check_names(said.without, checks)
    for name, obstacle in checks.items():
        if name in said.without:
            found.missing[name] = f"this node is told not to offer it ({node_config.source()}: without)"
        elif obstacle is None:
            found.capabilities.append(name)
        else:
            found.missing[name] = obstacle
    if "scratch" in found.capabilities:
        found.scratch = scratch.offered()
    _name_drives(found, said)
    return found


def _check_names(without: Sequence[str], known: Collection[str]) -> None:
    for name in without:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1) or [one for one in known if one.startswith(name)]
            hint = f"did you mean {near[0]}? " if near else ""
            text = f"{node_config.source()}: without: {name} is nothing that a node offers"
            raise NodeConfigError(f"{text}; {hint}valid: {', '.join(known)}")


def _name_drives(found: Offer, said: NodeConfig) -> None:
    """Call drives as the node's owner does; raise NodeConfigError where there is none under a path."""
    names: dict[str, str] = {}
    for name, paths in said.drives.items():
        for path in paths or tuple(said.storage.values()) or (found.state_dir,):
            names |= dict.fromkeys(_drives_under(name, path), name)

    def named(drives: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted({names.get(drive, drive) for drive in drives}))

    found.places = [replace(place, drives=named(place.drives)) for place in found.places]
    found.scratch = [replace(device, drives=named(device.drives)) for device in found.scratch]


def _drives_under(name: str, path: str) -> tuple[str, ...]:
    where = f"{node_config.source()}: drives: {name}: {path}"
    if path.startswith("/dev/") and not os.path.isdir(path):
        try:
            return leaf_drives(Device.of_node(path).dev)
        except (OSError, StorageError):
            raise NodeConfigError(f"{where} is no block device of this node") from None
    if not os.path.isdir(path):
        raise NodeConfigError(f"{where} is no folder of this node")
    drives = leaf_drives(*device_numbers(path))
    if not drives:
        raise NodeConfigError(f"{where} is {mount_of(path).fs}: no drive lies under it that could have a name")
    return drives


def tracers_of_requests() -> list[str]:
    """Return the tracers of single requests that this machine can run, best known first."""
    checks = _tracer_obstacles(_root_obstacle())
    return [name for name in OF_REQUESTS if checks[f"tracer:{name}"] is None]


def _root_obstacle() -> str | None:
    return None if os.geteuid() == 0 else f"{NEEDS_ROOT}: run the sweep as root on this node"


def _tracer_obstacles(root: str | None) -> dict[str, str | None]:
    return {
        "tracer:none": None,
        "tracer:diskstats": None,
        "tracer:ftrace": root or _tracefs_obstacle(),
        "tracer:bpftrace": root or _program_obstacle("bpftrace", "bpftrace"),
    }


def _places() -> list[Place]:
    """Return every mounted filesystem that could hold files, those without a drive below them too."""
    found = {}
    among, left = mounts(), kept.room()
    for path in dict.fromkeys(m.path for m in among):
        mount = mount_of(path, among)
        if mount.fs in _NO_FILES or f"/{FOLDER_PREFIX}" in path:
            continue  # the kernel's own, or a running trial's
        try:
            numbers, free_bytes = device_numbers(path), shutil.disk_usage(path).free
            in_memory, discards = mount.fs == "tmpfs", can_discard(*numbers)
            facts = (leaf_drives(*numbers), free_bytes, in_memory, mount.options, discards, left[path])
            found[path] = Place(path, mount.fs, *facts)
        except OSError:
            continue  # not ours to look into, such as another user's FUSE mount
    return list(found.values())


def _obstacles(gpu_models: list[str]) -> dict[str, str | None]:
    """Return for every capability what stands in its way on this machine, or None."""
    root = _root_obstacle()
    checks: dict[str, str | None] = {
        "root": root,
        "loop": root or _loop_obstacle(),
        **_tracer_obstacles(root),
        "gpu": None if gpu_models else "no NVIDIA GPU on this node",
        **{f"engine:{name}": _package_obstacle(name) for name in ("torch", "deepspeed", "flexgen")},
        "engine:async_io": None
        if async_io.is_built()
        else "DeepSpeed's async_io is not built on this node: run python -m tasks.async_io build",
        "engine:gds": async_io.gds_obstacle(),
        "memory_limit": cgroup.obstacle(),
        "scratch": scratch.listing_obstacle(),
        "tool:fio": fio.obstacle(),
        "tmpfs": None if TMPFS_DIR.is_dir() else f"{TMPFS_DIR} does not exist",
    }
    for fs in FILESYSTEMS:
        checks[f"fs:{fs}"] = _filesystem_obstacle(fs)
    return checks


def _program_obstacle(program: str, package: str) -> str | None:
    return None if shutil.which(program) else f"{program} is not installed: apt-get install {package}"


def _package_obstacle(package: str) -> str | None:
    found = importlib.util.find_spec(package)
    return None if found else f"{package} is not installed (make setup), or workload.python must say where it is"


def _loop_obstacle() -> str | None:
    if not os.path.exists("/dev/loop-control"):
        return "the kernel has no loop devices: modprobe loop"
    return _program_obstacle("losetup", "util-linux")


def _tracefs_obstacle() -> str | None:
    known = any(line.split()[-1] == "tracefs" for line in Path("/proc/filesystems").read_text().splitlines())
    return None if known else "the kernel of this node has no tracefs"


def _filesystem_obstacle(fs: str) -> str | None:
    known = {line.split()[-1] for line in Path("/proc/filesystems").read_text().splitlines()}
    module = glob.glob(f"/lib/modules/{platform.release()}/kernel/fs/{fs}/*")
    if fs not in known and not module:
        return f"the kernel of this node has no {fs}"
    return _program_obstacle(f"mkfs.{fs}", _APT[fs])
