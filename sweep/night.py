"""Nights of one sweep, one at a time: a run with a baseline holds a lock in the sweep's folder as long as it lives."""

from __future__ import annotations

import datetime
import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from analysis.files import held, locked
from sweep.errors import EXIT_REGRESSION, EXIT_TRIALS, ConfigError, UserError
from sweep.lock import LOOK_S
from tasks.machine import user_name

LOCK = "night.lock"

_UNITS_S = {"s": 1, "m": 60, "h": 3600}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smh])")


def seconds(text: str) -> float:
    """Return the seconds of `90s`, `30m` or `2h`; raise ValueError where it is none of them."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"must be a time such as 90s, 30m or 2h, not {text!r}")
    return float(match[1]) * _UNITS_S[match[2]]


@contextmanager
def alone(folder: Path, wait_s: float) -> Iterator[None]:
    """Be the one night of the sweep whose runs are in `folder`; raise UserError where another is for `wait_s` more.

    The kernel holds the lock for this process, and for no longer: that of a night that was killed is free.
    """
    own = {"host": socket.gethostname(), "pid": os.getpid(), "user": user_name(), "since": _now()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if wait_s and held(folder / LOCK):
            print(f"waiting for another night of {folder.name}: {_holder(folder / LOCK)}", flush=True)
        lock = locked(folder / LOCK, json.dumps(own), wait_s=max(wait_s, LOOK_S))
    except BlockingIOError:
        raise UserError(_refusal(folder, wait_s)) from None
    except OSError as e:
        raise ConfigError("--results", None, f"cannot write to {folder}: {e.strerror}") from None
    with lock:
        yield
        lock.truncate(0)


def _refusal(folder: Path, wait_s: float) -> str:
    waited = f" after {wait_s:.0f} s" if wait_s else ""
    return (
        f"another night of {folder.name} goes on{waited}: {_holder(folder / LOCK)}\n"
        "  nothing was started; wait for its end with --wait 2h, or end it (kill -INT)"
    )


def _holder(path: Path) -> str:
    try:
        told = json.loads(path.read_text())
        return f"process {told['pid']} of {told['user']} on {told['host']}, since {told['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def exit_code(trials: int, regressed: bool | None) -> int:
    """Return the code of a night, given that of its trials and whether it was judged to have regressed (None: it was
    to be judged, and could not be).

    A regression comes first: it was judged on valid trials alone, and the text beside it names those that are not.
    Behind one that fails every night a code of failed trials would hide it for as long.
    """
    if regressed:
        return EXIT_REGRESSION
    return trials or (EXIT_TRIALS if regressed is None else trials)
