"""Scratch devices: real drives that a trial may format.

That takes three yeses: the node's own configuration lists the device, the sweep says `allow_format: true`, and nothing
on this node uses it. All are asked before launch, and again right before mkfs.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tasks.device import Device, leaf_drives, request_devices
from tasks.discard import can_discard
from tasks.errors import StorageError
from tasks.mounts import Mount, device_numbers, devices_of, mounts
from tasks.node_config import load, node_file
from tasks.state import FOLDER_PREFIX, default_image_dir

_SYS_DEV = Path("/sys/dev/block")


@dataclass(frozen=True)
class Scratch:
    """A device that the node lists as scratch. `obstacle` says why it cannot be formatted now, or is None."""

    path: str
    names: tuple[str, ...]
    size_bytes: int
    drives: tuple[str, ...]
    discards: bool
    obstacle: str | None


def offered() -> list[Scratch]:
    """Return the scratch devices that this node lists; raises NodeConfigError."""
    return [_offer(path) for path in load().scratch]


def listing_obstacle() -> str | None:
    """Say why this node has no scratch device at all, or None; raises NodeConfigError."""
    return None if load().scratch else f"this node has no scratch device: {node_file()} lists none under scratch:"


def unlisted(path: str, listed: list[str]) -> str:
    """Return the refusal of a device that the node does not list."""
    others = f"only {', '.join(listed)}" if listed else "no device"
    return (
        f"storage.device: {path} is no scratch device of this node, whose node.yaml lists {others} under scratch:; "
        "list it there if everything on it may be lost (docs/storage.md)"
    )


def _offer(path: str) -> Scratch:
    wrong = _no_device(path)
    if wrong:
        return Scratch(path, (path,), 0, (), False, wrong)
    device = Device.of_node(path)
    return Scratch(
        path,
        tuple(sorted({path, os.path.realpath(path), *_links_to(device)})),
        device.size_bytes,
        leaf_drives(device.dev),
        can_discard(device.dev),
        obstacle(path, but_ours=True),
    )


def _links_to(device: Device) -> Iterator[str]:
    """Yield the names that udev has given to a device."""
    for link in [*Path("/dev/disk").glob("by-*/*"), *Path("/dev/mapper").glob("*")]:
        if os.path.realpath(link) == f"/dev/{device.name}":
            yield str(link)


@contextmanager
def claimed(path: str) -> Iterator[tuple[Device, int]]:
    """Provide a scratch device and a descriptor that nobody else holds while the body runs; then it is free for mkfs.

    Raises StorageError with the yes that is missing.
    """
    listed = load().scratch
    wrong = _no_device(path)
    if not wrong and Device.of_node(path) not in [Device.of_node(p) for p in listed if not _no_device(p)]:
        raise StorageError(unlisted(path, list(listed)))
    wrong = wrong or obstacle(path)
    if wrong:
        raise StorageError(f"storage.device: {wrong}")
    device = Device.of_node(path)
    check_node(device)
    try:
        fd = os.open(device.node, os.O_RDWR | os.O_EXCL)
    except OSError as e:
        raise StorageError(f"storage.device: {_not_opened(path, e)}") from e
    try:
        number = os.fstat(fd).st_rdev
        if f"{os.major(number)}:{os.minor(number)}" != device.dev or obstacle(device.node, held=True):
            raise StorageError(
                f"storage.device: {path} has become another device, or came into use; nothing was written"
            )
        yield device, fd
    finally:
        os.close(fd)


def check_node(device: Device) -> None:
    """Raise StorageError unless the node of the kernel's name is this device; in containers it can be another one."""
    if _no_device(device.node) or Device.of_node(device.node) != device:
        raise StorageError(
            f"storage.device: {device.node} is not the device {device.dev} that the kernel calls {device.name}: "
            "give this container its devices under the kernel's own names"
        )


def obstacle(path: str, but_ours: bool = False, held: bool = False) -> str | None:
    """Say in words why the block device `path` cannot be formatted now, or None.

    With `but_ours` a device that a trial of this node has mounted is none: the next trial waits for that one. With
    `held` this process has it open for itself.
    """
    if wrong := _no_device(path):
        return wrong
    family = _family(Device.of_node(path))
    using = [m for m in mounts() if set(devices_of(m)) & family]
    if but_ours and using and all(_is_ours(m) for m in using):
        return None
    checks: tuple[Callable[[], str | None], ...] = (
        lambda: _mounted(path, using),
        lambda: _under_root(path),
        lambda: _swapped_to(path, family),
        lambda: _built_upon(path, family),
        lambda: _write_protected(path),
        lambda: None if held else _busy(path),
    )
    return next((words for check in checks if (words := check())), None)


def _no_device(path: str) -> str | None:
    try:
        found = os.stat(path)
    except OSError as e:
        return f"{path}: {e.strerror}"
    if not stat.S_ISBLK(found.st_mode):
        return f"{path} is no block device"
    known = (_SYS_DEV / f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}").exists()
    return None if known else f"{path}: no such device: the kernel does not know its number"


def _family(device: Device) -> set[str]:
    """Return the numbers of a device, of its partitions, and of the disk that it is a partition of."""
    folder = (_SYS_DEV / device.dev).resolve()
    numbers = {device.dev} | {(p.parent / "dev").read_text().strip() for p in folder.glob("*/partition")}
    return numbers | ({(folder.parent / "dev").read_text().strip()} if (folder / "partition").exists() else set())


def _is_ours(mount: Mount) -> bool:
    return mount.path.startswith(f"{default_image_dir()}/{FOLDER_PREFIX}")


def _mounted(path: str, using: list[Mount]) -> str | None:
    return f"{path} is in use: {using[0].source} is mounted on {using[0].path}" if using else None


def _under_root(path: str) -> str | None:
    """Refuse the disk that the node itself lives on; in a container, where / is on no device, nobody can tell."""
    try:
        root = request_devices(*device_numbers("/"))
    except StorageError:
        return None
    shared = set(root) & set(request_devices(Device.of_node(path).dev))
    return f"{path} is on {min(d.name for d in shared)}, the disk of this node's root filesystem" if shared else None


def _swapped_to(path: str, family: set[str]) -> str | None:
    try:
        lines = Path("/proc/swaps").read_text().splitlines()[1:]
    except OSError:
        return None
    for node in (line.split()[0] for line in lines):
        if not _no_device(node) and Device.of_node(node).dev in family:
            return f"{path} is in use: this node swaps to {node}"
    return None


def _built_upon(path: str, family: set[str]) -> str | None:
    names = sorted({h.name for dev in family for h in (_SYS_DEV / dev / "holders").glob("*")})
    if names:
        return f"{path} is part of {', '.join(names)} (LVM, md or device-mapper)"
    # A loop device holds what it lies on without claiming it.
    for image in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):
            below = image.read_text().strip()
            if not _no_device(below) and Device.of_node(below).dev in family:
                return f"{path} is in use: {image.parent.parent.name} lies on it"
    return None


def _write_protected(path: str) -> str | None:
    ro = (_SYS_DEV / Device.of_node(path).dev / "ro").read_text().strip()
    return f"{path} is write-protected" if ro == "1" else None


def _busy(path: str) -> str | None:
    """Ask the kernel whether anybody has the device or a part of it for himself: open(2), O_EXCL without O_CREAT."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL))
    except OSError as e:
        return _not_opened(path, e)
    return None


def _not_opened(path: str, e: OSError) -> str:
    if e.errno == errno.EBUSY:
        return f"{path} is in use: the kernel or another program holds it, such as a mount in a container"
    return f"{path} cannot be opened: {e.strerror}"
