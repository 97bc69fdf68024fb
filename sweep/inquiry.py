"""What nodes say of themselves for fingerprints: each asked once for all trials that depend on the same of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sweep.comparison import node_changes
from sweep.errors import first_line
from sweep.placement import Node
from tasks.errors import TaskError
from tasks.identity import Question, identity

#: A node's half of a fingerprint, or why it cannot be told.
Answer = dict[str, Any] | str

#: Asks nodes, each its own questions.
Ask = Callable[[Sequence[tuple[Node, Sequence[Question]]]], Sequence[Sequence[Answer]]]

#: How long nodes may take to look at themselves: a foreign interpreter can be on a cold network filesystem.
_ANSWER_LIMIT_S = 180.0


class Inquiry:
    """The node halves of fingerprints, each asked for once."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._answers: dict[tuple[str | None, Question], Answer] = {}
        self._changes: dict[tuple[str | None, Question, int], list[str]] = {}

    def gather(self, wanted: Iterable[tuple[Node, Question]]) -> None:
        """Ask every node all of its questions at once."""
        questions: dict[str | None, tuple[Node, dict[Question, None]]] = {}
        for node, asked in wanted:
            if (node.ray_id, asked) not in self._answers:
                questions.setdefault(node.ray_id, (node, {}))[1][asked] = None
        pairs = [(node, list(own)) for node, own in questions.values()]
        for (node, own), answers in zip(pairs, self._ask(pairs) if pairs else (), strict=True):
            self._answers |= {(node.ray_id, asked): answer for asked, answer in zip(own, answers, strict=True)}

    def changes(self, node: Node, asked: Question, recorded: Mapping[str, Any]) -> list[str]:
        """Return what of a node is not as recorded."""
        key = (node.ray_id, asked, id(recorded))
        if key not in self._changes:
            self.gather([(node, asked)])
            answer = self._answers[node.ray_id, asked]
            self._changes[key] = [f"node: {answer}"] if isinstance(answer, str) else node_changes(recorded, answer)
        return self._changes[key]


def answered(questions: Sequence[Question]) -> list[Answer]:
    """Return this machine's answers."""
    return [_answer(asked) for asked in questions]


def _answer(asked: Question) -> Answer:
    try:
        found: dict[str, Any] = json.loads(json.dumps(identity(asked)))
    except TaskError as e:
        return str(e)
    return found


def ask_here(pairs: Sequence[tuple[Node, Sequence[Question]]]) -> list[list[Answer]]:
    """Answer for this machine, which is the only node."""
    return [answered(questions) for _, questions in pairs]


def ask_through_ray(pairs: Sequence[tuple[Node, Sequence[Question]]]) -> list[list[Answer]]:
    """Ask nodes of the cluster, all at the same time; where one does not answer, that is the answer."""
    import ray

    from sweep.membership import pinned

    task = ray.remote(answered)
    refs = []
    for node, questions in pairs:
        assert node.ray_id is not None
        here = task.options(num_cpus=0, max_retries=0, scheduling_strategy=pinned(node.ray_id))
        refs.append(here.remote(list(questions)))
    ray.wait(refs, num_returns=len(refs), timeout=_ANSWER_LIMIT_S)
    return [_received(ref, len(questions)) for ref, (_, questions) in zip(refs, pairs, strict=True)]


def _received(ref: Any, count: int) -> list[Answer]:
    import ray

    try:
        found: list[Answer] = ray.get(ref, timeout=1)
    except ray.exceptions.RayError as e:
        return [f"it does not answer: {first_line(e)}"] * count
    return found
