"""Who drives a run: one driver at a time, which holds a lock in the run's folder as long as it lives."""

from __future__ import annotations

import datetime
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from analysis.files import DRIVER_LOCK, STORE_LOCK, locked
from analysis.files import held as in_use
from sweep.errors import UserError
from tasks.machine import user_name

#: How long the process that wrote for a killed driver may take to end.
_WRITER_LIMIT_S = 60.0

#: Whoever only looks who has a lock, of a run or of a night, holds it for less than this.
LOOK_S = 0.5


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Be the one driver of the run in `folder`, made if it is missing; raise UserError where another lives."""
    own = {"host": socket.gethostname(), "pid": os.getpid(), "user": user_name(), "since": _now()}
    try:
        folder.mkdir(exist_ok=True)
        lock = locked(folder / DRIVER_LOCK, json.dumps(own), wait_s=LOOK_S)
    except BlockingIOError:
        raise UserError(_refusal(folder)) from None
    except OSError as e:
        raise _cannot_write(folder, e) from None
    try:
        yield
    finally:
        lock.close()
        if not (folder / "run.json").exists():
            (folder / DRIVER_LOCK).unlink(missing_ok=True)
            with suppress(OSError):  # something else is in it
                folder.rmdir()


def wait_for_writer(folder: Path) -> None:
    """Wait until the process that wrote for an earlier driver of this run has ended; raise UserError where it stays."""
    try:
        locked(folder / STORE_LOCK, wait_s=_WRITER_LIMIT_S).close()
    except BlockingIOError:
        text = f"{folder}: a process of its earlier driver still writes to it after {_WRITER_LIMIT_S:.0f} s"
        raise UserError(f"{text}\n  end the Ray that it belongs to, then resume") from None
    except OSError as e:
        raise _cannot_write(folder, e) from None


def driver(folder: Path) -> str | None:
    """Return in words who drives the run in `folder` now, or None where nobody does."""
    return _holder(folder) if in_use(folder / DRIVER_LOCK) else None


def refuse_driven(folder: Path) -> None:
    """Raise UserError where a driver of the run in `folder` lives."""
    if driver(folder):
        raise UserError(_refusal(folder))


def _holder(folder: Path) -> str:
    try:
        told = json.loads((folder / DRIVER_LOCK).read_text())
        return f"process {told['pid']} of {told['user']} on {told['host']}, since {told['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _refusal(folder: Path) -> str:
    return (
        f"{folder}: this run goes on: {_holder(folder)}\n  wait for its end, or interrupt it (kill -INT), then resume"
    )


def _cannot_write(folder: Path, e: OSError) -> UserError:
    return UserError(f"{folder}: cannot write to it: {e.strerror}")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
