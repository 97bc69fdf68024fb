"""Where a filesystem keeps its journal, from its superblock on the device."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

from tasks.device import Device

#: Byte offset and length of a part of the device.
Part = tuple[int, int]

_BTRFS_WORDS = "none: btrfs has no journal, its log is metadata"

#: Documentation/filesystems/ext4/super.rst: the superblock lies at byte 1024.
_EXT_AT, _EXT_MAGIC, _HAS_JOURNAL = 1024, 0xEF53, 0x4
#: Documentation/filesystems/ext4/ifork.rst: the extent tree.
_NODE, _LEAF_ENTRY, _INDEX_ENTRY, _NODE_MAGIC = (
    struct.Struct("<4HL"),
    struct.Struct("<L2HL"),
    struct.Struct("<2L2H"),
    0xF30A,
)
_UNWRITTEN = 32768


def journal(fs: str, dev: str) -> tuple[list[Part], str]:
    """Return the journal of the filesystem `fs` on the device `dev` (major:minor), and what is known of it, in words.

    The bytes are of that device's own address space. Reads the device, which root may; nothing is raised.
    """
    if fs == "btrfs":
        return [], _BTRFS_WORDS
    read = {"ext4": _ext, "ext3": _ext, "xfs": _xfs}.get(fs)
    if read is None:
        return [], f"unknown: the journal of {fs} cannot be located"
    try:
        fd = os.open(Device.of_number(dev).node, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as e:
        return [], f"unknown: {e.filename}: {e.strerror}"
    try:
        found = list(read(fd))
    except (OSError, ValueError, struct.error) as e:
        return [], f"unknown: {e}"
    finally:
        os.close(fd)
    return (found, "located") if found else ([], "none: the filesystem has no journal on this device")


def _xfs(fd: int) -> Iterator[Part]:
    """Yield the internal log (struct xfs_dsb in fs/xfs/libxfs/xfs_format.h; big endian).

    `sb_logstart` is a block number whose upper bits are the allocation group; 0 says that the log is elsewhere.
    """
    head = os.pread(fd, 512, 0)
    if head[:4] != b"XFSB":
        raise ValueError("no xfs superblock on the device")
    (block_bytes,) = struct.unpack_from(">L", head, 4)
    (start,) = struct.unpack_from(">Q", head, 48)
    group_blocks, _, _, blocks = struct.unpack_from(">4L", head, 84)
    shift = head[124]
    if start:
        group, block = start >> shift, start & ((1 << shift) - 1)
        yield (group * group_blocks + block) * block_bytes, blocks * block_bytes


def _ext(fd: int) -> Iterator[Part]:
    """Yield the extents of the journal's inode, of which the superblock keeps a copy (`s_jnl_blocks`)."""
    head = os.pread(fd, 1024, _EXT_AT)
    if struct.unpack_from("<H", head, 0x38)[0] != _EXT_MAGIC:
        raise ValueError("no ext4 superblock on the device")
    block_bytes = 1024 << struct.unpack_from("<L", head, 0x18)[0]
    compatible = struct.unpack_from("<L", head, 0x5C)[0]
    inode = struct.unpack_from("<L", head, 0xE0)[0]
    if not compatible & _HAS_JOURNAL or not inode:
        return
    if head[0xFD] != 1:
        raise ValueError("the superblock holds no copy of the journal's inode")
    yield from _ext_node(fd, head[0x10C : 0x10C + 60], block_bytes)


def _ext_node(fd: int, node: bytes, block_bytes: int) -> Iterator[Part]:
    magic, entries, _, depth, _ = _NODE.unpack_from(node)
    if magic != _NODE_MAGIC:
        raise ValueError("the journal's inode has no extents")
    for n in range(entries):
        at = _NODE.size + n * _LEAF_ENTRY.size
        if depth:
            _, low, high, _ = _INDEX_ENTRY.unpack_from(node, at)
            yield from _ext_node(fd, os.pread(fd, block_bytes, (high << 32 | low) * block_bytes), block_bytes)
        else:
            _, count, high, low = _LEAF_ENTRY.unpack_from(node, at)
            blocks = count if count <= _UNWRITTEN else count - _UNWRITTEN
            yield (high << 32 | low) * block_bytes, blocks * block_bytes
