"""What `trace.tracer: auto` means on this node: the tracer of single requests that disturbs least.

Found out once, by a short fio job on a filesystem in memory, where a tracer's work per request weighs most: untraced
and under each tracer in turn. Kept in the node's state folder until the kernel, bpftrace, fio or `_VERSION` changes.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tasks import cost, fio
from tasks.errors import TaskError, TracerError
from tasks.fio import Load
from tasks.lease import Lease
from tasks.process import tool
from tasks.spec import Backing, Storage, Trace
from tasks.state import state_dir
from tasks.storage import volume
from tasks.units import MIB

_LOAD = Load("randread", 4096, 32)
_STORAGE = Storage(fs="ext4", backing=Backing.tmpfs, image_size=256 * MIB)
_FILE_BYTES = 64 * MIB
_SECONDS = 1.0
_ROUNDS = 3

#: Changes when what is measured, or how it is judged, does.
_VERSION = 1


def chosen(
    available: list[str], lease: Lease, environment: Mapping[str, str], announce: Callable[[str], None]
) -> tuple[str, dict[str, Any]]:
    """Return the tracer for `auto` among those `available` (of `tracers.OF_REQUESTS`), and why, for the record.

    Where nothing can be measured it is the first of them, and the reason says so.
    """
    if not available:
        return "diskstats", {"why": "this node can run no tracer of single requests"}
    if len(available) == 1:
        return available[0], {"why": "this node can run no other tracer of single requests"}
    try:
        key = _key(available)
        found = _kept(key)
        if found is None:
            announce("finding out which tracer disturbs least (once for this kernel)")
            found = _measured(available, lease, dict(environment)) | {"key": key}
            _keep(found)
    except (TaskError, OSError, subprocess.SubprocessError) as e:
        return available[0], {"why": f"not calibrated: {e}"}
    return _best(found["tracers"]), {"why": _in_words(found["tracers"]), "calibration": found}


def _key(available: list[str]) -> dict[str, Any]:
    """Return everything that a calibration depends on."""
    return {
        "version": _VERSION,
        "kernel": f"{platform.release()} {platform.version()}",
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "fio": fio.version(),
        "tracers": {name: _version(name) for name in available},
    }


def _version(tracer: str) -> str:
    """Return what changes with a tracer that the kernel does not bring."""
    return tool(["bpftrace", "--version"], TracerError).strip() if tracer == "bpftrace" else "of the kernel"


def _file() -> Path:
    return state_dir() / "calibration.json"


def _kept(key: Mapping[str, Any]) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(_file().read_text())
        return found if found["key"] == key and found["tracers"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(found: Mapping[str, Any]) -> None:
    temporary = _file().with_name(f"calibration.{os.getpid()}.new")
    temporary.write_text(json.dumps(found, indent=1))
    temporary.replace(_file())


def _measured(available: list[str], lease: Lease, environment: dict[str, str]) -> dict[str, Any]:
    """Return, by tracer, its IOPS as a share of the untraced run of the same round, and what it missed."""
    ratios: dict[str, list[float]] = {name: [] for name in available}
    missed = dict.fromkeys(available, 0)
    corner = lease.corner("calibration")
    with (
        volume(_STORAGE, corner) as found,
        fio.scratch(found, _FILE_BYTES, _LOAD, corner.folder / "fio", environment) as file,
    ):
        for turn in range(_ROUNDS):
            untraced = fio.run(_LOAD, file, _SECONDS).iops
            for name in available:
                own = corner.corner(f"{name}-{turn}")
                run = cost.under_tracer(Trace(tracer=name), found, own, environment, _LOAD, file, _SECONDS)
                ratios[name].append(run.result.iops / untraced)
                missed[name] += run.missed
    return {
        "measured": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "load": {**vars(_LOAD), "seconds": _SECONDS, "rounds": _ROUNDS},
        "tracers": {
            name: {"share": statistics.median(ratios[name]), "shares": ratios[name], "missed": missed[name]}
            for name in available
        },
    }


def _best(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the tracer that missed nothing, or least often did, and of those the one that disturbs least."""
    return min(found, key=lambda name: (found[name]["missed"] > 0, -found[name]["share"]))


def _in_words(found: Mapping[str, Mapping[str, Any]]) -> str:
    best = _best(found)
    parts = [
        f"{name} kept {found[name]['share']:.2f}"
        + (f" and missed {found[name]['missed']} requests or events" if found[name]["missed"] else "")
        for name in sorted(found, key=lambda name: name != best)
    ]
    return f"of fio's untraced IOPS {', '.join(parts)}"
