"""The ftrace tracer: an instance of its own in tracefs, whose binary per-CPU pages are moved away unformatted.

During the window the kernel writes about 65 bytes an event and one thread copies its pages into memory; decoding and
pairing wait until the window has ended.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.device import Devices
from tasks.errors import TracerError
from tasks.lease import Lease
from tasks.spec import Trace
from tasks.tracers import Capture, Window
from tasks.tracers.event_stream import EventStream
from tasks.tracers.pairing import COMPLETE, INSERT, ISSUE, MERGE, REQUEUE, Pairing, Rows
from tasks.tracers.ring_buffer import EventFormat, check_page_header
from tasks.tracers.sentinel import SECTOR, read_first_page
from tasks.tracers.spool import Spool
from tasks.tracers.tracefs import TRACEFS, ensure_mounted
from tasks.tracers.writer import RequestWriter
from tasks.units import parse_bytes

_EVENTS = {
    "block_rq_issue": ISSUE,
    "block_rq_complete": COMPLETE,
    "block_rq_requeue": REQUEUE,
    "block_rq_insert": INSERT,
    "block_rq_merge": MERGE,
}
_DRAIN_INTERVAL_S = 0.05
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

#: Kernels from 6.8 on can hand out more than a page at a time: fewer calls for the same events.
_SUBBUFFER = "buffer_subbuf_size_kb"
_SUBBUFFER_KIB = 32


class Tracer:
    """Records issues, requeues and completions in the kernel's own ring buffer."""

    def __init__(self, trace: Trace, devices: Devices, lease: Lease, environment: dict[str, str]) -> None:
        """Trace `devices`; raw pages go to the attempt's spool."""
        self._devices = devices
        self._lease = lease
        self._buffer_kib = parse_bytes(trace.buffer_size) // 1024
        self._instance = TRACEFS / "instances" / f"offload-sweep-{lease.token}"
        self._spool = Spool(lease.folder / "ftrace", parse_bytes(trace.spool_memory))
        self._sentinels: list[_Sentinel] = []
        self._lost = 0
        self.facts: dict[str, Any] = {
            "name": "ftrace",
            "version": os.uname().release,
            "buffer_bytes_per_cpu": self._buffer_kib * 1024,
        }

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record while the body runs."""
        ensure_mounted()
        with self._lease.hold("ftrace", path=str(self._instance)):
            with _told_as("cannot be set up"):
                self._set_up()
            with _draining(self._instance, self._spool):
                self._control_read()
                yield
                self._control_read()
                with _told_as("cannot be stopped"):
                    self._write("tracing_on", "0")
            with _told_as("does not tell what it lost"):
                self._lost = sum(_lost_on(cpu) for cpu in _cpus(self._instance))
        self.facts["spooled_to_disk_bytes"] = self._spool.disk_bytes

    def _control_read(self) -> None:
        with _told_as("cannot read the first page of the traced device"):
            self._sentinels += [_Sentinel(d.number, *read_first_page(d)) for d in self._devices]

    def _write(self, name: str, value: str) -> None:
        (self._instance / name).write_text(value)

    def _set_up(self) -> None:
        self._instance.mkdir()
        self._write("tracing_on", "0")
        self._write("trace_clock", "mono")
        if (self._instance / _SUBBUFFER).exists():
            # Of a buffer that is small on purpose, pages must stay small: it has three of them at least.
            self._write(_SUBBUFFER, str(max(_PAGE_BYTES // 1024, min(_SUBBUFFER_KIB, self._buffer_kib // 8))))
        self._write("buffer_size_kb", str(self._buffer_kib))
        for event in _EVENTS:
            self._write(f"events/block/{event}/filter", " || ".join(f"dev == {d.number}" for d in self._devices))
            self._write(f"events/block/{event}/enable", "1")
        check_page_header((TRACEFS / "events/header_page").read_text())
        self._write("tracing_on", "1")

    def write(self, window: Window, path: Path) -> Capture:
        """Write the window's requests, sorted by issue time, and count what is missing."""
        stream = EventStream([*self._spool.cpus.values()], _formats())
        pairings = {device: Pairing() for device in self._devices}
        unseen = self._sentinels
        with RequestWriter(path, self.facts, self._devices, ("issue", "completion", "insert")) as writer:
            for events in stream.chunks():
                unseen = [s for s in unseen if not s.shows_in(events)]
                for device, pairing in pairings.items():
                    own = events if len(pairings) == 1 else events[events["dev"] == device.number]
                    joined = pairing.add(own)
                    inside = (joined.completion["t_ns"] > window.begin_ns) & (joined.issue["t_ns"] < window.end_ns)
                    writer.write(stream.table(joined.issue[inside], joined.completion[inside]), device)
            for device, pairing in pairings.items():
                writer.write(stream.table(pairing.open[_within(pairing.open["t_ns"], window)], None), device)
                writer.count_again(_count(pairing.empty, window))
        self._spool.close()
        return writer.capture(self._faults(stream, pairings.values(), window) | {"blind": len(unseen)})

    def _faults(self, stream: EventStream, pairings: Iterable[Pairing], window: Window) -> dict[str, int]:
        return {
            # The kernel's own count where it has one; a page says only that something before it is missing.
            "lost": self._lost or stream.gaps,
            "unmatched": sum(_count(p.open["t_ns"], window) + _count(p.orphans, window) for p in pairings),
            "duplicate": sum(_count(p.duplicates, window) for p in pairings),
            "out_of_order": stream.out_of_order,
            "malformed": stream.malformed,
        }


