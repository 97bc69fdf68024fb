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
import pyarrow as pa

_FIELD = re.compile(
    r"field:(?P<type>.*?)\s*(?P<name>\w+)(?P<array>\[\d*\])?;\s*offset:(?P<offset>\d+);\s*size:(?P<size>\d+);"
)
_HEADER_BYTES = 16
_COMMIT_MASK = (1 << 20) - 1
_MISSED_EVENTS = 1 << 31
_PADDING, _TIME_EXTEND, _TIME_STAMP = 29, 30, 31

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class EventFormat:
    """Where one kind of event keeps its fields: type (of NumPy) and offset in bytes by name."""

    number: int
    fields: Mapping[str, tuple[str, int]]

    @classmethod
    def parse(cls, text: str) -> EventFormat:
        """Read a tracefs `format` file; ValueError where it is none.

        Whole numbers count as signed: a flush completes at sector -1.
        """
        number = re.search(r"^ID: (\d+)$", text, re.MULTILINE)
        if number is None:
            raise ValueError("no ID line in the event's format")
        found = {}
        for m in _FIELD.finditer(text):
            kind = "S" if m["array"] else "<i"
            if m["array"] or m["size"] in ("1", "2", "4", "8"):
                found[m["name"]] = (f"{kind}{m['size']}", int(m["offset"]))
        return cls(int(number[1]), found)

    def layout(self, names: Sequence[str]) -> np.dtype[np.void]:
        """Return those of the fields `names` that the event has, as a record whose size is a multiple of 4."""
        chosen = [name for name in names if name in self.fields]
        kinds = [np.dtype(self.fields[name][0]) for name in chosen]
        offsets = [self.fields[name][1] for name in chosen]
        size = max(at + kind.itemsize for at, kind in zip(offsets, kinds, strict=True))
        return np.dtype({"names": chosen, "formats": kinds, "offsets": offsets, "itemsize": (size + 3) & ~3})


def check_page_header(text: str) -> None:
    """Raise ValueError unless tracefs' `header_page` is the layout that `decode` walks."""
    fields = {m["name"]: (int(m["offset"]), int(m["size"])) for m in _FIELD.finditer(text)}
    data_at, _ = fields.get("data", (None, 0))
    if fields.get("timestamp") != (0, 8) or fields.get("commit") != (8, 8) or data_at != _HEADER_BYTES:
        raise ValueError(f"this kernel lays out trace pages in another way: {text!r}")


