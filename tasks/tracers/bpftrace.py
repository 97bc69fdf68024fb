"""The bpftrace tracer: `bpftrace/requests.bt`, one process for each device, one line per completed request.

Two sentinels prove that it was live for the whole of the recording: a 4 KiB direct read of the device's first
sector before and after, each of which must come back as a line. Events the script or the kernel dropped are counted.

The kernel runs no BPF program of a tracepoint on a CPU that is inside another one (bpf_prog_active, trace_call_bpf),
so a completion that interrupts the handling of an issue goes unseen. Where completions come by interrupt, as on real
drives, some are: such a trial is invalid, and says so. The ftrace tracer has no such limit.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from tasks.device import Device, Devices
from tasks.errors import TracerError
from tasks.files import bpftrace_script
from tasks.lease import Lease
from tasks.process import child, interrupt, log_tail, tool
from tasks.spec import Trace
from tasks.tracers import Capture, Window
from tasks.tracers.sentinel import read_first_page
from tasks.tracers.tracefs import ensure_mounted
from tasks.tracers.writer import RequestWriter
from tasks.units import parse_bytes

_SCRIPT = "requests.bt"
_START_LIMIT_S = 60.0
_BLOCK_BYTES = 16 << 20
_LOST = re.compile(rb"[Ll]ost (\d+) events")
_LEFT = re.compile(rb"@issued\[-?\d+\]: \((\d+), ")
_COLUMNS = {
    "tag": pa.string(),
    "issue_ns": pa.int64(),
    "complete_ns": pa.int64(),
    "rwbs": pa.string(),
    "sector": pa.int64(),
    "sectors": pa.int64(),
    "error": pa.int32(),
    "pid": pa.int32(),
    "comm": pa.string(),
}

#: Requests in flight at once that the script can hold.
_MAP_KEYS = 65536


class Tracer:
    """Records the issue and completion of every block request through bpftrace."""

    def __init__(self, trace: Trace, devices: Devices, lease: Lease, environment: dict[str, str]) -> None:
        """Trace `devices`; raw output goes to the lease's folder."""
        self._devices = devices
        pages = _power_of_two(parse_bytes(trace.buffer_size) // os.sysconf("SC_PAGE_SIZE"))
        environment = environment | {
            "BPFTRACE_PERF_RB_PAGES": str(pages),
            "BPFTRACE_MAP_KEYS_MAX": str(_MAP_KEYS),
        }
        self._scripts = [_Script(device, lease.folder, environment) for device in devices]
        self.facts: dict[str, Any] = {
            "name": "bpftrace",
            "version": tool(["bpftrace", "--version"], TracerError).strip(),
            "script": _SCRIPT,
            "buffer_bytes_per_cpu": pages * os.sysconf("SC_PAGE_SIZE"),
        }

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record while the body runs."""
        ensure_mounted()
        with ExitStack() as running:
            for script in self._scripts:
                running.enter_context(script.running())
            yield

    def write(self, window: Window, path: Path) -> Capture:
        """Write the window's requests, sorted by issue time, and count what is missing."""
        faults = dict.fromkeys(("lost", "unmatched", "overtaken", "malformed"), 0)
        self.facts["spooled_to_disk_bytes"] = sum(script.output_bytes for script in self._scripts)
        with RequestWriter(path, self.facts, self._devices, ("issue", "completion")) as writer:
            for script in self._scripts:
                script.write(window, writer, faults)
        return writer.capture(faults)


class _Script:
    """`requests.bt` at work on one device."""

    def __init__(self, device: Device, folder: Path, environment: dict[str, str]) -> None:
        self._device = device
        self._output = folder / f"requests-{device.name}.txt"
        self._log = folder / f"bpftrace-{device.name}.log"
        self._environment = environment

    @contextmanager
    def running(self) -> Iterator[None]:
        """Record while the body runs."""
        script = bpftrace_script(_SCRIPT)
        # Unbuffered: a sentinel's line must be seen while bpftrace runs. With -o it would buffer all the same.
        argv = ["bpftrace", "-B", "none", str(script), str(self._device.number)]
        with child(argv, self._log, self._environment, self._output) as process:
            self._see_sentinel(process, "did not start")
            yield
            self._see_sentinel(process, "stopped before the trial ended")
            interrupt(process)
            if process.poll() is None:
                raise TracerError("bpftrace did not end when it was told to")

    def _see_sentinel(self, process: subprocess.Popen[bytes], trouble: str) -> None:
        """Read the device's first sector until the trace shows that read."""
        end = time.monotonic() + _START_LIMIT_S
        while time.monotonic() < end:
            if process.poll() is not None:
                raise TracerError(f"bpftrace {trouble}: {log_tail(self._log, 5)}")
            position = self._output.stat().st_size if self._output.exists() else 0
            read_first_page(self._device)
            if self._wait_for_line(position, limit_s=0.5):
                return
        raise TracerError(f"bpftrace {trouble}: it showed no request of {self._device.name} in {_START_LIMIT_S:.0f} s")

    def _wait_for_line(self, position: int, limit_s: float) -> bool:
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            time.sleep(0.02)
            if not self._output.exists():
                continue
            with self._output.open("rb") as f:
                f.seek(position)
                # R, issue, complete, rwbs, sector, ...
                if any(line[:1] == [b"R"] and line[4:5] == [b"0"] for line in map(bytes.split, f)):
                    return True
        return False

    @property
    def output_bytes(self) -> int:
        """How much it has written: text, on the node's disk."""
        return self._output.stat().st_size

    def write(self, window: Window, writer: RequestWriter, faults: dict[str, int]) -> None:
        """Write the window's requests and add what is missing to `faults`."""
        faults["lost"] += _lost_in(self._log)
        with self._output.open("rb") as f:
            for block in _blocks(f):
                writer.write(_in_window(_parse(block, faults, window), window), self._device)
        self._output.unlink()


def _power_of_two(pages: int) -> int:
    return 1 << max(0, (pages - 1).bit_length())


def _lost_in(log: Path) -> int:
    return sum(int(n) for n in _LOST.findall(log.read_bytes())) if log.exists() else 0


def _blocks(f) -> Iterator[bytes]:  # type: ignore[no-untyped-def]
    """Yield the file in pieces of whole lines."""
    rest = b""
    while piece := f.read(_BLOCK_BYTES):
        head, newline, tail = (rest + piece).rpartition(b"\n")
        if newline:
            yield head
        rest = tail
    if rest:
        yield rest


def _parse(block: bytes, faults: dict[str, int], window: Window) -> pa.Table:
    """Return the requests in `block`; add every other line that tells of a loss to `faults`."""
    requests = []
    for line in block.split(b"\n"):
        if line.startswith(b"R\t"):
            requests.append(line)
        elif line:
            _count_other(line, faults, window)
    return _table(requests, faults)


def _count_other(line: bytes, faults: dict[str, int], window: Window) -> None:
    if lost := _LOST.search(line):
        faults["lost"] += int(lost[1])
    elif line.startswith((b"O\t", b"U\t")):
        faults["overtaken" if line.startswith(b"O") else "unmatched"] += _inside(line.split(b"\t")[1], window)
    elif line.startswith(b"@issued["):
        # Issued and never completed, or completed unseen: the value is issue time, pid and comm.
        left = _LEFT.match(line)
        faults["unmatched"] += _inside(left[1] if left else b"", window)
    elif not line.startswith((b"Attaching ", b"B\t")):
        faults["malformed"] += 1


def _inside(stamp: bytes, window: Window) -> int:
    try:
        return int(window.begin_ns < int(stamp) < window.end_ns)
    except ValueError:
        return 1


def _table(lines: list[bytes], faults: dict[str, int]) -> pa.Table:
    try:
        return _read_csv(lines)
    except pa.ArrowInvalid:
        # One torn line spoils the whole block for the reader: find which, and keep the rest.
        tables = []
        for line in lines:
            try:
                tables.append(_read_csv([line]))
            except pa.ArrowInvalid:
                faults["malformed"] += 1
        return pa.concat_tables(tables) if tables else _read_csv([])


def _read_csv(lines: list[bytes]) -> pa.Table:
    if not lines:
        return pa.schema(list(_COLUMNS.items())).empty_table()
    text = b"\n".join(lines).decode(errors="replace").encode()
    return pa.csv.read_csv(
        BytesIO(text),
        read_options=pa.csv.ReadOptions(column_names=list(_COLUMNS)),
        parse_options=pa.csv.ParseOptions(delimiter="\t", quote_char=False, ignore_empty_lines=False),
        # An empty number is a torn line, not a null.
        convert_options=pa.csv.ConvertOptions(column_types=_COLUMNS, null_values=[]),
    )


def _in_window(table: pa.Table, window: Window) -> pa.Table:
    inside = pc.and_(
        pc.greater(table["complete_ns"], window.begin_ns),
        pc.less(table["issue_ns"], window.end_ns),
    )
    return table.filter(inside)
