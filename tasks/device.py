"""Block devices as sysfs shows them: names, leaf drives, counters.

The counters are those of Documentation/block/stat.rst: 512-byte sectors whatever the device's own sector size.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import StorageError, TracerError
from tasks.mounts import device_numbers, mount_of

SECTOR_BYTES = 512
_SYS_DEV = Path("/sys/dev/block")
_SYS_BLOCK = Path("/sys/block")

_NVME_HEAD = re.compile(r"nvme\d+n\d+")
_IN_MEMORY = re.compile(r"(zram|ram)\d+")

#: How the model begins that NVMeVirt's controllers tell (its admin.c, identify).
_NVMEVIRT = "CSL_Virt"


@dataclass(frozen=True)
class Counters:
    """What a device has completed since boot, in bytes and requests by operation, and what is in flight now."""

    read_bytes: int
    write_bytes: int
    discard_bytes: int
    reads: int
    writes: int
    discards: int
    flushes: int
    in_flight: int

    def __add__(self, other: Counters) -> Counters:
        return Counters(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    def requests_since(self, before: Counters) -> dict[str, int]:
        """Return the requests completed between `before` and this reading, by operation."""
        return {
            "read": self.reads - before.reads,
            "write": self.writes - before.writes,
            "discard": self.discards - before.discards,
        }

    def since(self, before: Counters) -> dict[str, int]:
        """Return the bytes completed between `before` and this reading, by operation."""
        return {
            "read": self.read_bytes - before.read_bytes,
            "write": self.write_bytes - before.write_bytes,
            "discard": self.discard_bytes - before.discard_bytes,
        }


#: How long a device's counters must stand still before it is at rest.
QUIET_S = 0.1


@dataclass(frozen=True)
class Device:
    """One block device: its kernel name (`loop0`, `nvme0n1p1`) and its major:minor."""

    name: str
    dev: str

    @classmethod
    def of_number(cls, dev: str) -> Device:
        """Return the device with this `major:minor`; raise StorageError where sysfs does not know it."""
        link = _SYS_DEV / dev
        if not link.exists():
            raise StorageError(f"{dev} is no block device: a network, overlay or virtual filesystem cannot be traced")
        return cls(link.resolve().name, dev)

    @classmethod
    def of_node(cls, path: str) -> Device:
        """Return the device behind a node such as `/dev/loop0`."""
        number = os.stat(path).st_rdev
        return cls.of_number(f"{os.major(number)}:{os.minor(number)}")

    @classmethod
    def of_name(cls, name: str) -> Device:
        """Return the whole disk of this kernel name."""
        return cls(name, (_SYS_BLOCK / name / "dev").read_text().strip())

    @property
    def number(self) -> int:
        """The kernel's own dev_t, as tracepoints carry it: major << 20 | minor (include/linux/kdev_t.h)."""
        major, minor = map(int, self.dev.split(":"))
        return major << 20 | minor

    @property
    def node(self) -> str:
        """Path of the device node."""
        return f"/dev/{self.name}"

    def counters(self) -> Counters:
        """Read the device's own counters."""
        f = [int(x) for x in (_SYS_DEV / self.dev / "stat").read_text().split()]
        f += [0] * (17 - len(f))
        return Counters(
            read_bytes=f[2] * SECTOR_BYTES,
            write_bytes=f[6] * SECTOR_BYTES,
            discard_bytes=f[13] * SECTOR_BYTES,
            reads=f[0],
            writes=f[4],
            discards=f[11],
            flushes=f[15],
            in_flight=f[8],
        )

    @property
    def size_bytes(self) -> int:
        """The device's capacity."""
        return int((_SYS_DEV / self.dev / "size").read_text()) * SECTOR_BYTES

    @property
    def logical_block_bytes(self) -> int:
        """The smallest request the device takes."""
        return int(_read(_whole_disk(self.dev) / "queue" / "logical_block_size") or SECTOR_BYTES)


