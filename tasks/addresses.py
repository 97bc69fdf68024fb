"""From bytes of a filesystem's address space to bytes of the whole disks whose requests are traced.

Partitions add their start, device-mapper its table (linear and striped). btrfs tells addresses of its own, which its
chunk tree maps to devices. What lies on anything else has no known place.
"""

from __future__ import annotations

import fcntl
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tasks.device import SECTOR_BYTES, Device
from tasks.errors import StorageError
from tasks.process import tool

Array = npt.NDArray[np.int64]

_SYS_DEV = Path("/sys/dev/block")

#: linux/btrfs.h and linux/btrfs_tree.h.
_BTRFS_IOC_TREE_SEARCH_V2 = 0xC0709411
_BTRFS_IOC_DEV_INFO = 0xD000941E
_CHUNK_TREE, _CHUNK_ITEM, _FIRST_CHUNK = 3, 228, 256
_RAID0, _RAID10, _PARITY = 1 << 3, 1 << 6, 1 << 7 | 1 << 8
_KEY = struct.Struct("=7Q4L4Q")
_ITEM = struct.Struct("=3Q2L")
_CHUNK = struct.Struct("<4Q3L2H")
_STRIPE = struct.Struct("<2Q16s")
_DEVICE_INFO_BYTES, _DEVICE_PATH_AT = 4096, 3072
_U64 = (1 << 64) - 1


@dataclass(frozen=True)
class Stretch:
    """A stretch of an address space, and one device that holds it or every `of`-th unit of it, the `place`-th first.

    In bytes: the stretch is [begin, begin + length), on `dev` (major:minor) it starts at `offset`.
    """

    begin: int
    length: int
    dev: str
    offset: int
    unit: int = SECTOR_BYTES
    of: int = 1
    place: int = 0

    def located(self, begin: Array, end: Array) -> tuple[Array, Array]:
        """Return where bytes [begin, end) of the address space lie on `dev`, as begin and end; equal where nowhere."""
        return self._before(begin) + self.offset, self._before(end) + self.offset

    def _before(self, address: Array) -> Array:
        """Return how many bytes of the stretch below `address` this device holds."""
        rows, rest = np.divmod(np.clip(address - self.begin, 0, self.length), self.unit * self.of)
        return rows * self.unit + np.clip(rest - self.place * self.unit, 0, self.unit)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Place:
    """Where some of the extents asked about lie on one disk: which of them, and bytes [begin, end).

    `from_begin` says how far into the extent, in bytes, the first of these bytes is.
    """

    dev: str
    which: Array
    begin: Array
    end: Array
    from_begin: Array


def on_disks(dev: str, begin: Array, end: Array, disks: Collection[str]) -> Iterator[Place]:
    """Yield where bytes [begin, end) of the block device `dev` lie on `disks` (major:minor), as far as that is known.

    Raises StorageError where a device below cannot be asked.
    """
    if dev in disks:
        yield Place(dev, np.arange(begin.size), begin, end, np.zeros(begin.size, np.int64))
        return
    yield from through(_layer(dev), begin, end, disks)


def through(stretches: Collection[Stretch], begin: Array, end: Array, disks: Collection[str]) -> Iterator[Place]:
    """Yield where bytes [begin, end) of an address space made of `stretches` lie on `disks`; see `on_disks`."""
    for stretch in stretches:
        low, high = stretch.located(begin, end)
        held = np.flatnonzero(high > low)
        if not held.size:
            continue
        skipped = np.maximum(stretch.begin - begin[held], 0)
        for found in on_disks(stretch.dev, low[held], high[held], disks):
            which = held[found.which]
            yield Place(found.dev, which, found.begin, found.end, found.from_begin + skipped[found.which])


