"""Secrets in a sweep: what its file may say of them, and what of it is kept."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from sweep.errors import ConfigError
from sweep.trees import flattened
from tasks.secrets import HIDDEN, hidden, holds_secret, is_secret, within

#: The environment variables that a value takes in.
_TAKEN_IN = re.compile(r"oc\.env:\s*([A-Za-z_][A-Za-z0-9_]*)")


def refuse_exposed(source: str, raw: Mapping[str, Any]) -> None:
    """Refuse a secret in a value that will be stored, shown or part of a name; a key that is named so may have it."""
    for path, value in _leaves(raw):
        section, _, axis = path.partition(".")
        if section in ("grid", "zip") and _names_secret(axis, value):
            text = "a secret cannot be an axis: its values would be part of the trials' names"
            raise ConfigError(source, f"{section}.{axis}", text)
        if is_secret(path.rpartition(".")[2]):
            continue
        if taken := next((v for v in _variables(value) if is_secret(v)), None):
            hint = f"let the job read it from its environment: workload.env.{taken}: ${{oc.env:{taken}}}"
            raise ConfigError(source, path, f"takes in the secret {taken}, and what it holds is stored and shown", hint)


def _leaves(raw: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys of a sweep, those of each mapping in a list of axes that turn together too."""
    for path, value in flattened(raw, ""):
        groups = value if path == "zip" and isinstance(value, list) else []
        if groups and all(isinstance(group, Mapping) for group in groups):
            for group in groups:
                yield from flattened(group, "zip.")
        else:
            yield path, value


def _names_secret(path: str, value: Any) -> bool:
    """Say whether an axis is a secret, or has values in which a key is one."""
    if isinstance(value, list):
        return is_secret(path.rpartition(".")[2]) or any(_names_secret("", item) for item in value)
    if isinstance(value, Mapping):
        return any(_names_secret(str(key), item) for key, item in value.items())
    return is_secret(path.rpartition(".")[2])


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
        return {key: references(item, within(name, str(key))) for key, item in value.items()}
    if isinstance(value, list):
        is_whole = any(holds_secret(name, item) for item in value) and "${" not in str(value)
        return _decoded(name) if is_whole else [references(item, name) for item in value]
    if not holds_secret(name, value) or "${" in str(value):
        return value
    return f"${{oc.env:{name}}}" if isinstance(value, str) else _decoded(name)


def _decoded(name: str) -> str:
    """Return what takes a number or a list from the environment."""
    return f"${{oc.decode:${{oc.env:{name}}}}}"


def without_secret(argument: str) -> str:
    """Return an argument of the command line without the secrets that it sets."""
    path, equals, text = argument.partition("=")
    name = path.rpartition(".")[2]
    if not equals or is_secret(name):
        return f"{path}={HIDDEN}" if equals else argument
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return argument
    shown = hidden({name: value})[name]
    if shown == value:
        return argument
    return f"{path}={shown if isinstance(shown, str) else json.dumps(shown, default=str, ensure_ascii=False)}"
