"""What tracing costs: the same fio job on a trial's own storage, untraced and under the trial's tracer in turn."""

from __future__ import annotations

import resource
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tasks import fio, tracers
from tasks.errors import TaskError
from tasks.fio import File, Load, Result
from tasks.lease import Lease
from tasks.spec import Trace
from tasks.storage import Volume
from tasks.tracers import Window
from tasks.units import MIB

#: Small requests in numbers, where a tracer's work per request weighs most, and requests as large as offloading makes
#: them, at the depth where the drive and not the processor sets the pace.
LOADS = (Load("randread", 4096, 32), Load("read", 128 * 1024, 8))

#: Pairs of an untraced and a traced run: fewer have no middle.
_PAIRS = 3
_SECONDS = 2.0
_FILE_BYTES = 512 * MIB

#: Events of a request that is recorded: its issue and its completion.
_EVENTS = 2


@dataclass(frozen=True)
class Traced:
    """One run under a tracer: what fio measured, what was recorded and missed, processor time of the tracer's own.

    `missed` is by the tracer's own count or the device's, whichever is more: a completion that is lost may be a fault
    and a request too few. `decode_cpu_s` was spent after the run.
    """

    result: Result
    requests: int
    missed: int
    cpu_s: float
    decode_cpu_s: float


def beside(
    trace: Trace, found: Volume, lease: Lease, environment: dict[str, str], announce: Callable[[str], None]
) -> dict[str, Any]:
    """Return `{"cost": ...}` for the section `tracer` of a trial's record, nothing unless `trace.measure_cost`.

    What goes wrong becomes its reason, never the trial's.
    """
    if not trace.measure_cost:
        return {}
    if trace.tracer not in tracers.OF_REQUESTS:
        reason = f"trace.tracer is {trace.tracer}: no request is traced, which could cost anything"
        return {"cost": {"state": "off", "reason": reason}}
    announce(f"measuring the cost of tracing with {trace.tracer}")
    try:
        return {"cost": {"state": "measured", "reason": None, **_measured(trace, found, lease, environment)}}
    except (TaskError, OSError, subprocess.SubprocessError) as e:
        return {"cost": {"state": "failed", "reason": str(e)}}


def _measured(trace: Trace, found: Volume, lease: Lease, environment: dict[str, str]) -> dict[str, Any]:
    rows = []
    with fio.scratch(found, _FILE_BYTES, LOADS[0], lease.folder / "cost-fio", environment) as file:
        for place, load in enumerate(LOADS):
            untraced, traced = [], []
            for pair in range(_PAIRS):
                corner = lease.corner(f"cost-{place}-{pair}")
                # The order turns from pair to pair, so that a drift of the drive favours neither.
                if pair % 2 == 0:
                    untraced.append(fio.run(load, file, _SECONDS))
                traced.append(under_tracer(trace, found, corner, environment, load, file, _SECONDS))
                if pair % 2 == 1:
                    untraced.append(fio.run(load, file, _SECONDS))
            rows.append(_told(load, untraced, traced))
    return {"seconds": _SECONDS, "pairs": _PAIRS, "fio": fio.version(), "loads": rows, "trouble": _joined(file)}


def _joined(file: File) -> str | None:
    return "; ".join(file.troubles) or None


def under_tracer(
    trace: Trace, found: Volume, corner: Lease, environment: dict[str, str], load: Load, file: File, seconds: float
) -> Traced:
    """Run `load` under a tracer of its own, whose files lie in `corner` and are removed again."""
    tracer = tracers.make(trace, found.devices, corner, environment)
    own = processor_s()
    with tracer.recording():
        counted = found.devices.settle()
        before, begin_ns = _cpu_s(resource.RUSAGE_CHILDREN), time.monotonic_ns()
        result = fio.run(load, file, seconds)
        fio_s = _cpu_s(resource.RUSAGE_CHILDREN) - before
        done, end_ns = found.devices.settle().requests_since(counted), time.monotonic_ns()
    # Of children that have ended: fio within the recording, and a tracer that is a process after it.
    cpu_s = processor_s() - own - fio_s
    capture = tracer.write(Window(begin_ns, end_ns), corner.folder / "requests.parquet")
    decode_s = processor_s() - own - fio_s - cpu_s
    shutil.rmtree(corner.folder)
    missed = sum(capture.faults.values())
    if capture.counts is not None:
        missed = max(missed, abs(done[load.op] - capture.counts[load.op]))
    return Traced(result, capture.requests or 0, missed, cpu_s, decode_s)


def processor_s() -> float:
    """Return the processor time of this process and of its children that have ended."""
    return _cpu_s(resource.RUSAGE_SELF) + _cpu_s(resource.RUSAGE_CHILDREN)


def _cpu_s(whose: int) -> float:
    use = resource.getrusage(whose)
    return use.ru_utime + use.ru_stime


def _told(load: Load, untraced: Sequence[Result], traced: Sequence[Traced]) -> dict[str, Any]:
    """Return the ratio of traced to untraced IOPS, pair by pair and their median, and what else the runs showed."""
    ratios = [t.result.iops / u.iops for u, t in zip(untraced, traced, strict=True)]
    events = _EVENTS * sum(t.requests for t in traced)
    return {
        "rw": load.rw,
        "block_bytes": load.block_bytes,
        "depth": load.depth,
        "ratio": statistics.median(ratios),
        "least_ratio": min(ratios),
        "greatest_ratio": max(ratios),
        "untraced_iops": [u.iops for u in untraced],
        "traced_iops": [t.result.iops for t in traced],
        "requests": sum(t.requests for t in traced),
        "missed": sum(t.missed for t in traced),
        "tracer_cpu_s_per_million_events": sum(t.cpu_s for t in traced) / events * 1e6 if events else None,
    }
