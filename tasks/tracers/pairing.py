"""Joins issues and completions of block requests into one row per request.

The kernel's trace events carry no request identity, but those of one device (one `Pairing` each) that carry data pair
by sector: the first completion at a sector belongs to the first issue there that is still open. What else the block
layer emits is known and sorted out here:

- a flush issues at sector 0 with no sectors and completes at sector 2^64-1;
- a write that carries a flush completes a second time with no sectors, and so do empty flush bios that were never
  issued: these move no data and are no requests;
- a requeue takes its issue back; the next issue of the same request counts;
- a partial completion moves fewer sectors than were issued, and the rest is issued again as a request of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

ISSUE, COMPLETE, REQUEUE = 0, 1, 2

#: Where flushes complete, and so the key they are joined by.
FLUSH_SECTOR = -1

#: One event. `sectors` counts 512 bytes, `error` is a negative errno.
EVENT = np.dtype(
    [
        ("t_ns", np.int64),
        ("kind", np.int8),
        ("dev", np.int64),
        ("sector", np.int64),
        ("sectors", np.int64),
        ("error", np.int32),
        ("pid", np.int32),
        ("rwbs", "S10"),
        ("comm", "S16"),
    ]
)

Rows = npt.NDArray[np.void]


@dataclass
class Requests:
    """Joined requests: the issue event and the completion event of each, row by row."""

    issue: Rows
    completion: Rows


@dataclass
class Pairing:
    """Joins a stream of events that comes in pieces, each ordered by time and after the piece before."""

    #: Issues that have no completion yet.
    open: Rows = field(default_factory=lambda: np.empty(0, EVENT))
    #: Data completions whose issue was not seen.
    orphans: Rows = field(default_factory=lambda: np.empty(0, EVENT))

    def add(self, events: Rows) -> Requests:
        """Return the requests that `events` completes."""
        events = np.concatenate([self.open, _keyed(events)])
        # Stable: events of one sector stay in time order, for the open ones come first.
        events = events[np.argsort(events["sector"], kind="stable")]
        closing = events["kind"] != ISSUE
        orphan = _without_issue(events["sector"], closing)
        lost = orphan & (events["kind"] == COMPLETE) & (events["sector"] != FLUSH_SECTOR)
        self.orphans = np.concatenate([self.orphans, events[lost]])
        events, closing = events[~orphan], closing[~orphan]
        issues, ends = events[~closing], events[closing]
        joined = np.flatnonzero(_is_closed(issues["sector"], ends["sector"]))
        self.open = np.delete(issues, joined)
        self.open = self.open[np.argsort(self.open["t_ns"], kind="stable")]
        completed = ends["kind"] == COMPLETE
        return Requests(issues[joined][completed], ends[completed])


def _keyed(events: Rows) -> Rows:
    """Return the events that belong to requests, flushes under one key."""
    empty = events["sectors"] == 0
    flush_end = empty & (events["kind"] == COMPLETE) & (events["sector"] == FLUSH_SECTOR)
    flush_begin = empty & (events["kind"] != COMPLETE)
    events = events[~empty | flush_end | flush_begin].copy()
    events["sector"][events["sectors"] == 0] = FLUSH_SECTOR
    return events


def _first_of_group(keys: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    first = np.ones(keys.size, bool)
    first[1:] = keys[1:] != keys[:-1]
    return first


def _without_issue(sector: npt.NDArray[np.int64], closing: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return which events close nothing: more events of their sector have closed by then than were opened.

    Open requests are a balance, +1 for an issue and -1 for an end; an end that takes the balance of its sector below
    all it has been before, and below zero, has no issue. One pass over all sectors: each group's balance starts a
    full level under the one before, so the running minimum starts afresh with it.
    """
    if not sector.size:
        return closing
    first = _first_of_group(sector)
    group = np.cumsum(first) - 1
    total = np.cumsum(np.where(closing, -1, 1))
    before_group = (total - np.where(closing, -1, 1))[first][group]
    level = total - before_group - group * np.int64(sector.size + 1)
    start = -group * np.int64(sector.size + 1)
    lowest = np.minimum.accumulate(np.minimum(level, start))
    earlier = np.concatenate([[np.iinfo(np.int64).max], lowest[:-1]])
    orphans: npt.NDArray[np.bool_] = closing & (level < np.minimum(earlier, start))
    return orphans


def _is_closed(issues: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Return which issues have an end: of each sector the first as many as it has ends. Both come sorted."""
    rank = np.arange(issues.size) - np.searchsorted(issues, issues, "left")
    count = np.searchsorted(ends, issues, "right") - np.searchsorted(ends, issues, "left")
    closed: npt.NDArray[np.bool_] = rank < count
    return closed
