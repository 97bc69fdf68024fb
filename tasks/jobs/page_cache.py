"""Cold files: evict our own pages, and count what stayed. Needs no root and harms nobody else."""

from __future__ import annotations

import ctypes
import mmap
import os

_LIBC = ctypes.CDLL(None, use_errno=True)


def evict(path: str) -> int:
    """Write the file's dirty pages out, drop its pages from the page cache, return how many are still resident.

    posix_fadvise(2) keeps dirty pages, hence the fsync.
    """
    fd = os.open(path, os.O_RDWR)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return _resident_pages(fd)
    finally:
        os.close(fd)


def _resident_pages(fd: int) -> int:
    """Return how many pages of the file are in the page cache, as mincore(2) counts them."""
    size_bytes = os.fstat(fd).st_size
    if size_bytes == 0:
        return 0
    pages = -(-size_bytes // mmap.PAGESIZE)
    state = (ctypes.c_ubyte * pages)()
    # A private writable map: ctypes takes the address of writable buffers only. Mapping reads no page.
    with mmap.mmap(fd, size_bytes, access=mmap.ACCESS_COPY) as mapped:
        anchor = ctypes.c_char.from_buffer(mapped)
        failed = _LIBC.mincore(ctypes.c_void_p(ctypes.addressof(anchor)), ctypes.c_size_t(size_bytes), state)
        del anchor
    if failed:
        raise OSError(ctypes.get_errno(), "mincore failed")
    return sum(byte & 1 for byte in bytes(state))
