"""Counters of the machine, its devices, the job's cgroup and GPUs over time, on the requests' clock, during a trial.

Samples are taken at fixed times, `interval_ms` apart, which no sample's duration shifts. A time that has passed before
the one before it was done is missed, and counted. What a sampler's threads cost is measured by their own CPU clocks.
"""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from analysis import schema
from tasks import gpu
from tasks.cgroup import MemoryLimit
from tasks.counters import ROOT, Source, open_cgroup, open_machine
from tasks.device import Devices, leaf_drives

_NS_PER_MS = 1_000_000
_NS_PER_S = 1_000_000_000

#: About this many values become one row group of `samples.parquet`.
_GROUP_VALUES = 250_000


class _Series:
    """What one source has told: times and values, 8 bytes each, NaN where there was no value."""

    def __init__(self, source: Source) -> None:
        self.name, self.columns = source.name, tuple(source.columns)
        self.times_ns, self.values = array("q"), array("d")
        self.trouble: str | None = None
        self._source: Source | None = source

    def sample(self) -> None:
        """Take a sample; a source that cannot be read any more is given up, with its trouble."""
        if self._source is None:
            return
        t_ns = time.monotonic_ns()
        try:
            values = self._source.read(t_ns)
        except (OSError, ValueError, LookupError) as e:
            self.trouble = f"{self.name} could not be sampled to the end: {type(e).__name__}: {e}"
            self.end()
            return
        self.times_ns.append(t_ns)
        self.values.extend(values)

    def end(self) -> None:
        """Let go of the source."""
        if self._source is not None:
            self._source.close()
        self._source = None


