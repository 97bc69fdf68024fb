"""What differs between two fingerprints, field by field, in words."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tasks.identity import WRITTEN

#: Longer values are cut in the middle.
_MOST_CHARACTERS = 60

#: Stands for a field that one side does not have.
_ABSENT = object()


def plan_changes(recorded: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """Return the keys of a trial's configuration that are not as recorded, each from what to what."""
    return [_told("", *change) for change in _differences(recorded, config)]


def code_changes(recorded: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the files of code that are not as recorded, each from which hash to which."""
    return [_told("code of ", *change) for change in _of_mappings((), recorded, now)]


def node_changes(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what of a node is not as recorded.

    Files that the job wrote itself are nobody's, and tools that the trial does not use any more do not matter to it.
    """
    written = {("files", name) for name, content in mapping_in(recorded, "files").items() if content == WRITTEN}
    unused = {("tools", name) for name in mapping_in(recorded, "tools") if name not in mapping_in(now, "tools")}
    changes = _differences(recorded, now)
    return [_told("node: ", *change) for change in changes if change[0] not in written | unused]


def mapping_in(of: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return what a record has under a name, an empty mapping where that is none."""
    found = of.get(name)
    return found if isinstance(found, Mapping) else {}


def _differences(old: Any, new: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        yield from _of_mappings(path, old, new)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new) and _nested(old + new):
        for place, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from _differences(one, other, (*path, str(place)))
    # 1 and True, 1 and 1.0 are equal to Python, and not the same setting.
    elif old != new or type(old) is not type(new):
        yield path, old, new


def _of_mappings(
    path: tuple[str, ...], old: Mapping[str, Any], new: Mapping[str, Any]
) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    for name in dict.fromkeys([*old, *new]):
        yield from _differences(old.get(name, _ABSENT), new.get(name, _ABSENT), (*path, name))


def _nested(values: list[Any]) -> bool:
    return all(isinstance(value, Mapping) for value in values)


def _told(prefix: str, path: tuple[str, ...], old: Any, new: Any) -> str:
    name = ".".join(path) or "configuration"
    return f"{prefix}{name}: {_shown(old)} -> {_shown(new)}"


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "(none)"
    text = value if isinstance(value, str) and value else json.dumps(value, sort_keys=True)
    text = " ".join(text.split())
    if len(text) <= _MOST_CHARACTERS:
        return text
    half = (_MOST_CHARACTERS - 1) // 2
    return f"{text[:half]}…{text[-half:]}"
