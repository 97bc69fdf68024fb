"""Block queue settings: set in an order that works, read back, and given back as they were, also after a crash.

They lie in /sys/block/<disk>/queue (Documentation/ABI/stable/sysfs-block), read-ahead in the filesystem's own backing
device info. All of them outlive `losetup -d`, so a loop device must get them back too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.device import Devices, boot_id, disk_sequence
from tasks.errors import StorageError

if TYPE_CHECKING:
    from tasks.lease import Lease
    from tasks.spec import QueueLimits

#: Order in which settings are written: another scheduler makes its own nr_requests.
_ORDER = ("scheduler", "nr_requests", "max_sectors_kb", "read_ahead_kb")

#: What a reader of a result needs to know of a queue.
_SHOWN = ("scheduler", "nr_requests", "max_sectors_kb", "rotational", "nomerges", "write_cache")

_SYS_BLOCK = Path("/sys/block")


def queue_facts(devices: Devices, read_ahead: Path | None) -> dict[str, str]:
    """Return the settings that shape requests, as the kernel shows them; those that differ by device one by one.

    `read_ahead` is the folder that rules the filesystem's read-ahead (`tasks.mounts.read_ahead_folder`).
    """
    found = {}
    for name in _SHOWN:
        values = [value for d in devices if (value := _setting(queue_folder(d.name), name)) is not None]
        if values:
            found[name] = values[0] if len(set(values)) == 1 else ", ".join(values)
    if read_ahead is not None and (value := _setting(read_ahead, "read_ahead_kb")) is not None:
        found["read_ahead_kb"] = value
    return found


@contextmanager
def held_queues(devices: Devices, read_ahead: Path | None, limits: QueueLimits, lease: Lease) -> Iterator[None]:
    """Hold the queues of all devices, and the read-ahead of the filesystem on them, at `limits`.

    Raises StorageError where the kernel refuses a value, or makes another of it.
    """
    wanted = {name: str(value) for name in _ORDER if (value := vars(limits)[name]) is not None}
    ahead = wanted.pop("read_ahead_kb", None)
    with ExitStack() as held:
        for device in devices if wanted else ():
            held.enter_context(_held(queue_folder(device.name), device.name, wanted, lease))
        if ahead is not None:
            if read_ahead is None:
                raise StorageError("storage.queue.read_ahead_kb: the filesystem has no block device to read ahead from")
            # Of a disk, or of a btrfs, which has none to tell it by but the folder itself.
            disk = _disk_of(read_ahead)
            held.enter_context(_held(read_ahead, disk, {"read_ahead_kb": ahead}, lease))
        yield


@contextmanager
def _held(folder: Path, disk: str | None, wanted: Mapping[str, str], lease: Lease) -> Iterator[None]:
    touched = [name for name in _ORDER if name in wanted or (name == "nr_requests" and "scheduler" in wanted)]
    before = {name: value for name in touched if (value := _setting(folder, name)) is not None}
    identity = {"diskseq": disk and disk_sequence(disk), "boot_id": boot_id()}
    with lease.hold("queue", device=disk, folder=str(folder), values=before, **identity):
        for name, value in wanted.items():
            _set_and_verify(folder, disk or folder.name, name, value)
        yield


def write_queue(folder: Path, values: Mapping[str, str]) -> None:
    """Write queue settings, in an order that works; raises OSError where the kernel refuses one."""
    for name in sorted(values, key=_ORDER.index):
        (folder / name).write_text(values[name])


def _set_and_verify(folder: Path, label: str, name: str, value: str) -> None:
    key = f"storage.queue.{name}"
    try:
        write_queue(folder, {name: value})
    except OSError as e:
        raise StorageError(f"{key}: {label} does not take {value}: {_advice(folder, name) or e.strerror}") from e
    if (got := _setting(folder, name)) != value:
        advice = _advice(folder, name)
        raise StorageError(f"{key}: {label} made {got} of {value}{': ' if advice else ''}{advice}")


def _advice(folder: Path, name: str) -> str:
    """Return in words what the queue would have taken, as far as it tells."""
    if name == "scheduler":
        return f"it has {(_read(folder / name) or 'none').replace('[', '').replace(']', '')}"
    if name == "max_sectors_kb" and (most := _read(folder / "max_hw_sectors_kb")):
        return f"at most {most}, the drive's own limit, and at least a page"
    if name == "nr_requests" and _setting(folder, "scheduler") == "none":
        return "with the scheduler none the drive's own queue is the bound; another scheduler takes more"
    return ""


def queue_folder(disk: str) -> Path:
    """Return where a disk's queue settings lie."""
    return _SYS_BLOCK / disk / "queue"


def _disk_of(bdi: Path) -> str | None:
    """Return the disk that a backing device info folder, named by its number, belongs to; None for a filesystem's."""
    disk = Path("/sys/dev/block") / bdi.name
    return disk.resolve().name if disk.exists() else None


def _setting(folder: Path, name: str) -> str | None:
    """Return a setting as one would write it: of the schedulers the one in brackets."""
    value = _read(folder / name)
    return value.partition("[")[2].partition("]")[0] if value and name == "scheduler" and "[" in value else value


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
