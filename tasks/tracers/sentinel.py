"""Proof that a tracer is live: a read of our own that must show up in its trace."""

from __future__ import annotations

import mmap
import os
import time

from tasks.device import Device

#: Where the read is.
SECTOR = 0


def read_first_page(device: Device) -> tuple[int, int]:
    """Read the device's first 4 KiB past the page cache; return when, as begin and end in ns."""
    fd = os.open(device.node, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, 4096) as page:
            begin_ns = time.monotonic_ns()
            os.preadv(fd, [page], SECTOR)
            return begin_ns, time.monotonic_ns()
    finally:
        os.close(fd)
