"""What fio reaches on a trial's own storage: measured before the trial, or taken from the node's cache.

An entry of the cache holds for the same node and boot, kernel, drive, filesystem with its options, queue settings, fio
and `ceiling` settings; anything that differs makes another key. Entries expire, for drives age and neighbours come
and go.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tasks import fio, machine
from tasks.device import Device, Devices, boot_id, disk_sequence, drive_model
from tasks.errors import TaskError
from tasks.fio import Load, Result
from tasks.lease import Lease
from tasks.mounts import Mount, mount_of
from tasks.queues import queue_facts
from tasks.spec import Ceiling, ceiling_of
from tasks.state import state_dir
from tasks.storage import Volume
from tasks.units import parse_bytes

#: The measurements of a ceiling, as fio names them.
MEASURED = {
    "sequential_read": "read",
    "sequential_write": "write",
    "random_read": "randread",
    "random_write": "randwrite",
}

#: Every measurement is made this often, in turn with the others: a drive that is not steady shows it by the difference.
_ROUNDS = 2

#: Entries of the cache that nobody made again in this time are of storage that is gone.
_FORGOTTEN_S = 30 * 86400

#: A clock that was set back makes entries from the future; this much is the usual correction.
_CLOCK_STEP_S = 60


def beside(
    config: dict[str, Any], found: Volume, lease: Lease, environment: Mapping[str, str], announce: Callable[[str], None]
) -> dict[str, Any]:
    """Return the section `ceiling` of a trial's record; what goes wrong becomes its reason, never the trial's.

    Leaves the storage as it was: the file is gone, its blocks too, and the device at rest.
    """
    asked = ceiling_of(config)
    if asked.enabled is False:
        return _without("off", "ceiling.enabled is false")
    if (missing := fio.obstacle()) is not None:
        return _without("failed", missing)
    try:
        key = cache_key(config, found)
        entry = state_dir() / "ceilings" / f"{_digest(key)}.json"
        if (known := _cached(entry, key, asked.max_age_hours * 3600)) is not None:
            return {**known, "state": "cached", "trouble": None}
        announce("measuring the ceiling with fio")
        measured = _measured(asked, found, lease.folder / "ceiling", environment)
        with suppress(OSError):  # the next trial measures it again
            _keep(entry, key, measured)
    except (TaskError, OSError, subprocess.SubprocessError) as e:
        return _without("failed", str(e))
    return measured


def _without(state: str, reason: str) -> dict[str, Any]:
    return {"state": state, "reason": reason}


# --- measuring -------------------------------------------------------------------------------------------------------


def _measured(asked: Ceiling, found: Volume, folder: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    block_bytes, slice_s = parse_bytes(asked.block_size), asked.seconds / _ROUNDS
    loads = {name: Load(rw, block_bytes, asked.depth, asked.jobs) for name, rw in MEASURED.items()}
    results: dict[str, list[Result]] = {name: [] for name in MEASURED}
    started = datetime.datetime.now(datetime.UTC)
    with fio.scratch(found, parse_bytes(asked.file_size), loads["sequential_write"], folder, environment) as file:
        for _ in range(_ROUNDS):
            for name, load in loads.items():
                results[name].append(fio.run(load, file, slice_s))
    return {
        "state": "measured",
        "reason": None,
        "measured_at": started.isoformat(timespec="seconds"),
        **{f"{name}_gib_s": Result.mean_gib_s(own) for name, own in results.items()},
        "first_write_gib_s": file.first_write.gib_s,
        "measurements": {name: _told(own) for name, own in results.items()},
        "settings": {
            **_settings(asked),
            "file_bytes": file.size_bytes,
            "rounds": _ROUNDS,
            "engine": fio.engine(),
            "fio": fio.version(),
        },
        "trouble": "; ".join(file.troubles) or None,
    }


def _settings(asked: Ceiling) -> dict[str, Any]:
    """Return what decides how the four are measured, sizes in bytes."""
    return {
        "block_bytes": parse_bytes(asked.block_size),
        "depth": asked.depth,
        "jobs": asked.jobs,
        "seconds": asked.seconds,
        "wanted_file_bytes": parse_bytes(asked.file_size),
    }


def _told(rounds: Sequence[Result]) -> dict[str, Any]:
    """Return one measurement: its rounds' least and greatest bandwidth, requests per second, and latencies in µs."""
    speeds = [r.gib_s for r in rounds]
    return {
        "least_gib_s": min(speeds),
        "greatest_gib_s": max(speeds),
        "iops": sum(r.requests for r in rounds) / sum(r.seconds for r in rounds),
        "p50_us": [r.p50_us for r in rounds],
        "p99_us": [r.p99_us for r in rounds],
    }


