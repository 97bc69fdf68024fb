"""Decoding of the kernel's trace pages, from pages that an encoder of the test's own built byte by byte."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.tracers.ring_buffer import EventFormat, Events, check_page_header, decode, texts
from tests.trace_pages import (
    COMPLETE_FORMAT,
    ISSUE_FORMAT,
    MISSED,
    MISSED_COUNT_STORED,
    PAGE_BYTES,
    PAGE_HEADER,
    RECORD,
    Page,
    record,
)

LAYOUT = EventFormat.parse(ISSUE_FORMAT).layout(["common_type", "common_pid", "sector", "nr_sector", "rwbs", "comm"])


def decoded(*pages: bytes) -> Events:
    return decode(np.frombuffer(b"".join(pages), np.uint8), np.arange(len(pages)) * PAGE_BYTES)


def content(events: Events) -> list[tuple[object, ...]]:
    records = events.records(LAYOUT, np.ones(len(events.t_ns), bool))
    words, codes = texts(records["rwbs"])
    columns = [events.t_ns, events.numbers(), *(records[name] for name in ("common_pid", "sector", "nr_sector")), codes]
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [(*numbers, words[code].encode()) for *numbers, code in rows]


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
    assert found.word.tolist() == sorted(found.word.tolist())


def test_a_full_page_up_to_its_last_byte() -> None:
    page = Page(1000)
    room = PAGE_BYTES - 16
    while len(page.data) + 8 + RECORD.size < room:
        page.event(page.now + 1, record(sector=page.now), with_length_word=True)
    page.discarded(1, room - len(page.data) - 4)
    assert len(page.data) == room
    found = decoded(page.encoded(1000), page.encoded(1000))
    assert len(found.t_ns) == 2 * (room // (8 + RECORD.size))
    records = found.records(LAYOUT, np.ones(len(found.t_ns), bool))
    assert records["sector"].tolist() == (found.t_ns - 1).tolist()


def test_an_empty_page_has_no_events_and_still_says_what_was_missed() -> None:
    found = decoded(Page(5, flags=MISSED).encoded(5), Page(6).encoded(6))
    assert content(found) == []
    assert found.missed == 1


def test_no_pages() -> None:
    found = decode(np.empty(0, np.uint8), np.empty(0, np.int64))
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


def test_the_records_of_one_kind_among_others() -> None:
    page = Page(0)
    for n in range(10):
        page.event(n, record(number=2107 if n % 2 else 2104, sector=100 + n, rwbs=b"W" if n % 2 else b"R"))
    found = decoded(page.encoded(0))
    chosen = found.records(LAYOUT, found.numbers() == 2107)
    assert chosen["sector"].tolist() == [101, 103, 105, 107, 109]
    assert texts(chosen["rwbs"])[0] == ["W"]


@given(st.lists(st.tuples(st.sampled_from([b"R", b"WSM", b"", b"DEADBEEF89"]), st.binary(min_size=10, max_size=10))))
def test_texts_end_at_their_first_nul(pieces: list[tuple[bytes, bytes]]) -> None:
    raw = np.array([(text + b"\0" + rest)[:10] for text, rest in pieces], "V10").view("S10")
    words, codes = texts(raw)
    assert [words[code].encode() for code in codes] == [text for text, _ in pieces]
    assert len(set(words)) == len(words)


def test_a_format_gives_number_and_fields() -> None:
    issue, complete = EventFormat.parse(ISSUE_FORMAT), EventFormat.parse(COMPLETE_FORMAT)
    assert (issue.number, complete.number) == (2104, 2107)
    assert issue.fields["common_type"] == ("<i2", 0)
    assert issue.fields["common_pid"] == ("<i4", 4)
    assert issue.fields["sector"] == complete.fields["sector"] == ("<i8", 16)
    assert issue.fields["nr_sector"] == ("<i4", 24)
    assert issue.fields["rwbs"] == complete.fields["rwbs"] == ("S10", 34)
    assert issue.fields["comm"] == ("S16", 44)
    assert complete.fields["error"] == ("<i4", 28)
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
