"""Pairing of block events against the obvious way: one queue of open issues per sector, event by event."""

from __future__ import annotations

from collections import defaultdict, deque
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.tracers.pairing import (
    COMPLETE,
    EVENT,
    FLUSH_SECTOR,
    INSERT,
    ISSUE,
    MERGE,
    REQUEUE,
    UNSEEN,
    Pairing,
    Rows,
)

FLUSH_END = (COMPLETE, -1, 0)


class Event(NamedTuple):
    t_ns: int
    kind: int
    sector: int
    sectors: int


class Joined(NamedTuple):
    """What a pairing says: requests as (issue time, completion time), and what has no other half, by time."""

    requests: list[tuple[int, int]]
    open: list[int]
    orphans: list[int]


def brute_force(events: list[Event]) -> Joined:
    waiting: dict[int | str, deque[int]] = defaultdict(deque)
    requests, orphans = [], []
    for e in events:
        if e.kind == COMPLETE and e.sectors == 0 and e.sector != -1:
            continue  # an empty flush bio, or the flush that a write carried
        place: int | str = e.sector if e.sectors else "flush"
        if e.kind == ISSUE:
            waiting[place].append(e.t_ns)
        elif waiting[place]:
            begun = waiting[place].popleft()
            if e.kind == COMPLETE:
                requests.append((begun, e.t_ns))
        elif e.kind == COMPLETE and place != "flush":
            orphans.append(e.t_ns)
    return Joined(sorted(requests), sorted(t for queue in waiting.values() for t in queue), sorted(orphans))


def rows(events: list[Event]) -> Rows:
    out = np.zeros(len(events), EVENT)
    out["insert_ns"] = UNSEEN
    for name in Event._fields:
        out[name] = [getattr(e, name) for e in events]
    return out


def joined(events: list[Event], cuts: list[int] | None = None) -> Joined:
    pairing, requests = Pairing(), []
    edges = [0, *sorted(cuts or []), len(events)]
    for begin, end in pairwise(edges):
        found = pairing.add(rows(events[begin:end]))
        assert (found.issue["kind"] == ISSUE).all()
        assert (found.completion["kind"] == COMPLETE).all()
        assert (found.issue["sector"] == found.completion["sector"]).all()
        requests += list(zip(found.issue["t_ns"].tolist(), found.completion["t_ns"].tolist(), strict=True))
    orphans = pairing.orphans.tolist() + pairing.duplicates.tolist()
    return Joined(sorted(requests), sorted(pairing.open["t_ns"].tolist()), sorted(orphans))


sectors = st.sampled_from([0, 8, 16, 1024, 2**40])
data = st.tuples(st.sampled_from([ISSUE, ISSUE, COMPLETE, COMPLETE, REQUEUE]), sectors, st.sampled_from([1, 8]))
second_completion = st.tuples(st.just(COMPLETE), sectors, st.just(0))
flush = st.sampled_from([(ISSUE, 0, 0), FLUSH_END, (REQUEUE, 0, 0)])


@st.composite
def traces(draw: st.DrawFn) -> list[Event]:
    steps = draw(st.lists(data | data | second_completion | flush, max_size=60))
    gaps = draw(st.lists(st.integers(0, 3), min_size=len(steps), max_size=len(steps)))
    times = np.cumsum(gaps).tolist()
    return [Event(t, *step) for t, step in zip(times, steps, strict=True)]


@given(traces())
def test_any_trace_pairs_as_one_queue_per_sector_does(events: list[Event]) -> None:
    assert joined(events) == brute_force(events)


@given(traces(), st.data())
def test_any_way_of_cutting_the_stream_gives_the_same(events: list[Event], data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(events)), max_size=8))
    assert joined(events, cuts) == brute_force(events)
    assert joined(events, list(range(len(events)))) == brute_force(events)


@given(st.permutations(range(12)), st.permutations(range(12)))
def test_requests_at_different_sectors_complete_in_any_order(issued: list[int], completed: list[int]) -> None:
    events = [Event(t, ISSUE, 8 * n, 8) for t, n in enumerate(issued)]
    events += [Event(100 + t, COMPLETE, 8 * n, 8) for t, n in enumerate(completed)]
    wanted = sorted((issued.index(n), 100 + completed.index(n)) for n in range(12))
    assert joined(events) == Joined(wanted, [], [])


