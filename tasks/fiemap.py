"""Where a file's bytes lie: FS_IOC_FIEMAP (linux/fiemap.h, Documentation/filesystems/fiemap.rst)."""

from __future__ import annotations

import fcntl
import struct
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.int64]

_FS_IOC_FIEMAP = 0xC020660B
_MAX_OFFSET = (1 << 64) - 1
_LAST = 0x1

#: Flags of extents whose place on the device nobody can say, by what they mean. An unwritten extent has a place.
_PLACELESS = {"inline": 0x200 | 0x400, "encoded": 0x8, "pending": 0x4 | 0x2}

#: struct fiemap, and the struct fiemap_extent that it ends in.
_HEADER = struct.Struct("=2Q4L")
_EXTENT = np.dtype(
    [
        ("logical", "u8"),
        ("physical", "u8"),
        ("length", "u8"),
        ("reserved", "u8", 2),
        ("flags", "u4"),
        ("reserved32", "u4", 3),
    ]
)
#: Extents asked for at once: few at first, as most files have few.
_ROOM, _MOST_ROOM = 64, 4096


@dataclass
class Mapping:
    """Extents of one file, by rising offset: bytes in the file, in the filesystem's address space, and their length.

    `placeless` counts the extents that have no place: `pending` (not yet allocated), `inline` (in metadata),
    `encoded` (compressed, so that lengths say nothing).
    """

    logical: Array
    physical: Array
    length: Array
    placeless: Counter[str] = field(default_factory=Counter)

    @property
    def settled(self) -> bool:
        """Whether nothing waits for the filesystem to allocate it."""
        return not self.placeless["pending"]


def mapping(fd: int) -> Mapping:
    """Return the extents of an open file, as they are now: nothing is written back for it. Raises OSError."""
    parts = []
    start, room = 0, _ROOM
    while True:
        found = _ask(fd, start, room)
        parts.append(found)
        if not found.size or found["flags"][-1] & _LAST:
            return _mapping(np.concatenate(parts))
        start, room = int(found["logical"][-1] + found["length"][-1]), _MOST_ROOM


def _ask(fd: int, start: int, room: int) -> npt.NDArray[np.void]:
    answer = bytearray(_HEADER.pack(start, _MAX_OFFSET - start, 0, 0, room, 0) + bytes(room * _EXTENT.itemsize))
    fcntl.ioctl(fd, _FS_IOC_FIEMAP, answer, True)
    mapped = _HEADER.unpack_from(answer)[3]
    return np.frombuffer(answer, _EXTENT, mapped, _HEADER.size)


def _mapping(found: npt.NDArray[np.void]) -> Mapping:
    placed = np.ones(found.size, bool)
    placeless: Counter[str] = Counter()
    for name, flags in _PLACELESS.items():
        chosen = placed & (found["flags"] & flags != 0)
        placeless[name] = int(np.count_nonzero(chosen))
        placed &= ~chosen
    logical, physical, length = (found[name][placed].astype(np.int64) for name in ("logical", "physical", "length"))
    return Mapping(logical, physical, length, placeless)
