"""Whether every pass read everything that is on the drive: bytes read against those that the passes should have."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.evidence import Evidence
from analysis.findings.finding import Judged, agreed, ranged, span
from analysis.units import bytes_text, share_text

#: Of what the passes should have read, the drive has delivered all but this tenth: less means that memory kept a part.
WHOLE = 0.9


def share(evidence: Evidence) -> float | None:
    """Return the bytes traced as a share of those that the finished phases should have read, None where not known."""
    traced, expected = (evidence.trial.byte_count(kind, "read") for kind in ("traced", "expected"))
    return traced / expected if traced is not None and expected else None


def judged(cell: str, repeats: Sequence[Evidence]) -> Judged:
    """Judge the repeats of one cell, all of which have a share."""
    shares = [reached for one in repeats if (reached := share(one)) is not None]
    expected = [one.trial.byte_count("expected", "read") or 0 for one in repeats]
    told = f"the drive delivered {span(shares, share_text)} of the {span(expected, bytes_text)} that all passes need"
    if min(shares) < WHOLE:
        told += ", the page cache the rest: lower limits.memory"
    holds = agreed(reached >= WHOLE for reached in shares)
    return Judged(cell, holds, told, ranged("share of expected reads", shares), len(repeats))
