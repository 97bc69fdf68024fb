"""The filesystem under test: made (or found), mounted, verified, and removed again.

What a trial's label says is never believed: the mount is read back from /proc/self/mountinfo.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks import device
from tasks.device import Device, Devices
from tasks.errors import StorageError
from tasks.lease import MARKER, Lease
from tasks.mounts import Mount, device_number, mount_of
from tasks.process import tool
from tasks.spec import FILESYSTEMS, Backing, Storage, StorageKind
from tasks.state import default_image_dir
from tasks.units import format_bytes, parse_bytes

#: Where images with `backing: tmpfs` lie.
TMPFS_DIR = Path("/dev/shm")

#: Left free beside an image, for the trace and whatever else grows on that disk meanwhile.
SPARE_BYTES = 256 << 20


@dataclass
class Volume:
    """Storage ready for an offload job: a folder to write to, and the devices its requests go to."""

    offload_dir: Path
    devices: Devices
    mount: Mount
    facts: dict[str, Any] = field(default_factory=dict)

    def drives(self) -> tuple[str, ...]:
        """Return the drives that requests end on."""
        return tuple(sorted({leaf for d in self.devices for leaf in device.leaf_drives(d.dev)}))

    def drive_facts(self) -> dict[str, Any]:
        """Return the drive that requests end on; an image in memory is its own."""
        if self.facts.get("backing") == Backing.tmpfs.name:
            return {"drive": "memory", "drive_model": "tmpfs", "ram_backed": True}
        drives = self.drives()
        models = ", ".join(device.drive_model(d) for d in drives)
        return {"drive": ", ".join(drives), "drive_model": models, "ram_backed": False}


def image_dir(storage: Storage) -> Path:
    """Return the folder under which a loop image is made."""
    if storage.path:
        return Path(storage.path)
    return TMPFS_DIR if storage.backing is Backing.tmpfs else default_image_dir()


@contextmanager
def volume(storage: Storage, lease: Lease) -> Iterator[Volume]:
    """Provide the storage a trial asks for, verified, with its queue settings; undo everything afterwards."""
    provide = _loop if storage.kind is StorageKind.loop else _directory
    with provide(storage, lease) as found:
        if found.mount.fs != storage.fs:
            raise StorageError(f"{found.mount.path} is {found.mount.fs}, the trial asks for {storage.fs}")
        with device.limited_queues(found.devices, storage.queue, lease):
            found.facts |= {
                "kind": storage.kind.name,
                "fs": found.mount.fs,
                "mount_options": found.mount.options,
                "drives": list(found.drives()),
                "queue": device.queue_limits(found.devices),
                "free_bytes": shutil.disk_usage(found.offload_dir).free,
            }
            yield found


@contextmanager
def _loop(storage: Storage, lease: Lease) -> Iterator[Volume]:
    base = image_dir(storage)
    if not base.is_dir():
        raise StorageError(f"storage.path: {base} is no folder on this node")
    folder = base / f"offload-sweep-{lease.token}"
    with lease.hold("folder", path=str(folder)):
        folder.mkdir(mode=0o700)
        (folder / MARKER).touch()
        image, mount_point = folder / "disk.img", folder / "mnt"
        facts = _make_image(storage, image)
        with lease.hold("loop", path=str(image)):
            node, direct = _attach(image, storage.backing)
            mount_point.mkdir()
            with lease.hold("mount", path=str(mount_point)):
                options = ["-o", ",".join(storage.mount_options)] if storage.mount_options else []
                tool(["mount", "-t", storage.fs, *options, node, str(mount_point)], StorageError)
                traced = Devices((Device.of_node(node),))
                facts |= {"backing": storage.backing.name, "direct_io": direct, "image": str(image)}
                yield Volume(_offload_dir(mount_point), traced, mount_of(mount_point), facts)


def _make_image(storage: Storage, image: Path) -> dict[str, Any]:
    in_memory = mount_of(image.parent).fs == "tmpfs"
    if in_memory != (storage.backing is Backing.tmpfs):
        raise StorageError(f"storage.backing: {image.parent.parent} is {'in memory' if in_memory else 'on a disk'}")
    size_bytes = parse_bytes(storage.image_size)
    free_bytes = shutil.disk_usage(image.parent).free
    if size_bytes + SPARE_BYTES > free_bytes:
        raise StorageError(
            f"storage.image_size: {format_bytes(size_bytes)} do not fit into the {format_bytes(free_bytes)} "
            f"free under {image.parent.parent}"
        )
    with image.open("wb") as f:
        # Allocated now: a sparse image would measure the host filesystem's allocator, and could run out of space.
        os.posix_fallocate(f.fileno(), 0, size_bytes)
    mkfs = [f"mkfs.{storage.fs}", *FILESYSTEMS[storage.fs], *storage.mkfs_options, str(image)]
    tool(mkfs, StorageError)
    return {"image_bytes": size_bytes, "mkfs": mkfs[:-1]}


def _attach(image: Path, backing: Backing) -> tuple[str, bool]:
    """Attach a loop device to `image`; return its node and whether it really does direct I/O."""
    wanted = "on" if backing is Backing.disk else "off"
    argv = ["losetup", "--find", "--show", f"--direct-io={wanted}", str(image)]
    node = _retried(argv)
    direct = Path(f"/sys/block/{Path(node).name}/loop/dio").read_text().strip() == "1"
    if backing is Backing.disk and not direct:
        raise StorageError(
            f"{node} cannot do direct I/O on {image.parent.parent}: the host's page cache would hide the drive. "
            "Name a folder on another filesystem in storage.path, or set storage.backing=tmpfs"
        )
    return node, direct


def _retried(argv: list[str]) -> str:
    # Two processes that look for a free loop device at once can find the same one; the loser gets EBUSY.
    for attempt in range(5):
        try:
            return tool(argv, StorageError).strip()
        except StorageError:
            if attempt == 4:
                raise
            time.sleep(0.2 * (attempt + 1))
    raise AssertionError("unreachable")


def _offload_dir(parent: Path) -> Path:
    folder = parent / "offload"
    folder.mkdir()
    return folder


@contextmanager
def _directory(storage: Storage, lease: Lease) -> Iterator[Volume]:
    if not storage.path or not Path(storage.path).is_dir():
        raise StorageError(f"storage.path: {storage.path} is no folder on this node")
    folder = Path(storage.path).resolve() / f"offload-sweep-{lease.token}"
    mount = mount_of(folder.parent)
    with lease.hold("folder", path=str(folder)):
        folder.mkdir(mode=0o700)
        (folder / MARKER).touch()
        yield Volume(_offload_dir(folder), device.request_devices(device_number(folder)), mount, {})


def flush(path: Path) -> None:
    """Write the filesystem that holds `path` to its device (sync(1) --file-system)."""
    subprocess.run(["sync", "--file-system", str(path)], check=True, timeout=600)
