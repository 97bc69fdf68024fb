"""One trial on one node: storage -> tracer and samplers -> job -> verdict -> Parquet -> clean-up.

Runs in any process; nothing here knows of Ray. What it writes lies in the spool folder until somebody collects it.
"""

from __future__ import annotations

import datetime
import errno
import fcntl
import hashlib
import os
import shutil
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from analysis.schema import SCHEMA_VERSION
from tasks import (
    calibration,
    ceiling,
    cost,
    identity,
    interpreter,
    machine,
    phases,
    provenance,
    secrets,
    tracers,
    workloads,
)
from tasks.bystanders import Bystanders, listed
from tasks.cgroup import MemoryLimit, memory_limited
from tasks.device import QUIET_S, boot_id, check_traceable, leaf_drives
from tasks.errors import StorageError, TaskError, TracerError
from tasks.extents import Watch
from tasks.jobs.free_space import is_full
from tasks.kept import KEEP_VARIABLE, kept, kept_device
from tasks.lease import TOKEN_VARIABLE, Lease
from tasks.mounts import device_numbers
from tasks.process import child, exit_in_words, log_tail
from tasks.sampler import Sampler
from tasks.spec import StorageKind, TrialSpec, limits_of, storage_of, trace_of
from tasks.stacks import Stacks
from tasks.state import state_dir
from tasks.storage import Volume, flush, volume
from tasks.tracers import Capture, Window
from tasks.units import format_bytes, parse_bytes
from tasks.verdict import Verdict, other_count
from tasks.workloads import Job, Span

#: Told, in words, what the trial does now.
Announce = Callable[[str], None]

_POLL_S = 0.25

#: Other processes may move this share of all bytes on the traced device before the trial is invalid.
_OTHERS_SHARE = 0.01

#: What others move on the drive beneath an image is told from this share of the trial's own bytes on, and this much.
_BENEATH_SHARE, _BENEATH_BYTES = 0.05, 64 << 20


