"""What happens to the files of a folder, as the kernel tells it: inotify(7)."""

from __future__ import annotations

import ctypes
import os
import select
import struct
from pathlib import Path

_CREATE, _CLOSE_WRITE, _MOVED, _DELETE = 0x100, 0x8, 0xC0, 0x200
_IS_FOLDER, _ONLY_FOLDERS = 0x40000000, 0x01000000
_EVENT = struct.Struct("=i3L")
_LIBC = ctypes.CDLL(None, use_errno=True)


class Hints:
    """Tells which files below a folder were closed after writing or came to be, and which went away.

    Not all of them: the kernel drops what is not read in time, and a new folder's first files may be missed. Where the
    kernel refuses to tell at all, `trouble` says so, and nothing is told.
    """

    def __init__(self, folder: Path) -> None:
        """Begin to listen."""
        self._folder = folder
        self._within: dict[int, str] = {}
        self._fd = _LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self.trouble: str | None = None
        if self._fd < 0:
            self.trouble = f"closed files are not told (inotify): {os.strerror(ctypes.get_errno())}"
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._add("")

    def close(self) -> None:
        """Stop listening."""
        for fd in (self._fd, self._stop):
            if fd >= 0:
                os.close(fd)

    def stop(self) -> None:
        """End the wait of another thread."""
        os.eventfd_write(self._stop, 1)

    def wait(self, limit_s: float) -> tuple[set[str], set[str]]:
        """Wait for something to happen, at most `limit_s`; return the paths that changed and those that went away."""
        changed: set[str] = set()
        gone: set[str] = set()
        waiting = select.poll()  # select() takes no descriptor from 1024 on
        for fd in (self._fd, self._stop):
            if fd >= 0:
                waiting.register(fd, select.POLLIN)
        ready = [fd for fd, _ in waiting.poll(max(0, limit_s) * 1000)]
        if self._fd in ready:
            data = os.read(self._fd, 1 << 16)
            at = 0
            while at < len(data):
                watch, mask, _, size = _EVENT.unpack_from(data, at)
                name = data[at + _EVENT.size : at + _EVENT.size + size].rstrip(b"\0")
                at += _EVENT.size + size
                if watch in self._within and name:
                    self._tell(os.path.join(self._within[watch], os.fsdecode(name)), mask, changed, gone)
        return changed, gone

    def _tell(self, path: str, mask: int, changed: set[str], gone: set[str]) -> None:
        if mask & _IS_FOLDER:
            if mask & _CREATE:
                self._add(path)
        elif mask & _DELETE:
            gone.add(path)
            changed.discard(path)
        else:
            changed.add(path)

    def _add(self, within: str) -> None:
        mask = _CREATE | _CLOSE_WRITE | _MOVED | _DELETE | _ONLY_FOLDERS
        watch = _LIBC.inotify_add_watch(self._fd, os.fsencode(self._folder / within), mask)
        if watch >= 0:  # gone again already, or too many: looks at intervals find what is in it
            self._within[watch] = within
