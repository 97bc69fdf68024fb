"""Numbers as people read them. Binary units throughout, as block layers count."""

from __future__ import annotations

import math

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
NS_PER_S = 1_000_000_000
NS_PER_MS = 1_000_000
#: What the kernel calls a sector, whatever the device's own.
SECTOR_BYTES = 512
UNKNOWN = "unknown"


def bytes_text(count: int | float | None) -> str:
    """Return `count` bytes in the largest unit that leaves a number of at least 1, such as `1.50 MiB`."""
    if count is None:
        return UNKNOWN
    for unit, name in ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if abs(count) >= unit:
            return f"{number_text(count / unit)} {name}"
    return f"{count:,.0f} B"


def exact_bytes_text(count: int | None) -> str:
    """Return `count` to the byte, with separators."""
    return UNKNOWN if count is None else f"{count:,} bytes"


def duration_text(seconds: float | None) -> str:
    """Return `seconds` as `850 ms`, `12.3 s`, `4 min 05 s` or `2 h 03 min`."""
    if seconds is None:
        return UNKNOWN
    if seconds < 1:
        return f"{number_text(seconds * 1000)} ms"
    if seconds < 60:
        return f"{number_text(seconds)} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def latency_text(microseconds: float | None) -> str:
    """Return a latency given in µs as µs, ms or s."""
    if microseconds is None:
        return UNKNOWN
    if microseconds < 1000:
        return f"{number_text(microseconds)} µs"
    if microseconds < 1_000_000:
        return f"{number_text(microseconds / 1000)} ms"
    return f"{number_text(microseconds / 1_000_000)} s"


def nanoseconds_text(nanoseconds: int) -> str:
    """Return a round span of time, such as a bin's width: `20 ms`, `1 s`."""
    for unit, name in ((NS_PER_S, "s"), (1_000_000, "ms"), (1000, "µs")):
        if nanoseconds >= unit:
            return f"{nanoseconds / unit:g} {name}"
    return f"{nanoseconds} ns"


def sentence(text: str) -> str:
    """Return a text with its first letter large and the others as they are: `64 MiB` is another thing than `64 mib`."""
    return text[:1].upper() + text[1:]


def count_text(count: int, singular: str, plural: str | None = None) -> str:
    """Return `1 trial`, `2 trials`."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


def share_text(share: float) -> str:
    """Return a share of 1 in percent; next to nothing and next to all say so: `<0.1 %`, `>99.9 %`."""
    if 0 < share < 0.001:
        return "<0.1 %"
    if 0.9995 <= share < 1:
        return ">99.9 %"
    return f"{share * 100:.1f} %" if 0 < share < 1 else f"{share * 100:.0f} %"


def number_text(value: float) -> str:
    """Return `value` with about three significant digits, never in scientific notation: `0.024`, `1.50`, `2,345`."""
    if 0 < abs(value) < 1:
        return f"{value:.{min(2 - math.floor(math.log10(abs(value))), 6)}f}"
    if value == int(value) and abs(value) < 1000:
        return f"{value:.0f}"
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:,.{digits}f}"
