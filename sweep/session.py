"""The folder of a Ray that a sweep started on this machine, and what a killed driver left running in one.

The folder's name holds the driver's pid and start time, so that everybody can tell whether the driver still lives, and
every process of that Ray keeps its logs in it open: some outlive their raylet, under titles that hide whose they are.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tasks.lease import MARKER, process_start

#: Short: the paths of Ray's sockets below it must stay under 108 bytes (unix(7)).
_PARENT = Path("/tmp")
_NAME = re.compile(r"osw-(\d+)-(\d+)")


@contextmanager
def folder() -> Iterator[Path]:
    """Provide the folder for this process's Ray, and end whatever of it is left when the body has ended."""
    pid = os.getpid()
    path = _PARENT / f"osw-{pid}-{process_start(pid)}"
    path.mkdir(mode=0o700)
    (path / MARKER).write_text(_pid_space())
    try:
        yield path
    finally:
        clear(path)


def clear_abandoned() -> None:
    """End what drivers of this user that are gone left behind."""
    for path in _PARENT.glob("osw-*"):
        name = _NAME.fullmatch(path.name)
        try:
            ours = path.lstat().st_uid == os.getuid() and (path / MARKER).exists() and not path.is_symlink()
        except OSError:
            continue
        if name and ours and _of_this_space(path) and process_start(int(name[1])) != name[2]:
            clear(path)


def _of_this_space(path: Path) -> bool:
    """Say whether the pid in the folder's name is one as this process counts them: containers may share a /tmp."""
    try:
        return (path / MARKER).read_text() in ("", _pid_space())
    except OSError:
        return False


def _pid_space() -> str:
    return os.readlink("/proc/self/ns/pid")


def clear(path: Path) -> None:
    """End Ray's processes that work in this folder, and remove it."""
    for pid in _users_of(path):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    shutil.rmtree(path, ignore_errors=True)


def _is_rays(process: Path) -> bool:
    """Say whether a process (its folder in /proc) is this user's and one of Ray's own.

    Not a driver, which has such files open as well: when a head ends, the drivers on that machine have to tell of it.
    """
    program = os.readlink(process / "exe")
    said = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    named = program == os.path.realpath(sys.executable) and (said.startswith(("ray::", "ray-")) or "/ray/" in said)
    return (named or "/ray/core/" in program) and process.stat().st_uid == os.getuid()


def _users_of(path: Path) -> list[int]:
    """Return the pids of Ray's processes that have a file below `path` open."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        pid = int(process.name)
        with suppress(OSError):
            links = (os.readlink(link) for link in (process / "fd").iterdir())
            if pid != os.getpid() and _is_rays(process) and any(link.startswith(f"{path}/") for link in links):
                found.append(pid)
    return found
