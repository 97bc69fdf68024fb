"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

#: Names of the locks in a run's folder: of the process that drives it, and of the one that writes to it.
DRIVER_LOCK, STORE_LOCK = "driver.lock", "store.lock"


@contextlib.contextmanager
def replacing(path: Path, *, durably: bool = False) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; it takes the name `path` when the block ends well.

    `durably`: after a power cut too there is the old content or the new, never none.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        if durably:
            sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if durably:
        sync(path.parent)


def write_bytes(path: Path, content: bytes, *, durably: bool = False) -> None:
    """Write `content` to `path` atomically."""
    with replacing(path, durably=durably) as temporary:
        temporary.write_bytes(content)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's entries, are on their drive."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def own_folder(path: Path) -> Path:
    """Return the absolute path of a folder that a link such as `latest` leads to; links above it are not followed.

    A sweep's folder may be a link to another drive: its ledger is beside the link.
    """
    while path.is_symlink():
        path = path.parent / path.readlink()
    return Path(os.path.abspath(path))


def locked(path: Path, content: str = "", wait_s: float = 0.0) -> IO[str]:
    """Lock the file at `path` for this process, write `content` to it and return it: the lock ends with the file.

    Raises BlockingIOError where another process holds it for longer than `wait_s`. Works on NFS too (flock(2)).
    """
    end_s = time.monotonic() + wait_s
    file = path.open("a+")
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() >= end_s:
                file.close()
                raise
            time.sleep(0.1)
    file.truncate(0)
    file.write(content)
    file.flush()
    return file


def held(path: Path) -> bool:
    """Say whether another process holds the lock at `path`; where nobody can tell, nobody does."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