@dataclass(frozen=True)
class Devices:
    """The devices whose requests carry the I/O of one filesystem: a disk, or every disk below a volume of several."""

    members: tuple[Device, ...]

    def __iter__(self) -> Iterator[Device]:
        return iter(self.members)

    @property
    def name(self) -> str:
        """Their kernel names, for people."""
        return ", ".join(d.name for d in self.members)

    def counters(self) -> Counters:
        """Return the sums of their own counters."""
        first, *others = (d.counters() for d in self.members)
        return sum(others, first)

    def settle(self, quiet_s: float = QUIET_S, limit_s: float = 60.0) -> Counters:
        """Wait until nothing is in flight and the counters stand still for `quiet_s`, then return them.

        Raises StorageError when a device is still busy after `limit_s`: somebody else is using it.
        """
        end = time.monotonic() + limit_s
        before = self.counters()
        while time.monotonic() < end:
            time.sleep(quiet_s)
            now = self.counters()
            if now == before and now.in_flight == 0:
                return now
            before = now
        raise StorageError(f"{self.name} did not come to rest within {limit_s:.0f} s: other processes use it")

    def facts(self) -> dict[str, object]:
        """Return what a reader needs to know of them: names, size of all, logical block size."""
        return {
            "name": self.name,
            "dev": ", ".join(d.dev for d in self.members),
            "size_bytes": sum(d.size_bytes for d in self.members),
            "logical_block_bytes": max(d.logical_block_bytes for d in self.members),
        }


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _whole_disk(dev: str) -> Path:
    """Return the sysfs folder of the disk that `dev` is, or is a partition of."""
    folder = (_SYS_DEV / dev).resolve()
    return folder.parent if (folder / "partition").exists() else folder


def request_devices(*devs: str) -> Devices:
    """Return the devices whose requests carry the I/O of the block devices `devs`, each `major:minor`.

    Block requests belong to whole disks, and device-mapper and md pass theirs on: below a partition or a volume it is
    the disk, or all of its disks. Raises StorageError where there is none.
    """
    found: set[Device] = set()
    for dev in devs:
        disk = _whole_disk(Device.of_number(dev).dev)
        below = _slaves(disk)
        found |= set(request_devices(*below)) if below else {Device.of_name(disk.name)}
    return Devices(tuple(sorted(found, key=lambda d: d.name)))


def _slaves(disk: Path) -> list[str]:
    """Return the numbers of the devices that device-mapper or md have built `disk` of; of any other disk, none."""
    folder = disk / "slaves"
    return [(s / "dev").read_text().strip() for s in sorted(folder.iterdir())] if folder.is_dir() else []


def check_traceable(devices: Devices) -> None:
    """Raise TracerError where a device has no requests that could be recorded: it takes I/O as it comes (bios).

    So do zram, pmem and brd, and the head of an NVMe drive under native multipath, whose requests belong to hidden
    devices, one for each path (drivers/nvme/host/multipath.c).
    """
    bare = [d.name for d in devices if not (_SYS_BLOCK / d.name / "mq").is_dir()]
    if not bare:
        return
    text = f"trace.tracer: {bare[0]} makes no block requests that could be recorded"
    if _NVME_HEAD.fullmatch(bare[0]):
        text += " (a multipath NVMe device; boot with nvme_core.multipath=N)"
    raise TracerError(f"{text}; set trace.tracer=diskstats to count its bytes")


def drive_model(drive: str) -> str:
    """Return the model that a drive tells of itself, or `unknown`."""
    return _read(_SYS_BLOCK / drive / "device" / "model") or "unknown"


def leaf_drives(*devs: str) -> tuple[str, ...]:
    """Return the drives that requests to the devices `devs`, each `major:minor`, end on.

    Goes below partitions, device-mapper, md and loop images. A loop image on tmpfs is its own drive. Empty where a
    device is unknown to sysfs (network and overlay filesystems).
    """
    found: set[str] = set()
    for dev in devs:
        if not (_SYS_DEV / dev).exists():
            continue
        disk = _whole_disk(dev)
        below = _slaves(disk)
        if not below and (image := _image_of(disk.name)):
            below = list(device_numbers(image))
        found |= set(leaf_drives(*below)) or {disk.name}
    return tuple(sorted(found))


def _image_of(disk: str) -> str | None:
    """Return the file that a loop device shows, where it can be seen from here."""
    image = _read(_SYS_BLOCK / disk / "loop" / "backing_file")
    return image if image and os.path.exists(image) else None


def is_ram_backed(drive: str) -> bool:
    """Say whether a drive, as `leaf_drives` names it, lies in memory: loops on tmpfs, zram, brd, NVMeVirt."""
    if image := _image_of(drive):
        return mount_of(image).fs in ("tmpfs", "ramfs")
    return bool(_IN_MEMORY.fullmatch(drive)) or drive_model(drive).startswith(_NVMEVIRT)


def disk_sequence(name: str) -> str | None:
    """Return the number that changes whenever other media come under this name (block/diskseq), or None."""
    return _read(_SYS_BLOCK / name / "diskseq")


def boot_id() -> str:
    """Return the kernel's identity of this boot; monotonic clocks of two boots cannot be compared."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
