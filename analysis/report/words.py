"""What a record holds, as text for people."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from analysis.units import UNKNOWN, bytes_text, exact_bytes_text


def told(value: Any) -> str:
    """Return a fact as text; what is not known says so."""
    return UNKNOWN if value is None or value == "" else str(value)


def command(arguments: Any) -> str:
    """Return an argument list as one would type it."""
    if isinstance(arguments, str) or not isinstance(arguments, Iterable):
        return told(arguments)
    return shlex.join(str(argument) for argument in arguments)


def seconds(started: Any, ended: Any) -> float | None:
    """Return how long it is from one moment to another, both in ISO 8601; None where one is not known."""
    try:
        took_s = (datetime.fromisoformat(ended) - datetime.fromisoformat(started)).total_seconds()
    except (TypeError, ValueError):
        return None
    return took_s if took_s >= 0 else None  # somebody set the clock back meanwhile


def moment(text: Any) -> str:
    """Return a moment in ISO 8601 as `2026-11-20 10:33:48 UTC`."""
    try:
        at = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return told(text)
    return at.strftime("%Y-%m-%d %H:%M:%S ") + (at.tzname() or "(no time zone)")


def flat(mapping: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return a nested mapping as dotted keys and texts."""
    rows: list[tuple[str, str]] = []
    for key, value in mapping.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and set(value) == {"value", "unit"}:
            rows.append((name, quantity(value["value"], value["unit"])))
        elif isinstance(value, Mapping) and value:
            rows += flat(value, f"{name}.")
        elif key.endswith("bytes") and isinstance(value, int) and not isinstance(value, bool):
            rows.append((name, quantity(value, "B")))
        else:
            rows.append((name, value if isinstance(value, str) else json.dumps(value)))
    return rows


def quantity(value: Any, unit: Any) -> str:
    """Return a measured value with its unit; bytes for people, and to the byte."""
    if unit == "B" and isinstance(value, int) and value >= 1024:
        return f"{bytes_text(value)} ({exact_bytes_text(value)})"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if unit in (None, "", "1") else f"{text} {unit}"
