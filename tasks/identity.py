"""The node's half of a fingerprint: what of this machine shapes a trial's result and stays from trial to trial.

Computed from the trial's configuration alone, before anything is made or changed, so that a later sweep can ask the
same node for the same facts without running anything. What varies from run to run (free bytes, loop numbers, load,
temperatures) is not in it, and no drive's serial number: another node with the same parts is the same.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks import interpreter, lease, machine, provenance, workloads
from tasks.device import Device, Devices, leaf_drives, request_devices
from tasks.errors import StorageError
from tasks.mounts import device_numbers, mount_of, read_ahead_folder
from tasks.queues import queue_facts, queue_folder
from tasks.spec import ANY_FILESYSTEM, Storage, StorageKind, storage_of, trace_of
from tasks.storage import base_dir

#: Where relative paths of a job's arguments begin: its supervisor's working directory.
ROOT = Path(__file__).resolve().parent.parent

#: A larger file is told by its size, its beginning and its end.
_WHOLE_FILE_BYTES, _PART_BYTES = 64 << 20, 4 << 20

#: What a drive tells of itself that another one of its kind would tell too.
_OF_DRIVES = ("model", "firmware", "transport", "rotational", "size_bytes", "physical_block_bytes", "numa_node")

#: Of PCIe links, what does not follow the load.
_OF_LINKS = ("max_link_speed", "max_link_width")

#: Stands for the content of a file that the job writes.
WRITTEN = "written by the job"

#: Mount options that name folders of a container, new each time that it starts.
_OF_CONTAINERS = ("lowerdir=", "upperdir=", "workdir=")


@dataclass(frozen=True)
class Question:
    """What of a trial's configuration its node's identity depends on; many trials share one."""

    python: str | None
    packages: tuple[str, ...]
    files: tuple[str, ...]
    tools: tuple[str, ...]
    kind: StorageKind
    place: str | None
    fs: str | None
    in_memory: bool
    own_settings: tuple[str, ...]


def question(config: Mapping[str, Any]) -> Question:
    """Return what a node must be asked for the trials with this configuration."""
    storage, workload = storage_of(dict(config)), workloads.of_config(config)
    in_memory = storage.kind is StorageKind.loop and storage.backing.name == "tmpfs"
    return Question(
        workload.python(),
        tuple(workload.packages()),
        tuple(workload.files()),
        tuple(_tools(config, storage)),
        storage.kind,
        storage.device if storage.kind is StorageKind.device else storage.path,
        storage.fs if storage.kind is StorageKind.directory else None,
        in_memory,
        () if storage.kind is StorageKind.loop else _own_settings(storage),
    )


def _tools(config: Mapping[str, Any], storage: Storage) -> list[str]:
    trace = trace_of(dict(config))
    found = [] if storage.kind is StorageKind.directory else [f"mkfs.{storage.fs}"]
    if config["ceiling"]["enabled"] is not False or trace.measure_cost:
        found.append("fio")
    if trace.tracer in ("auto", "bpftrace") or trace.stacks:
        found.append("bpftrace")
    return found


def _own_settings(storage: Storage) -> tuple[str, ...]:
    """Return the queue settings that the trial makes itself; another scheduler brings its own nr_requests."""
    own = [name for name, value in vars(storage.queue).items() if value is not None]
    return (*own, "nr_requests") if "scheduler" in own else tuple(own)


def identity(asked: Question) -> dict[str, Any]:
    """Return this node's half of a fingerprint, as JSON values; raises InterpreterError where it cannot be told."""
    facts = machine.facts()
    return {
        **{name: facts[name] for name in ("kernel", "cpu", "cpus", "gpus")},
        "memory_gib": round(facts["memory_bytes"] / (1 << 30)),
        "settings": provenance.settings(),
        "python": facts["python"] if asked.python is None else None,
        "packages": interpreter.versions(asked.python, asked.packages),
        "files": _contents(asked.files),
        "tools": {name: provenance.tool_version(name) or "not installed" for name in asked.tools},
        "storage": {"drive": "memory"} if asked.in_memory else _storage(asked),
    }


