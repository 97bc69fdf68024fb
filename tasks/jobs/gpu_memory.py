"""What torch says when a GPU's memory is full, and what to do about it. Stands alone."""

from __future__ import annotations

#: Advice for programs of torch's own follows here; these settings are not what a sweep has.
_NOT_OURS = " If reserved but unallocated memory"


def shortage(error: BaseException, advice: str) -> str | None:
    """Return torch's account of a full GPU with `advice`, or None where `error` is something else."""
    if type(error).__name__ != "OutOfMemoryError":  # its module differs between versions of torch
        return None
    said = str(error).split(_NOT_OURS)[0].strip().rstrip(".")
    return f"{said}: {advice}"
