"""Byte sizes as people write them (`64MiB`) and as messages show them."""

from __future__ import annotations

import re

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40

_FACTORS = {"": 1, "b": 1, "kib": KIB, "mib": MIB, "gib": GIB, "tib": TIB}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")

#: What `parse_bytes` accepts, in words for a message.
SIZE_FORMAT = "a whole number of bytes, or a number with B, KiB, MiB, GiB or TiB, such as 64MiB"


def parse_bytes(text: int | str) -> int:
    """Return the bytes that `text` stands for; raise ValueError where it is not a size above zero."""
    match = _SIZE.fullmatch(str(text))
    factor = _FACTORS.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise ValueError(f"{text!r} is not a size; write {SIZE_FORMAT}")
    size = float(match[1]) * factor if "." in match[1] else int(match[1]) * factor
    if not 1 <= size < 1 << 63 or size != int(size):
        raise ValueError(f"{text!r} is not a whole number of bytes above zero and below 8 EiB")
    return int(size)


def format_bytes(size: int) -> str:
    """Return `size` with the largest binary unit that keeps it at one or above, exact where it is whole."""
    for unit, factor in (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(size) >= factor:
            value = size / factor
            return f"{value:.0f} {unit}" if value == int(value) else f"{value:.2f} {unit}"
    return f"{size} B"
