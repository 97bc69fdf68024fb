"""Figs. 5 and 6 of the study: FlexGen's KV cache on the drive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from analysis.attribution import DATA
from analysis.evidence import Evidence
from analysis.findings import passes, sizes
from analysis.findings.finding import Finding, Judged, Statement, agreed, ranged, span
from analysis.run import Run
from analysis.units import GIB, MIB, bytes_text, number_text, share_text
from analysis.workload import has_cache_on_disk

#: What the study published of OPT-6.7B with its KV cache on the drive.
PUBLISHED_READ_GIB_S, PUBLISHED_WRITE_MIB_S = 2.0, 11.0
#: `Far above` is an order of magnitude; the study's are two apart.
FAR_ABOVE = 10.0
_SWEEPS = "conf/fig5.yaml or conf/fig6.yaml"
_PUBLISHED = f"Published: {PUBLISHED_READ_GIB_S} GiB/s read and {PUBLISHED_WRITE_MIB_S} MiB/s written, "
_PUBLISHED += f"{number_text(PUBLISHED_READ_GIB_S * GIB / (PUBLISHED_WRITE_MIB_S * MIB))} times as much."


def reads_and_writes(run: Run, told: Sequence[Evidence]) -> Finding:
    """Test that the KV cache is both read and written."""
    return _tested(
        run,
        told,
        Statement(
            "kv-reads-and-writes",
            "KV cache offloading both reads and writes",
            lambda one: all(one.moved(op) is not None for op in DATA),
            _both,
            "none traced what it moved",
            _SWEEPS,
        ),
    )


def requests_of_128_kib(run: Run, told: Sequence[Evidence]) -> Finding:
    """Test that requests of 128 KiB are most of the requests, and of the bytes."""
    return _tested(
        run,
        told,
        Statement(
            "kv-128k",
            "KV cache offloading is dominated by requests of 128 KiB",
            lambda one: sizes.sizes(one, DATA) is not None and sizes.possible(one),
            lambda cell, repeats: sizes.judged(cell, repeats, DATA, "requests"),
            "none recorded single requests on a device that takes 128 KiB",
            _SWEEPS,
        ),
    )


def reads_far_above_writes(run: Run, told: Sequence[Evidence]) -> Finding:
    """Test that reads are at least ten times the writes, and tell both beside the published values."""
    found = _tested(
        run,
        told,
        Statement(
            "kv-reads-above-writes",
            "KV cache offloading reads far more than it writes",
            lambda one: all(one.gib_s(op) for op in DATA),
            _apart,
            "none traced both reads and writes",
            _SWEEPS,
        ),
    )
    published = {"published read (GiB/s)": PUBLISHED_READ_GIB_S, "published written (MiB/s)": PUBLISHED_WRITE_MIB_S}
    return replace(found, numbers={**found.numbers, **published}) if found.numbers else found


def whole_cache_each_step(run: Run, told: Sequence[Evidence]) -> Finding:
    """Test that the drive delivered the whole cache in every decode step."""
    return _tested(
        run,
        told,
        Statement(
            "kv-whole-step",
            "Each decode step reads the whole KV cache from the drive",
            lambda one: passes.share(one) is not None,
            passes.judged,
            "none knows both the bytes read and those that its steps should have",
            _SWEEPS,
        ),
    )


def _tested(run: Run, told: Sequence[Evidence], statement: Statement) -> Finding:
    own = [one for one in told if one.trial.state == "valid" and has_cache_on_disk(one.trial)]
    return statement.tested(run, own, "its KV cache on the drive")


def _both(cell: str, repeats: Sequence[Evidence]) -> Judged:
    moved = [{op: _cache_bytes(one, op) for op in DATA} for one in repeats]
    read, written = ([one[op] for one in moved] for op in DATA)
    part = [one["write"] / sum(one.values()) for one in moved if sum(one.values())]
    told = f"{span(read, bytes_text)} read and {span(written, bytes_text)} written"
    told += f" (writes are {span(part, share_text)} of both)" if part else ""
    known = all(_role(one, op) is not None for one in repeats for op in DATA)
    note = "Of the cache's own files." if known else "Of whichever files: nobody looked where the cache's lie."
    numbers = ranged("read (bytes)", read) | ranged("written (bytes)", written)
    return Judged(cell, agreed(all(one.values()) for one in moved), told, numbers, len(repeats), note)


def _cache_bytes(evidence: Evidence, op: str) -> int:
    """Return what `op` moved of the cache's files, of any file where nobody knows: a journal writes too."""
    role = _role(evidence, op)
    return (evidence.moved(op) or 0) if role is None else role


def _role(evidence: Evidence, op: str) -> int | None:
    moved: int | None = evidence.whole.get(f"role.kv_{op}_bytes")
    return moved


def _apart(cell: str, repeats: Sequence[Evidence]) -> Judged:
    read, written = ([speed for one in repeats if (speed := one.gib_s(op)) is not None] for op in DATA)
    ratios = [ours / theirs for ours, theirs in zip(read, written, strict=True)]
    mib_s = [speed * GIB / MIB for speed in written]
    told = f"{span(read, number_text)} GiB/s read and {span(mib_s, number_text)} MiB/s written {repeats[0].span_told},"
    told += f" {span(ratios, number_text)} times as much"
    numbers = ranged("read (GiB/s)", read) | ranged("written (MiB/s)", mib_s) | ranged("reads over writes", ratios)
    if decode := [ratio for one in repeats if (ratio := _decode_ratio(one)) is not None]:
        told += f", {span(decode, number_text)} times in the decode steps alone"
        numbers |= ranged("reads over writes in decode steps", decode)
    holds = agreed(ratio >= FAR_ABOVE for ratio in ratios)
    return Judged(cell, holds, told, numbers, len(repeats), _PUBLISHED)


def _decode_ratio(evidence: Evidence) -> float | None:
    moved = {row["op"]: row["bytes"] for row in evidence.profile if row["phase"] == "decode"}
    return moved["read"] / moved["write"] if moved.get("read") and moved.get("write") else None
