"""A watch over the head of a cluster: without it Ray ends the driver after a minute, from within, without a word."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LOOK_S, _CONNECT_LIMIT_S = 2.0, 5.0

#: A head that cannot be reached for so long is gone. Ray itself gives up after 60 s.
_GONE_S = 25.0


@contextmanager
def watched(address: str, conclude: Callable[[str], int]) -> Iterator[None]:
    """While the body runs, see that `address` (HOST:PORT) can be reached; where it cannot, end this process.

    `conclude` is told why, says what is to be said, and returns the exit code. It runs in a thread of its own, for the
    main one may wait for Ray by then.
    """
    stop = threading.Event()
    thread = threading.Thread(target=_watch, args=(address, conclude, stop), name="head", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(_CONNECT_LIMIT_S + _LOOK_S)


def _watch(address: str, conclude: Callable[[str], int], stop: threading.Event) -> None:
    seen_s = time.monotonic()
    while not stop.wait(_LOOK_S):
        if _answers(address):
            seen_s = time.monotonic()
        elif time.monotonic() - seen_s > _GONE_S and not stop.is_set():
            code = conclude(f"the head of the cluster, {address}, has not answered for {_GONE_S:.0f} s")
            if sys.stdout.isatty():
                sys.stdout.write("\x1b[?25h")  # the cursor, which the live display hides
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)  # Ray would wait for the head, and then end this process itself


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_LIMIT_S).close()
    except OSError:
        return False
    return True
