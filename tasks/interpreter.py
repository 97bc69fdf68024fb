"""Interpreters that jobs run under: ours, or the one of an environment in which an engine lives by itself."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence

from tasks.errors import TaskError

#: Variables that would lead a foreign interpreter to our packages.
_OURS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONSAFEPATH")

#: An interpreter on a cold network filesystem may take its time.
_LIMIT_S = 60

_ASK = """
import importlib.metadata as m, json, sys
found = {}
for name in sys.argv[1:]:
    try: found[name] = m.version(name)
    except m.PackageNotFoundError: found[name] = None
print(json.dumps({"python": sys.version.split()[0], "packages": found}))
"""


class InterpreterError(TaskError):
    """`workload.python` names no interpreter that could run the job."""


def installed(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of these distributions under our own interpreter; `not installed` where one is missing."""
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def versions(python: str | None, names: Sequence[str]) -> dict[str, str]:
    """Return the versions of these distributions under `python`, with its own under the key `python`.

    None stands for our own interpreter. A foreign one that does not run, or lacks one of them, is an InterpreterError.
    """
    if python is None:
        return installed(names)
    try:
        done = subprocess.run(
            [python, "-c", _ASK, *names],
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
            stdin=subprocess.DEVNULL,
            env=without_ours(os.environ),
        )
    except OSError as e:
        raise InterpreterError(f"workload.python: {python} cannot be started: {e.strerror}") from None
    except subprocess.TimeoutExpired:
        raise InterpreterError(f"workload.python: {python} said nothing within {_LIMIT_S} s") from None
    try:
        answer = json.loads(done.stdout)
        found = {"python": str(answer["python"]), **{name: answer["packages"][name] for name in names}}
    except (ValueError, KeyError, TypeError):
        said = (done.stderr or done.stdout).strip().splitlines()
        words = said[-1] if said else f"exit code {done.returncode}"
        raise InterpreterError(f"workload.python: {python} is no Python 3.9 or newer: {words}") from None
    missing = [name for name in names if found[name] is None]
    if missing:
        install = f"{python} -m pip install {' '.join(missing)}"
        raise InterpreterError(f"workload.python: {python} has no {', '.join(missing)}; to install: {install}")
    return found


def without_ours(environment: Mapping[str, str]) -> dict[str, str]:
    """Return `environment` without what belongs to our own interpreter."""
    return {name: value for name, value in environment.items() if name not in _OURS}


def command(python: str | None) -> str:
    """Return the interpreter to start: `python`, or our own."""
    return python or sys.executable
