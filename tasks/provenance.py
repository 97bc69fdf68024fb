"""Where a result comes from: the drives under test, GPUs, and what of the node's settings shapes its I/O.

Read from /sys and /proc below a `root`. What cannot be read is `unknown`, never guessed, and nothing here raises.
Serial numbers are left out: they tell a reader nothing and an owner's inventory much.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import cgroup, smart
from tasks.mounts import Mount, parse_mountinfo
from tasks.spec import FILESYSTEMS

if TYPE_CHECKING:
    from tasks.storage import Volume

UNKNOWN = "unknown"
_ROOT = Path("/")
_SECTOR_BYTES = 512

#: Settings of memory management that decide when buffered writes reach a drive, and what stays in memory.
_SYSCTLS = (
    "swappiness",
    "dirty_ratio",
    "dirty_background_ratio",
    "dirty_bytes",
    "dirty_background_bytes",
    "dirty_expire_centisecs",
    "dirty_writeback_centisecs",
    "vfs_cache_pressure",
    "zone_reclaim_mode",
)
_TOOLS = {
    "fio": ("fio", "--version"),
    "bpftrace": ("bpftrace", "--version"),
    "losetup": ("losetup", "--version"),
    **{f"mkfs.{fs}": (f"mkfs.{fs}", "-V") for fs in FILESYSTEMS},
}
#: What the path or the name of a block device tells of how it is attached, the nearest first.
_TRANSPORTS = (
    (r"/virtio\d+/", "virtio"),
    (r"/usb\d+/", "usb"),
    (r"/end_device-", "sas"),
    (r"/ata\d+/", "sata"),
    (r"/mmc\d+/", "mmc"),
    (r"/vbd-\d+/", "xen"),
    (r"/(zram|ram|pmem)\d+$", "memory"),
    (r"/(nbd|rbd)\d+$", "network"),
)


def _read(path: Path) -> str:
    """Return what a file says, or `unknown` where it says nothing or cannot be read."""
    try:
        return path.read_text(errors="replace").strip() or UNKNOWN
    except OSError:
        return UNKNOWN


def _number(path: Path) -> int | str:
    text = _read(path)
    return int(text) if text.lstrip("-").isdigit() else UNKNOWN


def _first(*texts: str) -> str:
    return next((text for text in texts if text != UNKNOWN), UNKNOWN)


def node(root: Path = _ROOT) -> dict[str, Any]:
    """Return the node's settings and its load now, beside what `tasks.machine.facts` tells."""
    hierarchy = cgroup.find()
    return {
        "os": _os_name(root),
        "cgroup_version": hierarchy.version if hierarchy else UNKNOWN,
        **_cpu(root / "sys/devices/system/cpu"),
        **settings(root),
        "numa_nodes": _numa_nodes(root / "sys/devices/system/node"),
        "uptime_s": next(iter(_numbers(_read(root / "proc/uptime"))), UNKNOWN),
        "load_average": _numbers(_read(root / "proc/loadavg"))[:3] or UNKNOWN,
        "tools": tool_versions(),
        "gpus_detail": gpus(root),
    }


def settings(root: Path = _ROOT) -> dict[str, Any]:
    """Return those of the node's settings that shape its I/O and stay as they are from trial to trial."""
    cpu = _cpu(root / "sys/devices/system/cpu")
    return {
        **{name: cpu[name] for name in ("cpu_governor", "cpu_boost", "smt")},
        "transparent_hugepages": _chosen(_read(root / "sys/kernel/mm/transparent_hugepage/enabled")),
        "vm": {name: _number(root / "proc/sys/vm" / name) for name in _SYSCTLS},
        "gpu_driver": _read(root / "sys/module/nvidia/version"),
    }


def _os_name(root: Path) -> str:
    found = re.search(r'^PRETTY_NAME="?([^"\n]*)', _read(root / "etc/os-release"), re.MULTILINE)
    return found[1] if found else UNKNOWN