# --- storage ---------------------------------------------------------------------------------------------------------


def _storage(asked: Question) -> dict[str, Any]:
    """Return the filesystem that the trial begins from, the drives beneath and their queues.

    Where there is none the trial itself says so; here nothing is known then.
    """
    try:
        if asked.kind is StorageKind.device:
            return _ground((Device.of_node(str(asked.place)).dev,), None, asked)
        base = base_dir(Storage(kind=asked.kind, path=asked.place, fs=asked.fs or ANY_FILESYSTEM))
        mount = mount_of(base)
        options = [o for o in mount.options.split(",") if not o.startswith(_OF_CONTAINERS)]
        told = {"fs": mount.fs, "mount_options": ",".join(options)}
        return told | _ground(device_numbers(base), read_ahead_folder(base), asked)
    except (OSError, StorageError) as e:
        return {"unknown": str(e)}


def _ground(numbers: Sequence[str], read_ahead: Path | None, asked: Question) -> dict[str, Any]:
    known = [number for number in numbers if (Path("/sys/dev/block") / number).exists()]
    traced, drives = request_devices(*known), leaf_drives(*known)
    before = lease.settings_to_give_back()
    return {
        "queue": _queue(traced, read_ahead, before, asked.own_settings),
        "drives": [_drive(name, {d.name for d in traced}, before) for name in drives],
    }


def _queue(
    devices: Devices, read_ahead: Path | None, before: Mapping[str, Mapping[str, str]], own: Sequence[str] = ()
) -> dict[str, str]:
    """Return the queue settings in force while no trial holds others, those aside that the trial makes itself."""
    found = queue_facts(devices, read_ahead)
    for folder in [*(queue_folder(d.name) for d in devices), *([read_ahead] if read_ahead else [])]:
        found |= before.get(str(folder), {})
    return {name: value for name, value in found.items() if name not in own}


def _drive(name: str, traced: set[str], before: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    told = provenance.drive(name)
    link = told["pcie"] if isinstance(told["pcie"], dict) else {}
    found = {key: told[key] for key in _OF_DRIVES} | {key: link[key] for key in _OF_LINKS if key in link}
    if name not in traced:
        found["queue"] = _queue(Devices((Device.of_name(name),)), None, before)
    return found


# --- files -----------------------------------------------------------------------------------------------------------


def mark_written(told: dict[str, Any], asked: Question) -> None:
    """Mark in an identity the files that the job, which has run meanwhile, wrote itself: no later one is the same."""
    now = _contents(asked.files)
    told["files"] |= {name: WRITTEN for name, content in now.items() if told["files"].get(name) != content}


def _contents(words: Sequence[str]) -> dict[str, str]:
    """Return a short hash of every file that these words name: a program first, then paths and `--option=path`."""
    found = {}
    for place, word in enumerate(words):
        for text in (word, word.partition("=")[2]):
            if (path := _file(text, on_path=place == 0)) is not None:
                found[text] = _content(path)
    return found


def _file(text: str, on_path: bool) -> Path | None:
    if not text or "\0" in text or text.startswith(("/proc/", "/sys/", "/dev/")):
        return None
    if on_path and "/" not in text:
        text = shutil.which(text) or text
    path = ROOT / text
    try:
        return path if path.is_file() else None
    except OSError:  # a name longer than any file's
        return None


def _content(path: Path) -> str:
    try:
        with path.open("rb") as f:
            size = os.fstat(f.fileno()).st_size
            if size <= _WHOLE_FILE_BYTES:
                return hashlib.file_digest(f, "sha256").hexdigest()[:16]
            parts = f.read(_PART_BYTES)
            f.seek(-_PART_BYTES, os.SEEK_END)
            return f"{hashlib.sha256(parts + f.read()).hexdigest()[:16]} of {size} bytes"
    except OSError as e:
        return f"cannot be read: {e.strerror}"
