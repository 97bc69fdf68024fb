"""What a storage engineer asks of a trial first, by span of time and operation: how much, how fast, how large, how long
it took, how deep the queue was, where it went.

One pass over the requests, and one for the sectors they touched. What was not recorded is None: a trace of issues alone
knows no latency, no depth and no busy time; a trial without single requests knows what its device counted.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from analysis import ceiling, metrics, samples
from analysis.accesses import footprints
from analysis.attribution import DATA, LATENCIES, percentiles
from analysis.bins import Bins
from analysis.depth import ALL, DepthTime, InFlight, Stretches
from analysis.errors import AnalysisError
from analysis.files import replacing
from analysis.latency import Latencies
from analysis.run import Run, Trial, load_trial
from analysis.schema import OPERATIONS
from analysis.spans import Sections, Span, by_class, spans
from analysis.summary import axis_array, readable, stored_rows, tried, versioned
from analysis.trace import NEVER, Addressed, addressed, events
from analysis.units import GIB, NS_PER_S, SECTOR_BYTES

Array = npt.NDArray[np.int64]

FILE = "metrics.parquet"
#: What a row can be of: reads, writes, or both together.
ROWS = (*DATA, ALL)
#: The share of a span's time that must lie between readings for a time stalled in it to be known.
_COVERED = 0.9
_US = NS_PER_S // 1_000_000
_DATA = tuple(OPERATIONS.index(op) for op in DATA)

_COLUMNS = {
    "trial": pa.string(),
    "slug": pa.string(),
    "repeat": pa.int64(),
    "attempt": pa.int64(),
    "verdict": pa.string(),
    "phase": pa.string(),
    "name": pa.string(),
    "process": pa.string(),
    "op": pa.string(),
    "phases": pa.int64(),
    "duration_s": pa.float64(),
    "bytes": pa.int64(),
    "requests": pa.int64(),
    "byte_share": pa.float64(),
    "request_share": pa.float64(),
    "bandwidth_gib_s": pa.float64(),
    "bandwidth_peak_gib_s": pa.float64(),
    "bandwidth_p5_gib_s": pa.float64(),
    "bandwidth_p50_gib_s": pa.float64(),
    "bandwidth_p95_gib_s": pa.float64(),
    "bin_ns": pa.int64(),
    "iops": pa.float64(),
    "request_bytes_mean": pa.float64(),
    "request_bytes_p50": pa.int64(),
    "request_bytes_mode": pa.int64(),
    "request_mode_share": pa.float64(),
    "d2c_mean_us": pa.float64(),
    **dict.fromkeys(LATENCIES, pa.float64()),
    "depth_mean": pa.float64(),
    "depth_p50": pa.int64(),
    "depth_p99": pa.int64(),
    "depth_max": pa.int64(),
    "busy_share": pa.float64(),
    "interarrival_p50_us": pa.float64(),
    "interarrival_p99_us": pa.float64(),
    "sequential_share": pa.float64(),
    "seek_p50_bytes": pa.int64(),
    "seek_p99_bytes": pa.int64(),
    "footprint_bytes": pa.int64(),
    "accesses_mean": pa.float64(),
    "ceiling_share": pa.float64(),
    "expected_bytes": pa.int64(),
    "expected_share": pa.float64(),
    "gpu_busy_share": pa.float64(),
    "io_stalled_s": pa.float64(),
    "io_stalled_share": pa.float64(),
    "iowait_share": pa.float64(),
    "job_cpu_share": pa.float64(),
    "unreadable": pa.string(),
}
_LEADING = 5


def profile(trial_dir: str | Path) -> list[dict[str, Any]]:
    """Return one row per span (`analysis.spans`) and operation: read, write and `all`, which is both together.

    A request belongs to the span in which it was issued; one without an issue time, in which it completed.

    - `bytes`: what completed, or was issued where no completion was recorded; `requests`, `iops`: every request, those
      too of which only the completion is known.
      `byte_share`, `request_share`: of those of the span. `bandwidth_gib_s`: bytes over `duration_s`.
    - `bandwidth_peak` and percentiles: over bins of `bin_ns` that together are the span (`analysis.bins`), by when
      bytes completed; None where so many completed after the span that the peak would be below the mean.
    - `request_bytes_*`: mean, median, the most frequent size (`mode`) and its share of the requests.
    - `d2c_*`: issue to completion, nearest-rank percentiles (`analysis.latency` tells how exact).
    - `depth_*`: requests issued and not completed, weighted with the time they were so many (`analysis.depth`).
      `busy_share`: share of the time with at least one.
    - `interarrival_*`: from one issue of the operation to its next, both in the span.
    - `sequential_share`: requests that begin at the sector where the request before them, of the same operation and
      device, ended; `seek_*`: how far from there they begin. Of requests whose predecessor is in the span too.
    - `footprint_bytes`: distinct sectors touched, times 512. `accesses_mean`: bytes over footprint.
    - `ceiling_share`: bandwidth over what fio reached (`analysis.ceiling`). `expected_*`: of the whole window.
    - `gpu_busy_share`, `iowait_share`: means of the samples in the span, of all GPUs, of the CPUs. `io_stalled_s`: how
      long some task stood still for I/O (PSI), of the job's cgroup, else of the machine; `io_stalled_share`: of the
      time between readings, both unknown where that is less than nine tenths of the span. `job_cpu_share`: the CPU
      time of the job's cgroup over that of all processors, known as `io_stalled_share` is.
    """
    trial = load_trial(trial_dir)
    told = spans(trial_dir)
    found = _measured(trial, told)
    sampled = _sampled(trial, told)
    top = ceiling.ceiling_of(trial)
    rows = []
    for place, span in enumerate(told):
        seconds = span.duration_ns / NS_PER_S or None
        whole = found[place][ALL]
        for op in ROWS:
            own = found[place][op]
            row: dict[str, Any] = {"phase": span.name, "name": span.phase, "process": span.process, "op": op}
            row |= {"phases": span.phases, "duration_s": seconds, **own}
            moved, requests = own.get("bytes"), own.get("requests")
            row["bandwidth_gib_s"] = None if moved is None or not seconds else moved / GIB / seconds
            row["iops"] = None if requests is None or not seconds else requests / seconds
            row["byte_share"] = _ratio(moved, whole.get("bytes"))
            row["request_share"] = _ratio(requests, whole.get("requests"))
            row["ceiling_share"] = ceiling.share(moved, seconds, top, op) if op in DATA else None
            if place == 0:
                row |= _expected(trial, op, moved)
            rows.append(metrics.identity(trial) | row | sampled[place])
    return rows


def read_profile(run: Run) -> pl.DataFrame:
    """Return the profiles of all trials of a run, in plan order.

    They are kept in the run's `metrics.parquet`; trials that it lacks in their attempt are computed, and added where
    the folder can be written to. A trial that cannot be read has rows that know nothing and say in `unreadable` what is
    wrong with it; those are not kept.
    """
    stored = stored_rows(run.path / FILE, _COLUMNS)
    rows: list[Mapping[str, Any]] = []
    for trial in run.published:
        rows.extend(_rows(trial, stored.get((trial.slug, trial.attempt))))
    kept = readable(rows)
    if not {(row["slug"], row["attempt"]) for row in kept} <= {*stored}:
        _keep(_table(kept), run.path / FILE)
    frame = pl.from_arrow(_table(rows))
    assert isinstance(frame, pl.DataFrame)
    return frame


def _rows(trial: Trial, known: Sequence[Mapping[str, Any]] | None) -> Sequence[Mapping[str, Any]]:
    blank = [{"phase": metrics.WHOLE, "op": op} for op in ROWS]
    return tried(trial, lambda: known or profile(trial.path), blank)


def _keep(table: pa.Table, path: Path) -> None:
    try:
        with replacing(path) as temporary:
            pq.write_table(table, temporary, compression="zstd")
    except OSError:
        pass  # a run that cannot be written to is computed each time


def _table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    rows = list(rows)
    axes = dict.fromkeys(name for row in rows for name in row if name.startswith("cell."))
    arrays = {name: pa.array([row.get(name) for row in rows], kind) for name, kind in _COLUMNS.items()}
    arrays |= {name: axis_array([row.get(name) for row in rows]) for name in axes}
    fixed = list(_COLUMNS)
    return versioned(pa.table({name: arrays[name] for name in [*fixed[:_LEADING], *axes, *fixed[_LEADING:]]}))


def _ratio(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole


def _expected(trial: Trial, op: str, moved: int | None) -> dict[str, Any]:
    counts = [trial.byte_count("expected", one) for one in (DATA if op == ALL else (op,))]
    expected = None if None in counts else sum(count for count in counts if count is not None)
    return {"expected_bytes": expected, "expected_share": _ratio(moved, expected)}


def _measured(trial: Trial, told: Sequence[Span]) -> list[dict[str, dict[str, Any]]]:
    """Return the columns that come from requests, or from the device's counters, by span and operation."""
    path = trial.table("requests")
    if path is None and trial.tracer == metrics.COUNTERS:
        return _counted(trial, told)
    if path is None:
        return [{op: {} for op in ROWS} for _ in told]
    requests = _Requests(told, events(path))
    try:
        for part in addressed(path):
            requests.add(part)
    except AnalysisError as error:
        raise AnalysisError(f"{path}: {error}" if "not sorted" in str(error) else str(error)) from None
    requests.finish()
    found = [{op: requests.columns(place, op) for op in ROWS} for place in range(len(told))]
    sectors = footprints(path, told, requests.sections)
    for own, touched in zip(found, sectors, strict=True):
        for op in ROWS:
            footprint = touched[op] * SECTOR_BYTES
            own[op] |= {"footprint_bytes": footprint, "accesses_mean": _ratio(own[op]["bytes"], footprint)}
    return found


