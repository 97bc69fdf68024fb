"""The process that owns an attempt on its node, and cleans up whatever becomes of everybody else.

`python -m tasks.supervisor FD` waits at a socket with everything imported, for that takes longer than a short trial,
and becomes a supervisor by a fork for each request (`Request`); it ends when the socket closes.

It leaves the process tree of whoever started it (double fork, own session). A supervisor adopts every orphan of the
attempt, and ends when its standard input closes: that is how it learns that its starter is gone. Protocol, one JSON
value a line:

    stdin   the trial's specification; end of file means: stop, clean up, go
    stdout  {"event": "phase", "text": ...}       what the trial does now
            {"event": "alive"}                    it still does that
            {"event": "finished", "record": ..., "folder": ..., "files": [...], "log_tail": ...}
            {"event": "died", "reason": ...}      the trial's own process ended early
            end of file: nothing of the attempt is left on this machine
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

import pyarrow as pa

from tasks import machine, provenance, workloads
from tasks.errors import Cancelled
from tasks.lease import Lease
from tasks.process import adopt_orphans, die_with_parent, exit_in_words
from tasks.spec import TrialSpec
from tasks.trial import manifest, run_trial, spool_of, tail_of_logs

#: How long a trial may take to clean up after being told to stop.
_GRACE_S = 10.0

#: Bytes of a request that say how long the rest of it is.
_LENGTH_BYTES = 8

#: How often a trial that does not say anything is said to be alive.
_HEARTBEAT_S = 10.0


def main() -> None:
    """Answer requests at the socket whose number is the first argument, until it closes."""
    _leave_the_family()
    door = socket.socket(fileno=int(sys.argv[1]))
    _warm_up()
    # What was imported has threads of its own, idle now and of no use to a child.
    warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for supervisors
    while (request := Request.received(door)) is not None:
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            door.close()
            request.enter()
            _supervise_one()
            os._exit(0)
        request.close()


def _leave_the_family() -> None:
    """Leave the process tree of whoever started this, and take no signals meant for it."""
    if os.fork():
        os._exit(0)
    os.setsid()
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _warm_up() -> None:
    """Do once what every trial would do again: imports, also those that Arrow makes late, and versions of tools."""
    for kind in workloads.WORKLOADS:
        workloads.load(kind)
    machine.facts()
    provenance.tool_versions()
    pa.array([0])
    with suppress(ImportError):
        importlib.import_module("pynvml")
    gc.freeze()  # what is here now stays: no collection in a child need touch, and so copy, it


@dataclass(frozen=True)
class Request:
    """What a supervisor starts with: the environment of its starter, and three open files for its standard streams."""

    environment: Mapping[str, str]
    streams: Sequence[int]

    def send(self, door: socket.socket) -> None:
        """Send it; the streams stay open here."""
        text = json.dumps(dict(self.environment)).encode()
        socket.send_fds(door, [len(text).to_bytes(_LENGTH_BYTES)], list(self.streams))
        door.sendall(text)

    @classmethod
    def received(cls, door: socket.socket) -> Request | None:
        """Return the next request, or None where the other end is closed."""
        length, streams, _, _ = socket.recv_fds(door, _LENGTH_BYTES, 3)
        text = b""
        while length and len(text) < int.from_bytes(length):
            if not (piece := door.recv(int.from_bytes(length) - len(text))):
                return None
            text += piece
        return cls(json.loads(text), streams) if length else None

    def enter(self) -> None:
        """Make this process's environment and standard streams those of the request."""
        os.environ.clear()
        os.environ.update(self.environment)
        for number, stream in enumerate(self.streams):
            os.dup2(stream, number)
        self.close()

    def close(self) -> None:
        """Close the streams here."""
        for stream in self.streams:
            os.close(stream)


def _supervise_one() -> None:
    """Run one attempt, as described above."""
    os.setsid()
    adopt_orphans()
    line = sys.stdin.buffer.readline()
    if not line:
        return
    value = json.loads(line)
    lease = Lease.take(value["token"])
    try:
        _supervise(value, lease)
    finally:
        left = Lease.load(lease.folder)
        for problem in left.clean() if left else []:
            print(f"offload-sweep: could not clean up {problem}", file=sys.stderr)


def _supervise(value: dict[str, Any], lease: Lease) -> None:
    trial = os.fork()
    if trial == 0:
        _run_in_child(value, lease)
    watched = os.pidfd_open(trial)
    ready: list[Any] = []
    while not ready:
        ready, _, _ = select.select([sys.stdin, watched], [], [], _HEARTBEAT_S)
        if not ready:
            _emit(event="alive")
    if watched not in ready:
        _stop(trial, watched)
        return
    code = os.waitstatus_to_exitcode(os.waitpid(trial, 0)[1])
    if code:
        _emit(event="died", reason=f"the trial's process ended with {exit_in_words(code)}")
    sys.stdin.buffer.read()  # until the starter has collected the files, or is gone


def _stop(trial: int, watched: int) -> None:
    for number, limit_s in ((signal.SIGTERM, _GRACE_S), (signal.SIGKILL, 10.0)):
        signal.pidfd_send_signal(watched, number)
        if select.select([watched], [], [], limit_s)[0]:
            os.waitpid(trial, 0)
            return


def _emit(**event: Any) -> None:
    try:
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        pass  # nobody listens any more; the clean-up goes on


def _run_in_child(value: dict[str, Any], lease: Lease) -> None:
    """Run the trial in this forked process, which never returns."""
    die_with_parent()
    code = 1
    try:
        signal.signal(signal.SIGTERM, _cancel)
        record = run_trial(TrialSpec(**value), lease, _announce)
        spool = spool_of(lease)
        _emit(event="finished", record=record, folder=str(spool), files=manifest(spool), log_tail=tail_of_logs(spool))
        code = 0
    except Cancelled:
        code = 130
    except Exception:  # noqa: BLE001 - reported, and turned into an exit code
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)


def _cancel(number: int, frame: FrameType | None) -> None:
    # Once: a second signal must not interrupt the clean-up that the first one started.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Cancelled


def _announce(text: str) -> None:
    _emit(event="phase", text=text)


if __name__ == "__main__":
    main()