# --- the cache -------------------------------------------------------------------------------------------------------


def cache_key(config: Mapping[str, Any], found: Volume) -> dict[str, Any]:
    """Return everything that a ceiling depends on, as JSON values; `found` is mounted, its queue settings in force."""
    facts = machine.facts()
    return {
        "node": {"hostname": facts["hostname"], "boot_id": boot_id(), "kernel": facts["kernel"], "cpus": facts["cpus"]},
        # as asked for: kind, backing, image size, mkfs options and all that storage may learn to set
        "storage": config["storage"],
        "filesystem": {"fs": found.mount.fs, "mount_options": found.mount.options},
        "queue": found.facts["queue"],
        "ground": _ground(found),
        "fio": [fio.version(), fio.engine()],
        "settings": _settings(ceiling_of(dict(config))) | {"rounds": _ROUNDS},
    }


def _ground(found: Volume) -> dict[str, Any]:
    """Return what carries the filesystem: its own devices, or the filesystem and drives that its image lies on."""
    if found.drive_facts()["ram_backed"]:
        return {"drives": "memory"}
    drives = {name: _drive(name) for name in found.drives()}
    if "image" in found.facts:
        return {"drives": drives, "below_image": _mounted(mount_of(found.facts["image"]))}
    return {"drives": drives, "mount": _mounted(found.mount), "devices": found.devices.name}


def _mounted(mount: Mount) -> list[str]:
    return [mount.dev, mount.source, mount.fs, mount.options]


def _drive(name: str) -> dict[str, Any]:
    """Return what tells a drive from another one under the same name, and its own queue settings."""
    about = Path("/sys/block") / name / "device"
    firmware = [p.read_text().strip() for n in ("firmware_rev", "rev", "serial") if (p := about / n).is_file()]
    queue = queue_facts(Devices((Device.of_name(name),)), None)
    return {"model": drive_model(name), "firmware": firmware, "diskseq": disk_sequence(name), "queue": queue}


def _digest(key: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]


def _cached(entry: Path, key: Mapping[str, Any], limit_s: float) -> dict[str, Any] | None:
    """Return the measurement in `entry`, or None where it is absent, broken, of something else, or too old."""
    try:
        value = json.loads(entry.read_text())
        measured, age_s = value["measured"], time.time() - value["measured_s"]
        if value["key"] != json.loads(json.dumps(key)) or not isinstance(measured, dict):
            return None
        speeds = [float(measured[f"{name}_gib_s"]) for name in MEASURED]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return measured if min(speeds) > 0 and -_CLOCK_STEP_S <= age_s < limit_s else None


def _keep(entry: Path, key: Mapping[str, Any], measured: Mapping[str, Any]) -> None:
    """Write an entry, whole or not at all, and remove those that are long past use."""
    entry.parent.mkdir(exist_ok=True)
    temporary = entry.with_name(f".{entry.name}.{os.getpid()}")
    temporary.write_text(json.dumps({"key": key, "measured": measured, "measured_s": time.time()}, indent=1))
    temporary.replace(entry)
    for other in entry.parent.iterdir():
        if time.time() - other.stat().st_mtime > _FORGOTTEN_S:
            other.unlink(missing_ok=True)
