"""What the command line asked for beside the sweep itself."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
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

    def again(self, folder: Path) -> str:
        """Return the command that goes on with the run in `folder` where it stopped.

        Without the options that stopped it: the trials that failed run first, and would stop it again.
        """
        more = [] if self.resume else ["--resume"]
        if self.run is None and (folder.parent / "latest").resolve() != folder.resolve():
            more += ["--run", folder.name]
        return shlex.join(["python", "-m", "sweep", *map(without_secret, self._without_limits()), *more])

    def _without_limits(self) -> Iterator[str]:
        words = iter(self.argv)
        for word in words:
            if word == "--max-failures":
                next(words, None)
            elif word != "--fail-fast" and not word.startswith("--max-failures="):
                yield word
