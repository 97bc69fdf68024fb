"""What a run's trials say of where they were made: drives, GPUs, settings of the node, and what sampling cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.run import Run, Trial
from analysis.units import UNKNOWN, bytes_text, number_text

_ABSENT = (None, "", UNKNOWN)
#: Settings in /proc/sys/vm that decide when buffered writes reach the drive.
_VM = ("dirty_ratio", "dirty_background_ratio", "swappiness")


def drive_rows(run: Run) -> list[dict[str, str]]:
    """Return each drive that trials ran on, a text by column: what it is, and how warm and worn it was.

    The temperature is that at the first trial's beginning and the last one's end, with the greatest between.
    """
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for trial in run.published:
        host = str(trial.section("node").get("hostname") or UNKNOWN)
        for drive in _mappings(trial.section("device").get("drives")):
            found.setdefault((host, str(drive.get("name") or UNKNOWN)), []).append(drive)
    return [_drive_row(host, name, drives) for (host, name), drives in found.items()]


def _drive_row(host: str, name: str, drives: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    last = drives[-1]
    return {
        "Host": host,
        "Drive": name,
        "Model": _each(drives, "model"),
        "Firmware": _each(drives, "firmware"),
        "Attached by": ", ".join(_told([_text(last.get("transport")), _link(last.get("pcie"))])) or UNKNOWN,
        "NUMA node": _text(last.get("numa_node")),
        "Write cache": _text(last.get("write_cache")),
        "Temperature": _span(_readings(drives, "temperature_c"), "°C"),
        "Wear": _wear(drives),
    }


def _each(drives: Sequence[Mapping[str, Any]], key: str) -> str:
    """Return all different values of a fact: a firmware may have been replaced between two trials."""
    return ", ".join(dict.fromkeys(_text(drive.get(key)) for drive in drives))


def _readings(drives: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    """Return what the drives told of their health, in the order of the trials, without what is unknown."""
    found = []
    for drive in drives:
        health = drive.get("health")
        for when in ("begin", "end"):
            reading = health.get(when) if isinstance(health, Mapping) else None
            value = reading.get(key) if isinstance(reading, Mapping) else None
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                found.append(value)
    return found


def _span(readings: Sequence[float], unit: str) -> str:
    if not readings:
        return UNKNOWN
    peak = max(readings)
    between = f", at most {number_text(peak)}" if peak > max(readings[0], readings[-1]) else ""
    return f"{number_text(readings[0])} → {number_text(readings[-1])} {unit}{between}"


def _wear(drives: Sequence[Mapping[str, Any]]) -> str:
    used, written = _readings(drives, "percentage_used"), _readings(drives, "data_written_bytes")
    told = [f"{number_text(used[-1])} % used"] if used else []
    return ", ".join([*told, *([f"{bytes_text(written[-1])} written"] if written else [])]) or UNKNOWN


def settings(node: Mapping[str, Any]) -> dict[str, str]:
    """Return a node's settings that shape I/O, a text by column; empty where none is recorded."""
    numa, vm, version = node.get("numa_nodes"), node.get("vm"), node.get("cgroup_version")
    told = {
        "Governor": node.get("cpu_governor"),
        "Boost": node.get("cpu_boost"),
        "SMT": node.get("smt"),
        "NUMA nodes": len(numa) if isinstance(numa, Mapping) else None,
        "Memory cgroup": None if version in _ABSENT else f"v{version}",
        "Huge pages": node.get("transparent_hugepages"),
        **{name: vm.get(name) if isinstance(vm, Mapping) else None for name in _VM},
    }
    if all(value in _ABSENT for value in told.values()):
        return {}
    return {"Host": _text(node.get("hostname"))} | {name: _text(value) for name, value in told.items()}


def gpu_places(node: Mapping[str, Any]) -> str:
    """Return where a node's GPUs are on its buses, and their driver; empty where it has none."""
    gpus = _mappings(node.get("gpus_detail"))
    told = [", ".join(_told([f"NUMA node {_text(gpu.get('numa_node'))}", _link(gpu.get("pcie"))])) for gpu in gpus]
    driver = [f"driver {_text(node.get('gpu_driver'))}"] if gpus else []
    return "; ".join([*dict.fromkeys(told), *driver])


def _link(pcie: Any) -> str:
    """Return a PCIe link as `16.0 GT/s x4`, with what it could be where that is more."""
    if not isinstance(pcie, Mapping):
        return ""
    now, most = (
        f"{_speed(pcie.get(f'{kind}_speed'))} x{_text(pcie.get(f'{kind}_width'))}" for kind in ("current", "max")
    )
    return f"PCIe {now}" + ("" if UNKNOWN in most or most == now else f" of {most}")


def _speed(text: Any) -> str:
    return _text(text).removesuffix(" PCIe")


def health_facts(trial: Trial) -> list[tuple[str, str]]:
    """Return a trial's own facts of drives, mount and sampler, each with its key; none of what is not recorded."""
    device, sampler = trial.section("device"), trial.section("sampler")
    facts = [("device.mount", str(device["mount"]))] if device.get("mount") else []
    for drive in _mappings(device.get("drives")):
        for key, unit in (("temperature_c", "°C"), ("percentage_used", "%")):
            readings = _readings([drive], key)
            if readings:
                facts.append((f"{drive.get('name')}.{key.removesuffix('_c')}", _span(readings, unit)))
    if sampler:
        facts.append(("sampler", sampler_cost(sampler)))
    return facts


def sampler_cost(sampler: Mapping[str, Any]) -> str:
    """Return how often a trial was sampled, and what that cost."""
    cost, interval = sampler.get("cost_cores"), sampler.get("interval_ms")
    every = number_text(interval) if isinstance(interval, (int, float)) else UNKNOWN
    spent = f"{number_text(100 * cost)} % of a core" if isinstance(cost, (int, float)) else UNKNOWN
    taken = f"{_text(sampler.get('samples'))} samples every {every} ms"
    return f"{taken}, {_text(sampler.get('missed'))} missed, cost {spent}"


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []


def _told(texts: Sequence[str]) -> list[str]:
    return [text for text in texts if text not in _ABSENT]


def _text(value: Any) -> str:
    return UNKNOWN if value in _ABSENT else str(value)