class _Ticker:
    """Samples its series every `interval_ns` in a thread of its own, first at once and last when told to stop."""

    def __init__(self, name: str, interval_ns: int, sources: Iterable[Source]) -> None:
        self.series = [_Series(source) for source in sources]
        self.samples = self.missed = 0
        self.cpu_ns = self.wall_ns = self.longest_ns = 0
        self._name, self._interval_ns = name, interval_ns
        self._lock, self._stop = threading.Lock(), threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Sample while the body runs."""
        thread = threading.Thread(target=self._loop, name=f"sampler-{self._name}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()
            for one in self.series:
                one.end()

    def _loop(self) -> None:
        due_ns = time.monotonic_ns()
        while True:
            self._tick()
            past = (time.monotonic_ns() - due_ns) // self._interval_ns
            self.missed += past
            due_ns += (past + 1) * self._interval_ns
            if self._stop.wait(max(due_ns - time.monotonic_ns(), 0) / _NS_PER_S):
                break
        self._tick()
        self.cpu_ns = time.thread_time_ns()

    def _tick(self) -> None:
        begin_ns = time.monotonic_ns()
        with self._lock:
            for one in self.series:
                one.sample()
        took_ns = time.monotonic_ns() - begin_ns
        self.samples += 1
        self.wall_ns += took_ns
        self.longest_ns = max(self.longest_ns, took_ns)

    @contextmanager
    def beside(self, sources: Iterable[Source]) -> Iterator[None]:
        """Sample `sources` too while the body runs; they are sampled a last time at its end."""
        added = [_Series(source) for source in sources]
        with self._lock:
            self.series += added
        try:
            yield
        finally:
            with self._lock:
                for one in added:
                    one.sample()
                    one.end()

    def facts(self) -> dict[str, Any]:
        """Return how often it has sampled, and what that cost: CPU time in s, wall time of a sample in ms."""
        return {
            "interval_ms": self._interval_ns / _NS_PER_MS,
            "samples": self.samples,
            "missed": self.missed,
            "cpu_s": round(self.cpu_ns / _NS_PER_S, 6),
            "mean_ms": round(self.wall_ns / max(self.samples, 1) / _NS_PER_MS, 3),
            "longest_ms": round(self.longest_ns / _NS_PER_MS, 3),
        }


class Sampler:
    """Samples the machine, the devices of a trial and its GPUs; `watching` adds the cgroup of its job."""

    def __init__(
        self, devices: Devices, interval_ms: int, drives: Sequence[str] | None = None, root: Path = ROOT
    ) -> None:
        """Sample every `interval_ms`.

        `drives` are names of the disks below `devices`, looked up unless given; `root` is where /proc and /sys are.
        """
        names = {device.name for device in devices}
        below = {leaf for device in devices for leaf in leaf_drives(device.dev)} if drives is None else set(drives)
        self._devices, self._root = [device.dev for device in devices], root
        self._drives = sorted(below - names)
        self._interval_ns = interval_ms * _NS_PER_MS
        self._tickers: dict[str, _Ticker] = {}
        self._absent: dict[str, str] = {}
        self._gpu_trouble: str | None = None
        self._seconds = 0.0

    @property
    def trouble(self) -> str | None:
        """What was not sampled to the end, or of the GPUs not at all, in words, or None."""
        told = [one.trouble for one in self._series() if one.trouble]
        return "; ".join([*told, *([self._gpu_trouble] if self._gpu_trouble else [])]) or None

    def facts(self) -> dict[str, Any]:
        """Return the sampler's own record: samples taken and missed (counts of times, not of values), what its threads
        cost in CPU seconds and in cores, each thread by itself, and which sources this machine does not have."""
        threads = {name: ticker.facts() for name, ticker in self._tickers.items()}
        cpu_s = sum(facts["cpu_s"] for facts in threads.values())
        return {
            "interval_ms": self._interval_ns / _NS_PER_MS,
            "samples": sum(facts["samples"] for facts in threads.values()),
            "missed": sum(facts["missed"] for facts in threads.values()),
            "cpu_s": round(cpu_s, 6),
            "cost_cores": round(cpu_s / self._seconds, 6) if self._seconds else None,
            "threads": threads,
            "absent": self._absent,
        }

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Sample while the body runs. Never raises by itself: what is wrong is `trouble`, or `absent` in the facts."""
        begin_ns = time.monotonic_ns()
        with gpu.visible() as gpus, ExitStack() as running:
            self._tickers = self._start(gpus)
            running.enter_context(gpus.watched())
            for ticker in self._tickers.values():
                running.enter_context(ticker.running())
            try:
                yield
            finally:
                running.close()
                self._gpu_trouble = gpus.trouble
                self._seconds = (time.monotonic_ns() - begin_ns) / _NS_PER_S

    def _start(self, gpus: gpu.Gpus) -> dict[str, _Ticker]:
        found = open_machine(self._devices, self._drives, self._root)
        self._absent |= found.absent
        tickers = {"machine": _Ticker("machine", self._interval_ns, found.sources)}
        if gpus.quick:
            tickers["gpu"] = _Ticker("gpu", self._interval_ns, gpus.quick)
            # These block, so they have a thread of their own, and time for twice what they take.
            blocked_ns = 2 * gpu.SLOW_READING_NS * sum(len(one.columns) for one in gpus.slow)
            tickers["pcie"] = _Ticker("pcie", -(-blocked_ns // self._interval_ns) * self._interval_ns, gpus.slow)
        return tickers

    @contextmanager
    def watching(self, limit: MemoryLimit | None) -> Iterator[None]:
        """Sample the cgroup of a memory limit too while the body runs, within that of `sampling`."""
        if limit is None:
            yield
            return
        found = open_cgroup(limit.folder, limit.hierarchy.version, self._devices)
        self._absent |= found.absent
        with self._tickers["machine"].beside(found.sources):
            yield

    def _series(self) -> list[_Series]:
        return [one for ticker in self._tickers.values() for one in ticker.series]

    def write(self, path: Path, provenance: dict[str, object]) -> None:
        """Write what was sampled as `analysis.schema.SAMPLES`, by time."""
        series = [one for one in self._series() if one.times_ns]
        with pq.ParquetWriter(path, schema.described(schema.SAMPLES, provenance), compression="zstd") as writer:
            for begin_ns, end_ns in _spans(series):
                writer.write_table(_table(series, begin_ns, end_ns, writer.schema))


def _spans(series: Sequence[_Series]) -> list[tuple[int, int]]:
    """Return the spans of time, end excluded, that hold a row group's worth of values each."""
    if not series:
        return []
    begin_ns, end_ns = min(one.times_ns[0] for one in series), max(one.times_ns[-1] for one in series) + 1
    groups = sum(len(one.values) for one in series) // _GROUP_VALUES + 1
    edges = [begin_ns + (end_ns - begin_ns) * place // groups for place in range(groups + 1)]
    return list(pairwise(edges))


def _table(series: Sequence[_Series], begin_ns: int, end_ns: int, written: pa.Schema) -> pa.Table:
    """Return the samples of a span of time in long format, by time."""
    parts = [part for one in series for part in _columns(one, begin_ns, end_ns)]
    words = {kind: list(dict.fromkeys(part[kind] for part in parts)) for kind in ("source", "name", "unit")}
    times = np.concatenate([part["t_ns"] for part in parts]) if parts else np.empty(0, np.int64)
    order = np.argsort(times, kind="stable")
    counts = [len(part["t_ns"]) for part in parts]

    def named(kind: str) -> pa.DictionaryArray:
        places = np.repeat(np.array([words[kind].index(part[kind]) for part in parts], np.int32), counts)
        return pa.DictionaryArray.from_arrays(pa.array(places[order]), pa.array(words[kind], pa.string()))

    values = np.concatenate([part["value"] for part in parts]) if parts else np.empty(0)
    columns = {"t_ns": times[order], "value": values[order]}
    columns |= {kind: named(kind) for kind in words} | {"process": pa.nulls(len(times), written.field("process").type)}
    return pa.table([columns[name] for name in written.names], schema=written)


def _columns(one: _Series, begin_ns: int, end_ns: int) -> Iterator[dict[str, Any]]:
    """Yield each value of a source in a span of time, without the times at which there was none."""
    times = np.frombuffer(one.times_ns, np.int64)
    first, last = np.searchsorted(times, (begin_ns, end_ns))
    table = np.frombuffer(one.values, np.float64).reshape(len(times), -1)[first:last]
    for place, (name, unit) in enumerate(one.columns):
        there = ~np.isnan(table[:, place])
        yield {
            "source": one.name,
            "name": name,
            "unit": unit,
            "t_ns": times[first:last][there],
            "value": table[:, place][there],
        }
