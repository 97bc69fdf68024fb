"""Decodes the kernel's binary trace pages in bulk (Documentation/trace/ring-buffer-design.rst, ring_buffer.h).

All pages are walked in step, one event of every page at a time, so the work is NumPy's and not Python's. Record
layouts come from the event's own `format` file, never from constants.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_FIELD = re.compile(r"field:(?P<type>.*?)\s*(?P<name>\w+)(\[\d*\])?;\s*offset:(?P<offset>\d+);\s*size:(?P<size>\d+);")
_HEADER_BYTES = 16
_COMMIT_MASK = (1 << 20) - 1
_MISSED_EVENTS = 1 << 31
_PADDING, _TIME_EXTEND, _TIME_STAMP = 29, 30, 31

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class EventFormat:
    """Where one kind of event keeps its fields: offset and size in bytes by name."""

    number: int
    fields: Mapping[str, tuple[int, int]]

    @classmethod
    def parse(cls, text: str) -> EventFormat:
        """Read a tracefs `format` file; ValueError where it is none."""
        number = re.search(r"^ID: (\d+)$", text, re.MULTILINE)
        if number is None:
            raise ValueError("no ID line in the event's format")
        fields = {m["name"]: (int(m["offset"]), int(m["size"])) for m in _FIELD.finditer(text)}
        return cls(int(number[1]), fields)


def check_page_header(text: str) -> None:
    """Raise ValueError unless tracefs' `header_page` is the layout that `decode` walks."""
    fields = {m["name"]: (int(m["offset"]), int(m["size"])) for m in _FIELD.finditer(text)}
    data_at, _ = fields.get("data", (None, 0))
    if fields.get("timestamp") != (0, 8) or fields.get("commit") != (8, 8) or data_at != _HEADER_BYTES:
        raise ValueError(f"this kernel lays out trace pages in another way: {text!r}")


@dataclass
class Events:
    """Events in page order: when (ns), and where each record lies in `pages`."""

    pages: npt.NDArray[np.uint8]
    t_ns: Integers
    page: Integers
    offset: Integers
    #: Pages before which the kernel says that events were lost.
    missed: int

    def integer(self, field: tuple[int, int]) -> Integers:
        """Return an integer field of 2, 4 or 8 bytes, aligned to its size or to 4, as signed 64 bits."""
        at, size = field
        words = self.pages.view("<u4")
        low = words[self.page, (self.offset + at) >> 2]
        values: Integers
        if size == 2:
            values = self.pages.view("<u2")[self.page, (self.offset + at) >> 1].astype(np.int64)
        elif size == 4:
            values = low.view(np.int32).astype(np.int64)
        else:
            high = words[self.page, (self.offset + at + 4) >> 2]
            values = (high.astype(np.uint64) << np.uint64(32) | low).astype(np.int64)
        return values

    def text(self, field: tuple[int, int]) -> npt.NDArray[np.bytes_]:
        """Return a character field as bytes up to its first NUL."""
        at, size = field
        raw = self.pages[self.page[:, None], (self.offset + at)[:, None] + np.arange(size)]
        # What follows the terminator is whatever was in the buffer before.
        raw[np.cumsum(raw == 0, axis=1) > 0] = 0
        texts: npt.NDArray[np.bytes_] = raw.view(f"S{size}")[:, 0]
        return texts

    def take(self, chosen: npt.NDArray[np.bool_]) -> Events:
        """Return the events where `chosen` is true."""
        return Events(self.pages, self.t_ns[chosen], self.page[chosen], self.offset[chosen], self.missed)


def decode(pages: npt.NDArray[np.uint8]) -> Events:
    """Return the events in `pages` (shape: pages x page size), each page's in order."""
    words = pages.view("<u4")
    now = pages[:, :8].view("<u8")[:, 0].astype(np.int64)
    commit = pages[:, 8:16].view("<u8")[:, 0].astype(np.int64)
    end = _HEADER_BYTES + (commit & _COMMIT_MASK)
    page = np.flatnonzero(end > _HEADER_BYTES)
    now, end = now[page], end[page]
    at = np.full(page.size, _HEADER_BYTES, np.int64)
    found: list[tuple[Integers, Integers, Integers]] = []
    last_word = words.shape[1] - 1
    while page.size:
        header = words[page, at >> 2].astype(np.int64)
        array = words[page, np.minimum((at >> 2) + 1, last_word)].astype(np.int64)
        kind, delta = header & 31, header >> 5
        now = _advance(now, kind, delta, array)
        data = kind < _PADDING
        long = data & (kind == 0)
        found.append((now[data], page[data], np.where(long, at + 8, at + 4)[data]))
        size = np.select([long, data, kind == _PADDING], [4 + array, 4 + 4 * kind, 4 + array], 8)
        at = at + ((size + 3) & ~3)
        # Padding without a time is the unused rest of a page.
        going = (at < end) & ~((kind == _PADDING) & (delta == 0))
        page, at, now, end = page[going], at[going], now[going], end[going]
    return _gathered(pages, found, int(np.count_nonzero(commit & _MISSED_EVENTS)))


def _advance(now: Integers, kind: Integers, delta: Integers, array: Integers) -> Integers:
    """Return the time after one entry: a delta, a long delta, or an absolute time without its top five bits."""
    long = (array << 27) + delta
    absolute = (now & ~((1 << 59) - 1)) | long
    return np.select([kind == _TIME_STAMP, kind == _TIME_EXTEND], [absolute, now + long], now + delta)


def _gathered(pages: npt.NDArray[np.uint8], found: Sequence[tuple[Integers, ...]], missed: int) -> Events:
    if not found:
        empty = np.empty(0, np.int64)
        return Events(pages, empty, empty, empty, missed)
    t_ns, page, offset = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.argsort(page, kind="stable")
    return Events(pages, t_ns[order], page[order], offset[order], missed)
