"""Sizes as people write them, and as messages show them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.units import format_bytes, parse_bytes

FACTORS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (1, 1),
        ("4096", 4096),
        ("64MiB", 64 << 20),
        ("64 mib", 64 << 20),
        (" 2 GiB ", 2 << 30),
        ("1.5KiB", 1536),
        ("0.5TiB", 1 << 39),
        ("7b", 7),
        (2**63 - 1, 2**63 - 1),
    ],
)
def test_sizes(text: int | str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "MiB",
        "64 parsecs",
        "64MB",
        "64M",
        "-1",
        "+1",
        "1e9",
        "0x10",
        "1,5GiB",
        "1 2",
        "nan",
        "inf",
        "None",
        "½",
    ],
)
def test_what_is_no_size_is_refused_with_the_way_to_write_one(text: str) -> None:
    with pytest.raises(ValueError, match=rf"^{re.escape(repr(text))} is not a size; write .* such as 64MiB$"):
        parse_bytes(text)


@pytest.mark.parametrize(
    "text", [0, "0", "0MiB", "1.5B", "1.5", "0.3KiB", 2**63, "9" * 400, "9" * 400 + ".0", "9999999TiB"]
)
def test_sizes_that_nothing_can_have_are_refused(text: int | str) -> None:
    with pytest.raises(ValueError, match="not a whole number of bytes above zero"):
        parse_bytes(text)


@given(st.integers(1, 2**20), st.sampled_from(sorted(FACTORS)))
def test_whole_sizes_are_exact_and_come_back_as_written(number: int, unit: str) -> None:
    size = number * FACTORS[unit]
    assert parse_bytes(f"{number}{unit}") == parse_bytes(size) == size
    if size % 1024 == 0 and "." not in format_bytes(size):
        assert parse_bytes(format_bytes(size)) == size


@given(st.integers(0, 2**63))
def test_a_shown_size_is_within_its_last_digit(size: int) -> None:
    number, unit = format_bytes(size).split(" ")
    assert abs(float(number) * FACTORS[unit] - size) <= 0.0051 * FACTORS[unit]
    assert float(number) >= 1 or unit == "B"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.50 KiB"),
        (1 << 30, "1 GiB"),
        (-2048, "-2 KiB"),
    ],
)
def test_shown_sizes(size: int, text: str) -> None:
    assert format_bytes(size) == text