@contextmanager
def _told_as(trouble: str) -> Iterator[None]:
    """Raise what goes wrong in the body as the tracer's trouble."""
    try:
        yield
    except (OSError, ValueError) as e:
        no_memory = isinstance(e, OSError) and e.errno == errno.ENOMEM
        hint = "; a smaller trace.buffer_size needs less memory" if no_memory else ""
        raise TracerError(f"ftrace: {trouble}: {e}{hint}") from e


@dataclass(frozen=True)
class _Sentinel:
    """A control read of a device's first page: which device (dev_t), and between when."""

    number: int
    begin_ns: int
    end_ns: int

    def shows_in(self, events: Rows) -> bool:
        """Say whether the read's completion is among `events`."""
        inside = (events["t_ns"] >= self.begin_ns) & (events["t_ns"] <= self.end_ns) & (events["kind"] == COMPLETE)
        return bool(np.any(inside & (events["sector"] == SECTOR) & (events["dev"] == self.number)))


def _formats() -> dict[int, EventFormat]:
    """Return where this kernel keeps the fields of each kind of event."""
    folder = TRACEFS / "events/block"
    return {kind: EventFormat.parse((folder / name / "format").read_text()) for name, kind in _EVENTS.items()}


def _within(t_ns: npt.NDArray[np.int64], window: Window) -> npt.NDArray[np.bool_]:
    inside: npt.NDArray[np.bool_] = (t_ns > window.begin_ns) & (t_ns < window.end_ns)
    return inside


def _count(t_ns: Any, window: Window) -> int:
    """Return how many of these times lie in the window."""
    return int(np.count_nonzero(_within(np.asarray(t_ns, np.int64), window)))


def _cpus(instance: Path) -> list[Path]:
    return sorted((instance / "per_cpu").glob("cpu*"), key=lambda p: int(p.name[3:]))


def _lost_on(cpu: Path) -> int:
    stats = dict(line.rsplit(":", 1) for line in (cpu / "stats").read_text().splitlines())
    return sum(int(stats[name]) for name in ("overrun", "commit overrun", "dropped events"))


@contextmanager
def _draining(instance: Path, spool: Spool) -> Iterator[None]:
    """Move every CPU's pages to the spool while the body runs, and what is left when it has ended."""
    stop = threading.Event()
    flags = os.O_RDONLY | os.O_NONBLOCK
    sources = {cpu.name: os.open(cpu / "trace_pipe_raw", flags) for cpu in _cpus(instance)}
    page_bytes = int((instance / _SUBBUFFER).read_text()) * 1024 if (instance / _SUBBUFFER).exists() else _PAGE_BYTES
    trouble: list[Exception] = []

    def loop() -> None:
        try:
            while True:
                last = stop.wait(_DRAIN_INTERVAL_S)
                for cpu, source in sources.items():
                    spool.take(cpu, source, page_bytes, last)
                if last:
                    return
        except Exception as e:  # noqa: BLE001 - a thread's trouble must reach the trial
            trouble.append(e)

    thread = threading.Thread(target=loop, name="ftrace", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        for source in sources.values():
            os.close(source)
        spool.finish()
    if trouble:
        text = f"ftrace: cannot save the trace: {trouble[0]}; free some space in {spool.folder.parent}, or raise"
        raise TracerError(f"{text} trace.spool_memory, or name another folder by OFFLOAD_SWEEP_STATE")