def _layer(dev: str) -> list[Stretch]:
    """Return what a block device is made of, one layer down; nothing where that is unknown."""
    folder = (_SYS_DEV / dev).resolve()
    size_bytes = Device.of_number(dev).size_bytes
    if (folder / "partition").exists():
        start = int((folder / "start").read_text()) * SECTOR_BYTES
        return [Stretch(0, size_bytes, (folder.parent / "dev").read_text().strip(), start)]
    if (folder / "dm").is_dir():
        major, minor = dev.split(":")
        return parse_table(tool(["dmsetup", "table", "--major", major, "--minor", minor], StorageError))
    return []


def parse_table(text: str) -> list[Stretch]:
    """Return the stretches of a device-mapper table; targets but linear and striped are left out.

    Lines are `start length linear device offset` and `start length striped stripes chunk [device offset]...`, in
    sectors (Documentation/admin-guide/device-mapper/linear.rst and striped.rst).
    """
    found = []
    for line in text.splitlines():
        start, length, target, *rest = line.split()
        begin, size = int(start) * SECTOR_BYTES, int(length) * SECTOR_BYTES
        if target == "linear":
            found.append(Stretch(begin, size, rest[0], int(rest[1]) * SECTOR_BYTES))
        elif target == "striped":
            of, unit = int(rest[0]), int(rest[1]) * SECTOR_BYTES
            pairs = zip(rest[2::2], rest[3::2], strict=True)
            found += [Stretch(begin, size, d, int(o) * SECTOR_BYTES, unit, of, n) for n, (d, o) in enumerate(pairs)]
    return found


def btrfs_chunks(fd: int) -> dict[int, list[Stretch]]:
    """Return the stretches of a btrfs address space by the address at which their chunk begins, every copy listed.

    `fd` is any open file of the filesystem. Parity RAID is left out. Raises OSError; needs CAP_SYS_ADMIN.
    """
    devices: dict[int, str] = {}
    found = {}
    for address, chunk in _chunk_items(fd):
        length, _, unit, kind, _, _, _, count, copies = _CHUNK.unpack_from(chunk)
        if kind & _PARITY:
            continue
        copies = copies if kind & _RAID10 else 1 if kind & _RAID0 else count
        stretches = []
        for n in range(count):
            devid, offset, _ = _STRIPE.unpack_from(chunk, _CHUNK.size + n * _STRIPE.size)
            dev = devices.get(devid) or devices.setdefault(devid, _btrfs_device(fd, devid))
            stretches.append(Stretch(address, length, dev, offset, unit, count // copies, n // copies))
        found[address] = stretches
    return found


def _chunk_items(fd: int) -> Iterator[tuple[int, bytes]]:
    """Yield address and item of every chunk, by BTRFS_IOC_TREE_SEARCH_V2."""
    room = 1 << 16
    start = 0
    while True:
        key = _KEY.pack(
            _CHUNK_TREE,
            _FIRST_CHUNK,
            _FIRST_CHUNK,
            start,
            _U64,
            0,
            _U64,
            _CHUNK_ITEM,
            _CHUNK_ITEM,
            1 << 31,
            0,
            *[0] * 4,
        )
        answer = bytearray(key + struct.pack("=Q", room) + bytes(room))
        fcntl.ioctl(fd, _BTRFS_IOC_TREE_SEARCH_V2, answer, True)
        count = _KEY.unpack_from(answer)[9]
        if not count:
            return
        at = _KEY.size + 8
        for _ in range(count):
            _, _, address, _, size = _ITEM.unpack_from(answer, at)
            yield address, bytes(answer[at + _ITEM.size : at + _ITEM.size + size])
            at += _ITEM.size + size
            start = address + 1


def _btrfs_device(fd: int, devid: int) -> str:
    """Return major:minor of a member of a btrfs filesystem, by BTRFS_IOC_DEV_INFO."""
    answer = bytearray(struct.pack("=Q", devid) + bytes(_DEVICE_INFO_BYTES - 8))
    fcntl.ioctl(fd, _BTRFS_IOC_DEV_INFO, answer, True)
    return Device.of_node(bytes(answer[_DEVICE_PATH_AT:]).split(b"\0", 1)[0].decode()).dev
