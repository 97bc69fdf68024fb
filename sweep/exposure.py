"""Secrets in a sweep: what its file may say of them, and what of it is kept."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from sweep.errors import ConfigError
from sweep.trees import flattened
from tasks.secrets import HIDDEN, is_secret

#: The environment variables that a value takes in.
_TAKEN_IN = re.compile(r"oc\.env:\s*([A-Za-z_][A-Za-z0-9_]*)")


def refuse_exposed(source: str, raw: Mapping[str, Any]) -> None:
    """Refuse a secret in a value that will be stored, shown or part of a name; a key that is named so may have it."""
    for path, value in flattened(raw, ""):
        section, _, axis = path.partition(".")
        name = path.rpartition(".")[2]
        if is_secret(name):
            if section in ("grid", "zip"):
                text = "a secret cannot be an axis: its values would be part of the trials' names"
                raise ConfigError(source, f"{section}.{axis}", text)
            continue
        if taken := next((v for v in _variables(value) if is_secret(v)), None):
            hint = f"let the job read it from its environment: workload.env.{taken}: ${{oc.env:{taken}}}"
            raise ConfigError(source, path, f"takes in the secret {taken}, and what it holds is stored and shown", hint)


def _variables(value: Any) -> Iterator[str]:
    """Yield the environment variables that a value takes in, in lists too."""
    if isinstance(value, str):
        yield from _TAKEN_IN.findall(value)
    elif isinstance(value, list):
        for item in value:
            yield from _variables(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _variables(item)


def references(value: Any, name: str = "") -> Any:
    """Return a sweep as it is stored: secrets in it are taken from the environment when it is run again."""
    if isinstance(value, Mapping):
        return {key: references(item, str(key)) for key, item in value.items()}
    if isinstance(value, list):
        return [references(item) for item in value]
    given = isinstance(value, str) and value and "${" not in value
    return f"${{oc.env:{name}}}" if given and is_secret(name) else value


def without_secret(argument: str) -> str:
    """Return an argument of the command line without the secret that it sets."""
    path, equals, _ = argument.partition("=")
    return f"{path}={HIDDEN}" if equals and is_secret(path.rpartition(".")[2]) else argument
