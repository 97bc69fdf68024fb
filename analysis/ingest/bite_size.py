"""Raw output of the study's `bio-bite-size.bt`: a line for each request issued, and no completions.

Its printf is `"%llu, %s, %d, %llu, %d\\n"` with nsecs, rwbs, bytes, sector and nr_sector at block_rq_issue. bpftrace
writes its own messages (the banner, `Lost 1234 events`) to the same file, whole, between any two pieces of the lines:
taken out, the pieces join again.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as csv

from analysis.ingest.part import BOOT, Part, Source
from analysis.ingest.request_file import Column, RequestFile, in_order
from analysis.trace import Array
from analysis.units import SECTOR_BYTES, count_text

KIND = "bite_size"
ABOUT = "output of bio-bite-size.bt (nsecs, rwbs, bytes, sector, nr_sector)"

#: Text read and parsed at a time; two pieces are parsed while one is written.
BLOCK_BYTES = 8 << 20
_AHEAD = 3
#: How far back from the end of a block a whole line is looked for.
_REACH = 1 << 16

_NAMES = ("issue_ns", "rwbs", "bytes", "sector", "nr_sector")
_WORD = re.compile(rb"[A-Z]{1,8}")
_LINE = re.compile(rb"\s*(\d+)\s*,\s*([A-Z]{1,8})\s*,\s*(-?\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*")
_MESSAGE = re.compile(rb"Lost (\d+) events\r?\n|Attaching \d+ probes?\.\.\.\r?\n")
#: A line that has this may be a request, or a piece of one.
_PIECE = re.compile(rb"\d\s*,|,\s*-?\d|^\s*\d+\s*$")
#: The kernel's number of a sector where there is none.
_NO_SECTOR = (1 << 64) - 1
_MOST = (1 << 63) - 1

_BROKEN = "a line that is broken or has values no request can have"
_TEXT = "a line of other text"
_CUT = "the last line, which the file's end cuts off"


@dataclass
class _Met:
    """How often something was met in a piece, and the line and byte in it where it was first."""

    count: int
    line: int
    at: int


@dataclass
class _Block:
    """What a piece of the file holds; the words of `rwbs` are its own, `skipped` tells by reason what is no request."""

    columns: dict[str, Column]
    words: list[str]
    lines: int = 0
    size: int = 0
    lost: int = 0
    skipped: dict[str, _Met] = field(default_factory=dict)


def recognises(head: bytes) -> bool:
    """Say whether a file that has `head` at its beginning or end is such an output."""
    lines = head.splitlines()
    return any(_LINE.fullmatch(line) for line in (*lines[:200], *lines[-200:])) or bool(_MESSAGE.match(head))


def read(source: Source, folder: Path) -> Part:
    """Write the trace to `requests.parquet` in `folder` and return what else the file tells."""
    part = Part(source, KIND, clock=BOOT)
    lost = 0
    provenance = {"importer": KIND, "file": source.name}
    with RequestFile(
        folder / "requests.parquet", provenance, ["issue"], ("issue_ns", "rwbs", "sector", "bytes")
    ) as out:
        for block in _parsed(source.path):
            lost += block.lost
            for reason, met in block.skipped.items():
                part.skipped.add(reason, source.name, part.lines + met.line, met.count)
            part.lines += block.lines
            codes = np.array([out.code("rwbs", word) for word in block.words] or [0], np.int32)
            out.add(block.columns | {"rwbs": codes[block.columns["rwbs"]]})
    _describe(part, out, lost)
    return part


def _describe(part: Part, out: RequestFile, lost: int) -> None:
    broken = part.skipped.counts[_BROKEN]
    part.tracer = {
        "name": "bio-bite-size.bt",
        "requests": out.rows,
        "lost": lost,
        "malformed": broken,
        "begin_ns": out.begin_ns,
        "end_ns": out.end_ns,
        "out_of_order": out.late,
    }
    part.moved = out.moved
    if lost:
        part.reasons.append(f"{count_text(lost, 'event')} lost by the tracer")
    if broken:
        part.reasons.append(
            f"{count_text(broken, 'line')} of the trace could not be read ({part.skipped.first[_BROKEN]})"
        )
    if not out.rows:
        part.failures.append(f"{part.source.name} holds no request")
    part.notes.append(
        "the tracer recorded when requests were issued, not when they completed: no latency, no queue depth"
    )


def _parsed(path: Path) -> Iterator[_Block]:
    """Yield the blocks of the file in order, read and parsed ahead in threads."""
    waiting: deque[Future[_Block]] = deque()
    with path.open("rb", buffering=0) as file, ThreadPoolExecutor(2) as pool:
        for begin, end, last in _blocks(file.fileno()):
            waiting.append(pool.submit(_read_block, file.fileno(), begin, end, last))
            if len(waiting) >= _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _read_block(fd: int, begin: int, end: int, last: bool) -> _Block:
    parsed = _parse(_bytes(fd, begin, end), last)
    parsed.columns = in_order(parsed.columns)
    return parsed


def _blocks(fd: int) -> Iterator[tuple[int, int, bool]]:
    """Yield begin and end of pieces of the file that end where a line does, and whether it is the last one."""
    size, begin = os.fstat(fd).st_size, 0
    while begin + BLOCK_BYTES < size:
        end = _cut(fd, begin, size)
        yield begin, end, False
        begin = end
    yield begin, size, True


def _cut(fd: int, begin: int, size: int) -> int:
    """Return where the piece that begins at `begin` may end: after a request, or any line where there is none."""
    start, end, tail = begin, begin, b""
    for reach in (BLOCK_BYTES, BLOCK_BYTES + _REACH):
        end = min(begin + reach, size)
        start = max(end - _REACH, begin)
        tail = _bytes(fd, start, end)
        if found := _line_end(tail):
            return start + found
    line = tail.rfind(b"\n") + 1
    return start + line if line else end


def _bytes(fd: int, begin: int, end: int) -> bytes:
    """Return a piece of the file; os.pread returns at most 2 GiB, which no piece is."""
    parts = []
    while begin < end and (part := os.pread(fd, end - begin, begin)):
        parts.append(part)
        begin += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _line_end(text: bytes) -> int:
    """Return where a text may be cut: after a whole request, which no message of bpftrace stands in; 0: nowhere."""
    end = text.rfind(b"\n") + 1
    least = max(end - _REACH, 0)
    while end > least:
        begin = text.rfind(b"\n", 0, end - 1) + 1
        if begin and _LINE.fullmatch(text, begin, end):
            return end
        end = begin
    return 0


def _parse(block: bytes, last: bool) -> _Block:
    """Return what a piece of the file holds: line by line only where something else than requests stands in it."""
    text, messages, lost = _without_messages(block)
    parts, begin, lines = [], 0, 0
    skipped: dict[str, _Met] = {}
    for piece in _read_pieces(text, last):
        for reason, met in piece.skipped.items():
            line = lines + met.line + bisect_right(messages, begin + met.at)
            skipped.setdefault(reason, _Met(0, line, 0)).count += met.count
        begin, lines = begin + piece.size, lines + piece.lines
        parts.append(piece)
    whole = _joined(parts)
    whole.lines, whole.lost, whole.skipped = lines + len(messages), lost, skipped
    return whole


def _without_messages(block: bytes) -> tuple[bytes, list[int], int]:
    """Return the block without bpftrace's messages, where in what is left each of them stood, and the events lost."""
    if b"o" not in block:  # both messages have it, no request does; one byte is found fast
        return block, [], 0
    lost, places, parts, end, removed = 0, [], [], 0, 0
    for found in _MESSAGE.finditer(block):
        lost += int(found[1] or 0)
        parts.append(block[end : found.start()])
        places.append(found.start() - removed)
        end, removed = found.end(), removed + len(found[0])
    return b"".join([*parts, block[end:]]), places, lost


