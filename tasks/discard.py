"""Telling a drive which blocks hold nothing any more: of a filesystem (fstrim(8)) or of a whole device (blkdiscard(8)).

Both system calls return when the device has completed the discards, so none of them falls into a trial's window.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path

from tasks.errors import StorageError

#: _IOWR('X', 121, struct fstrim_range) and _IO(0x12, 119), from linux/fs.h.
_FITRIM = 0xC0185879
_BLKDISCARD = 0x1277

_RANGE = struct.Struct("=QQQ")


def can_discard(*devs: str) -> bool:
    """Say whether all of these devices (`major:minor`), or the disks that they are partitions of, take discards."""
    return bool(devs) and all(_discard_max_bytes(dev) > 0 for dev in devs)


def _discard_max_bytes(dev: str) -> int:
    device = (Path("/sys/dev/block") / dev).resolve()
    disk = device.parent if (device / "partition").exists() else device
    try:
        return int((disk / "queue" / "discard_max_bytes").read_text())
    except OSError:
        return 0


def trim_filesystem(folder: Path) -> int:
    """Discard the free space of the filesystem that `folder` lies on; return the bytes the filesystem says it gave up.

    ext4 and xfs leave out what they know to be trimmed already. Raises StorageError where the device takes no discards.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        answer = fcntl.ioctl(fd, _FITRIM, _RANGE.pack(0, 2**64 - 1, 0))
    except OSError as e:
        raise _refusal(str(folder), e) from e
    finally:
        os.close(fd)
    return int(_RANGE.unpack(answer)[1])


def discard_device(fd: int, size_bytes: int, name: str) -> int:
    """Discard all of a device, open for writing; return its size in bytes. Everything on it is lost.

    Raises StorageError where it takes no discards.
    """
    try:
        fcntl.ioctl(fd, _BLKDISCARD, struct.pack("=QQ", 0, size_bytes))
    except OSError as e:
        raise _refusal(name, e) from e
    return size_bytes


def _refusal(name: str, e: OSError) -> StorageError:
    words = "takes no discards" if e.errno in (errno.EOPNOTSUPP, errno.ENOTTY) else f"refuses to: {e.strerror}"
    return StorageError(f"storage.trim: the device under {name} {words}; set storage.trim=false")
