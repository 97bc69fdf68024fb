"""The ftrace tracer: an instance of its own in tracefs, whose binary per-CPU pages are moved to files unformatted.

During the window the kernel writes about 65 bytes an event and one thread splices full pages to disk; decoding and
pairing wait until the window has ended.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tasks.device import Devices
from tasks.errors import TracerError
from tasks.lease import Lease
from tasks.spec import Trace
from tasks.tracers import Capture, Window
from tasks.tracers.pairing import COMPLETE, EVENT, ISSUE, REQUEUE, Pairing, Rows
from tasks.tracers.ring_buffer import EventFormat, check_page_header, decode
from tasks.tracers.sentinel import SECTOR, read_first_page
from tasks.tracers.tracefs import TRACEFS, ensure_mounted
from tasks.tracers.writer import RequestWriter
from tasks.units import parse_bytes

_EVENTS = {"block_rq_issue": ISSUE, "block_rq_complete": COMPLETE, "block_rq_requeue": REQUEUE}
_DRAIN_INTERVAL_S = 0.05
_PIPE_BYTES = 1 << 20
_F_SETPIPE_SZ = 1031

#: Pages decoded at a time, over all CPUs; with its arrays about 25 times as much memory.
_CHUNK_PAGES = 4096


class Tracer:
    """Records issues, requeues and completions in the kernel's own ring buffer."""

    def __init__(self, trace: Trace, devices: Devices, lease: Lease, environment: dict[str, str]) -> None:
        """Trace `devices`; raw pages go to the attempt's spool."""
        self._devices = devices
        self._lease = lease
        self._buffer_kib = parse_bytes(trace.buffer_size) // 1024
        self._instance = TRACEFS / "instances" / f"offload-sweep-{lease.token}"
        self._raw = lease.folder / "ftrace"
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
        self._raw.mkdir()
        with self._lease.hold("ftrace", path=str(self._instance)):
            try:
                self._set_up()
            except OSError as e:
                raise TracerError(f"ftrace: cannot set up {self._instance}: {e.strerror}") from e
            with _draining(self._instance, self._raw):
                self._sentinels += [_Sentinel(d.number, *read_first_page(d)) for d in self._devices]
                yield
                self._sentinels += [_Sentinel(d.number, *read_first_page(d)) for d in self._devices]
                self._write("tracing_on", "0")
            self._lost = sum(_lost_on(cpu) for cpu in _cpus(self._instance))

    def _write(self, name: str, value: str) -> None:
        (self._instance / name).write_text(value)

    def _set_up(self) -> None:
        self._instance.mkdir()
        self._write("tracing_on", "0")
        self._write("trace_clock", "mono")
        self._write("buffer_size_kb", str(self._buffer_kib))
        for event in _EVENTS:
            self._write(f"events/block/{event}/filter", " || ".join(f"dev == {d.number}" for d in self._devices))
            self._write(f"events/block/{event}/enable", "1")
        check_page_header((TRACEFS / "events/header_page").read_text())
        self._write("tracing_on", "1")

    def write(self, window: Window, path: Path) -> Capture:
        """Write the window's requests, sorted by issue time, and count what is missing."""
        faults = {"lost": self._lost, "unmatched": 0, "malformed": 0}
        stream = _Stream(self._raw, faults)
        pairings = {device: Pairing() for device in self._devices}
        unseen = self._sentinels
        with RequestWriter(path, self.facts, self._devices) as writer:
            for events in stream.chunks():
                unseen = [s for s in unseen if not s.shows_in(events)]
                for device, pairing in pairings.items():
                    own = events if len(pairings) == 1 else events[events["dev"] == device.number]
                    joined = pairing.add(own)
                    inside = (joined.completion["t_ns"] > window.begin_ns) & (joined.issue["t_ns"] < window.end_ns)
                    writer.write(_table(joined.issue[inside], joined.completion[inside]), device)
            for device, pairing in pairings.items():
                left = pairing.open[_within(pairing.open, window)]
                writer.write(_table(left, None), device)
                faults["unmatched"] += len(left) + int(np.count_nonzero(_within(pairing.orphans, window)))
        faults["blind"] = len(unseen)
        return writer.capture(faults)


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


def _within(events: Rows, window: Window) -> npt.NDArray[np.bool_]:
    inside: npt.NDArray[np.bool_] = (events["t_ns"] > window.begin_ns) & (events["t_ns"] < window.end_ns)
    return inside


def _cpus(instance: Path) -> list[Path]:
    return sorted((instance / "per_cpu").glob("cpu*"), key=lambda p: int(p.name[3:]))


def _lost_on(cpu: Path) -> int:
    stats = dict(line.rsplit(":", 1) for line in (cpu / "stats").read_text().splitlines())
    return sum(int(stats[name]) for name in ("overrun", "commit overrun", "dropped events"))