class _Requests:
    """Everything that one pass over the requests tells, by class of section (`Sections`) and operation.

    Memory grows with the classes, the requests in flight and the number of different sizes, not with the trace.
    """

    def __init__(self, told: Sequence[Span], recorded: Sequence[str]) -> None:
        self.sections = Sections(told)
        self._told = told
        self._completion = "completion" in recorded
        self._timed = self._completion and "issue" in recorded
        self._bins = Bins(told)
        self._flight = InFlight(self.sections.edges)
        self._bytes: Counter[tuple[int, str]] = Counter()
        self._sizes: dict[tuple[int, str], Counter[int]] = defaultdict(Counter)
        self._sequential: Counter[tuple[int, str]] = Counter()
        self._latency: dict[tuple[int, str], Latencies] = defaultdict(Latencies)
        self._gap: dict[tuple[int, str], Latencies] = defaultdict(Latencies)
        self._seek: dict[tuple[int, str], Latencies] = defaultdict(Latencies)
        self._depth: dict[tuple[int, str], DepthTime] = defaultdict(DepthTime)
        self._before: dict[tuple[str, str], tuple[int, int]] = {}

    def add(self, part: Addressed) -> None:
        """Take the next requests in issue order."""
        classes = self.sections.of(part.key_ns())
        if classes.size == 1:
            classes = np.broadcast_to(classes, part.op.shape)
        issued = part.issue_ns != NEVER
        complete = bool(issued.all())
        for op in DATA:
            chosen = np.flatnonzero(part.op == OPERATIONS.index(op))
            if chosen.size:
                self._count(op, part, chosen, classes[chosen])
                chosen = chosen if complete else chosen[issued[chosen]]
                self._place(op, part, chosen, classes[chosen])
                self._arrive(op, part.issue_ns[chosen], classes[chosen])
        data = issued & (np.isin(part.op, _DATA))
        issue, classes = (part.issue_ns, classes) if data.all() else (part.issue_ns[data], classes[data])
        self._arrive(ALL, issue, classes)
        if self._timed:
            self._weigh(self._flight.add(part.issue_ns, part.complete_ns, part.op))

    def finish(self) -> None:
        """Count the time after the last request."""
        if self._timed:
            self._weigh(self._flight.finish())

    def _count(self, op: str, part: Addressed, chosen: Array, classes: Array) -> None:
        size, issue, complete = part.bytes[chosen], part.issue_ns[chosen], part.complete_ns[chosen]
        moved = np.where(complete == NEVER, 0, size) if self._completion else size
        self._bins.add(op, complete if self._completion else issue, size)
        for number, (sizes, done) in by_class(classes, size, moved):
            self._bytes[number, op] += int(done.sum())
            values, counts = np.unique(sizes, return_counts=True)
            self._sizes[number, op].update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        timed = (issue != NEVER) & (complete != NEVER)
        if self._timed and timed.any():
            for number, (latency,) in by_class(classes[timed], (complete - issue)[timed]):
                self._latency[number, op].add(latency)

    def _place(self, op: str, part: Addressed, chosen: Array, classes: Array) -> None:
        """Take where requests begin after the ones before them, each device by itself."""
        dev = part.dev[chosen]
        numbers = np.flatnonzero(np.bincount(dev)).tolist()
        for number in numbers:
            mine = slice(None) if len(numbers) == 1 else np.flatnonzero(dev == number)
            begin = part.sector[chosen[mine]]
            end = begin - (-part.bytes[chosen[mine]] // SECTOR_BYTES)
            distance, common = self._steps((op, part.devices[number]), begin, end, classes[mine])
            for own, (far,) in by_class(common, distance):
                self._seek[own, op].add(far * SECTOR_BYTES)
                self._sequential[own, op] += int(np.count_nonzero(far == 0))

    def _arrive(self, op: str, issue: Array, classes: Array) -> None:
        distance, common = self._steps((op, ""), issue, issue, classes)
        for own, (gap,) in by_class(common, distance):
            self._gap[own, op].add(gap)

    def _steps(self, key: tuple[str, str], begin: Array, end: Array, classes: Array) -> tuple[Array, Array]:
        """Return how far each one begins from the end of the one before it, and the class of the spans of both."""
        if not begin.size:
            return begin, classes
        before, number = self._before.get(key, (int(begin[0]), int(classes[0])))
        distance = np.abs(begin - np.concatenate(([before], end[:-1])))
        common = self.sections.common(np.concatenate(([number], classes[:-1])), classes)
        first = 0 if key in self._before else 1
        self._before[key] = int(end[-1]), int(classes[-1])
        return distance[first:], common[first:]

    def _weigh(self, found: Stretches) -> None:
        classes = self.sections.of(found.begin_ns)
        for op in ROWS:
            for number, (depth, length) in by_class(classes, found.depth[op], found.length_ns):
                self._depth[number, op].add(depth, length)

    def columns(self, place: int, op: str) -> dict[str, Any]:
        """Return the columns of one span and operation."""
        keys = [(n, op) for n in range(self.sections.count) if place in self.sections.spans_of(n)]
        parts = [(n, one) for n, _ in keys for one in (DATA if op == ALL else (op,))]
        sizes: Counter[int] = Counter()
        for key in parts:
            sizes.update(self._sizes.get(key, {}))
        latency, gap, seek = (
            _merged(held, own) for held, own in ((self._latency, parts), (self._gap, keys), (self._seek, parts))
        )
        row: dict[str, Any] = {"bytes": sum(self._bytes[key] for key in parts), **_sizes(sizes)}
        mean = latency.mean()
        row |= {"d2c_mean_us": None if mean is None else mean / _US, **percentiles(latency)}
        gaps = {"interarrival_p50_us": gap.percentile(0.5), "interarrival_p99_us": gap.percentile(0.99)}
        row |= {name: None if value is None else value / _US for name, value in gaps.items()}
        row["sequential_share"] = _ratio(sum(self._sequential[key] for key in parts), seek.count)
        row |= {"seek_p50_bytes": _whole(seek.percentile(0.5)), "seek_p99_bytes": _whole(seek.percentile(0.99))}
        return row | self._depths(keys) | self._bins.columns(self._told[place], op, row["bytes"])

    def _depths(self, keys: Sequence[tuple[int, str]]) -> dict[str, Any]:
        spread = DepthTime()
        for key in keys:
            if key in self._depth:
                spread.merge(self._depth[key])
        row = {"depth_mean": spread.mean(), "depth_p50": spread.percentile(0.5), "depth_p99": spread.percentile(0.99)}
        return row | {"depth_max": spread.maximum(), "busy_share": spread.busy_share()}


def _merged(held: Mapping[tuple[int, str], Latencies], keys: Iterable[tuple[int, str]]) -> Latencies:
    found = Latencies()
    for key in keys:
        if key in held:
            found.merge(held[key])
    return found


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def _sizes(counts: Mapping[int, int]) -> dict[str, Any]:
    """Return the columns of request sizes; of several most frequent ones the largest is the mode."""
    requests = sum(counts.values())
    names = ("request_bytes_mean", "request_bytes_p50", "request_bytes_mode", "request_mode_share")
    if not requests:
        return {"requests": 0, **dict.fromkeys(names)}
    ordered = sorted(counts)
    running = np.cumsum([counts[size] for size in ordered])
    median = ordered[int(np.searchsorted(running, -(-requests // 2)))]
    mode = max(counts, key=lambda size: (counts[size], size))
    mean = sum(size * count for size, count in counts.items()) / requests
    return {"requests": requests, **dict(zip(names, (mean, median, mode, counts[mode] / requests), strict=True))}


def _counted(trial: Trial, told: Sequence[Span]) -> list[dict[str, dict[str, Any]]]:
    """Return bytes and bandwidth from the device's counters, spread evenly between two readings."""
    counted = samples.counted_bytes(trial.path)
    bins = Bins(told)
    found: list[dict[str, dict[str, Any]]] = [{op: {} for op in ROWS} for _ in told]
    readings = {op: counted.filter(pl.col("op") == op) for op in DATA}
    if not told[0].begin_ns.size or any(own.is_empty() for own in readings.values()):
        return found
    for op, own in readings.items():
        bins.spread(op, own["t_ns"].to_numpy(), own["bytes"].to_numpy())
        for place, span in enumerate(told):
            grown = _growth(own["t_ns"].to_numpy(), own["bytes"].to_numpy(), span)
            found[place][op]["bytes"] = None if grown is None else round(grown)
    for place, span in enumerate(told):
        parts = [found[place][op]["bytes"] for op in DATA]
        found[place][ALL]["bytes"] = None if None in parts else sum(parts)
        for op in ROWS:
            found[place][op] |= bins.columns(span, op, found[place][op]["bytes"])
    return found


def _sampled(trial: Trial, told: Sequence[Span]) -> list[dict[str, float | None]]:
    """Return the columns that come from samples, by span."""
    busy = samples.utilisation(trial.path)
    waits = busy.filter(pl.col("source") == samples.IOWAIT)
    gpus = busy.filter(pl.col("source").str.starts_with("gpu"))
    everything = samples.read(trial.path)
    stalled = everything.filter(pl.col("name") == "io_some_stalled")
    worked = everything.filter((pl.col("source") == "cgroup") & (pl.col("name") == "cpu_time"))
    cpus = trial.section("node").get("cpus")
    for source in ("cgroup", "pressure"):
        if not (own := stalled.filter(pl.col("source") == source)).is_empty():
            stalled = own
            break
    rows = []
    for span in told:
        grown, covered = _grown(stalled, span)
        cores = _ratio(*_grown(worked, span))
        row = {"gpu_busy_share": _mean_share(gpus, span), "iowait_share": _mean_share(waits, span)}
        row["job_cpu_share"] = cores / cpus if cores is not None and isinstance(cpus, int) and cpus else None
        rows.append(row | {"io_stalled_s": grown, "io_stalled_share": _ratio(grown, covered)})
    return rows


def _grown(told: pl.DataFrame, span: Span) -> tuple[float | None, float]:
    """Return by how much a counter of seconds grew within a span, and in how many seconds of it that was seen;
    None where less of it than _COVERED lies between the first reading and the last."""
    t_ns = told["t_ns"].to_numpy()
    if not t_ns.size or not span.duration_ns:
        return None, 0.0
    seen = np.minimum(span.end_ns, t_ns[-1]) - np.maximum(span.begin_ns, t_ns[0])
    covered = int(np.maximum(seen, 0).sum())
    grown = _growth(t_ns, told["value"].to_numpy(), span) if covered >= _COVERED * span.duration_ns else None
    return grown, covered / NS_PER_S


def _growth(t_ns: Array, value: npt.NDArray[np.float64], span: Span) -> float | None:
    """Return how much a counter grew within a span, evenly between two readings; None where it was not read then."""
    if t_ns.size < 2 or not span.begin_ns.size or span.end_ns[-1] <= t_ns[0] or span.begin_ns[0] >= t_ns[-1]:
        return None
    return float((np.interp(span.end_ns, t_ns, value) - np.interp(span.begin_ns, t_ns, value)).sum())


def _mean_share(told: pl.DataFrame, span: Span) -> float | None:
    """Return the mean of the samples within a span, of percent as a share; None of no samples."""
    t_ns = told["t_ns"].to_numpy()
    if not span.begin_ns.size or not t_ns.size:
        return None
    place = np.searchsorted(span.begin_ns, t_ns, side="right") - 1
    inside = (place >= 0) & (t_ns <= span.end_ns[np.maximum(place, 0)])
    return float(told["percent"].to_numpy()[inside].mean()) / 100 if inside.any() else None
