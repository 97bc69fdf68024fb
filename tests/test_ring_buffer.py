"""Decoding of the kernel's trace pages, from pages that an encoder of the test's own built byte by byte.

The layout is that of linux/ring_buffer.h and kernel/trace/ring_buffer.c; the formats are those of a 6.18 kernel.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.tracers.ring_buffer import EventFormat, Events, check_page_header, decode

PAGE_BYTES = 4096
MISSED = 1 << 31
MISSED_COUNT_STORED = 1 << 30

ISSUE_FORMAT = """\
name: block_rq_issue
ID: 2104
format:
	field:unsigned short common_type;	offset:0;	size:2;	signed:0;
	field:unsigned char common_flags;	offset:2;	size:1;	signed:0;
	field:unsigned char common_preempt_count;	offset:3;	size:1;	signed:0;
	field:int common_pid;	offset:4;	size:4;	signed:1;

	field:dev_t dev;	offset:8;	size:4;	signed:0;
	field:sector_t sector;	offset:16;	size:8;	signed:0;
	field:unsigned int nr_sector;	offset:24;	size:4;	signed:0;
	field:unsigned int bytes;	offset:28;	size:4;	signed:0;
	field:unsigned short ioprio;	offset:32;	size:2;	signed:0;
	field:char rwbs[10];	offset:34;	size:10;	signed:0;
	field:char comm[16];	offset:44;	size:16;	signed:0;
	field:__data_loc char[] cmd;	offset:60;	size:4;	signed:0;

print fmt: "%d,%d %s %u (%s) %llu + %u %s,%u,%u [%s]", ((unsigned int) ((REC->dev) >> 20)), REC->rwbs, REC->comm
"""

COMPLETE_FORMAT = """\
name: block_rq_complete
ID: 2107
format:
	field:unsigned short common_type;	offset:0;	size:2;	signed:0;
	field:unsigned char common_flags;	offset:2;	size:1;	signed:0;
	field:unsigned char common_preempt_count;	offset:3;	size:1;	signed:0;
	field:int common_pid;	offset:4;	size:4;	signed:1;

	field:dev_t dev;	offset:8;	size:4;	signed:0;
	field:sector_t sector;	offset:16;	size:8;	signed:0;
	field:unsigned int nr_sector;	offset:24;	size:4;	signed:0;
	field:int error;	offset:28;	size:4;	signed:1;
	field:unsigned short ioprio;	offset:32;	size:2;	signed:0;
	field:char rwbs[10];	offset:34;	size:10;	signed:0;
	field:__data_loc char[] cmd;	offset:44;	size:4;	signed:0;

print fmt: "%d,%d %s (%s) %llu + %u %s,%u,%u [%d]", ((unsigned int) ((REC->dev) >> 20)), REC->rwbs, REC->error
"""

PAGE_HEADER = """\
	field: u64 timestamp;	offset:0;	size:8;	signed:0;
	field: local_t commit;	offset:8;	size:8;	signed:1;
	field: int overwrite;	offset:8;	size:1;	signed:1;
	field: char data;	offset:16;	size:4080;	signed:0;
