"""What the command line asked for beside the sweep itself."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sweep.exposure import without_secret
from sweep.selection import Selection
from tasks.secrets import HIDDEN, is_secret

#: A name that a variable of the environment can have, and a value that is one of those.
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TAKEN_IN = re.compile(rf"\$\{{oc\.env: *{_VARIABLE.pattern}\}}")


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
    baseline: tuple[str, ...] = ()
    wait_s: float = 0.0

    def again(self, folder: Path) -> str:
        """Return the command that goes on with the run in `folder` where it stopped, given secrets in the environment.

        Without the options that stopped it: the trials that failed run first, and would stop it again.
        """
        given = list(self._without_limits())
        arguments = [_from_environment(argument) for argument in given]
        more = [] if self.resume else ["--resume"]
        if self.run is None and (folder.parent / "latest").resolve() != folder.resolve():
            more += ["--run", folder.name]
        command = shlex.join(["python", "-m", "sweep", *arguments, *more])
        missing = any(HIDDEN in shown and HIDDEN not in own for shown, own in zip(arguments, given, strict=True))
        return f"{command}  # {HIDDEN} is a secret: write it again" if missing else command

    def _without_limits(self) -> Iterator[str]:
        words = iter(self.argv)
        for word in words:
            if word == "--max-failures":
                next(words, None)
            elif word != "--fail-fast" and not word.startswith("--max-failures="):
                yield word


def _from_environment(argument: str) -> str:
    """Return an argument whose secret, if it sets one, is taken from the variable of the environment of that name."""
    path, equals, value = argument.partition("=")
    name = path.rpartition(".")[2]
    if not equals or not is_secret(name) or not _VARIABLE.fullmatch(name):
        return without_secret(argument)
    return argument if _TAKEN_IN.fullmatch(value) else f"{path}=${{oc.env:{name}}}"
