"""The ends of log files, safe to show."""

from __future__ import annotations

import re
from pathlib import Path

_TAIL_BYTES = 16 * 1024
_ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.)")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def tail(path: Path, lines: int = 16) -> str:
    """Return the last `lines` lines of a log, without terminal escapes; reads at most 16 KiB of it."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(size - _TAIL_BYTES, 0))
        text = file.read().decode("utf-8", errors="replace")
    text = _ESCAPES.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    return "\n".join(_CONTROLS.sub("", text).rstrip("\n").split("\n")[-lines:])


def tails(trial_dir: Path, lines: int = 16) -> list[tuple[str, str]]:
    """Return name and tail of each log of a trial that is not empty."""
    found = []
    for path in sorted((trial_dir / "logs").glob("*.log")):
        try:
            text = tail(path, lines)
        except OSError as error:
            text = f"cannot be read: {error.strerror}"
        if text.strip():
            found.append((path.name, text))
    return found