@pytest.mark.parametrize(
    ("events", "wanted"),
    [
        pytest.param([], Joined([], [], []), id="nothing"),
        pytest.param(
            [(1, ISSUE, 8, 8), (2, ISSUE, 8, 8), (3, COMPLETE, 8, 8), (4, COMPLETE, 8, 8)],
            Joined([(1, 3), (2, 4)], [], []),
            id="the same sector twice in flight: first come, first served",
        ),
        pytest.param(
            [(1, ISSUE, 8, 8), (2, REQUEUE, 8, 8), (3, ISSUE, 8, 8), (4, COMPLETE, 8, 8)],
            Joined([(3, 4)], [], []),
            id="a requeue takes its issue back",
        ),
        pytest.param(
            [(1, ISSUE, 8, 8), (2, COMPLETE, 8, 3), (3, REQUEUE, 11, 5), (4, ISSUE, 11, 5), (5, COMPLETE, 11, 5)],
            Joined([(1, 2), (4, 5)], [], []),
            id="a partial completion: the rest is a request of its own",
        ),
        pytest.param(
            [(1, ISSUE, 64, 8), (2, COMPLETE, 64, 8), (3, COMPLETE, 64, 0)],
            Joined([(1, 2)], [], []),
            id="a journal write completes again with no sectors",
        ),
        pytest.param(
            [(1, ISSUE, 64, 8), (2, COMPLETE, 64, 0), (3, COMPLETE, 64, 8)],
            Joined([(1, 3)], [], []),
            id="an empty completion does not end a request",
        ),
        pytest.param([(1, ISSUE, 0, 0), (2, *FLUSH_END)], Joined([(1, 2)], [], []), id="a flush"),
        pytest.param(
            [(1, ISSUE, 0, 8), (2, ISSUE, 0, 0), (3, *FLUSH_END), (4, COMPLETE, 0, 8)],
            Joined([(1, 4), (2, 3)], [], []),
            id="a flush and data at sector 0 are apart",
        ),
        pytest.param([(1, *FLUSH_END)], Joined([], [], []), id="an empty flush bio was never issued, and is no loss"),
        pytest.param([(1, COMPLETE, 8, 8)], Joined([], [], [1]), id="a completion without its issue"),
        pytest.param([(1, ISSUE, 8, 8)], Joined([], [1], []), id="an issue without its completion"),
        pytest.param(
            [(1, COMPLETE, 8, 8), (2, ISSUE, 8, 8), (3, COMPLETE, 8, 8)],
            Joined([(2, 3)], [], [1]),
            id="an early completion does not take a later issue",
        ),
        pytest.param([(1, REQUEUE, 8, 8)], Joined([], [], []), id="a requeue without an issue is no loss"),
    ],
)
def test_cases_the_block_layer_has(events: list[tuple[int, ...]], wanted: Joined) -> None:
    listed = [Event(*e) for e in events]
    assert joined(listed) == brute_force(listed) == wanted
    assert joined(listed, list(range(len(listed)))) == wanted


def test_each_half_keeps_its_own_fields() -> None:
    events = rows([Event(1, ISSUE, 8, 8), Event(2, COMPLETE, 8, 3)])
    events["pid"], events["comm"], events["rwbs"], events["error"] = [7, 0], [3, 0], [1, 2], [0, -5]
    found = Pairing().add(events)
    assert found.issue[["pid", "comm", "sectors"]].tolist() == [(7, 3, 8)]
    assert found.completion[["rwbs", "error", "sectors"]].tolist() == [(2, -5, 3)]


def test_flushes_are_joined_under_a_key_that_is_no_sector() -> None:
    found = Pairing().add(rows([Event(1, ISSUE, 0, 0), Event(2, *FLUSH_END)]))
    assert found.issue["sector"].tolist() == found.completion["sector"].tolist() == [FLUSH_SECTOR]


def test_a_completion_that_comes_twice_is_told_from_one_without_its_issue() -> None:
    pairing = Pairing()
    twice = [Event(1, ISSUE, 8, 8), Event(2, COMPLETE, 8, 8), Event(3, COMPLETE, 8, 8)]
    pairing.add(rows([*twice, Event(4, COMPLETE, 64, 8)]))
    assert pairing.duplicates.tolist() == [3]
    assert pairing.orphans.tolist() == [4]


