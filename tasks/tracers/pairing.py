"""Joins inserts, issues and completions of block requests into one row per request.

The kernel's trace events carry no request identity, but those of one device (one `Pairing` each) that carry data pair
by sector: the first completion at a sector belongs to the first issue there that is still open. What else the block
layer emits is known and sorted out here:

- a flush issues at sector 0 with no sectors and completes at sector 2^64-1;
- a write that carries a flush completes a second time with no sectors, and so do empty flush bios that were never
  issued: these move no data and are no requests;
- a requeue takes its issue back; the next issue of the same request counts;
- a partial completion moves fewer sectors than were issued, and the rest is issued again as a request of its own;
- an insert (into the scheduler) belongs to the issue that comes next at its sector. One that was merged into another
  request, or grew at its front and so was issued at another sector, belongs to none.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

ISSUE, COMPLETE, REQUEUE, INSERT, MERGE = range(5)

#: Where flushes complete, and so the key they are joined by.
FLUSH_SECTOR = -1

#: Stands for the time of what was not seen.
UNSEEN = -1

#: One event. `sectors` counts 512 bytes, `error` is a negative errno; `rwbs` and `comm` are codes of the decoder's.
#: `insert_ns` is filled in here, for issues.
EVENT = np.dtype(
    [
        ("t_ns", np.int64),
        ("sector", np.int64),
        ("sectors", np.int64),
        ("insert_ns", np.int64),
        ("dev", np.uint32),
        ("error", np.int32),
        ("pid", np.int32),
        ("rwbs", np.int32),
        ("comm", np.int32),
        ("kind", np.int8),
    ],
    align=True,
)

Rows = npt.NDArray[np.void]
Chosen = npt.NDArray[np.bool_]


@dataclass
class Requests:
    """Joined requests: the issue event and the completion event of each, row by row."""

    issue: Rows
    completion: Rows


def _none() -> Rows:
    return np.empty(0, EVENT)


@dataclass
class Pairing:
    """Joins a stream of events that comes in pieces, each ordered by time and after the piece before."""

    #: Issues that have no completion yet.
    open: Rows = field(default_factory=_none)
    #: Times (ns) of data completions whose issue was not seen.
    orphans: array[int] = field(default_factory=lambda: array("q"))
    #: Times of data completions that repeat the one before at their sector.
    duplicates: array[int] = field(default_factory=lambda: array("q"))
    #: Times of completions without sectors that are no flush's end: second ones of writes that carried a flush, empty
    #: bios.
    empty: array[int] = field(default_factory=lambda: array("q"))
    _inserted: Rows = field(default_factory=_none)

    def add(self, events: Rows) -> Requests:
        """Return the requests that `events` completes."""
        self._take_inserts(events)
        nothing = (events["sectors"] == 0) & (events["kind"] == COMPLETE) & (events["sector"] != FLUSH_SECTOR)
        if nothing.any():
            self.empty.frombytes(events["t_ns"][nothing].tobytes())
        events = np.concatenate([self.open, _keyed(events)])
        # Stable: events of one sector stay in time order, for the open ones come first.
        events = events[np.argsort(events["sector"], kind="stable")]
        closing = events["kind"] != ISSUE
        orphan = _without_issue(events["sector"], closing)
        if orphan.any():
            self._set_aside(events, orphan)
            events, closing = events[~orphan], closing[~orphan]
        issues, ends = events[~closing], events[closing]
        closed = _is_closed(issues["sector"], ends["sector"])
        self.open = issues[~closed]
        self.open = self.open[np.argsort(self.open["t_ns"], kind="stable")]
        completed = ends["kind"] == COMPLETE
        return Requests(issues[closed][completed], ends[completed])

    def _set_aside(self, events: Rows, orphan: Chosen) -> None:
        """Keep the data completions without an issue; a requeue or a flush without one is no loss."""
        lost = orphan & (events["kind"] == COMPLETE) & (events["sector"] != FLUSH_SECTOR)
        again = np.zeros(len(events), bool)
        again[1:] = events[["sector", "sectors", "kind"]][1:] == events[["sector", "sectors", "kind"]][:-1]
        self.duplicates.frombytes(events["t_ns"][lost & again].tobytes())
        self.orphans.frombytes(events["t_ns"][lost & ~again].tobytes())

    def _take_inserts(self, events: Rows) -> None:
        """Write the time of their insert into the issues among `events`."""
        if not len(self._inserted) and not (events["kind"] >= INSERT).any():
            return
        kept = len(self._inserted)
        place = np.flatnonzero((events["kind"] == ISSUE) | (events["kind"] >= INSERT))
        queue = np.concatenate([self._inserted, events[place]])
        order = np.argsort(queue["sector"], kind="stable")
        queue = queue[order]
        next_at_sector = np.zeros(len(queue), bool)
        next_at_sector[1:] = queue["sector"][1:] == queue["sector"][:-1]
        waits = (queue["kind"] == INSERT) & ~np.append(next_at_sector[1:], False)
        taken = np.flatnonzero(next_at_sector & (queue["kind"] == ISSUE) & (np.roll(queue["kind"], 1) == INSERT))
        events["insert_ns"][place[order[taken] - kept]] = queue["t_ns"][taken - 1]
        self._inserted = _not_covered(queue[waits], queue[queue["kind"] == ISSUE])
        self._inserted = self._inserted[np.argsort(self._inserted["t_ns"], kind="stable")]


def _keyed(events: Rows) -> Rows:
    """Return the events that open or close requests, flushes under one key."""
    empty = events["sectors"] == 0
    kind = events["kind"]
    if not empty.any() and not (kind >= INSERT).any():
        return events
    flush_end = (kind == COMPLETE) & (events["sector"] == FLUSH_SECTOR)
    events = events[(kind < INSERT) & (~empty | flush_end | (kind != COMPLETE))].copy()
    events["sector"][events["sectors"] == 0] = FLUSH_SECTOR
    return events


def _not_covered(inserts: Rows, issues: Rows) -> Rows:
    """Return the inserts whose first sector no later one of `issues`, sorted by sector, holds within it."""
    if not len(inserts) or not len(issues):
        return inserts
    before = np.searchsorted(issues["sector"], inserts["sector"], "right") - 1
    issue = issues[np.maximum(before, 0)]
    inside = (before >= 0) & (issue["sector"] + issue["sectors"] > inserts["sector"])
    left: Rows = inserts[~(inside & (issue["t_ns"] >= inserts["t_ns"]))]
    return left


def _first_of_group(keys: npt.NDArray[np.int64]) -> Chosen:
    first = np.ones(keys.size, bool)
    first[1:] = keys[1:] != keys[:-1]
    return first


def _without_issue(sector: npt.NDArray[np.int64], closing: Chosen) -> Chosen:
    """Return which events close nothing: more events of their sector have closed by then than were opened.

    Open requests are a balance, +1 for an issue and -1 for an end; an end that takes the balance of its sector below
    all it has been before, and below zero, has no issue. One pass over all sectors: each group's balance starts a
    full level under the one before, so the running minimum starts afresh with it.
    """
    if not sector.size:
        return closing
    first = _first_of_group(sector)
    group = np.cumsum(first) - 1
    change = np.where(closing, -1, 1)
    total = np.cumsum(change)
    before_group = (total - change)[first][group]
    start = -group * np.int64(sector.size + 1)
    level = total - before_group + start
    lowest = np.minimum.accumulate(np.minimum(level, start))
    earlier = np.concatenate([[np.iinfo(np.int64).max], lowest[:-1]])
    orphans: Chosen = closing & (level < np.minimum(earlier, start))
    return orphans


def _is_closed(issues: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> Chosen:
    """Return which issues have an end: of each sector the first as many as it has ends. Both come sorted."""
    if not issues.size:
        return np.zeros(0, bool)
    first = _first_of_group(issues)
    begin = np.flatnonzero(first)
    rank = np.arange(issues.size) - begin[np.cumsum(first) - 1]
    # Every end has its issue by now, so the sectors of the ends are among those of the issues.
    sectors = issues[begin]
    count = np.searchsorted(ends, sectors, "right") - np.searchsorted(ends, sectors, "left")
    closed: Chosen = rank < count[np.cumsum(first) - 1]
    return closed
