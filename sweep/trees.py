"""Nested mappings, as YAML gives them, and dotted paths into them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def flattened(grid: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield dotted keys: `{storage: {fs: [..]}}` and `{storage.fs: [..]}` mean the same."""
    for name, value in grid.items():
        if isinstance(value, Mapping) and value:
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def merged_over(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return `below` with `above` on top: mappings merge, everything else replaces."""
    merged = dict(below)
    for name, value in above.items():
        old = merged.get(name)
        merged[name] = merged_over(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return merged


def put(raw: dict[str, Any], path: str, value: Any) -> None:
    """Set the key at a dotted path."""
    *parents, last = path.split(".")
    section_at(raw, parents)[last] = value


def section_at(raw: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the keys at `names`, made where there are none."""
    for name in names:
        if not isinstance(raw.get(name), dict):
            raw[name] = {}
        raw = raw[name]
    return raw


def at(raw: Mapping[str, Any], path: str) -> Any:
    """Return what is at a dotted path."""
    for name in path.split("."):
        raw = raw[name]
    return raw


def copied(value: Any) -> Any:
    """Return mappings and lists of their own, all the way down."""
    if isinstance(value, Mapping):
        return {k: copied(v) for k, v in value.items()}
    return [copied(v) for v in value] if isinstance(value, (list, tuple)) else value
