"""Where raw trace pages wait until the window has ended: in memory up to a limit, on the node's disk beyond it.

That disk is often the drive under test, or the one beneath the image; in memory the trace does not write to it.
"""

from __future__ import annotations

import os
from pathlib import Path


class Spool:
    """Pages of several CPUs, each in the order in which they came."""

    def __init__(self, folder: Path, memory_bytes: int) -> None:
        """Keep `memory_bytes` over all CPUs in memory and what comes after in files in `folder`."""
        self._folder = folder
        self._left_bytes = memory_bytes
        #: Bytes that went to the disk.
        self.disk_bytes = 0
        self._in_memory: dict[str, int] = {}
        self._on_disk: dict[str, int] = {}

    def target(self, cpu: str) -> int:
        """Return the file descriptor that the next pages of `cpu` go to."""
        if self._left_bytes > 0 and cpu not in self._on_disk:
            if cpu not in self._in_memory:
                # Anonymous: gone with this process, however that ends.
                self._in_memory[cpu] = os.memfd_create(f"{cpu}.pages")
            return self._in_memory[cpu]
        if cpu not in self._on_disk:
            self._folder.mkdir(exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            self._on_disk[cpu] = os.open(self._folder / f"{cpu}.pages", flags)
        return self._on_disk[cpu]

    def wrote(self, cpu: str, count: int) -> None:
        """Take note of bytes that went to `target(cpu)`."""
        if cpu in self._on_disk:
            self.disk_bytes += count
        else:
            self._left_bytes -= count

    def files(self) -> dict[str, list[Path]]:
        """Return what holds each CPU's pages, in order, to be opened by path."""
        memory = {cpu: [Path(f"/proc/self/fd/{fd}")] for cpu, fd in self._in_memory.items()}
        disk = {cpu: [self._folder / f"{cpu}.pages"] for cpu in self._on_disk}
        return {cpu: memory.get(cpu, []) + disk.get(cpu, []) for cpu in [*memory, *disk]}

    def close(self) -> None:
        """Give the memory back; the disk's files stay until their folder goes."""
        for fd in (*self._in_memory.values(), *self._on_disk.values()):
            os.close(fd)
        self._in_memory, self._on_disk = {}, {}
