"""Trials that wait for a node, found in the order of the plan without looking at all of them for every node.

All trials of a cell, or of a search, run on the node that took its first, or their spread would be that of the nodes.
"""

from __future__ import annotations

import heapq
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from sweep.placement import Node, Placements
from sweep.plan import Trial

#: What Ray knows a node by; None where there is no Ray.
NodeId = str | None


@dataclass(order=True)
class Waiting:
    """A trial to be run; the one with the smallest `turn` is next."""

    turn: int
    trial: Trial = field(compare=False)
    attempt: int = field(compare=False)


class Backlog:
    """The waiting trials, by who may take them.

    A trial whose cell has a home waits in that node's own heap; all others wait together with those that the same nodes
    can run. A home may be found while its cell's other trials wait with the others: they move when they come up.
    """

    def __init__(self, placements: Placements) -> None:
        """Hand out trials to the nodes of `placements`, which `join` and `leave` change."""
        self._placements = placements
        self._homes: dict[str, NodeId] = {}
        self._own: dict[NodeId, list[Waiting]] = {}
        self._shared: dict[frozenset[NodeId], list[Waiting]] = {}
        self._eligible: dict[str, frozenset[NodeId]] = {}
        self._later, self._sooner = itertools.count(1), itertools.count(0, -1)

    def __len__(self) -> int:
        return sum(1 for _ in self._all())

    def __bool__(self) -> bool:
        return next(self._all(), None) is not None

    def push(self, trial: Trial, attempt: int = 1, turn: int | None = None) -> None:
        """Add a trial at its `turn` (1 or more), without one after all others; before them where it is tried again."""
        if turn is None or attempt > 1:
            turn = next(self._later if attempt == 1 else self._sooner)
        self._put(Waiting(turn, trial, attempt))

    def settle(self, trial: Trial, node: Node) -> None:
        """Make `node` the home of the trial's cell, as one that ran a trial of it before."""
        self._homes[_kin_key(trial)] = node.ray_id

    def peek(self, node: Node) -> Waiting | None:
        """Return the next trial for `node`; None where none waits for it."""
        heap = self._heap_for(node)
        return heap[0] if heap else None

    def pop(self, node: Node) -> Waiting | None:
        """Take out the next trial for `node`, which becomes the home of its cell; None where none waits for it."""
        heap = self._heap_for(node)
        if not heap:
            return None
        found = heapq.heappop(heap)
        self._homes[_kin_key(found.trial)] = node.ray_id
        return found

    def join(self, node: Node) -> None:
        """Let one more node take trials."""
        self._placements.join(node)
        self._sort_again()

    def leave(self, ray_id: NodeId) -> None:
        """Let a node take no more trials; those that waited for it may go elsewhere."""
        self._placements.leave(ray_id)
        self._homes = {cell: home for cell, home in self._homes.items() if home != ray_id}
        self._sort_again()

    def stranded(self) -> list[Waiting]:
        """Return the trials that no node can run now."""
        return sorted(self._shared.get(frozenset(), []))

    def drop_stranded(self) -> list[Waiting]:
        """Take out and return the trials that no node can run now."""
        return sorted(self._shared.pop(frozenset(), []))

    def _heap_for(self, node: Node) -> list[Waiting] | None:
        """Return the heap whose first trial is the next one for `node`."""
        for nodes, heap in list(self._shared.items()):
            if node.ray_id in nodes:
                self._move_homed(heap)
        heaps = [heap for nodes, heap in self._shared.items() if heap and node.ray_id in nodes]
        if own := self._own.get(node.ray_id):
            heaps.append(own)
        return min(heaps, key=lambda heap: heap[0], default=None)

    def _all(self) -> Iterator[Waiting]:
        return itertools.chain(*self._own.values(), *self._shared.values())

    def _put(self, waiting: Waiting) -> None:
        if self._has_home(waiting.trial):
            heap = self._own.setdefault(self._homes[_kin_key(waiting.trial)], [])
        else:
            heap = self._shared.setdefault(self._nodes_for(waiting.trial), [])
        heapq.heappush(heap, waiting)

    def _nodes_for(self, trial: Trial) -> frozenset[NodeId]:
        key = self._placements.demand(trial).key
        if key not in self._eligible:
            self._eligible[key] = frozenset(p.node.ray_id for p in self._placements.of(trial))
        return self._eligible[key]

    def _has_home(self, trial: Trial) -> bool:
        """Say whether the trial has a home that can run it: values of one search may ask for different nodes."""
        key = _kin_key(trial)
        return key in self._homes and (trial.kin is None or self._homes[key] in self._nodes_for(trial))

    def _move_homed(self, heap: list[Waiting]) -> None:
        while heap and self._has_home(heap[0].trial):
            self._put(heapq.heappop(heap))

    def _sort_again(self) -> None:
        waiting = sorted(self._all())
        self._own, self._shared, self._eligible = {}, {}, {}
        for one in waiting:
            self._put(one)


def _kin_key(trial: Trial) -> str:
    return json.dumps(dict(trial.cell if trial.kin is None else trial.kin), sort_keys=True)