def inserts(events: list[Event], cuts: list[int]) -> dict[int, int]:
    """Return the insert time of every request by its issue time, and of what stays open."""
    pairing, found = Pairing(), {}
    for begin, end in pairwise([0, *sorted(cuts), len(events)]):
        done = pairing.add(rows(events[begin:end]))
        found |= {int(e["t_ns"]): int(e["insert_ns"]) for e in done.issue}
    found |= {int(e["t_ns"]): int(e["insert_ns"]) for e in pairing.open}
    return {issue: insert for issue, insert in found.items() if insert != UNSEEN}


@pytest.mark.parametrize(
    ("events", "wanted"),
    [
        pytest.param([(1, INSERT, 8, 8), (2, ISSUE, 8, 8), (3, COMPLETE, 8, 8)], {2: 1}, id="queued, then issued"),
        pytest.param([(1, INSERT, 8, 8), (2, ISSUE, 8, 64)], {2: 1}, id="grown at its end while it waited"),
        pytest.param([(1, ISSUE, 8, 8)], {}, id="never queued"),
        pytest.param(
            [(1, INSERT, 8, 8), (2, ISSUE, 8, 8), (3, COMPLETE, 8, 8), (4, ISSUE, 8, 8)],
            {2: 1},
            id="an insert belongs to one issue",
        ),
        pytest.param(
            [(1, INSERT, 0, 8), (2, INSERT, 8, 8), (3, MERGE, 8, 8), (4, ISSUE, 0, 16), (5, ISSUE, 8, 8)],
            {4: 1},
            id="what was merged into another request is gone",
        ),
        pytest.param(
            [(1, INSERT, 8, 8), (2, INSERT, 8, 8), (3, ISSUE, 8, 8)], {3: 2}, id="of two the later one, to be safe"
        ),
        pytest.param(
            [(1, ISSUE, 8, 8), (2, INSERT, 8, 8), (3, COMPLETE, 8, 8), (4, ISSUE, 8, 8)],
            {4: 2},
            id="queued while another one there is in flight",
        ),
    ],
)
def test_an_insert_belongs_to_the_next_issue_at_its_sector(
    events: list[tuple[int, ...]], wanted: dict[int, int]
) -> None:
    listed = [Event(*e) for e in events]
    assert inserts(listed, []) == wanted
    assert inserts(listed, list(range(len(listed)))) == wanted


def test_an_insert_that_grew_at_its_front_is_not_given_to_a_later_request() -> None:
    grown = [Event(1, INSERT, 8, 8), Event(2, ISSUE, 0, 16), Event(3, COMPLETE, 0, 16)]
    assert inserts([*grown, Event(9, ISSUE, 8, 8)], [3]) == {}


def obvious_inserts(events: list[Event]) -> dict[int, int]:
    """The insert of each issue, event by event: the last one at its sector, unless it went elsewhere."""
    waiting: dict[int, int] = {}
    found = {}
    for n, e in enumerate(events):
        if e.kind == INSERT:
            waiting[e.sector] = n
        elif e.kind in (MERGE, ISSUE) and (begun := waiting.pop(e.sector, None)) is not None and e.kind == ISSUE:
            found[n] = begun
    return found


def test_an_insert_of_what_was_taken_back_later_is_nobodys() -> None:
    events = [Event(1, INSERT, 8, 8), Event(2, ISSUE, 8, 8), Event(3, REQUEUE, 8, 8)]
    assert inserts(events, [2]) == inserts(events, []) == {}


@given(
    st.lists(st.tuples(st.sampled_from([INSERT, MERGE, ISSUE, COMPLETE, REQUEUE]), st.sampled_from([0, 8, 16]))),
    st.data(),
)
def test_inserts_are_those_of_the_obvious_way(steps: list[tuple[int, int]], data: st.DataObject) -> None:
    events = [Event(t, kind, sector, 8) for t, (kind, sector) in enumerate(steps)]
    taken_back = brute_force([e for e in events if e.kind < INSERT])
    known = {begun for begun, _ in taken_back.requests} | set(taken_back.open)
    cuts = data.draw(st.lists(st.integers(0, len(events)), max_size=5))
    assert inserts(events, cuts) == {n: begun for n, begun in obvious_inserts(events).items() if n in known}
