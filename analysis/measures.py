"""Names of what can be drawn against an axis, such as `decode/read.d2c_p99_us@workload.batch_size`, and their units.

Light to import: a sweep's definition is checked with it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from analysis.errors import AnalysisError
from analysis.units import sentence

#: How a measure against an axis is written.
SYNTAX = "MEASURE@AXIS, such as tokens_per_s@workload.batch_size or decode/read.d2c_p99_us@workload.batch_size"
#: The operations and the first phase of `analysis.profile`: the whole traced window.
OPERATIONS, WHOLE = ("read", "write", "all"), "trial"
#: What engines report, under names that they share, and what a memory limit made of the trial.
ENGINE = (
    *("prefill_latency_s", "prefill_tokens_per_s", "decode_latency_s", "decode_tokens_per_s"),
    *("total_latency_s", "tokens_per_s", "generated_tokens", "model_bytes", "cache_bytes", "offloaded_bytes"),
    *("peak_gpu_memory_bytes", "peak_host_memory_bytes", "memory_peak_bytes", "memory_limit_bytes", "oom_kills"),
)
#: Columns of the summary's row for the whole traced window.
SUMMARY = (
    *("duration_s", "generation_s", "generation_read_bytes", "generation_write_bytes"),
    *("generation_read_ceiling_share", "generation_write_ceiling_share", "read_ceiling_share", "write_ceiling_share"),
    *("traced_read_bytes", "traced_write_bytes", "counted_read_bytes", "counted_write_bytes"),
    *("expected_read_bytes", "expected_write_bytes", "read_requests", "write_requests"),
    *("read_d2c_p50_us", "read_d2c_p99_us", "read_d2c_max_us"),
    *("write_d2c_p50_us", "write_d2c_p99_us", "write_d2c_max_us"),
    *("ceiling_read_gib_s", "ceiling_write_gib_s", "ceiling_random_read_gib_s", "ceiling_random_write_gib_s"),
    "ceiling_first_write_gib_s",
)
#: Columns of the profile, of each phase and operation.
PROFILE = (
    *("duration_s", "bytes", "requests", "bandwidth_gib_s", "bandwidth_peak_gib_s", "bandwidth_p5_gib_s"),
    *("bandwidth_p50_gib_s", "bandwidth_p95_gib_s", "iops", "request_bytes_mean", "request_bytes_p50"),
    *("request_bytes_mode", "request_mode_share", "d2c_mean_us", "d2c_p50_us", "d2c_p90_us", "d2c_p99_us"),
    *("d2c_p999_us", "d2c_p9999_us", "d2c_max_us", "depth_mean", "depth_p50", "depth_p99", "depth_max"),
    *("interarrival_p50_us", "interarrival_p99_us", "sequential_share", "seek_p50_bytes", "seek_p99_bytes"),
    *("footprint_bytes", "accesses_mean", "busy_share", "byte_share", "request_share", "ceiling_share"),
    *("expected_bytes", "expected_share", "gpu_busy_share", "io_stalled_s", "io_stalled_share", "iowait_share"),
    "job_cpu_share",
)
#: Names that a job or a workload makes up; only a run can tell whether it has them.
OWN = ("metric.", "role.")

_WORDS = {"d2c": "latency", "gpu": "GPU", "kv": "KV", "oom": "OOM", "iops": "IOPS", "p999": "p99.9", "p9999": "p99.99"}
_WORDS |= {"cpu": "CPU", "interarrival": "inter-arrival time", "io": "I/O", "iowait": "time of CPUs waiting for I/O"}
#: No more measures than these are told where none is near.
_MOST_NAMES = 8
_AXIS = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")


@dataclass(frozen=True)
class Measure:
    """What is asked for: `name` of an operation in a phase, or (`op` None) of the trial, against `axis`."""

    name: str
    axis: str
    op: str | None = None
    phase: str = WHOLE

    def __str__(self) -> str:
        """Return it as one writes it."""
        return f"{self.measured}@{self.axis}"

    @property
    def measured(self) -> str:
        """What is measured, without the axis, as one writes it."""
        phase = "" if self.op is None or self.phase == WHOLE else f"{self.phase}/"
        return f"{phase}{self.op}.{self.name}" if self.op else self.name

    @property
    def title(self) -> str:
        """What is measured in words, without its unit."""
        words = [_WORDS.get(word, word) for word in _bare(self.name).split("_")]
        told = " ".join(words)
        if self.op is not None:
            told = f"{told} of {'all requests' if self.op == 'all' else self.op + 's'}"
            told += "" if self.phase == WHOLE else f" in {self.phase}"
        return sentence(told)

    @property
    def unit(self) -> str:
        """The unit of its values: `B` for bytes, `1` for a share, empty where the name has none."""
        return _unit(self.name)


def parse(text: str) -> Measure:
    """Return the measure that `text` asks for; raise AnalysisError where it is none, with the nearest name."""
    measured, at, axis = text.strip().rpartition("@")
    if not at or not measured or not _AXIS.fullmatch(axis):
        raise AnalysisError(f"{text!r} is no measure against an axis; write {SYNTAX}")
    return named(measured, axis)


def named(measured: str, axis: str = "") -> Measure:
    """Return the measure called so, such as `decode/read.d2c_p99_us`; raise AnalysisError as `parse`."""
    phase, slash, rest = measured.strip().rpartition("/")
    op, dot, name = rest.partition(".")
    if dot and op in OPERATIONS:
        _check(name, PROFILE, f"{op}.")
        return Measure(name, axis, op, phase.strip() if slash else WHOLE)
    if dot and name in PROFILE:
        near = difflib.get_close_matches(op, OPERATIONS, 1, 0.5)
        hint = f"did you mean {phase}{slash}{near[0]}.{name}? " if near else ""
        raise AnalysisError(f"no operation {op!r}; {hint}operations: {', '.join(OPERATIONS)}")
    if slash:
        raise AnalysisError(f"{measured!r} names a phase but no operation; write {phase}/read.{rest}, write. or all.")
    if not rest.startswith(OWN) or rest in OWN:
        _check(rest, (*ENGINE, *SUMMARY), "")
    return Measure(rest, axis)


def axis_of(axis: str, known: Collection[str]) -> str:
    """Return which of the `known` axes, keys or their last parts, `axis` means; raise AnalysisError where none is."""
    exact = [name for name in known if name == axis]
    found = exact or [name for name in known if axis.endswith(f".{name}") or name.endswith(f".{axis}")]
    if found:
        return max(found, key=len)
    last = {name.rpartition(".")[2]: name for name in known}
    near = difflib.get_close_matches(axis.rpartition(".")[2], list(last), 1, 0.6)
    hint = f"did you mean {last[near[0]]}? " if near else ""
    valid = f"valid: {', '.join(known)}" if known else "this sweep has none"
    raise AnalysisError(f"no axis {axis!r}; {hint}{valid}")


def _check(name: str, known: Sequence[str], prefix: str) -> None:
    if name in known:
        return
    near = difflib.get_close_matches(name, known, 3, 0.5)
    elsewhere = [f"read.{one}" for one in difflib.get_close_matches(name, PROFILE, 1, 0.8)] if not prefix else []
    nearest = [*elsewhere, *(prefix + one for one in near)]
    hint = f"did you mean {' or '.join(nearest)}?" if nearest else _some(known, prefix)
    own = "" if prefix else " (what a job reports under a name of its own: metric.NAME)"
    raise AnalysisError(f"no measure {prefix + name!r}; {hint}{own}")


def _some(known: Sequence[str], prefix: str) -> str:
    """Return a few of the measures, and where all of them are."""
    page = "metrics" if prefix else "figures"
    more = f" and {len(known) - _MOST_NAMES} more (docs/{page}.md)" if len(known) > _MOST_NAMES else ""
    return f"valid: {', '.join(prefix + one for one in known[:_MOST_NAMES])}{more}"


def _unit(name: str) -> str:
    words = name.rpartition(".")[2].split("_")
    if words[-2:] == ["gib", "s"]:
        return "GiB/s"
    if words[-2:] == ["per", "s"]:
        return "tokens/s" if "tokens" in words else "1/s"
    if "bytes" in words:
        return "B"
    units = {"us": "µs", "s": "s", "share": "1", "iops": "requests/s", "requests": "requests", "tokens": "tokens"}
    return units.get(words[-1], "requests" if words[0] == "depth" else "")


def _bare(name: str) -> str:
    """Return a name without the prefix that says whose it is, and without its unit."""
    name = name.removeprefix("metric.").replace("ceiling_share", "bandwidth_as_share_of_the_ceiling")
    return re.sub(r"_(gib_s|per_s|us|s)$", lambda unit: "_per_second" if unit[1] == "per_s" else "", name)
