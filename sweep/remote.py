"""What Ray runs on a node: one attempt at one trial, its files sent to the analysis actor in bounded pieces."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import ray

from analysis.errors import AnalysisError
from sweep import delivery
from sweep.code import check_unchanged, code_hash
from sweep.membership import pinned
from sweep.placement import Placement
from tasks import lease, leftovers, machine
from tasks.launch import Outcome, launched
from tasks.spec import TrialSpec

#: Bytes of one message to the actor, and how many may be under way: what a trace of any size takes in memory.
_PIECE_BYTES = 8 << 20
_PIECES_UNDER_WAY = 2

#: Files of no more bytes than this in all go with the word that publishes them.
_SMALL_BYTES = 1 << 20

#: How often to say that an attempt lives while the actor works on it.
_SIGN_OF_LIFE_S = 10.0


def probe() -> dict[str, Any]:
    """Clean up after dead attempts on this node; return what it offers, its code and clock, and what is left over."""
    problems = lease.reap()
    return {
        "offer": machine.offer().to_json(),
        "code": code_hash(),
        "problems": [*problems, *leftovers.troubles()],
        "leftovers": leftovers.found(),
        "utc_s": time.time(),
    }


def submit(spec: TrialSpec, placement: Placement, actor: Any, home: Any) -> Any:
    """Start an attempt where it belongs and return the reference to its answer.

    `home` is the reference to what the actor answers when it is told to expect the attempt: it is waited for.
    """
    assert placement.node.ray_id is not None
    task = _attempt().options(
        num_cpus=0,
        num_gpus=placement.gpus,
        resources=dict(placement.resources),
        max_retries=0,
        scheduling_strategy=pinned(placement.node.ray_id),
    )
    return task.remote(spec, actor, home)


@cache
def _attempt() -> Any:
    # Made once, or each submission would send the function anew. A worker may stay: the GPU memory is its job's.
    return ray.remote(max_calls=0)(run_attempt)


def run_attempt(spec: TrialSpec, actor: Any, home: Mapping[str, Any] | None) -> dict[str, Any]:
    """Run one attempt, publish it through `actor`, and return its record with the end of its log.

    `home` is that of `RunStore.home`. Raises TaskError where the code is not, or not any more, what the trial was
    planned with: its record would tell of code that did not run.
    """

    def announce(text: str) -> None:
        actor.note.remote(spec.token, text)

    announce("starting")
    for problem in lease.reap():
        announce(f"an earlier attempt's leftover cannot be removed: {problem}")
    if home:
        delivery.check(home, spec.token)
    check_unchanged(spec.config, spec.fingerprint["plan"]["code"])
    with launched(spec, announce) as outcome:
        check_unchanged(spec.config, spec.fingerprint["plan"]["code"])
        deliver(spec, outcome, actor, announce, home)
        return {"record": outcome.record, "log_tail": outcome.log_tail}


def deliver(
    spec: TrialSpec,
    outcome: Outcome,
    actor: Any,
    announce: Callable[[str], None],
    home: Mapping[str, Any] | None = None,
) -> None:
    """Send an attempt's files and record to `actor`, and wait until they are published.

    The files go through Ray, or to the `home` that all nodes share with the head, see `RunStore.home`.
    """
    trial = (spec.slug, spec.token)
    pieces: list[tuple[str, int, bytes]] = []
    if not home and sum(file["size_bytes"] for file in outcome.files) <= _SMALL_BYTES:
        pieces = [(file["name"], *piece) for file in outcome.files for piece in _pieces(outcome.folder / file["name"])]
    else:
        _answer(actor.declare.remote(*trial, outcome.files))
        if home:
            delivery.put(home, spec, outcome, lambda: announce("sending the trace"))
        else:
            _send(spec, outcome, actor, announce)
    _wait(actor.publish.remote(*trial, outcome.record, outcome.files, pieces), announce, "analysis")


def _send(spec: TrialSpec, outcome: Outcome, actor: Any, announce: Callable[[str], None]) -> None:
    under_way: deque[Any] = deque()
    for file in outcome.files:
        for offset, piece in _pieces(outcome.folder / file["name"]):
            announce("sending the trace")
            if len(under_way) >= _PIECES_UNDER_WAY:
                _wait(under_way.popleft(), announce, "sending the trace")
            under_way.append(actor.receive.remote(spec.slug, spec.token, file["name"], offset, piece))
    while under_way:
        _wait(under_way.popleft(), announce, "sending the trace")


def _wait(answer: Any, announce: Callable[[str], None], text: str) -> None:
    """Wait for an answer of the actor, saying meanwhile that the attempt lives."""
    while not ray.wait([answer], timeout=_SIGN_OF_LIFE_S)[0]:
        announce(text)
    _answer(answer)


def _answer(reference: Any) -> Any:
    """Return an answer of the actor; raise what it refused as it said it, AnalysisError, and not as Ray wraps it."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as e:
        raise (e.cause if isinstance(e.cause, AnalysisError) else e) from None


def _pieces(path: Path) -> Iterator[tuple[int, bytes]]:
    offset = 0
    with path.open("rb") as f:
        while piece := f.read(_PIECE_BYTES):
            yield offset, piece
            offset += len(piece)