def _cpu(cpus: Path) -> dict[str, str]:
    """Return how CPUs are clocked (Documentation/admin-guide/pm/cpufreq.rst), and whether threads share cores."""

    def of_all(name: str) -> str:
        texts = {_read(path) for path in cpus.glob(f"cpu[0-9]*/cpufreq/{name}")}
        return ", ".join(sorted(texts)) or UNKNOWN

    boost = {"1": "on", "0": "off"}.get(_read(cpus / "cpufreq/boost"), UNKNOWN)
    turbo = {"0": "on", "1": "off"}.get(_read(cpus / "intel_pstate/no_turbo"), UNKNOWN)
    return {
        "cpu_governor": of_all("scaling_governor"),
        "cpu_driver": of_all("scaling_driver"),
        "cpu_boost": _first(turbo, boost),
        "smt": _read(cpus / "smt/control"),
    }


def _numa_nodes(nodes: Path) -> dict[str, str] | str:
    """Return the CPUs of each NUMA node, such as {"0": "0-31"}."""
    found = {path.name.removeprefix("node"): _read(path / "cpulist") for path in nodes.glob("node[0-9]*")}
    return dict(sorted(found.items(), key=lambda pair: int(pair[0]))) or UNKNOWN


def _chosen(text: str) -> str:
    """Return the choice that the kernel shows in brackets."""
    found = re.search(r"\[(\S+)\]", text)
    return found[1] if found else UNKNOWN


def _numbers(text: str) -> list[float]:
    return [float(word) for word in text.split() if re.fullmatch(r"\d+(\.\d+)?", word)]


def tool_versions() -> dict[str, str]:
    """Return the versions of the programs that trials start, those that are installed."""
    return {name: version for name in _TOOLS if (version := tool_version(name)) is not None}


@cache
def tool_version(name: str) -> str | None:
    """Return the version of a program that trials start, or None where it is not installed."""
    argv = _TOOLS[name]
    if not shutil.which(argv[0]):
        return None
    try:
        told = subprocess.run(argv, capture_output=True, text=True, timeout=10, errors="replace")
    except (OSError, subprocess.SubprocessError):
        return UNKNOWN
    found = re.search(r"\d+(\.\d+)+\S*", told.stdout + told.stderr)
    return found[0] if found else UNKNOWN


def gpus(root: Path = _ROOT) -> list[dict[str, Any]]:
    """Return what the NVIDIA driver and the PCI bus tell of each GPU. A link that idles may run slower than it can."""
    found = []
    for folder in sorted((root / "proc/driver/nvidia/gpus").glob("*")):
        lines = [line.partition(":") for line in _read(folder / "information").splitlines()]
        told = {key.strip(): value.strip() for key, _, value in lines}
        at = root / "sys/bus/pci/devices" / folder.name.lower()
        found.append(
            {
                "model": told.get("Model") or UNKNOWN,
                "firmware": told.get("GPU Firmware") or UNKNOWN,
                "vbios": told.get("Video BIOS") or UNKNOWN,
                "numa_node": _numa_node(at),
                "pcie": _pcie(at),
            }
        )
    return found


def _upwards(folder: Path) -> Iterator[Path]:
    """Yield a device's folder in /sys/devices and those of the devices that it hangs on."""
    real = folder.resolve()
    yield from (step for step in (real, *real.parents) if "devices" in step.parts[:-1])


def _numa_node(folder: Path) -> int | str:
    """Return the NUMA node of a device or the nearest one above it; the kernel's -1 means that it was not told."""
    found = next((node for step in _upwards(folder) if (node := _number(step / "numa_node")) != UNKNOWN), -1)
    return found if isinstance(found, int) and found >= 0 else UNKNOWN


def _pcie(folder: Path) -> dict[str, str] | str:
    """Return address, speed and width of the PCIe link of a device or of the nearest one above it that has one."""
    names = ("current_link_speed", "current_link_width", "max_link_speed", "max_link_width")
    for step in _upwards(folder):
        if (step / names[0]).exists():
            return {"address": step.name} | {name.replace("_link", ""): _read(step / name) for name in names}
    return UNKNOWN


