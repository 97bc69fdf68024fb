"""What the command line asked for beside the sweep itself."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from sweep.exposure import without_secret
from sweep.selection import Selection


@dataclass(frozen=True)
class Options:
    """`argv` is the command line, for the record; the other fields are its flags (`python -m sweep --help`)."""

    results: Path
    address: str | None = None
    argv: tuple[str, ...] = ()
    max_failures: int | None = None
    fail_fast: bool = False
    selection: Selection = Selection()
    keep: bool = False
    resume: bool = False
    run: str | None = None

    def again(self) -> str:
        """Return the command that goes on with this run where it stops."""
        more = [] if self.resume else ["--resume"]
        return shlex.join(["python", "-m", "sweep", *map(without_secret, self.argv), *more])
