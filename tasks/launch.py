"""Starts an attempt under its supervisor and hands over what it produced; the same with Ray and without."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.errors import TaskError
from tasks.spec import TrialSpec
from tasks.state import state_dir

_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Outcome:
    """A finished attempt: its record, and the files in `folder` that belong to it (see `tasks.trial.manifest`)."""

    record: dict[str, Any]
    folder: Path
    files: list[dict[str, Any]]
    log_tail: str


@contextmanager
def launched(spec: TrialSpec, announce: Callable[[str], None]) -> Iterator[Outcome]:
    """Run one attempt and provide its outcome; its files are gone when the body ends.

    `announce` is told what the trial does, and the same again every few seconds while it lives.

    Raises TaskError where the trial's process died. Leaving early, by an exception too, stops the attempt and waits
    until it is cleaned up; if this process is killed, the supervisor cleans up by itself.
    """
    # Not this process's standard error: a Ray worker's log, and who clears a dead Ray ends whoever has that open.
    with (state_dir() / "supervisor.log").open("a") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "tasks.supervisor"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=_ROOT,
            start_new_session=True,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(spec.to_json()).encode() + b"\n")
        process.stdin.flush()
        yield _outcome(process.stdout, announce)
    finally:
        process.stdin.close()
        process.stdout.read()  # its end: nothing of the attempt is left
        process.stdout.close()
        process.wait()


def _outcome(events: Any, announce: Callable[[str], None]) -> Outcome:
    doing = "starting"
    for line in events:
        event = json.loads(line)
        if event["event"] in ("phase", "alive"):
            doing = event.get("text", doing)
            announce(doing)
        elif event["event"] == "finished":
            return Outcome(event["record"], Path(event["folder"]), event["files"], event["log_tail"])
        else:
            raise TaskError(event["reason"])
    raise TaskError("the attempt's supervisor ended without a word")