"""

#: A record of the test: type, pid, sector, sectors, rwbs, comm, as `common_type` to `comm` of block_rq_issue.
RECORD = struct.Struct("<HBBi I4x q I I H10s 16s I")
FIELDS = EventFormat.parse(ISSUE_FORMAT).fields


@dataclass
class Page:
    """One page under construction; `now` is the time of the last entry."""

    now: int
    data: bytearray = field(default_factory=bytearray)
    flags: int = 0
    rest: bytes = b""

    def entry(self, type_len: int, delta: int, body: bytes) -> None:
        assert 0 <= delta < 1 << 27
        self.data += struct.pack("<I", delta << 5 | type_len) + body
        assert len(self.data) <= PAGE_BYTES - 16

    def long_time(self, type_len: int, value: int) -> None:
        self.entry(type_len, value & (1 << 27) - 1, struct.pack("<I", value >> 27))

    def event(self, t_ns: int, record: bytes, with_length_word: bool = False) -> None:
        """Add a record, preceded by an extension of the time where 27 bits do not hold the distance."""
        if t_ns - self.now >= 1 << 27:
            self.long_time(30, t_ns - self.now)
            self.now = t_ns
        padded = record + bytes(-len(record) % 4)
        if with_length_word or len(padded) > 28 * 4:
            self.entry(0, t_ns - self.now, struct.pack("<I", len(padded) + 4) + padded)
        else:
            self.entry(len(padded) // 4, t_ns - self.now, padded)
        self.now = t_ns

    def absolute(self, t_ns: int) -> None:
        self.long_time(31, t_ns & (1 << 59) - 1)
        self.now = t_ns

    def discarded(self, delta: int, size: int) -> None:
        """Add an entry that the kernel gave up: padding with a time, which the entries after it count on."""
        self.entry(29, delta, struct.pack("<I", size) + b"\xee" * (size - 4))
        self.now += delta

    def encoded(self, begin: int) -> bytes:
        page = struct.pack("<QQ", begin, len(self.data) | self.flags) + self.data + self.rest
        return page + b"\xa5" * (PAGE_BYTES - len(page))


def decoded(*pages: bytes) -> Events:
    return decode(np.frombuffer(b"".join(pages), np.uint8).reshape(-1, PAGE_BYTES))


def record(number: int = 2104, pid: int = 1, sector: int = 0, sectors: int = 8, rwbs: bytes = b"R") -> bytes:
    # What is left in the buffer after the terminator must not show.
    texts = (rwbs + b"\0GARBAGEXX")[:10], b"job\0\xff\xff\xff"
    return RECORD.pack(number, 0, 0, pid, 7 << 20, sector, sectors, 0, 0, *texts, 0)


def content(events: Events) -> list[tuple[object, ...]]:
    names = ("common_type", "common_pid", "sector", "nr_sector")
    columns = [events.t_ns, *(events.integer(FIELDS[name]) for name in names), events.text(FIELDS["rwbs"])]
    return list(zip(*(column.tolist() for column in columns), strict=True))


gaps = st.one_of(st.integers(0, 50), st.integers(0, (1 << 27) - 1), st.integers(1 << 27, 1 << 40))
#: The arguments of `record`.
written = st.tuples(
    st.sampled_from([2104, 2107, 65534]),
    st.integers(-1, 2**31 - 1),
    st.integers(-1, 2**62),
    st.integers(0, 2**31 - 1),
    st.sampled_from([b"R", b"WSM", b"FF", b"", b"DEADBEEF89"]),
)
step = st.tuples(
    gaps,
    written,
    st.booleans(),
    st.sampled_from(["", "", "", "absolute", "discarded", "extended"]),
)
layout = st.tuples(
    st.integers(1, 1 << 58), st.lists(step, max_size=30), st.sampled_from(["none", "padding"]), st.booleans()
)


@settings(deadline=None)
@given(st.lists(layout, min_size=1, max_size=4))
def test_decoding_returns_what_was_encoded(layouts: list[tuple[int, list[tuple], str, bool]]) -> None:
    pages, wanted, missed = [], [], 0
    for begin, steps, rest, missing in layouts:
        page = Page(begin, flags=MISSED if missing else 0)
        missed += missing
        for gap, values, with_length_word, before in steps:
            if before == "absolute":
                page.absolute(page.now + gap)
            elif before == "discarded":
                page.discarded(1 + gap % 1000, 16)
            elif before == "extended":
                page.long_time(30, gap)
                page.now += gap
            page.event(page.now + gap, record(*values), with_length_word)
            wanted.append((page.now, *values))
        if rest == "padding" and len(page.data) < PAGE_BYTES - 200:
            page.entry(29, 0, struct.pack("<I", 4))
            page.event(page.now, record())  # left there from an earlier use of the page
        pages.append(page.encoded(begin))
    found = decoded(*pages)
    assert content(found) == wanted
    assert found.missed == missed
    assert found.page.tolist() == sorted(found.page.tolist())


def test_a_full_page_up_to_its_last_byte() -> None:
    page = Page(1000)
    room = PAGE_BYTES - 16
    while len(page.data) + 8 + RECORD.size < room:
        page.event(page.now + 1, record(sector=page.now), with_length_word=True)
    page.discarded(1, room - len(page.data) - 4)
    assert len(page.data) == room
    found = decoded(page.encoded(1000), page.encoded(1000))
    assert len(found.t_ns) == 2 * (room // (8 + RECORD.size))
    assert found.integer(FIELDS["sector"]).tolist() == (found.t_ns - 1).tolist()


def test_an_empty_page_has_no_events_and_still_says_what_was_missed() -> None:
    found = decoded(Page(5, flags=MISSED).encoded(5), Page(6).encoded(6))
    assert content(found) == []
    assert found.missed == 1


def test_no_pages() -> None:
    found = decode(np.empty((0, PAGE_BYTES), np.uint8))
    assert (found.t_ns.size, found.missed) == (0, 0)


def test_the_count_of_missed_events_behind_the_data_is_no_data() -> None:
    page = Page(5, flags=MISSED | MISSED_COUNT_STORED, rest=struct.pack("<Q", 4242))
    page.event(9, record())
    found = decoded(page.encoded(5))
    assert (found.t_ns.tolist(), found.missed) == ([9], 1)


def test_an_absolute_time_keeps_the_top_bits_of_the_page() -> None:
    begin = (3 << 59) + 17
    page = Page(begin)
    page.absolute(begin + 1000)
    page.event(begin + 1001, record())
    assert decoded(page.encoded(begin)).t_ns.tolist() == [begin + 1001]


def test_choosing_events_keeps_their_fields_together() -> None:
    page = Page(0)
    for n in range(10):
        page.event(n, record(sector=100 + n, rwbs=b"W" if n % 2 else b"R"))
    found = decoded(page.encoded(0))
    chosen = found.take(found.text(FIELDS["rwbs"]) == b"W")
    assert chosen.integer(FIELDS["sector"]).tolist() == [101, 103, 105, 107, 109]
    assert chosen.t_ns.tolist() == [1, 3, 5, 7, 9]


def test_a_format_gives_number_and_fields() -> None:
    issue, complete = EventFormat.parse(ISSUE_FORMAT), EventFormat.parse(COMPLETE_FORMAT)
    assert (issue.number, complete.number) == (2104, 2107)
    assert issue.fields["common_type"] == (0, 2)
    assert issue.fields["common_pid"] == (4, 4)
    assert issue.fields["sector"] == complete.fields["sector"] == (16, 8)
    assert issue.fields["nr_sector"] == (24, 4)
    assert issue.fields["rwbs"] == complete.fields["rwbs"] == (34, 10)
    assert issue.fields["comm"] == (44, 16)
    assert complete.fields["error"] == (28, 4)
    assert set(issue.fields) - set(complete.fields) == {"bytes", "comm"}


def test_a_text_that_is_no_format_is_refused() -> None:
    with pytest.raises(ValueError, match="no ID line"):
        EventFormat.parse("name: block_rq_issue\n")


def test_the_page_header_of_this_layout_is_accepted() -> None:
    check_page_header(PAGE_HEADER)
    check_page_header(PAGE_HEADER.replace("size:4080", "size:65520"))  # 64 KiB pages


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(PAGE_HEADER.replace("size:8", "size:4", 1), id="short time"),
        pytest.param(
            PAGE_HEADER.replace("commit;\toffset:8;\tsize:8", "commit;\toffset:8;\tsize:4"), id="short commit"
        ),
        pytest.param(PAGE_HEADER.replace("offset:16", "offset:12"), id="data elsewhere"),
        pytest.param("\n".join(PAGE_HEADER.splitlines()[:3]), id="no data"),
        pytest.param("", id="empty"),
    ],
)
def test_another_page_header_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="in another way"):
        check_page_header(text)
