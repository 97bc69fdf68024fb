"""Starts an attempt under its supervisor and hands over what it produced; the same with Ray and without."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from tasks.errors import TaskError
from tasks.request import Request
from tasks.spec import TrialSpec
from tasks.state import state_dir

_ROOT = Path(__file__).resolve().parent.parent

#: How long a cancelled task may take to notice; it waits in the kernel until then.
_MOMENT_S = 0.5

#: What a trial does for a shorter time is not told: nobody reads it, and each word costs head and node a message.
_BRIEF_S = 0.05

#: From this length on the log of supervisors is begun anew.
_LOG_BYTES = 1 << 20


@dataclass(frozen=True)
class Outcome:
    """A finished attempt: its record, and the files in `folder` that belong to it (see `tasks.trial.manifest`)."""

    record: dict[str, Any]
    folder: Path
    files: list[dict[str, Any]]
    log_tail: str


@contextmanager
def launched(spec: TrialSpec, announce: Callable[[str], None]) -> Iterator[Outcome]:
    """Run one attempt and provide its outcome; its files are gone when the body ends.

    `announce` is told what the trial does, and the same again every few seconds while it lives.

    Raises TaskError where the trial's process died. Leaving early, by an exception too, stops the attempt and waits
    until it is cleaned up; if this process is killed, the supervisor cleans up by itself.
    """
    with _supervisor(spec) as events:
        yield _outcome(events, announce)


@contextmanager
def _supervisor(spec: TrialSpec) -> Iterator[BinaryIO]:
    """Start a supervisor of one attempt and provide its standard output; at the end, wait until it has cleaned up."""
    ours, theirs = os.pipe(), os.pipe()
    with open(ours[1], "wb") as orders, open(theirs[0], "rb") as events:
        # Not this process's standard error: a Ray worker's log, and who clears a dead Ray ends whoever has that open.
        with _log() as errors:
            try:
                _send(Request(os.environ, (ours[0], theirs[1], errors.fileno()), spec.to_json()))
            finally:
                os.close(ours[0])
                os.close(theirs[1])
        try:
            yield events
        finally:
            orders.close()
            events.read()  # its end: nothing of the attempt is left


def _log_path() -> Path:
    return state_dir() / "supervisor.log"


@contextmanager
def _log() -> Iterator[TextIO]:
    """Open the node's log of supervisors, for its owner's eyes only; a long one becomes the one before it."""
    path = _log_path()
    with suppress(FileNotFoundError):
        if path.stat().st_size > _LOG_BYTES:
            path.replace(path.with_suffix(".log.1"))
    with open(path, "a", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        with suppress(PermissionError):  # another user's
            os.fchmod(file.fileno(), 0o600)
        yield file


_doors: list[socket.socket] = []
_asking = threading.Lock()


def _send(request: Request) -> None:
    """Send a request to this process's waiting supervisor, started where there is none or it was killed.

    Raises TaskError where it does not start.
    """
    with _asking:
        try:
            try:
                request.send(_doors[-1] if _doors else _opened(request))
            except (BrokenPipeError, ConnectionResetError):
                request.send(_opened(request))
        except (BrokenPipeError, ConnectionResetError):
            raise TaskError(f"the attempt's supervisor does not start: {_log_path()} says why") from None
        except BaseException:
            # Cancelled in the middle: with half a request in it this one understands no other.
            while _doors:
                _doors.pop().close()
            raise


def _opened(first: Request) -> socket.socket:
    near, far = socket.socketpair()
    with far:
        process = subprocess.Popen(
            [sys.executable, "-m", "tasks.supervisor", str(far.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=first.streams[2],
            pass_fds=[far.fileno()],
            cwd=_ROOT,
            start_new_session=True,
        )
    process.wait()  # it goes on in a child of its own
    for door in _doors:
        door.close()
    _doors[:] = [near]
    return near


def _lines(events: BinaryIO) -> Iterator[bytes | None]:
    """Yield lines as they come, and None when nothing comes for a while.

    Awake every moment: Ray tells a task that it is cancelled between two of its steps.
    """
    rest, limit_s = b"", _BRIEF_S
    while True:
        if not select.select([events], [], [], limit_s)[0]:
            limit_s = _MOMENT_S
            yield None
            continue
        piece = os.read(events.fileno(), 1 << 16)
        if not piece:
            return
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines
        limit_s = _BRIEF_S


def _outcome(events: BinaryIO, announce: Callable[[str], None]) -> Outcome:
    doing, untold = "starting", False
    for line in _lines(events):
        if line is None:
            if untold:
                announce(doing)
            untold = False
            continue
        event = json.loads(line)
        if event["event"] in ("phase", "alive"):
            doing, untold = event.get("text", doing), True
        elif event["event"] == "finished":
            return Outcome(event["record"], Path(event["folder"]), event["files"], event["log_tail"])
        else:
            raise TaskError(event["reason"])
    raise TaskError(f"the attempt's supervisor ended without a word; {_log_path()} may say why")