def _read_pieces(text: bytes, last: bool) -> Iterator[_Block]:
    """Yield what the text holds, cut into smaller pieces as long as they hold anything but requests."""
    found = _fast(text) if text.endswith(b"\n") else None
    half = text[: len(text) // 2] if found is None and len(text) > _REACH else b""
    middle = _line_end(half) or half.rfind(b"\n") + 1
    if not middle:
        yield found or _slow(text, last)
        return
    yield from _read_pieces(text[:middle], False)
    yield from _read_pieces(text[middle:], last)


def _joined(parts: Sequence[_Block]) -> _Block:
    if len(parts) == 1:
        return parts[0]
    words: dict[str, int] = {}
    for part in parts:
        codes = np.array([words.setdefault(word, len(words)) for word in part.words] or [0], np.int32)
        part.columns["rwbs"] = codes[part.columns["rwbs"]]
    columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns}
    return _Block(columns, list(words))


def _fast(block: bytes) -> _Block | None:
    """Return the rows of a block of nothing but requests; None where anything else stands in it."""
    if not block.isascii() or b"x" in block or b"X" in block:  # Arrow reads hexadecimal numbers too
        return None
    odd: list[object] = []

    def seen(row: object) -> str:
        odd.append(row)
        return "skip"

    types = dict.fromkeys(_NAMES, pa.int64()) | {"rwbs": pa.dictionary(pa.int32(), pa.string())}
    try:
        table = csv.read_csv(
            pa.py_buffer(block),
            csv.ReadOptions(column_names=_NAMES, use_threads=False, block_size=len(block) + 1),
            csv.ParseOptions(quote_char=False, ignore_empty_lines=False, invalid_row_handler=seen),
            csv.ConvertOptions(column_types=types, null_values=[""]),
        )
    except pa.ArrowInvalid:
        return None
    if odd or any(column.null_count for column in table.columns):
        return None
    return _checked(table, len(block))


