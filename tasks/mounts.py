"""Mounted filesystems, as the kernel lists them in /proc/self/mountinfo (proc(5))."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

#: One folder per btrfs that is mounted; `devices/` in it has a link to each of its devices.
_BTRFS = Path("/sys/fs/btrfs")

_SYS_DEV = Path("/sys/dev/block")

#: Options of mount(8) that are in force while none of these is shown; the kernel shows what differs from its default.
_UNLESS = {
    "defaults": (),
    "auto": (),
    "noauto": (),
    "nofail": (),
    "_netdev": (),
    "async": ("sync",),
    "dev": ("nodev",),
    "exec": ("noexec",),
    "suid": ("nosuid",),
    "atime": ("noatime",),
    "diratime": ("nodiratime",),
    "strictatime": ("noatime", "relatime"),
}

_SIZE = re.compile(r"(\d+)([kmg]?)", re.IGNORECASE)


@dataclass(frozen=True)
class Mount:
    """One mount: where, which filesystem, which device, with which options."""

    path: str
    dev: str
    fs: str
    source: str
    options: str


def mounts() -> list[Mount]:
    """Return this process's mounts, in mount order."""
    return list(parse_mountinfo(Path("/proc/self/mountinfo").read_text(errors="surrogateescape")))


@lru_cache(maxsize=4)
def parse_mountinfo(text: str) -> tuple[Mount, ...]:
    """Return the mounts that `text` lists; asked often, while it seldom changes."""
    found = []
    # By newline and space only: the kernel leaves other white space in names as it is.
    for line in filter(None, text.split("\n")):
        left, right = line.split(" - ", 1)
        _, _, dev, _, path, options = left.split(" ")[:6]
        fs, source, super_options = right.split(" ", 2)
        found.append(Mount(_unescape(path), dev, fs, _unescape(source), f"{options},{super_options}"))
    return tuple(found)


def _unescape(text: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\043", "#"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text


def mount_of(path: str | os.PathLike[str], among: Sequence[Mount] | None = None) -> Mount:
    """Return the mount that `path` lies on: the last one whose folder is the longest prefix of it."""
    real = os.path.realpath(path)
    holding = [m for m in among or mounts() if real == m.path or real.startswith(m.path.rstrip("/") + "/")]
    longest = max(len(m.path) for m in holding)
    return next(m for m in reversed(holding) if len(m.path) == longest)


def device_number(path: str | os.PathLike[str]) -> str:
    """Return the `major:minor` of the block device behind the filesystem that `path` lies on.

    Of several it is the first. Where there is none (tmpfs, network, overlay) the anonymous number comes back.
    """
    return device_numbers(path)[0]


def device_numbers(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Return the `major:minor` of every block device of the filesystem that `path` lies on, data first.

    Those of a btrfs of several devices, the log and realtime devices of xfs, the journal of ext4 on a device of its own
    (seen by root only). Where there is no block device the filesystem's anonymous number comes back.
    """
    number = os.stat(path).st_dev
    found = devices_of(mount_of(path), _number(number) if os.major(number) else None)
    return found or (_number(number),)


def devices_of(mount: Mount, first: str | None = None) -> tuple[str, ...]:
    """Return the block devices of a mounted filesystem; `first` where stat(2) has told the one that holds data.

    btrfs shows an anonymous number in stat(2) and in mountinfo; there the mount's source leads to its devices.
    """
    first = first or (mount.dev if not mount.dev.startswith("0:") else _node_number(mount.source))
    if first is None:
        return ()
    folder = _btrfs_folder(first) if mount.fs == "btrfs" else None
    if folder is not None:
        numbers = [(link / "dev").read_text().strip() for link in sorted((folder / "devices").iterdir())]
    else:
        numbers = [first, *filter(None, map(_node_number, _other_nodes(mount))), *_ext4_journal(mount)]
    return tuple(dict.fromkeys(numbers))


def read_ahead_folder(path: str | os.PathLike[str]) -> Path | None:
    """Return the sysfs folder whose `read_ahead_kb` rules the filesystem that `path` lies on, or None.

    That is its backing device info: the disk's, or the volume's; btrfs has one of its own, whatever its disks say.
    """
    first = device_number(path)
    if mount_of(path).fs == "btrfs" and (folder := _btrfs_folder(first)) is not None:
        return (folder / "bdi").resolve()
    device = (_SYS_DEV / first).resolve()
    bdi = (device.parent if (device / "partition").exists() else device) / "bdi"
    return bdi.resolve() if bdi.exists() else None


def _number(number: int) -> str:
    return f"{os.major(number)}:{os.minor(number)}"


def _node_number(node: str) -> str | None:
    """Return the number of a block device node, None for what is none."""
    try:
        found = os.stat(node)
    except (OSError, ValueError):
        return None
    return _number(found.st_rdev) if stat.S_ISBLK(found.st_mode) else None


def _btrfs_folder(number: str) -> Path | None:
    for link in _BTRFS.glob("*/devices/*"):
        try:
            if (link / "dev").read_text().strip() == number:
                return link.parent.parent
        except OSError:
            continue  # unmounted meanwhile
    return None


def _other_nodes(mount: Mount) -> Iterator[str]:
    """Yield the further devices that xfs names among its options (xfs(5))."""
    for option in mount.options.split(",") if mount.fs == "xfs" else ():
        name, _, value = option.partition("=")
        if name in ("logdev", "rtdev"):
            yield _unescape(value)


def _ext4_journal(mount: Mount) -> list[str]:
    """Return the device of an ext4 journal outside the filesystem: s_journal_dev in its superblock.

    The superblock is at byte 1024, the field at 0xE4 in it (Documentation/filesystems/ext4, "Super Block"), in the
    kernel's encoding of minor (20 bits) and major (new_encode_dev in linux/kdev_t.h).
    """
    if mount.fs not in ("ext3", "ext4"):
        return []
    try:
        with open(mount.source, "rb") as f:
            f.seek(1024 + 0xE4)
            encoded = int.from_bytes(f.read(4), "little")
    except OSError:
        return []  # not root, or no node of that name here
    number = f"{(encoded & 0xFFF00) >> 8}:{(encoded & 0xFF) | ((encoded >> 12) & 0xFFF00)}"
    return [number] if encoded and (_SYS_DEV / number).exists() else []


def options_not_in_force(asked: Sequence[str], shown: str) -> list[str]:
    """Return those of the mount options `asked` that are not among those `shown` in mountinfo.

    A value may be written otherwise (64k for 65536) or be completed (`compress=zstd` as `compress=zstd:3`).
    """
    in_force = shown.split(",")
    return [option for entry in asked for option in entry.split(",") if option and not _in_force(option, in_force)]


def _in_force(option: str, shown: Sequence[str]) -> bool:
    if option in shown or option.lower().startswith(("x-", "comment=")):
        return True
    if option in _UNLESS:
        return not set(_UNLESS[option]) & set(shown)
    name, _, value = option.partition("=")
    values = [other.partition("=")[2] for other in shown if other.startswith(f"{name}=")]
    return any(not value or v.startswith(f"{value}:") or (_size(v) == _size(value) is not None) for v in values)


def _size(value: str) -> int | None:
    match = _SIZE.fullmatch(value)
    return int(match[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[match[2].lower()] if match else None
