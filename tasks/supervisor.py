"""The process that owns an attempt on its node, and cleans up whatever becomes of everybody else.

`python -m tasks.supervisor FD` waits at a socket with everything imported, for that takes longer than a short trial,
and forks a supervisor for each request (`tasks.request`), one ahead; it ends when the socket closes.

It leaves the process tree of whoever started it (double fork, own session). A supervisor adopts every orphan of the
attempt, and ends when its standard input closes: that is how it learns that its starter is gone. What the request asks
for is a trial's specification; then, one JSON value a line:

    stdin   end of file means: stop, clean up, go
    stdout  {"event": "phase", "text": ...}       what the trial does now
            {"event": "alive"}                    it still does that
            {"event": "finished", "record": ..., "folder": ..., "files": [...], "log_tail": ...}
            {"event": "died", "reason": ...}      the trial's own process ended early
            end of file: nothing of the attempt is left on this machine
"""

from __future__ import annotations

import gc
import importlib
import importlib.abc
import json
import os
import select
import signal
import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks import machine, provenance, workloads
from tasks.errors import Cancelled
from tasks.lease import Lease, end_processes
from tasks.process import adopt_orphans, die_with_parent, exit_in_words
from tasks.request import Request
from tasks.spec import TrialSpec
from tasks.trial import manifest, run_trial, spool_of, tail_of_logs

#: How long a trial may take to clean up after being told to stop.
_GRACE_S = 10.0

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
    spare = _spare(door)
    while (request := Request.received(door)) is not None:
        try:
            request.send(spare)
        except (BrokenPipeError, ConnectionResetError):  # killed while it waited
            spare = _spare(door)
            request.send(spare)
        request.close()
        spare.close()
        spare = _spare(door)


def _spare(door: socket.socket) -> socket.socket:
    """Fork a supervisor that waits for its request, the process of its trial too; return where to send that."""
    near, far = socket.socketpair()
    if os.fork() == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        door.close()
        near.close()
        os.setsid()
        adopt_orphans()
        trial = _Child.waiting(far)
        if (request := Request.received(far)) is not None:
            far.close()
            request.enter()
            _supervise_one(request, trial)
            os.close(sys.stdout.fileno())  # taking down this process takes longer: nobody need wait for that
        os._exit(0)
    far.close()
    return near


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
    provenance.node()
    with _hidden("pandas"):
        pa.array([0])
        table = pa.table({"value": pa.array(np.zeros(1))})
    pq.write_table(table, pa.BufferOutputStream(), compression="zstd")
    with suppress(ImportError):
        importlib.import_module("pynvml")
    gc.freeze()  # what is here now stays: no collection in a child need touch, and so copy, it


@contextmanager
def _hidden(package: str) -> Iterator[None]:
    """Hide a package from whoever looks for it: Arrow imports pandas if it is there, and every fork is the slower."""

    class Nowhere(importlib.abc.MetaPathFinder):
        def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
            if name == package:
                raise ModuleNotFoundError(name)

    finder = Nowhere()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


@dataclass(frozen=True)
class _Child:
    """The process of a trial: its number, and where it waits for its request."""

    pid: int
    door: socket.socket

    @classmethod
    def waiting(cls, others: socket.socket) -> _Child:
        """Fork one, to which the socket `others` is of no use."""
        near, far = socket.socketpair()
        if (pid := os.fork()) == 0:
            die_with_parent()
            others.close()
            near.close()
            code = 1
            try:
                signal.signal(signal.SIGTERM, _cancel)
                request = Request.received(far)
                far.close()
                code = _run_in_child(request) if request else 0
            except Cancelled:
                code = 130
            finally:
                sys.stderr.flush()
                os._exit(code)
        far.close()
        return cls(pid, near)


def _supervise_one(request: Request, trial: _Child) -> None:
    """Run one attempt, as described above."""
    lease = Lease.take(request.order["token"])
    own = replace(request, streams=(0, 1, 2), order={"trial": request.order, "lease": str(lease.folder)})
    alone = False
    try:
        try:
            own.send(trial.door)
        except (BrokenPipeError, ConnectionResetError):  # killed while it waited
            trial = _Child.waiting(trial.door)
            own.send(trial.door)
        alone = _supervise(trial.pid, lease)
    finally:
        left = Lease.load(lease.folder)
        for problem in left.clean(alone) if left else []:
            print(f"offload-sweep: could not clean up {problem}", file=sys.stderr)


def _supervise(trial: int, lease: Lease) -> bool:
    """Watch over the process of a trial to its end; return whether all processes of the attempt have ended."""
    watched = os.pidfd_open(trial)
    ready: list[Any] = []
    while not ready:
        ready, _, _ = select.select([sys.stdin, watched], [], [], _HEARTBEAT_S)
        if not ready:
            _emit(event="alive")
    if watched not in ready:
        _stop(trial, watched)
        return False
    code = os.waitstatus_to_exitcode(os.waitpid(trial, 0)[1])
    if code:
        _emit(event="died", reason=f"the trial's process ended with {exit_in_words(code)}")
    end_processes(lease.token)  # while the starter collects: nobody waits for it now
    sys.stdin.buffer.read()  # until the starter has collected the files, or is gone
    return True


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


def _run_in_child(request: Request) -> int:
    """Run the trial that is asked for in this forked process and return the exit code."""
    request.enter()
    try:
        lease = Lease.load(Path(request.order["lease"]))
        assert lease is not None, f"no lease in {request.order['lease']}"
        record = run_trial(TrialSpec(**request.order["trial"]), lease, _announce)
        spool = spool_of(lease)
        _emit(event="finished", record=record, folder=str(spool), files=manifest(spool), log_tail=tail_of_logs(spool))
        return 0
    except Cancelled:
        return 130
    except Exception:  # noqa: BLE001 - reported, and turned into an exit code
        sys.excepthook(*sys.exc_info())
        return 1


def _cancel(number: int, frame: FrameType | None) -> None:
    # Once: a second signal must not interrupt the clean-up that the first one started.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Cancelled


def _announce(text: str) -> None:
    _emit(event="phase", text=text)


if __name__ == "__main__":
    main()