def run_trial(spec: TrialSpec, lease: Lease, announce: Announce) -> dict[str, Any]:
    """Run one trial and return its record (`trial.json`); its files lie in `spool_of(lease)`.

    Whatever goes wrong on the node becomes a failed verdict with its reason. Only being told to stop
    (`tasks.errors.Cancelled`) leaves as an exception.
    """
    spool = spool_of(lease)
    (spool / "logs").mkdir(parents=True)
    record = blank_record(spec)
    record["node"] = dict(machine.facts())
    record["clock"] = {"boot_id": boot_id(), "monotonic_to_utc_offset_ns": time.time_ns() - time.monotonic_ns()}
    begun_ns = _begun(record)
    try:
        with _alone_on_this_machine(announce):
            begun_ns = _begun(record)
            _Trial(spec, lease, spool, announce, record).run()
    except TaskError as e:
        _fail(record, str(e))
    except Exception as e:  # noqa: BLE001 - one trial's trouble must not end the sweep
        _fail(record, _unforeseen(e, spool))
    begun = datetime.datetime.fromisoformat(record["started"])
    record["ended"] = _told(begun + datetime.timedelta(microseconds=(time.monotonic_ns() - begun_ns) // 1000))
    return _without_secrets(record, spool, secrets.of_trial(spec.config))


def _begun(record: dict[str, Any]) -> int:
    """Record when the trial began; return it on the clock that does not jump, by which its end is told too."""
    record["started"] = _told(datetime.datetime.now(datetime.UTC))
    return time.monotonic_ns()


def _told(moment: datetime.datetime) -> str:
    return moment.isoformat(timespec="milliseconds")


def _unforeseen(error: Exception, spool: Path) -> str:
    """Return the reason of a failure that nobody foresaw, and leave the details in a log."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = format_bytes(shutil.disk_usage(spool).free)
        return f"this node's disk is full: {error.filename or spool} cannot be written ({free} are free at {spool})"
    try:
        (spool / "logs" / "trial.log").write_text(traceback.format_exc())
    except OSError:
        return f"{type(error).__name__}: {error}"
    return f"{type(error).__name__}: {error} (see logs/trial.log)"


def _without_secrets(record: dict[str, Any], spool: Path, hides: secrets.Redactor) -> dict[str, Any]:
    """Return the record of a trial, and leave its logs, without secrets; what says which trial it is stays."""
    for log in (spool / "logs").glob("*.log"):
        try:
            hides.file(log)
        except OSError as e:  # what cannot be cleaned is not kept
            log.unlink()
            _add_trouble(record, f"logs/{log.name} is not kept: {e.strerror}")
    identity = ("id", "slug", "cell", "fingerprint")
    return {key: value if key in identity else hides.value(value, key) for key, value in record.items()}


def _fail(record: dict[str, Any], reason: str) -> None:
    """Record why a trial failed; trouble after its verdict, in the clean-up, does not undo what was measured."""
    if record["verdict"] is None:
        record["verdict"] = vars(Verdict.failed(reason))
    else:
        _add_trouble(record, reason)


def _add_trouble(record: dict[str, Any], reason: str | None) -> None:
    if reason:
        record["trouble"] = "; ".join(filter(None, [record.get("trouble"), reason]))


def spool_of(lease: Lease) -> Path:
    """Return the folder in which an attempt collects what it will hand over."""
    return lease.folder / "spool"


def blank_record(spec: TrialSpec) -> dict[str, Any]:
    """Return `trial.json` of an attempt of which nothing is known yet: every key, null where nobody knows."""
    return {
        "schema_version": SCHEMA_VERSION,
        "id": spec.id,
        "slug": spec.slug,
        "cell": spec.cell,
        "repeat": spec.repeat,
        "warmup": spec.warmup,
        "attempt": spec.attempt,
        "fingerprint": dict(spec.fingerprint),
        "config": secrets.hidden(spec.config),
        "command": None,
        "node": {},
        "device": None,
        "storage": None,
        "ceiling": None,
        "tracer": None,
        "stacks": None,
        "sampler": None,
        "extents": None,
        "clock": None,
        "verdict": None,
        "bytes": {"expected": None, "traced": None, "counted": None},
        "metrics": {},
        "started": None,
        "ended": None,
        "kept": None,
    }


@contextmanager
def _alone_on_this_machine(announce: Announce) -> Iterator[None]:
    """Hold the machine's measuring lock: two trials at once, of two sweeps even, would measure each other."""
    with (state_dir() / "measuring.lock").open("w") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            announce("waiting for another sweep's trial on this machine")
            fcntl.flock(f, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class _Observed:
    """What a job's run showed: bytes and requests counted by operation, what went wrong in words, memory use, spans."""

    window: Window
    counted: dict[str, int]
    requests: dict[str, int]
    trouble: str | None
    doubts: list[str]
    memory: dict[str, Any]
    spans: list[Span]


class _Trial:
    """The steps of one trial, filling in its record."""

    def __init__(self, spec: TrialSpec, lease: Lease, spool: Path, announce: Announce, record: dict[str, Any]) -> None:
        self._spec, self._lease, self._spool, self._announce, self._record = spec, lease, spool, announce, record
        self._workload = workloads.of_config(spec.config)
        self._environment = job_environment(lease.token) | ({KEEP_VARIABLE: "1"} if spec.keep else {})
        if self._workload.python() is not None:
            self._environment = interpreter.without_ours(self._environment)
        self._bystanders = Bystanders(lease.token)
        self._provenance = {"trial": spec.id, "sweep": spec.sweep, "attempt": spec.attempt}
        self._trace = trace_of(spec.config)
        self._stacks: Stacks | None = None

    def run(self) -> None:
        """Run all steps; raises TaskError where the trial cannot go on."""
        asked = identity.question(self._spec.config)
        node = self._record["fingerprint"]["node"] = identity.identity(asked)
        self._packages = node["packages"]
        self._record["node"] |= provenance.node()
        self._chosen = self._choose_tracer()
        storage = storage_of(self._spec.config)
        self._announce(f"preparing {storage.fs}")
        with volume(storage, self._lease, self._spec.id if self._spec.keep else None) as found:
            self._record["device"] = found.devices.facts() | found.drive_facts() | provenance.device(found)
            self._record["storage"] = found.facts
            with provenance.watched(self._record["device"]):
                self._measure(found)
            identity.mark_written(node, asked)
        if self._spec.keep:
            on_device = storage.device if storage.kind is StorageKind.device else None
            self._record["kept"] = kept_device(on_device) if on_device else kept(self._lease.token)

    def _choose_tracer(self) -> dict[str, Any]:
        """Settle what `auto` means; return why, for the record."""
        if self._trace.tracer != "auto":
            return {}
        available = machine.tracers_of_requests()
        name, chosen = calibration.chosen(available, self._lease, self._environment, self._announce)
        self._trace = replace(self._trace, tracer=name)
        return {"chosen": chosen}

    def _measure(self, found: Volume) -> None:
        beside = (found, self._lease, self._environment, self._announce)
        self._record["ceiling"] = ceiling.beside(self._spec.config, *beside)
        tracer_cost = cost.beside(self._trace, *beside)
        job = self._workload.job(self._spool, found.offload_dir, self._spec.repeat)
        self._record["command"] = job.argv
        self._record["node"]["packages"] = self._packages
        trace = self._trace
        of_requests = trace.tracer in tracers.OF_REQUESTS
        if of_requests:
            check_traceable(found.devices)
        tracer = tracers.make(trace, found.devices, self._lease, self._environment)
        tracer.facts |= self._chosen | tracer_cost
        self._record["tracer"] = tracer.facts
        if trace.stacks:
            self._stacks = Stacks(found.devices, self._lease, self._environment)
        sampler = Sampler(found.devices, trace.sample_interval_ms)
        watch = Watch(found, self._workload.role, wanted=of_requests)
        self._announce(f"starting tracer {trace.tracer}")
        seen: _Observed | None = None
        try:
            stacks = self._stacks.recording() if self._stacks else nullcontext()
            with tracer.recording(), stacks, self._watched(found):
                seen = self._observe(found, job, sampler, watch)
        except TracerError:
            if seen is not None:  # what the job itself measured outlives its tracer
                self._keep(job, seen, sampler)
                _add_trouble(self._record, seen.trouble)
            raise
        self._announce("reading the trace")
        report = self._keep(job, seen, sampler)
        capture = tracer.write(seen.window, self._spool / "requests.parquet")
        self._judge(report, seen, capture)
        self._tell_shared_drive(found)
        # After the verdict: trouble with where files lie does not undo it.
        watch.write(self._spool / "extents.parquet", self._provenance)
        self._record["extents"] = watch.facts

    def _tell_shared_drive(self, found: Volume) -> None:
        """Tell of raw trace that was written to the drive under test, where the node's state folder lies on that one.

        Beneath a loop image it is in no trace, and told with all that others move there.
        """
        spooled_bytes = self._record["tracer"].get("spooled_to_disk_bytes", 0)
        shared = [drive for drive in leaf_drives(*device_numbers(self._spool)) if drive in found.drives()]
        if spooled_bytes and shared and found.facts["kind"] != StorageKind.loop.name:
            _add_trouble(
                self._record,
                f"{format_bytes(spooled_bytes)} of raw trace went to {', '.join(shared)}, the drive under test, where "
                f"{state_dir()} lies: trace.tracer=ftrace with more trace.spool_memory keeps them in memory, or set "
                "OFFLOAD_SWEEP_STATE to a folder on another drive",
            )

    def _watched(self, found: Volume) -> AbstractContextManager[None]:
        """Watch other processes where their share of the I/O can be told: of a trace's, or of the drive beneath."""
        told = self._trace.tracer in tracers.OF_REQUESTS or found.beneath() is not None
        return self._bystanders.watched() if told else nullcontext()

    def _keep(self, job: Job, seen: _Observed, sampler: Sampler) -> phases.Report:
        """Write samples, phases, metrics and stacks, which need no trace, and return what the job reported."""
        sampler.write(self._spool / "samples.parquet", self._provenance)
        self._record["sampler"] = sampler.facts()
        _add_trouble(self._record, sampler.trouble)
        if self._phases_path.exists():
            secrets.of_trial(self._spec.config).file(self._phases_path)
        report = phases.read(self._phases_path, job.process)
        phases.write([*report.spans, *seen.spans], self._spool / "phases.parquet", self._provenance)
        self._record["metrics"] = report.metrics | seen.memory
        self._record["bytes"]["counted"] = seen.counted
        if self._stacks:
            self._record["stacks"] = self._stacks.write(self._spool)
            _add_trouble(self._record, self._stacks.trouble)
        return report

    def _observe(self, found: Volume, job: Job, sampler: Sampler, watch: Watch) -> _Observed:
        """Run the job between two readings of the device's counters, with nothing in flight at either."""
        flush(found.offload_dir)
        # With nothing to compare the counters to, it is enough that nothing is in flight.
        quiet_s = 0.0 if self._trace.tracer == "none" else QUIET_S
        before, beneath = found.devices.settle(quiet_s), found.beneath()
        drive_before = beneath.counters() if beneath else None
        begin_ns = time.monotonic_ns()
        memory: dict[str, Any] = {}
        with sampler.sampling(), watch.watching():
            with self._memory_limit() as limit, sampler.watching(limit):
                trouble, process_span = self._run_job(job, found.offload_dir, limit)
                if limit:
                    memory = limit.use()
                    if limit.oom_kills():
                        size = format_bytes(limit.limit_bytes)
                        trouble = f"the kernel killed the job: out of memory at limits.memory ({size})"
            drain = self._drain(found)
        doubts = []
        try:
            after = found.devices.settle(quiet_s)
        except StorageError as e:  # what was measured is worth keeping, with its doubt
            after = found.devices.counters()
            doubts.append(str(e))
        window = Window(begin_ns, time.monotonic_ns())
        if beneath and drive_before:
            self._tell_others(beneath.name, beneath.counters().since(drive_before), after.since(before))
        moved, requests = after.since(before), after.requests_since(before)
        return _Observed(window, moved, requests, trouble, doubts, memory, [process_span, drain])

    def _tell_others(self, drive: str, moved: dict[str, int], own: dict[str, int]) -> None:
        """Record what was moved on the drive beneath, and tell of it where others used that drive meanwhile."""
        self._record["device"]["drive_moved_bytes"] = moved
        others = sum(max(0, moved[op] - own[op]) for op in ("read", "write"))
        if others > max(_BENEATH_BYTES, _BENEATH_SHARE * sum(own.values())):
            names = listed(self._bystanders.busiest()) or "no process by name"
            text = f"others moved {format_bytes(others)} on {drive}, the drive beneath, meanwhile ({names})"
            _add_trouble(self._record, text)

    def _judge(self, report: phases.Report, seen: _Observed, capture: Capture) -> None:
        """Fill in the three byte counts and the verdict."""
        self._record["tracer"] |= {
            "requests": capture.requests,
            "requests_traced": capture.counts,
            "requests_counted": seen.requests,
            "begin_ns": seen.window.begin_ns,
            "end_ns": seen.window.end_ns,
            **capture.faults,
        }
        expected = self._workload.expected(report.spans)
        self._record["bytes"] = {"expected": expected, "traced": capture.bytes, "counted": seen.counted}
        if capture.bytes is None:
            self._tell_surplus(expected, seen.counted, self._record["device"]["name"])
        if seen.trouble or report.errors or (self._workload.says_done and not report.done):
            verdict = Verdict.failed(*_job_reasons(seen.trouble, report))
        else:
            doubts = other_count(capture.counts, seen.requests, capture.again) + self._others(capture)
            doubts = [*seen.doubts, *doubts, *report.doubts(), *self._workload.doubts(report.spans)]
            shares = self._workload.shares()
            verdict = Verdict.of_trace(capture.faults, expected, capture.bytes, seen.counted, doubts, shares)
        self._record["verdict"] = vars(verdict)

    def _others(self, capture: Capture) -> list[str]:
        """Record which other processes used the traced device; return a doubt where that was more than a little."""
        others = self._bystanders.named(capture.by_thread) if capture.bytes is not None else None
        self._record["tracer"]["others_bytes"] = "unknown" if others is None else others
        moved = sum((others or {}).values())
        if moved <= _OTHERS_SHARE * sum((capture.bytes or {}).values()):
            return []
        return [f"other processes moved {format_bytes(moved)} on the traced device: {listed(others or {})}"]

    def _tell_surplus(self, expected: dict[str, int] | None, counted: dict[str, int], device: str) -> None:
        """Tell of bytes beyond what the job should have moved, where no trace says whose they were."""
        surplus = sum(max(0, counted[op] - n) for op, n in (expected or {}).items())
        if surplus > max(_BENEATH_BYTES, _BENEATH_SHARE * sum((expected or {}).values())):
            names = listed(self._bystanders.busiest()) or "no process by name"
            text = (
                f"{format_bytes(surplus)} more were moved on {device} than the job should, by others perhaps ({names})"
            )
            _add_trouble(self._record, text)

    @property
    def _phases_path(self) -> Path:
        return self._spool / "phases.jsonl"

    def _memory_limit(self) -> AbstractContextManager[MemoryLimit | None]:
        limit = limits_of(self._spec.config).memory
        return nullcontext() if limit is None else memory_limited(parse_bytes(limit), self._lease)

    def _run_job(self, job: Job, offload_dir: Path, limit: MemoryLimit | None) -> tuple[str | None, Span]:
        """Run the job to its end or its time limit; return what went wrong, in words, and its span."""
        log = self._spool / "logs" / f"{job.process}.log"
        environment = self._environment | {"OFFLOAD_SWEEP_PHASES": str(self._phases_path)} | job.environment
        limit_s = limits_of(self._spec.config).time_limit_s
        begin_ns = time.monotonic_ns()
        follower = phases.Follower(self._phases_path)
        procs = limit.procs if limit else None
        with child(job.argv, log, environment, cgroup_procs=procs) as process:
            while process.poll() is None:
                if time.monotonic_ns() - begin_ns > limit_s * 1_000_000_000:
                    break
                if (phase := follower.latest()) is not None:
                    self._announce(phase)
                _wait(process, _POLL_S)
            code = process.poll()
        span = Span(job.process, "job", begin_ns, time.monotonic_ns())
        if code is None:
            return f"{job.process} ran longer than limits.time_limit_s ({limit_s} s) and was stopped", span
        if code and is_full(offload_dir):
            return f"the filesystem under test was full; {job.process} ended with {exit_in_words(code)}", span
        if code and is_full(self._spool):
            text = f"this node's disk was full ({self._spool}); {job.process} ended with {exit_in_words(code)}"
            return text, span
        return (f"{job.process} ended with {exit_in_words(code)}" if code else None), span

    def _drain(self, found: Volume) -> Span:
        """Wait until everything the job left behind has reached the device."""
        self._announce("drain")
        begin_ns = time.monotonic_ns()
        flush(found.offload_dir)
        return Span("trial", "drain", begin_ns, time.monotonic_ns())


def _wait(process: subprocess.Popen[bytes], limit_s: float) -> None:
    try:
        process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return


def _job_reasons(trouble: str | None, report: phases.Report) -> list[str]:
    if report.errors and not trouble:
        return report.errors
    return [*report.errors, trouble or "the job ended with exit code 0 without saying that it was done"]


def job_environment(token: str) -> dict[str, str]:
    """Return this process's environment without what Ray put there, and with the attempt's token.

    Ray sets OMP_NUM_THREADS to the task's CPUs, which would throttle the engine.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") and k != "OMP_NUM_THREADS"}
    return kept | {TOKEN_VARIABLE: token, "PYTHONUNBUFFERED": "1"}


def tail_of_logs(spool: Path) -> str:
    """Return the end of the job's log, or else of the trial's own, for a message about a failure."""
    logs = sorted((spool / "logs").glob("*.log"), key=lambda p: -p.stat().st_size)
    return log_tail(logs[0]) if logs else ""


def manifest(spool: Path) -> list[dict[str, Any]]:
    """Return name, size in bytes and SHA-256 of every file that belongs to the published trial."""
    names = [p for pattern in ("*.parquet", "*.folded", "logs/*.log") for p in sorted(spool.glob(pattern))]
    return [{"name": str(p.relative_to(spool)), "size_bytes": p.stat().st_size, "sha256": _sha256(p)} for p in names]


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
