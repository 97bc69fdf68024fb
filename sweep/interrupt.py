"""Being told to stop: SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt, but not in the middle of Ray's own set-up."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def install() -> None:
    """Raise KeyboardInterrupt on each of the signals.

    On SIGINT too: a shell starts background jobs with it ignored, and Python leaves that so.
    """
    for number in _SIGNALS:
        signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def deferred() -> Iterator[None]:
    """Hold signals back while the body runs, and raise KeyboardInterrupt after it if one came.

    An exception in the middle of Ray's start or end leaves its native half in a state that crashes the process.
    """
    came: list[int] = []
    before = {number: signal.signal(number, lambda n, frame: came.append(n)) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


def ignore() -> None:
    """Take no more signals: the clean-up that one of them started must not be interrupted."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
