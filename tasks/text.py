"""Text of others, safe to show: logs, reasons and names from a node must not play with the reader's terminal."""

from __future__ import annotations

import re

#: Controls (C0 but tab and newline, DEL, C1), and what turns the direction of text around.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Return a text whose control characters are written out, as `\\x1b`."""
    return _CONTROLS.sub(lambda match: ascii(match[0])[1:-1], text.replace("\r\n", "\n"))
