"""What a record holds, in words."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from analysis.units import UNKNOWN, bytes_text, exact_bytes_text


def told(value: Any) -> str:
    """Return a fact as text; an absent or empty one is unknown."""
    return UNKNOWN if value is None or value == "" else str(value)


def command(arguments: Any) -> str:
    """Return a command line as a shell takes it."""
    if isinstance(arguments, str) or not isinstance(arguments, Iterable):
        return told(arguments)
    return shlex.join(str(argument) for argument in arguments)


def moment(text: Any) -> str:
    """Return an ISO 8601 time for people, with its time zone."""
    try:
        found = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return told(text)
    return found.strftime("%Y-%m-%d %H:%M:%S ") + (found.tzname() or "(no time zone)")


def seconds(started: Any, ended: Any) -> float | None:
    """Return the seconds between two ISO 8601 times; None where one of them is not known."""
    try:
        return (datetime.fromisoformat(ended) - datetime.fromisoformat(started)).total_seconds()
    except (TypeError, ValueError):
        return None


def flat(mapping: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return a nested mapping as dotted keys and texts."""
    rows: list[tuple[str, str]] = []
    for key, value in mapping.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and set(value) == {"value", "unit"}:
            rows.append((name, _quantity(value["value"], value["unit"])))
        elif isinstance(value, Mapping) and value:
            rows += flat(value, f"{name}.")
        elif key.endswith("bytes") and isinstance(value, int) and not isinstance(value, bool):
            rows.append((name, _quantity(value, "B")))
        else:
            rows.append((name, value if isinstance(value, str) else json.dumps(value)))
    return rows


def _quantity(value: Any, unit: Any) -> str:
    """Return a measured value with its unit; bytes for people, and to the byte."""
    if unit == "B" and isinstance(value, int) and value >= 1024:
        return f"{bytes_text(value)} ({exact_bytes_text(value)})"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if unit in (None, "", "1") else f"{text} {unit}"