def _checked(table: pa.Table, size: int) -> _Block | None:
    rwbs = table["rwbs"].combine_chunks()
    words = [str(word).strip(" \t") for word in rwbs.dictionary.to_pylist()]
    numbers = {name: table[name].to_numpy() for name in _NAMES if name != "rwbs"}
    if not all(_WORD.fullmatch(word.encode()) for word in words) or not _plausible(**numbers).all():
        return None
    return _block(numbers, rwbs.indices.to_numpy(), words, table.num_rows, size)


def _plausible(issue_ns: Array, bytes: Array, sector: Array, nr_sector: Array) -> npt.NDArray[np.bool_]:
    """Say which rows a kernel can have made: its bytes are the sectors it tells, unless it tells none."""
    moved = (bytes & 0xFFFFFFFF) // SECTOR_BYTES  # %d of an unsigned int: a discard of 2 GiB and more is negative
    told = (issue_ns >= 0) & (sector >= 0) & (nr_sector >= 0) & (nr_sector <= 1 << 32)
    return np.asarray(told & ((moved == nr_sector) | (nr_sector == 0)))


def _block(numbers: dict[str, Column], codes: Column, words: list[str], lines: int, size: int) -> _Block:
    moved = numbers["nr_sector"] * SECTOR_BYTES
    columns = {"issue_ns": numbers["issue_ns"], "rwbs": codes, "sector": numbers["sector"], "bytes": moved}
    return _Block(columns, words, lines, size)


def _slow(text: bytes, last: bool) -> _Block:
    """Return the rows of a text line by line."""
    whole = text.endswith((b"\n", b"\r"))
    rows: list[tuple[int, bytes, int, int, int]] = []
    skipped: dict[str, _Met] = {}
    at, before = 0, False
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        cut = last and not whole and number == len(lines)
        row = _row(line, cut)
        if row is not None and before and rows and len(str(row[0])) < len(str(rows[-1][0])):
            row = None  # the rest of the line before, which something broke
        if row is None:
            reason = _CUT if cut else _BROKEN if _PIECE.search(line) else _TEXT
            skipped.setdefault(reason, _Met(0, number, at)).count += 1
        else:
            rows.append(row)
        before, at = row is None, at + len(line)
    made = _made(rows, len(lines), len(text))
    made.skipped = skipped
    return made


def _row(line: bytes, cut: bool) -> tuple[int, bytes, int, int, int] | None:
    found = _LINE.fullmatch(line)
    if found is None:
        return None
    issue, moved, sector, sectors = (int(found[place]) for place in (1, 3, 4, 5))
    sector = 0 if sector == _NO_SECTOR else sector
    if issue > _MOST or sector > _MOST or sectors > 1 << 32:
        return None
    if sectors and (moved & 0xFFFFFFFF) // SECTOR_BYTES != sectors:
        return None
    # without an end the last number may have lost digits; what agrees with the bytes has not
    return None if cut and not (sectors or found[5] == b"0" == found[3]) else (issue, found[2], moved, sector, sectors)


def _made(rows: list[tuple[int, bytes, int, int, int]], lines: int, size: int) -> _Block:
    words: dict[bytes, int] = {}
    codes = np.array([words.setdefault(row[1], len(words)) for row in rows], np.int32)
    places = {"issue_ns": 0, "sector": 3, "nr_sector": 4}
    numbers = {name: np.array([row[place] for row in rows], np.int64) for name, place in places.items()}
    return _block(numbers, codes, [word.decode() for word in words], lines, size)