@contextmanager
def _draining(instance: Path, folder: Path) -> Iterator[None]:
    """Move every CPU's pages to files while the body runs, and what is left when it has ended."""
    stop = threading.Event()
    sources = [_Source(cpu, folder) for cpu in _cpus(instance)]
    trouble: list[OSError] = []

    def loop() -> None:
        try:
            while not stop.wait(_DRAIN_INTERVAL_S):
                for source in sources:
                    source.splice()
            for source in sources:
                source.finish()
        except OSError as e:
            trouble.append(e)

    thread = threading.Thread(target=loop, name="ftrace", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        for source in sources:
            source.close()
    if trouble:
        raise TracerError(f"ftrace: cannot save the trace to {folder}: {trouble[0].strerror}")


class _Source:
    """One CPU's binary pages, and the file they go to."""

    def __init__(self, cpu: Path, folder: Path) -> None:
        self._from = os.open(cpu / "trace_pipe_raw", os.O_RDONLY | os.O_NONBLOCK)
        self._to = os.open(folder / f"{cpu.name}.pages", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self._pipe = os.pipe()
        fcntl.fcntl(self._pipe[1], _F_SETPIPE_SZ, _PIPE_BYTES)

    def splice(self) -> None:
        """Move all full pages, without copying them through this process."""
        flags = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
        while True:
            try:
                count = os.splice(self._from, self._pipe[1], _PIPE_BYTES, flags=flags)
            except BlockingIOError:
                return
            if not count:
                return
            while count:
                count -= os.splice(self._pipe[0], self._to, count)

    def finish(self) -> None:
        """Move the rest: full pages, then the partly filled one, which splice leaves behind."""
        self.splice()
        while True:
            try:
                page = os.read(self._from, os.sysconf("SC_PAGE_SIZE"))
            except BlockingIOError:
                return
            if not page:
                return
            os.write(self._to, page)

    def close(self) -> None:
        """Close what was opened."""
        for fd in (self._from, self._to, *self._pipe):
            os.close(fd)


class _Stream:
    """The events of all CPUs' files in time order, a bounded number of pages at a time."""

    def __init__(self, folder: Path, faults: dict[str, int]) -> None:
        formats = {name: (TRACEFS / "events/block" / name / "format").read_text() for name in _EVENTS}
        self._formats = {name: EventFormat.parse(text) for name, text in formats.items()}
        self._faults = faults
        size = os.sysconf("SC_PAGE_SIZE")
        files = [p for p in sorted(folder.glob("*.pages")) if p.stat().st_size >= size]
        self._pages = [np.memmap(p, np.uint8, "r", shape=(p.stat().st_size // size, size)) for p in files]
        self._begins = [np.array(p[:, :8]).view("<u8")[:, 0].astype(np.int64) for p in self._pages]

    def chunks(self) -> Iterator[Rows]:
        """Yield events ordered by time; every event of a chunk is before all of the next."""
        held = np.empty(0, EVENT)
        begins = np.sort(np.concatenate(self._begins)) if self._begins else np.empty(0, np.int64)
        cuts = [int(t) for t in np.unique(begins[_CHUNK_PAGES::_CHUNK_PAGES])]
        at = [0] * len(self._pages)
        for cut in [*cuts, None]:
            ends = [len(b) if cut is None else int(np.searchsorted(b, cut)) for b in self._begins]
            pieces = [p[a:e] for p, a, e in zip(self._pages, at, ends, strict=True) if e > a]
            at = ends
            events = np.concatenate([held, *(self._decoded(np.ascontiguousarray(p)) for p in pieces)])
            events = events[np.argsort(events["t_ns"], kind="stable")]
            # A page that begins before the cut may end after it.
            split = len(events) if cut is None else int(np.searchsorted(events["t_ns"], cut))
            yield events[:split]
            held = events[split:]

    def _decoded(self, pages: npt.NDArray[np.uint8]) -> Rows:
        found = decode(pages)
        self._faults["lost"] += found.missed
        numbers = found.integer((0, 2))
        out = np.empty(len(numbers), EVENT)
        known = np.zeros(len(numbers), bool)
        for name, form in self._formats.items():
            chosen = numbers == form.number
            known |= chosen
            part = found.take(chosen)
            out["kind"][chosen] = _EVENTS[name]
            out["t_ns"][chosen] = part.t_ns
            out["pid"][chosen] = part.integer(form.fields["common_pid"])
            out["dev"][chosen] = part.integer(form.fields["dev"])
            out["sector"][chosen] = part.integer(form.fields["sector"])
            out["sectors"][chosen] = part.integer(form.fields["nr_sector"])
            out["rwbs"][chosen] = part.text(form.fields["rwbs"])
            out["error"][chosen] = part.integer(form.fields["error"]) if "error" in form.fields else 0
            out["comm"][chosen] = part.text(form.fields["comm"]) if "comm" in form.fields else b""
        self._faults["malformed"] += int(np.count_nonzero(~known))
        return out[known]


def _table(issue: Rows, completion: Rows | None) -> pa.Table:
    """Return requests as `RequestWriter` takes them; without completions, as they were issued."""
    end = issue if completion is None else completion
    n = len(issue)
    columns = {
        "issue_ns": pa.array(issue["t_ns"]),
        "complete_ns": pa.nulls(n, pa.int64()) if completion is None else pa.array(completion["t_ns"]),
        "rwbs": _text(end["rwbs"]),
        "sector": pa.array(np.maximum(end["sector"], 0)),  # a flush is keyed by what is no sector
        "sectors": pa.array(end["sectors"]),
        "error": pa.nulls(n, pa.int32()) if completion is None else pa.array(completion["error"]),
        "comm": _text(issue["comm"]),
        "pid": pa.array(issue["pid"]),
    }
    return pa.table(columns)


def _text(values: npt.NDArray[np.bytes_]) -> pa.Array:
    unique, inverse = np.unique(values, return_inverse=True)
    words = pa.array([v.decode(errors="replace") for v in unique.tolist()], pa.string())
    return words.take(pa.array(inverse))
