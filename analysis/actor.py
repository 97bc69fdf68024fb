"""The head-node actor: a `RunStore` that nodes send to, and a board where they write what they do now."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray

#: Threads of the actor beside its first, by what they do.
_THREADS = {"board": 1, "pieces": 2, "publications": 4}


class AnalysisActor:
    """One run's data. Pieces come, and trials are published, on threads of their own, and so is the board: neither a
    long analysis nor a slow disk keeps other nodes waiting."""

    def __init__(self, path: str, shared: str | None = None) -> None:
        """Hold the run in the folder `path` of the head node; see `RunStore`."""
        # here, not above: a driver that imports this class would load all that draws with it
        from analysis.store import RunStore

        self._store = RunStore(path, shared)
        self._board: dict[str, tuple[str, float]] = {}

    def create(self, record: Mapping[str, Any], sweep_yaml: str) -> None:
        """See `RunStore.create`."""
        self._store.create(record, sweep_yaml)

    def resume(self, fields: Mapping[str, Any], sweep_yaml: str, again: Sequence[str]) -> None:
        """See `RunStore.resume`."""
        self._store.resume(fields, sweep_yaml, again)

    def update(self, fields: Mapping[str, Any]) -> None:
        """See `RunStore.update`."""
        self._store.update(fields)

    def meet(self, node: Mapping[str, Any]) -> None:
        """See `RunStore.meet`."""
        self._store.meet(node)

    def plan(self, entries: Sequence[Mapping[str, Any]], outcome: Mapping[str, Any]) -> None:
        """See `RunStore.plan`."""
        self._store.plan(entries, outcome)

    @ray.method(concurrency_group="publications")  # type: ignore[untyped-decorator]
    def observe(self, slug: str, metric: str) -> dict[str, Any]:
        """See `RunStore.observe`."""
        return self._store.observe(slug, metric)

    def expect(self, slug: str, token: str, metric: str | None = None) -> dict[str, Any] | None:
        """Expect an attempt, see `RunStore.expect`, and return where its files go, see `RunStore.home`."""
        self._store.expect(slug, token, metric)
        return self._store.home()

    def declare(self, slug: str, token: str, files: Sequence[Mapping[str, Any]]) -> None:
        """See `RunStore.declare`."""
        self._store.declare(slug, token, files)

    @ray.method(concurrency_group="pieces")  # type: ignore[untyped-decorator]
    def receive(self, slug: str, token: str, name: str, offset: int, piece: bytes) -> None:
        """See `RunStore.receive`."""
        self._store.receive(slug, token, name, offset, piece)

    @ray.method(concurrency_group="publications")  # type: ignore[untyped-decorator]
    def publish(
        self,
        slug: str,
        token: str,
        record: Mapping[str, Any],
        files: Sequence[Mapping[str, Any]],
        pieces: Sequence[tuple[str, int, bytes]] = (),
    ) -> None:
        """See `RunStore.publish`."""
        self._store.publish(slug, token, record, files, pieces)

    def published(self, slug: str, token: str) -> dict[str, Any] | None:
        """See `RunStore.published`."""
        return self._store.published(slug, token)

    @ray.method(concurrency_group="publications")  # type: ignore[untyped-decorator]
    def give_up(self, slug: str, token: str, record: Mapping[str, Any]) -> dict[str, Any] | None:
        """See `RunStore.give_up`."""
        return self._store.give_up(slug, token, record)

    def finish(self, fields: Mapping[str, Any]) -> str | None:
        """See `RunStore.finish`."""
        return self._store.finish(fields)

    def enter(self) -> int:
        """See `RunStore.enter`."""
        return self._store.enter()

    def judge(self, bases: Sequence[tuple[str, str | None]]) -> dict[str, Any]:
        """See `RunStore.judge`."""
        return self._store.judge(bases)

    def refresh_history(self) -> str:
        """See `RunStore.refresh_history`."""
        return self._store.refresh_history()

    def retire(self, runs: int | None, size_bytes: int | None, used: Sequence[str]) -> list[str]:
        """See `RunStore.retire`."""
        return self._store.retire(runs, size_bytes, used)

    def draw(self) -> dict[str, Any]:
        """See `RunStore.draw`."""
        return self._store.draw()

    @ray.method(concurrency_group="board")  # type: ignore[untyped-decorator]
    def note(self, token: str, text: str) -> None:
        """Write on the board what the attempt `token` does now; writing the same again says that it lives."""
        self._board[token] = (text, time.monotonic())

    @ray.method(concurrency_group="board")  # type: ignore[untyped-decorator]
    def notes(self, tokens: Sequence[str]) -> dict[str, tuple[str, float]]:
        """Return what each of these attempts does now, and how many seconds ago it said so; forget all others."""
        now = time.monotonic()
        self._board = {token: self._board[token] for token in tokens if token in self._board}
        return {token: (text, now - since) for token, (text, since) in self._board.items()}


def start(path: str, shared: str | None = None) -> Any:
    """Start the actor of one run on the head node and return its handle."""
    remote = ray.remote(concurrency_groups=_THREADS)(AnalysisActor)
    head = {"node:__internal_head__": 0.001}
    return remote.options(num_cpus=0, resources=head, max_restarts=0, max_task_retries=0).remote(path, shared)
