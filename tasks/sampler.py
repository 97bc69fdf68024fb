"""CPU, memory, device and GPU counters over time, on the requests' clock, while a trial runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from analysis import schema
from tasks import gpu
from tasks.device import Devices

_Row = tuple[int, str, str, float, str]


class Sampler:
    """Reads a handful of counters every `interval_ms` in a thread of its own."""

    def __init__(self, devices: Devices, interval_ms: int) -> None:
        """Sample the machine, its GPUs and `devices`."""
        self._devices = devices
        self._interval_s = interval_ms / 1000
        self._rows: list[_Row] = []
        self._stop = threading.Event()
        self._troubles: list[str] = []

    @property
    def trouble(self) -> str | None:
        """What was not sampled, or not to the end, in words, or None."""
        return "; ".join(self._troubles) or None

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Sample while the body runs."""
        with gpu.visible() as gpus:
            thread = threading.Thread(target=self._guarded, args=(gpus,), name="sampler", daemon=True)
            thread.start()
            try:
                yield
            finally:
                self._stop.set()
                thread.join()
                if gpus.trouble:
                    self._troubles.append(gpus.trouble)

    def _guarded(self, gpus: gpu.Gpus) -> None:
        try:
            self._loop(gpus)
        except (OSError, ValueError, LookupError) as e:
            self._troubles.append(f"sampling ended early: {type(e).__name__}: {e}")

    def _loop(self, gpus: gpu.Gpus) -> None:
        base, cpu = self._devices.counters(), _cpu_ticks()
        while not self._stop.wait(self._interval_s):
            t_ns = time.monotonic_ns()
            now, now_cpu = self._devices.counters(), _cpu_ticks()
            moved = now.since(base)
            self._rows += [(t_ns, "device", f"{op}_bytes", float(moved[op]), "B") for op in ("read", "write")]
            self._rows.append((t_ns, "device", "in_flight", float(now.in_flight), "requests"))
            busy, total = (b - a for a, b in zip(cpu, now_cpu, strict=True))
            self._rows.append((t_ns, "cpu", "busy", 100.0 * busy / total if total else 0.0, "%"))
            self._rows += [(t_ns, "memory", name, value, "B") for name, value in _memory()]
            self._rows += [(t_ns, *reading) for reading in gpus.read()]
            cpu = now_cpu

    def write(self, path: Path, provenance: dict[str, object]) -> None:
        """Write what was sampled as `analysis.schema.SAMPLES`."""
        rows = [dict(zip(schema.SAMPLES.names, (*r, None), strict=True)) for r in self._rows]
        described = schema.described(schema.SAMPLES, provenance)
        pq.write_table(pa.Table.from_pylist(rows, schema=described), path, compression="zstd")


def _cpu_ticks() -> tuple[int, int]:
    """Return busy and total CPU ticks of the machine since boot (proc(5), /proc/stat)."""
    ticks = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle = ticks[3] + ticks[4]
    return sum(ticks) - idle, sum(ticks)


def _memory() -> list[tuple[str, float]]:
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    kib = {name: int(lines[name].split()[0]) for name in ("MemTotal", "MemAvailable", "Cached", "Dirty", "Writeback")}
    used = kib["MemTotal"] - kib["MemAvailable"]
    values = {"used": used, "page_cache": kib["Cached"], "dirty": kib["Dirty"] + kib["Writeback"]}
    return [(name, value * 1024.0) for name, value in values.items()]
