"""Which nodes take part: each alive one is asked what it offers, all at once, so that a silent one holds nobody up."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sweep.code import code_hash
from sweep.errors import first_line
from sweep.placement import SLOT, Node
from tasks.machine import Offer

#: Label by which a machine is known again after its Ray was started anew (`sweep.node` sets it).
MACHINE_LABEL = "offload-sweep-machine"

#: How often the list of nodes is read.
_LOOK_S = 2.0

#: How long a node may take to answer before that is said, and, once another has answered, before it is not waited for.
_ANSWER_LIMIT_S = 60.0

#: After how long a node that could not take part is asked again: what was wrong may have been mended.
_REFUSAL_S = 60.0
_GRACE_S = 20.0


@dataclass(frozen=True)
class Answer:
    """What one entry of Ray's list of nodes said of itself: a node that takes part, or why it does not."""

    name: str
    ray_id: str
    machine: str | None
    node: Node | None
    refusal: str | None = None
    #: What else the node's probe told: leftovers that cannot be removed, its clock.
    told: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Changes:
    """What has changed among the nodes: new ones, Ray's ids of those that are gone, and messages on those left out."""

    joined: list[Node] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


@dataclass
class _Asked:
    entry: Mapping[str, Any]
    since_s: float
    told: bool = False
    since_utc_s: float = field(default_factory=time.time)


class Inquiry:
    """Questions under way to nodes of a cluster, one to each."""

    def __init__(self) -> None:
        """Nobody is asked yet."""
        self._asked: dict[Any, _Asked] = {}

    def ask(self, entry: Mapping[str, Any]) -> None:
        """Ask the node of this entry of Ray's list what it offers; does not wait."""
        import ray

        from sweep.remote import probe

        task = ray.remote(probe).options(num_cpus=0, max_retries=0, scheduling_strategy=pinned(entry["NodeID"]))
        self._asked[task.remote()] = _Asked(entry, time.monotonic())

    def answers(self, wait_s: float = 0.0) -> list[Answer]:
        """Return the answers that have come since the last call, after at most `wait_s` where there is none yet."""
        import ray

        if not self._asked:
            return []
        done, _ = ray.wait(list(self._asked), num_returns=len(self._asked), timeout=0)
        if not done and wait_s:
            done, _ = ray.wait(list(self._asked), timeout=wait_s)
        return [_answer(self._asked.pop(ref), ref) for ref in done]

    def silent(self) -> list[Answer]:
        """Return, once each, those that have not answered for too long; their answer may still come."""
        now_s = time.monotonic()
        late = [a for a in self._asked.values() if not a.told and now_s - a.since_s > _ANSWER_LIMIT_S]
        for asked in late:
            asked.told = True
        return [_silent(asked) for asked in late]

    def waiting(self) -> list[Answer]:
        """Return those that have not answered."""
        return [_silent(asked) for asked in self._asked.values()]

    def forget_all_but(self, alive: Mapping[str, Any]) -> None:
        """Wait no longer for nodes whose Ray id is not in `alive`."""
        self._asked = {ref: asked for ref, asked in self._asked.items() if asked.entry["NodeID"] in alive}

    def ids(self) -> set[str]:
        """Return Ray's ids of the nodes that have not answered."""
        return {asked.entry["NodeID"] for asked in self._asked.values()}


class Membership:
    """The nodes of a sweep while it runs: who joined, who is gone, who cannot take part."""

    def __init__(self, nodes: Sequence[Node], started_locally: bool) -> None:
        """Begin with the `nodes` that are known; nobody joins a Ray that was `started_locally`."""
        self._local = started_locally
        #: Ray's id of each, and its machine's label once the list of nodes was read.
        self._known: dict[str, str | None] = {node.ray_id: None for node in nodes if node.ray_id is not None}
        #: Until when nobody asks again, by Ray's id of those that cannot take part.
        self._refused: dict[str, float] = {}
        #: Ray's ids of those that cannot take part and of which that was said before.
        self._told = set() if started_locally else {entry["NodeID"] for entry in candidates()}
        self._inquiry = Inquiry()
        self._next_look_s = 0.0

    def doubt(self, ray_id: str | None) -> None:
        """Take a node for gone that Ray may still list as alive; it joins again if it answers."""
        if ray_id is not None:
            self._known.pop(ray_id, None)

    def poll(self) -> Changes:
        """Return what has changed since the last call; takes milliseconds, for nobody's answer is waited for."""
        changes = Changes()
        if self._local:
            return changes
        if time.monotonic() >= self._next_look_s:
            self._look(changes)
            self._next_look_s = time.monotonic() + _LOOK_S
        for answer in self._inquiry.answers():
            self._take(answer, changes)
        changes.refused.extend(str(answer.refusal) for answer in self._inquiry.silent())
        return changes

    def _look(self, changes: Changes) -> None:
        alive = {entry["NodeID"]: entry for entry in candidates()}
        for ray_id in [known for known in self._known if known not in alive]:
            self._lose(ray_id, changes)
        self._known = {ray_id: _machine(alive[ray_id]) for ray_id in self._known}
        now_s = time.monotonic()
        self._refused = {ray_id: end_s for ray_id, end_s in self._refused.items() if ray_id in alive and now_s < end_s}
        self._inquiry.forget_all_but(alive)
        for ray_id in alive.keys() - self._known.keys() - self._refused.keys() - self._inquiry.ids():
            self._inquiry.ask(alive[ray_id])

    def _take(self, answer: Answer, changes: Changes) -> None:
        if answer.node is None:
            self._refused[answer.ray_id] = time.monotonic() + _REFUSAL_S
            told = answer.ray_id in self._told or (answer.machine and answer.machine in self._known.values())
            self._told.add(answer.ray_id)
            if not told:
                changes.refused.append(str(answer.refusal))
            return
        # A machine whose Ray was started anew: Ray lists its old entry as alive for up to a minute more.
        for ray_id in [known for known, machine in self._known.items() if machine and machine == answer.machine]:
            self._lose(ray_id, changes)
            self._refused[ray_id] = math.inf
        self._known[answer.ray_id] = answer.machine
        changes.joined.append(answer.node)

    def _lose(self, ray_id: str, changes: Changes) -> None:
        del self._known[ray_id]
        changes.lost.append(ray_id)


