"""The filesystem under test: made (or found), mounted, verified, and removed again.

What a trial's label says is never believed: the mount is read back from /proc/self/mountinfo.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tasks import device, node_config
from tasks.device import Device, Devices
from tasks.discard import discard_device, trim_filesystem
from tasks.errors import StorageError
from tasks.kept import IMAGE, MOUNT_POINT, OFFLOAD, keep
from tasks.lease import MARKER, Lease
from tasks.mounts import Mount, device_numbers, devices_of, mount_of, options_not_in_force, read_ahead_folder
from tasks.process import sync_filesystem, tool
from tasks.queues import held_queues, queue_facts
from tasks.scratch import check_node, claimed
from tasks.spec import ANY_FILESYSTEM, FILESYSTEMS, NO_DISCARD, Backing, Storage, StorageKind
from tasks.state import FOLDER_PREFIX, default_image_dir
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
        return device.leaf_drives(*(d.dev for d in self.devices))

    def beneath(self) -> Devices | None:
        """Return the drive under the traced devices; None where these are drives themselves, or it is several.

        Of several, mirrors write everything twice.
        """
        names = () if self.drive_facts()["ram_backed"] else self.drives()
        below = [Device.of_name(name) for name in names if name not in {d.name for d in self.devices}]
        return Devices(tuple(below)) if len(below) == 1 else None

    def drive_facts(self) -> dict[str, Any]:
        """Return the drive that requests end on; an image in memory is its own."""
        if self.facts.get("backing") == Backing.tmpfs.name:
            return {"drive": "memory", "drive_model": "tmpfs", "ram_backed": True}
        drives = self.drives()
        models = ", ".join(device.drive_model(d) for d in drives)
        in_memory = bool(drives) and all(map(device.is_ram_backed, drives))
        return {"drive": ", ".join(drives), "drive_model": models, "ram_backed": in_memory}


def base_dir(storage: Storage) -> Path:
    """Return the folder in which a trial makes its image, or its offload directory."""
    if storage.path:
        return Path(storage.path)
    if storage.kind is StorageKind.loop and storage.backing is Backing.tmpfs:
        return TMPFS_DIR
    own = node_config.load()
    folder = own.images if storage.kind is StorageKind.loop else own.folder_for(storage.fs)
    return Path(folder) if folder else default_image_dir()


@contextmanager
def volume(storage: Storage, lease: Lease, keep_for: str | None = None) -> Iterator[Volume]:
    """Provide the storage a trial asks for, verified, trimmed, with its queue settings; undo everything afterwards.

    With `keep_for`, the id of a trial, the folder of image or files stays once the body has come to its end.
    """
    provide = {StorageKind.loop: _loop, StorageKind.directory: _directory, StorageKind.device: _device}[storage.kind]
    with provide(storage, lease, keep_for) as found:
        _verify(found.mount, storage)
        if storage.trim and storage.kind is StorageKind.directory:
            found.facts["trimmed_bytes"] = trim_filesystem(found.offload_dir)
        read_ahead = read_ahead_folder(found.offload_dir)
        with held_queues(found.devices, read_ahead, storage.queue, lease):
            space = os.statvfs(found.offload_dir)
            found.facts |= {
                "kind": storage.kind.name,
                "fs": found.mount.fs,
                "source": found.mount.source,
                "mount_options": found.mount.options,
                "block_bytes": space.f_bsize,
                "drives": list(found.drives()),
                "queue": queue_facts(found.devices, read_ahead),
                "free_bytes": space.f_bavail * space.f_frsize,
            }
            yield found


def _verify(mount: Mount, storage: Storage) -> None:
    """Raise StorageError where the kernel's own list of mounts is not what the trial asks for."""
    as_it_is = storage.kind is StorageKind.directory and storage.fs == ANY_FILESYSTEM
    if mount.fs != storage.fs and not as_it_is:
        raise StorageError(f"{mount.path} is {mount.fs}, the trial asks for {storage.fs}")
    if lacking := options_not_in_force(storage.mount_options, mount.options):
        raise StorageError(
            f"storage.mount_options: {', '.join(lacking)} not among the options in force on {mount.path} "
            f"({mount.options}); leave out what is the default of {mount.fs}, which the kernel does not show"
        )


@contextmanager
def _own_folder(base: Path, lease: Lease, keep_for: str | None = None) -> Iterator[Path]:
    """Provide a marked folder of this attempt in `base`, and remove it afterwards, or keep it for a trial."""
    folder = base / f"{FOLDER_PREFIX}{lease.token}"
    with lease.hold("folder", path=str(folder)):
        folder.mkdir(mode=0o700)
        (folder / MARKER).touch()
        yield folder
        if keep_for is not None:
            keep(folder, lease.token, keep_for)


