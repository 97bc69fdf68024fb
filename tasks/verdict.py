"""Whether a trial's data may be used: `valid`, `invalid` (it ran, its trace can't be trusted) or `failed`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tasks.units import format_bytes

#: A job that moved less than this share of what it should has not used the device at all.
_NOTHING = 0.01

#: A workload that promises more than this share uses direct I/O, or evicts its files: memory is not what it lacks.
_DIRECT = 0.9

_FAULTS = {
    "lost": "events were lost between kernel and tracer; raise trace.buffer_size",
    "unmatched": "requests had an issue without a completion, or a completion without an issue",
    "duplicate": "requests completed twice",
    "out_of_order": "events are older than the one before them on their CPU: the trace's clock went backwards",
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
        shares: Mapping[str, float] | None = None,
    ) -> Verdict:
        """Return the verdict on a finished job: nothing lost, traced equals counted, the expected bytes are in it.

        All byte counts are by operation over the same window; `traced` is None without a tracer of single requests,
        `expected` None where the workload cannot say. `shares` is, by operation, how much of the expected the device
        must have seen (all of it where nothing is said). A job that moved next to nothing of it has failed.
        """
        wanted = {op: (n, (shares or {}).get(op, 1.0)) for op, n in (expected or {}).items()}
        reasons = [f"{n} {_FAULTS[kind]}" for kind, n in faults.items() if n]
        if traced is not None:
            reasons += [_differs(op, traced[op], counted[op]) for op in traced if traced[op] != counted[op]]
        if expected is None and not any(counted.values()):
            reasons.append("the job caused no I/O on the device")
        idle = [op for op, (n, share) in wanted.items() if share and counted[op] < n * _NOTHING]
        for op, (n, share) in wanted.items():
            if op in idle:
                reasons.append(_idle(op, n, counted[op], share))
            elif counted[op] < n * share:
                reasons.append(_too_few(op, n, counted[op], share))
        reasons += doubts
        return cls("failed" if idle else "invalid" if reasons else "valid", reasons)


def other_count(traced: Mapping[str, int] | None, counted: Mapping[str, int], again: int | None) -> list[str]:
    """Return, in words, the operations of which the trace holds another number of requests than the device counted.

    Some of the `again` completions that moved nothing are writes to the device: where a write carries a flush, its end
    or the flush's may be counted besides. Where those are not known (None) the number of writes says nothing.
    """
    reasons = []
    for op, count in (traced or {}).items():
        most = count + (again or 0) if op == "write" else count
        if not count <= counted[op] <= most and (op != "write" or again is not None):
            reasons.append(f"the trace holds {count} {op} requests, the device counted {counted[op]}")
    return reasons


def _differs(op: str, traced: int, counted: int) -> str:
    return (
        f"the trace holds {traced} bytes of {op}s, the device counted {counted}: "
        f"{format_bytes(abs(counted - traced))} {'missing' if traced < counted else 'too many'}"
    )


def _too_few(op: str, expected: int, counted: int, share: float) -> str:
    less = {"read": "the job read less, or the page cache answered the rest"}
    cause = less.get(op, "the job wrote less, or the rest never reached the device")
    least = "" if share == 1 else f" (at least {share:.0%} of it must show)"
    return f"the job should {op} {format_bytes(expected)}{least}, the device saw {format_bytes(counted)}: {cause}"


def _idle(op: str, expected: int, counted: int, share: float) -> str:
    cause = "the job read nothing, or the page cache answered" if op == "read" else "nothing reached it"
    if op == "read" and share < _DIRECT:
        cause += "; set limits.memory below what is offloaded"
    saw = format_bytes(counted) if counted else "none of it"
    return f"the job should {op} {format_bytes(expected)} and the device saw {saw}: {cause}"