def candidates() -> list[Mapping[str, Any]]:
    """Return the entries of Ray's list of nodes that are alive and announced a trial slot."""
    import ray

    return [entry for entry in ray.nodes() if entry["Alive"] and SLOT in entry["Resources"]]


def asked(entries: Sequence[Mapping[str, Any]]) -> list[Answer]:
    """Ask all of them at once and return their answers, in order; those still silent after the limits are refused.

    One without an answer whose machine has answered by another entry is not told of: that is its Ray of before.
    """
    inquiry = Inquiry()
    for entry in entries:
        inquiry.ask(entry)
    found: list[Answer] = []
    end_s = time.monotonic() + _ANSWER_LIMIT_S
    while inquiry.ids() and (left_s := end_s - time.monotonic()) > 0:
        answers = inquiry.answers(left_s)
        if answers and not found:
            end_s = min(end_s, time.monotonic() + _GRACE_S)
        found += answers
    here = {a.machine for a in found if a.node and a.machine}
    found = [a for a in [*found, *inquiry.waiting()] if a.node or a.machine not in here]
    order = [entry["NodeID"] for entry in entries]
    return sorted(found, key=lambda a: order.index(a.ray_id))


def _answer(asked: _Asked, ref: Any) -> Answer:
    import ray

    entry = asked.entry
    try:
        told = ray.get(ref)
    except ray.exceptions.RayTaskError as e:
        if isinstance(e.cause, ModuleNotFoundError):
            return _refused(
                entry, f"has no offload-sweep ({first_line(e.cause)}): install it there, as on this machine"
            )
        return _refused(entry, f"cannot say what it offers: {first_line(e.cause or e)}")
    except ray.exceptions.RayError as e:
        return _refused(entry, f"does not answer: {first_line(e)}")
    if told["code"] != code_hash():
        text = f"has other code ({told['code']}) than this machine ({code_hash()}): install the same version on both"
        return _refused(entry, text)
    offer = Offer.from_json(told["offer"])
    _drop_unannounced(offer, entry["Resources"])
    node = Node(offer, entry["NodeID"])
    told["skew_s"] = skew_s(told.get("utc_s"), asked.since_utc_s, time.time())
    return Answer(node.name, entry["NodeID"], _machine(entry), node, None, told)


def skew_s(there: float | None, asked: float, answered: float) -> float:
    """Return by how much a clock that said `there` is ahead (behind: less than 0) at least, between two of ours."""
    if there is None or asked <= there <= answered:
        return 0.0
    return there - (asked if there < asked else answered)


def _silent(asked: _Asked) -> Answer:
    return _refused(asked.entry, "has not answered yet; it is used once it does")


def _refused(entry: Mapping[str, Any], why: str) -> Answer:
    name = f"{entry['NodeManagerHostname']} ({entry['NodeManagerAddress']})"
    return Answer(name, entry["NodeID"], _machine(entry), None, f"node {name} {why}")


def _machine(entry: Mapping[str, Any]) -> str | None:
    return dict(entry.get("Labels") or {}).get(MACHINE_LABEL)


def _drop_unannounced(offer: Offer, announced: Mapping[str, float]) -> None:
    """Take from an offer what the node's Ray was not told of when it started: a task that asks for it would wait."""
    late = "its Ray does not know of it: end sweep.node there and start it again"
    for name in list(offer.capabilities):
        if ("GPU" if name == "gpu" else name) not in announced:
            offer.capabilities.remove(name)
            offer.missing[name] = late
    offer.places = [p for p in offer.places if all(f"drive:{d}" in announced for d in p.drives)]
    offer.scratch = [s for s in offer.scratch if all(f"drive:{d}" in announced for d in s.drives)]


def pinned(node_id: str) -> Any:
    """Return the Ray scheduling strategy that runs a task on this node or not at all."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node_id=node_id, soft=False)
