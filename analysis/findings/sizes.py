"""Whether requests of 128 KiB dominate, of which the study speaks for model and KV cache offloading alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from analysis.evidence import Evidence
from analysis.findings.finding import Judged, agreed, ranged, span
from analysis.units import KIB, bytes_text, share_text

#: The size of which the study speaks: what its drive's queue splits requests at.
STUDIED_BYTES = 128 * KIB
#: A size dominates where more than this share of the requests have it, and they carry more than this of the bytes.
DOMINANT = 0.5


@dataclass(frozen=True)
class Sizes:
    """The data requests of a trial: which size is the most frequent, and what those of 128 KiB are of all."""

    mode_bytes: int
    requests_share: float
    bytes_share: float

    @property
    def dominated(self) -> bool:
        return self.requests_share > DOMINANT and self.bytes_share > DOMINANT


def sizes(evidence: Evidence, ops: Sequence[str]) -> Sizes | None:
    """Return the share that requests of 128 KiB of `ops` have of all reads and writes, and the most frequent size of
    `ops`; None where nothing was traced."""
    told = evidence.sizes
    own = told.filter(pl.col("op").is_in(ops)).group_by("bytes").agg(pl.col("count").sum()).sort("count", "bytes")
    moved = int((told["bytes"] * told["count"]).sum())
    if own.is_empty() or not moved:
        return None
    studied = int(own.filter(pl.col("bytes") == STUDIED_BYTES)["count"].sum())
    return Sizes(int(own["bytes"][-1]), studied / int(told["count"].sum()), studied * STUDIED_BYTES / moved)


def judged(cell: str, repeats: Sequence[Evidence], ops: Sequence[str], what: str) -> Judged:
    """Judge the repeats of one cell, all of which have requests; `what` calls the requests of `ops` in words."""
    found = [one for one in (sizes(evidence, ops) for evidence in repeats) if one is not None]
    requests, moved = [one.requests_share for one in found], [one.bytes_share for one in found]
    own = {op: [share for one in repeats if (share := _within(one, op)) is not None] for op in ops}
    apart = ", ".join(f"{span(shares, share_text)} of the {op}s" for op, shares in own.items() if shares)
    told = f"{what} of 128 KiB are {span(requests, share_text)} of the requests{f' ({apart})' if len(ops) > 1 else ''}"
    told += f" and {span(moved, share_text)} of the bytes {repeats[0].span_told}; the most frequent size is "
    told += span([one.mode_bytes for one in found], bytes_text)
    numbers = ranged("share of requests", requests) | ranged("share of bytes", moved)
    numbers |= ranged("most frequent size (bytes)", [one.mode_bytes for one in found])
    for op, shares in own.items() if len(ops) > 1 else ():
        numbers |= ranged(f"share of {op} requests", shares) if shares else {}
    return Judged(cell, agreed(one.dominated for one in found), told, numbers, len(found), _limit(repeats[0]))


def _within(evidence: Evidence, op: str) -> float | None:
    """Return the share of the requests of one operation that have 128 KiB."""
    own = evidence.sizes.filter(pl.col("op") == op)
    studied = own.filter(pl.col("bytes") == STUDIED_BYTES)["count"].sum()
    return int(studied) / int(own["count"].sum()) if not own.is_empty() else None


def possible(evidence: Evidence) -> bool:
    """Say whether the queue lets requests of 128 KiB through, as far as is known."""
    limit = evidence.queue_limit("max_sectors_kb")
    return limit is None or limit * KIB >= STUDIED_BYTES


def _limit(evidence: Evidence) -> str:
    limit = evidence.queue_limit("max_sectors_kb")
    if limit is None:
        return "At which size the device splits requests is not recorded."
    if limit * KIB == STUDIED_BYTES:
        return "The device splits at 128 KiB, as it was set to (max_sectors_kb) and as the study's drive does."
    return f"The device splits at {limit} KiB, the study's at 128 KiB: set storage.queue.max_sectors_kb=128 to compare."