@contextmanager
def _mounted(storage: Storage, source: Device, folder: Path, lease: Lease) -> Iterator[tuple[Path, Mount]]:
    """Mount `source` in `folder`; provide a folder for offload files, and the mount as the kernel lists it."""
    mount_point = folder / MOUNT_POINT
    mount_point.mkdir()
    with lease.hold("mount", path=str(mount_point)):
        options = ["-o", ",".join(storage.mount_options)] if storage.mount_options else []
        tool(["mount", "-t", storage.fs, *options, source.node, str(mount_point)], StorageError)
        mount = mount_of(mount_point)
        if mount.path != str(mount_point) or source.dev not in devices_of(mount):
            raise StorageError(f"{mount_point} holds {mount.source} on {mount.path}, not {source.node}")
        yield _offload_dir(mount_point), mount


@contextmanager
def _loop(storage: Storage, lease: Lease, keep_for: str | None) -> Iterator[Volume]:
    base = base_dir(storage)
    if not base.is_dir():
        raise StorageError(f"storage.path: {base} is no folder on this node")
    with _own_folder(base, lease, keep_for) as folder:
        image = folder / IMAGE
        facts = _make_image(storage, image)
        with lease.hold("loop", path=str(image)):
            node, direct = _attach(image, storage.backing)
            facts |= {"backing": storage.backing.name, "direct_io": direct, "image": str(image)}
            with _mounted(storage, Device.of_node(node), folder, lease) as (offload_dir, mount):
                yield Volume(offload_dir, Devices((Device.of_node(node),)), mount, facts)


@contextmanager
def _device(storage: Storage, lease: Lease, keep_for: str | None) -> Iterator[Volume]:
    """Make a filesystem on a scratch device; nothing of what was on it comes back, and it stays until the next one."""
    if not storage.device or not storage.allow_format:
        raise StorageError("storage.allow_format: not true, so no device is formatted")
    facts: dict[str, Any] = {"device": storage.device}
    with _own_folder(default_image_dir(), lease) as folder:
        with claimed(storage.device) as (source, fd):
            if storage.trim:
                facts["trimmed_bytes"] = discard_device(fd, source.size_bytes, storage.device)
        options = [*FILESYSTEMS[storage.fs], *NO_DISCARD[storage.fs], *storage.mkfs_options]
        check_node(source)
        tool([f"mkfs.{storage.fs}", *options, source.node], StorageError, timeout_s=600)
        check_node(source)
        facts["mkfs"] = [f"mkfs.{storage.fs}", *options]
        with _mounted(_quiet(storage), source, folder, lease) as (offload_dir, mount):
            yield Volume(offload_dir, device.request_devices(*device_numbers(offload_dir)), mount, facts)


def _quiet(storage: Storage) -> Storage:
    """Return the storage with ext4 told to leave inode tables alone, which it would fill in during the trial.

    mkfs leaves them for after the mount where it has not discarded the device (mke2fs(8), lazy_itable_init).
    """
    if storage.fs != "ext4" or any("init_itable" in option for option in storage.mount_options):
        return storage
    return replace(storage, mount_options=[*storage.mount_options, "noinit_itable"])


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
        f.truncate(size_bytes)
    mkfs = [f"mkfs.{storage.fs}", *FILESYSTEMS[storage.fs], *storage.mkfs_options, str(image)]
    tool(mkfs, StorageError)
    with image.open("r+b") as f:
        # Allocated: a sparse image would measure the host filesystem's allocator, and could run out of space. After
        # mkfs, for that of ext4 discards the image, which gives its blocks back.
        os.posix_fallocate(f.fileno(), 0, size_bytes)
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
    folder = parent / OFFLOAD
    folder.mkdir()
    return folder


@contextmanager
def _directory(storage: Storage, lease: Lease, keep_for: str | None) -> Iterator[Volume]:
    base = base_dir(storage)
    if not base.is_dir():
        raise StorageError(f"storage.path: {base} is no folder on this node")
    with _own_folder(base.resolve(), lease, keep_for) as folder:
        devices = device.request_devices(*device_numbers(folder))
        yield Volume(_offload_dir(folder), devices, mount_of(folder), {})


def flush(path: Path) -> None:
    """Write the filesystem that holds `path` to its device (syncfs(2)); raises OSError where it could not be."""
    handle = os.open(path, os.O_RDONLY)
    try:
        sync_filesystem(handle)
    finally:
        os.close(handle)
