"""Where a run was made, as tables: its nodes, their settings, the drives under test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from analysis import provenance
from analysis.report.table import Table, plain
from analysis.report.words import told
from analysis.run import Run
from analysis.units import UNKNOWN, bytes_text, count_text

#: Beneath these lie mounts of namespaces, of containers and of jobs.
_PASSING = ("/run/netns", "/run/docker", "/run/user", "/dev/shm/", "/proc/", "/sys/")
_DRIVES = (
    "The drives that the trials' requests ended on, as they tell of themselves. Temperature: when the first trial "
    "began and when the last one ended."
)


def tables(run: Run) -> list[Table]:
    """Return the tables of the nodes, of their settings, and of the drives; the last two only where any are known."""
    nodes = _nodes(run)
    wide = ("CPU", "GPU", "Drives", "Versions", "Lacks")
    found = [plain("nodes", "Nodes", "" if nodes else "No node is recorded.", [_node(*one) for one in nodes], wide)]
    if settings := [row for node, _ in nodes if (row := provenance.settings(node))]:
        found.append(plain("settings", "Settings of the nodes", "", settings))
    if drives := provenance.drive_rows(run):
        found.append(plain("drives", "Drives under test", _DRIVES, drives))
    return found


def _nodes(run: Run) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return the nodes, each with its packages; a run that lists none is told by its trials."""
    nodes = [node for node in run.record.get("nodes") or [] if isinstance(node, dict)]
    packages: dict[str, dict[str, Any]] = {}
    found: dict[str, dict[str, Any]] = {}
    for trial in run.published:
        node = trial.section("node")
        found[str(node.get("hostname"))] = node
        # Trials of several workloads used several engines
        packages.setdefault(str(node.get("hostname")), {}).update(node.get("packages") or {})
        if node and not run.record.get("nodes") and node.get("hostname") not in [n.get("hostname") for n in nodes]:
            nodes.append(node)
    # A trial knows more of its node than the cluster does
    hosts = [(node, str(node.get("hostname"))) for node in nodes]
    return [(found.get(host, {}) | node, packages.get(host, {})) for node, host in hosts]


def _node(node: Mapping[str, Any], packages: Mapping[str, Any]) -> dict[str, str]:
    gpus, drives = node.get("gpus"), node.get("drives")
    cpus = f", {count_text(node['cpus'], 'CPU')}" if isinstance(node.get("cpus"), int) else ""
    has = UNKNOWN if gpus is None else "; ".join(_named(gpu) for gpu in gpus) or "none"
    missing, tools = node.get("missing"), node.get("tools")
    versions = {**packages, **(tools if isinstance(tools, Mapping) else {})}
    return {
        "Host": told(node.get("hostname")),
        "Kernel": told(node.get("kernel")),
        "CPU": told(node.get("cpu")) + cpus,
        "Memory": bytes_text(node.get("memory_bytes")),
        "GPU": "; ".join(filter(None, [has, provenance.gpu_places(node)])),
        "Drives": UNKNOWN if drives is None else "; ".join(_drive(drive) for drive in _apart(drives)) or "none",
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items()) or UNKNOWN,
        "Lacks": "; ".join(f"{what}: {why}" for what, why in missing.items()) if isinstance(missing, dict) else "",
    }


def _named(thing: Any) -> str:
    if not isinstance(thing, Mapping):
        return str(thing)
    size = thing.get("memory_bytes")
    return told(thing.get("name")) + (f" ({bytes_text(size)})" if isinstance(size, int) else "")


def _apart(drives: Sequence[Any]) -> list[Any]:
    """Return the drives without mounts that the system and running jobs made, and without second mounts of one."""
    found: dict[Any, Any] = {}
    for place, drive in enumerate(drives):
        if not isinstance(drive, Mapping):
            found[place] = drive
        elif not str(drive.get("path") or "").startswith(_PASSING):
            found.setdefault((drive.get("name"), drive.get("free_bytes")), drive)
    return list(found.values())


def _drive(drive: Any) -> str:
    if not isinstance(drive, Mapping):
        return str(drive)
    free = drive.get("free_bytes")
    parts = [told(drive.get("name")), str(drive.get("path") or "")]
    parts.append(f"({bytes_text(free)} free)" if isinstance(free, int) else "")
    parts.append("RAM-backed" if drive.get("ram_backed") else "")
    return " ".join(part for part in parts if part)