@dataclass
class Events:
    """Events in page order: when (ns), and at which 32-bit word of `words` each record begins."""

    words: npt.NDArray[np.uint32]
    t_ns: Integers
    word: Integers
    #: Pages before which the kernel says that events were lost.
    missed: int

    def numbers(self) -> Integers:
        """Return each event's kind: the ID in its format (`common_type`)."""
        return self.words[self.word].astype(np.int64) & 0xFFFF

    def records(self, layout: np.dtype[np.void], chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.void]:
        """Return the records of the events where `chosen` is true, all of one kind, which has this layout."""
        size = layout.itemsize
        # Every record that could begin at some word, overlapping: picking from it copies each record once.
        anywhere = np.ndarray((max(0, self.words.size - size // 4 + 1),), f"V{size}", self.words, strides=(4,))
        return anywhere[self.word[chosen]].view(layout)


def page_length(commit: bytes) -> int:
    """Return the bytes of a page up to where its data ends, in steps of 8, given the 8 bytes after its time."""
    return (_HEADER_BYTES + (int.from_bytes(commit, "little") & _COMMIT_MASK) + 7) & ~7


def decode(data: npt.NDArray[np.uint8], starts: Integers) -> Events:
    """Return the events of the pages that begin at `starts` (bytes, multiples of 4) in `data`, each page's in order."""
    words = data.view("<u4")
    head = starts >> 2
    now = words[head].astype(np.int64) | words[head + 1].astype(np.int64) << 32
    commit = words[head + 2].astype(np.int64)
    length = commit & _COMMIT_MASK
    page = np.flatnonzero(length)
    at = head[page] + (_HEADER_BYTES >> 2)
    now, end = now[page], at + ((length[page] + 3) >> 2)
    found: list[tuple[Integers, Integers, Integers]] = []
    while page.size:
        header = words[at]
        kind, now = header & 31, now + (header >> 5)
        if ((kind > 0) & (kind < _PADDING)).all():
            found.append((now, page, at + 1))
            at, going = at + 1 + kind, None
        else:
            now, chosen, record, at, going = _special(words, header, now, at)
            found.append((now[chosen], page[chosen], record[chosen]))
        more = at < end if going is None else (at < end) & going
        if not more.all():
            page, at, now, end = page[more], at[more], now[more], end[more]
    return _gathered(words, found, int(np.count_nonzero(commit & _MISSED_EVENTS)))


def _special(
    words: npt.NDArray[np.uint32], header: npt.NDArray[np.uint32], now: Integers, at: Integers
) -> tuple[Integers, npt.NDArray[np.bool_], Integers, Integers, npt.NDArray[np.bool_]]:
    """Take a step in which not every entry is a short record.

    `now` includes the entries' 27 bits of time. Returns the times, which entries are records, where these begin, where
    the next entries begin, and whether there is one: padding without a time is the unused rest of a page.
    """
    array = words[np.minimum(at + 1, words.size - 1)].astype(np.int64)
    kind, delta = (header & 31).astype(np.int64), (header >> 5).astype(np.int64)
    now = _advance(now, kind, delta, array)
    data = kind < _PADDING
    long = data & (kind == 0)
    size = np.select([long, data, kind == _PADDING], [4 + array, 4 + 4 * kind, 4 + array], 8)
    going = ~((kind == _PADDING) & (delta == 0))
    return now, data, np.where(long, at + 2, at + 1), at + ((size + 3) >> 2), going


def _advance(now: Integers, kind: Integers, delta: Integers, array: Integers) -> Integers:
    """Return the time after an entry whose 27 bits `delta` are in `now`: the same, a long delta, an absolute time.

    An absolute time comes without its top five bits.
    """
    absolute = ((now - delta) & ~((1 << 59) - 1)) | ((array << 27) + delta)
    return np.select([kind == _TIME_STAMP, kind == _TIME_EXTEND], [absolute, now + (array << 27)], now)


def _gathered(words: npt.NDArray[np.uint32], found: Sequence[tuple[Integers, ...]], missed: int) -> Events:
    if not found:
        empty = np.empty(0, np.int64)
        return Events(words, empty, empty, missed)
    t_ns, page, word = (np.concatenate(column) for column in zip(*found, strict=True))
    # The n-th events of all pages came together; each page's own belong together. NumPy sorts 16 bits by radix.
    order = np.argsort(page.astype(np.uint16) if page.size and page.max() < 1 << 16 else page, kind="stable")
    return Events(words, t_ns[order], word[order], missed)


def texts(values: npt.NDArray[np.bytes_]) -> tuple[list[str], Integers]:
    """Return the different texts among character fields, each up to its first NUL, and which one each value is."""
    size = values.dtype.itemsize
    buffer = pa.py_buffer(np.ascontiguousarray(values))
    coded = pa.Array.from_buffers(pa.binary(size), len(values), [None, buffer]).dictionary_encode()
    # What follows the terminator is whatever was in the buffer before.
    words = [raw.split(b"\0", 1)[0].decode(errors="replace") for raw in coded.dictionary.to_pylist()]
    place = {word: n for n, word in enumerate(dict.fromkeys(words))}
    same = np.array([place[word] for word in words], np.int64)
    codes: Integers = same[coded.indices.to_numpy()] if len(values) else np.empty(0, np.int64)
    return list(place), codes