def drive(name: str, root: Path = _ROOT) -> dict[str, Any]:
    """Return what a drive, such as `nvme0n1`, tells of itself that does not change from trial to trial."""
    block = root / "sys/block" / name
    device, controller = block / "device", _controller(block)
    above = controller or block
    rotational = {"0": False, "1": True}.get(_read(block / "queue/rotational"), UNKNOWN)
    sectors = _number(block / "size")
    return {
        "name": name,
        "model": _first(*(_read(at / "model") for at in (device, above)), _read(device / "name")),
        "firmware": _first(*(_read(at) for at in (above / "firmware_rev", device / "rev", device / "fwrev"))),
        "transport": f"nvme {_read(controller / 'transport')}" if controller else _transport(block),
        "rotational": rotational,
        "size_bytes": sectors * _SECTOR_BYTES if isinstance(sectors, int) else UNKNOWN,
        "physical_block_bytes": _number(block / "queue/physical_block_size"),
        "write_cache": _read(block / "queue/write_cache"),
        "numa_node": _numa_node(above),
        "pcie": _pcie(above),
    }


def _controller(block: Path) -> Path | None:
    """Return the folder of an NVMe namespace's controller, the first of several where it has more paths than one."""
    device = (block / "device").resolve()
    if re.fullmatch(r"nvme\d+", device.name):
        return device
    try:
        below = sorted(path for path in device.iterdir() if re.fullmatch(r"nvme\d+", path.name))
    except OSError:
        return None
    return below[0].resolve() if below else None


def _transport(block: Path) -> str:
    path = str(block.resolve())
    return next((name for pattern, name in _TRANSPORTS if re.search(pattern, path)), UNKNOWN)


def health(name: str, root: Path = _ROOT) -> dict[str, Any]:
    """Return a drive's temperature in °C and its wear as they are now; `unknown` where it cannot be asked.

    Temperature is what the kernel's hwmon shows (nvme, drivetemp), else what the drive's own log does.
    """
    block = root / "sys/block" / name
    controller = _controller(block)
    facts: dict[str, Any] = dict.fromkeys(smart.Health.__dataclass_fields__, UNKNOWN)
    if controller:
        with suppress(OSError, ValueError):
            facts = asdict(smart.health(root / "dev" / controller.name))
    for place in (controller, block / "device"):
        patterns = ("hwmon*/temp1_input", "hwmon/hwmon*/temp1_input", "device/hwmon/hwmon*/temp1_input")
        for path in [found for pattern in patterns if place for found in sorted(place.glob(pattern))]:
            millidegrees = _number(path)
            if isinstance(millidegrees, int):
                return facts | {"temperature_c": round(millidegrees / 1000)}
    return facts


def device(found: Volume, root: Path = _ROOT) -> dict[str, Any]:
    """Return what belongs to the record of the device under test: its drives, and the line of its mount.

    An image in memory has no drive. How full the filesystem below an image is decides about a drive's speed too.
    """
    facts = found.drive_facts()
    names = () if facts["ram_backed"] else found.drives()
    told: dict[str, Any] = {"drives": [drive(name, root) for name in names], "mount": mount_line(found.mount, root)}
    if "image" in found.facts:
        told["image_free_bytes"] = _free_bytes(Path(found.facts["image"]).parent)
    return told


def _free_bytes(folder: Path) -> int | str:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return UNKNOWN


def mount_line(mount: Mount, root: Path = _ROOT) -> str:
    """Return the line of /proc/self/mountinfo that a mount was read from."""
    try:
        lines = (root / "proc/self/mountinfo").read_text(errors="surrogateescape").split("\n")
        found = [line for line in filter(None, lines) if parse_mountinfo(line)[0] == mount]
    except (OSError, ValueError):
        return UNKNOWN
    return os.fsencode(found[-1]).decode(errors="replace") if found else UNKNOWN


@contextmanager
def watched(facts: Mapping[str, Any], root: Path = _ROOT) -> Iterator[None]:
    """Add to every drive of a device's `facts` its `health` at the `begin` and the `end` of the body."""
    drives = facts.get("drives") or []
    for one in drives:
        one["health"] = {"begin": health(one["name"], root)}
    try:
        yield
    finally:
        for one in drives:
            one["health"]["end"] = health(one["name"], root)
