"""Whether a trial's data may be used: `valid`, `invalid` (it ran, its trace can't be trusted) or `failed`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tasks.units import format_bytes

_FAULTS = {
    "lost": "events were lost between kernel and tracer; raise trace.buffer_size",
    "unmatched": "requests had an issue without a completion, or a completion without an issue",
    "overtaken": "completions went unseen, or a sector was issued twice; use trace.tracer: ftrace",
    "errors": "requests failed on the device, as the kernel's log will tell (dmesg)",
    "malformed": "entries of the trace could not be read",
    "blind": "of the tracer's own two control reads are missing: it was not live from before the trial to after it",
}


@dataclass
class Verdict:
    """The state of a trial and, unless it is valid, why."""

    state: str = "valid"
    reasons: list[str] = field(default_factory=list)

    @classmethod
    def failed(cls, *reasons: str) -> Verdict:
        """Return the verdict on a trial whose job did not do its work."""
        return cls("failed", list(reasons))

    @classmethod
    def of_trace(
        cls,
        faults: Mapping[str, int],
        expected: Mapping[str, int] | None,
        traced: Mapping[str, int] | None,
        counted: Mapping[str, int],
        doubts: Sequence[str],
    ) -> Verdict:
        """Return the verdict on a finished job: nothing lost, traced equals counted, the expected bytes are in it.

        All byte counts are by operation over the same window; `traced` is None without a tracer of single requests,
        `expected` None where the workload cannot say.
        """
        reasons = [f"{n} {_FAULTS[kind]}" for kind, n in faults.items() if n]
        if traced is not None:
            reasons += [_differs(op, traced[op], counted[op]) for op in traced if traced[op] != counted[op]]
        if expected is None and not any(counted.values()):
            reasons.append("the job caused no I/O on the device")
        reasons += [_too_few(op, n, counted[op]) for op, n in (expected or {}).items() if counted[op] < n]
        reasons += doubts
        return cls("invalid" if reasons else "valid", reasons)


def _differs(op: str, traced: int, counted: int) -> str:
    return (
        f"the trace holds {traced} bytes of {op}s, the device counted {counted}: "
        f"{format_bytes(abs(counted - traced))} {'missing' if traced < counted else 'too many'}"
    )


def _too_few(op: str, expected: int, counted: int) -> str:
    cause = "the page cache answered the rest" if op == "read" else "the rest never reached the device"
    return f"the job should {op} {format_bytes(expected)}, the device saw {format_bytes(counted)}: {cause}"
