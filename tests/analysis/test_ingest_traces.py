"""Traces that others recorded become our requests: exactly, in order, and with everything that was skipped counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analysis.ingest import bite_size, blkparse, fio_log, kinds
from analysis.ingest.part import Part, Source
from analysis.ingest.request_file import RequestFile
from analysis.schema import operation, recorded_events

ANY_FOLDER = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)

#: Bytes read at a time: a line, some lines, the whole file.
blocks = st.sampled_from([1 << 6, 1 << 9, 1 << 22])
rows = st.lists(
    st.tuples(
        st.integers(0, 10**15),
        st.sampled_from(["R", "W", "RA", "WS", "FWFS", "D", "N", "FF"]),
        st.integers(0, (8 << 20) - 1),
        st.integers(0, 1 << 40),
    ),
    max_size=60,
)


def read(module: Any, content: bytes, folder: Path, block: int = 1 << 22) -> tuple[Part, list[dict[str, Any]]]:
    """Return the part and the rows that an importer makes of a file with this content."""
    path = folder / "trace.txt"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bite_size, "BLOCK_BYTES", block)
        part = module.read(Source(path, "trace.txt"), folder)
    return part, pq.read_table(folder / "requests.parquet").to_pylist()


def line(issue: int, rwbs: str, sectors: int, sector: int) -> bytes:
    """Return a line as bpftrace prints it: the bytes are an unsigned int printed with %d."""
    size = (sectors * 512) % (1 << 32)
    size -= (1 << 32) if size >= 1 << 31 else 0
    return b"%d, %s, %d, %d, %d\n" % (issue, rwbs.encode(), size, sector, sectors)


@ANY_FOLDER
@given(rows, blocks)
def test_lines_come_back_as_they_were_in_order(tmp_path: Path, made: list[Any], block: int) -> None:
    part, found = read(bite_size, b"Attaching 1 probe...\n" + b"".join(line(*row) for row in made), tmp_path, block)
    wanted = sorted(made, key=lambda row: row[0])
    assert [(row["issue_ns"], row["rwbs"], row["bytes"], row["sector"]) for row in found] == [
        (issue, rwbs, sectors * 512, sector) for issue, rwbs, sectors, sector in wanted
    ]
    assert all(row["op"] == operation(row["rwbs"]) and row["complete_ns"] is None for row in found)
    assert not part.skipped.counts
    assert part.lines == 1 + len(made)
    assert part.moved is not None
    assert part.moved["read"] == sum(row["bytes"] for row in found if row["op"] == "read")
    assert recorded_events(pq.read_schema(tmp_path / "requests.parquet")) == ("issue",)


@ANY_FOLDER
@given(
    rows.filter(bool), st.lists(st.tuples(st.integers(0, 10**9), st.integers(1, 5000)), min_size=1, max_size=5), blocks
)
def test_lost_events_are_counted_wherever_they_stand(
    tmp_path: Path, made: list[Any], lost: list[Any], block: int
) -> None:
    text = b"".join(line(*row) for row in made)
    for place, count in lost:
        at = place % (len(text) + 1)
        # bpftrace writes a message whole, so none stands in another
        if b"Lost" not in text[max(at - 20, 0) : at + 20]:
            text = text[:at] + b"Lost %d events\n" % count + text[at:]
    total = sum(int(found[1]) for found in bite_size._MESSAGE.finditer(text))
    part, found = read(bite_size, text, tmp_path, block)
    assert part.tracer is not None
    assert part.tracer["lost"] == total
    assert part.reasons == [f"{total:,} event{'s' if total > 1 else ''} lost by the tracer"]
    assert len(found) == len(made)
    assert not part.skipped.counts


@ANY_FOLDER
@given(st.binary(max_size=4000) | st.text('0123456789, RWx\n\r"-+Lost events', max_size=2000).map(str.encode), blocks)
def test_garbage_never_raises_and_every_line_is_a_row_or_counted(tmp_path: Path, content: bytes, block: int) -> None:
    part, found = read(bite_size, content, tmp_path, block)
    messages = len(bite_size._MESSAGE.findall(content))
    assert part.lines == messages + len(found) + sum(part.skipped.counts.values())
    for module in (blkparse, fio_log):
        part, _ = read_any(module, content, tmp_path)
        assert part.failures or part.tracer


def read_any(module: Any, content: bytes, folder: Path) -> tuple[Part, None]:
    path = folder / "trace.txt"
    path.write_bytes(content)
    kinds.kind_of(path)
    return module.read(Source(path, "trace.txt"), folder), None


@pytest.mark.parametrize(
    ("text", "reason", "first", "verdict"),
    [
        (b"1, R, 512, 8, 1\n2, R, 512, 8\n3, R, 512, 8, 1\n", bite_size._BROKEN, 2, True),
        (b"1, R, 512, 8, 1\n2, R, 1024, 8, 1\n", bite_size._BROKEN, 2, True),
        (b"1, R, 512, 8, 1\nWARNING: something\n", bite_size._TEXT, 2, False),
        (b"Lost 3 events\n1, R, 512, 8, 1\n\n", bite_size._TEXT, 3, True),
        (b"1, R, 512, 8, 1\n2, R, 51200, 8, 100", None, None, False),
        (b"1, R, 512, 8, 1\n2, R, 51200, 8, 1", bite_size._CUT, 2, False),
        (b"1, R, 512, 8, 1\n2, R, 5", bite_size._CUT, 2, False),
        (b"1, R, 512, 8, 1\n0x2, R, 512, 8, 1\n", bite_size._BROKEN, 2, True),
        (b"99999999999999999999, R, 512, 8, 1\n", bite_size._BROKEN, 1, True),
        (b"100, R, 512, 8, 1\n45\n3, R, 512, 8, 1\n", bite_size._BROKEN, 2, True),
    ],
)
def test_what_is_no_request_is_named_with_its_line(
    tmp_path: Path, text: bytes, reason: str | None, first: int | None, verdict: bool
) -> None:
    part, _ = read(bite_size, text, tmp_path)
    assert part.skipped.first == ({reason: f"trace.txt:{first}"} if reason else {})
    assert bool(part.reasons) == verdict


def test_bad_lines_in_a_long_file_are_named_by_their_line(tmp_path: Path) -> None:
    lines = [line(n, "R", 256, n) for n in range(20_000)]
    lines[7] = b"Lost 5 events\n"
    lines[12_345] = b"12345, R, broken\n"
    part, found = read(bite_size, b"".join(lines), tmp_path)
    assert part.skipped.first == {bite_size._BROKEN: "trace.txt:12346"}
    assert (part.lines, len(found)) == (20_000, 19_998)


@ANY_FOLDER
@given(st.lists(st.integers(0, 10**6), max_size=400), st.integers(1, 30), st.integers(1, 40))
def test_any_disorder_is_put_in_order(tmp_path: Path, times: list[int], held: int, group: int) -> None:
    path = tmp_path / "requests.parquet"
    with RequestFile(path, {}, ["issue"], ("issue_ns", "rwbs", "sector", "bytes"), held, group) as out:
        out.code("rwbs", "R")
        for begin in range(0, len(times), 17):
            issue = np.array(times[begin : begin + 17], np.int64)
            zeros = np.zeros(issue.size, np.int64)
            out.add({"issue_ns": issue, "rwbs": zeros, "sector": np.arange(begin, begin + issue.size), "bytes": zeros})
    found = pq.read_table(path)
    order = np.argsort(np.array(times, np.int64), kind="stable")
    assert found["issue_ns"].to_pylist() == sorted(times)
    assert found["sector"].to_pylist() == order.tolist()
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".sort")] == []


BLKPARSE = b"""\
  8,0    3        1     0.000000000   697  G   W 223490 + 8 [kjournald]
  8,0    3        2     0.000001829   697  P   N [kjournald]
  8,0    3        3     0.000002197   697  Q   W 223490 + 8 [kjournald]
  8,0    3        4     0.000005533   697  M   W 223498 + 8 [kjournald]
  8,0    3        5     0.000006001   697  I   W 223490 + 16 [kjournald]
  8,0    3       10     0.000009310   697  U   N [kjournald] 1
  8,0    3       11     0.000009507   697  D   W 223490 + 16 [kjournald]
  8,0    1       12     0.000010000   700  D   R 64 + 256 [some job]
  8,0    1       13     0.001000000     0  C   R 64 + 256 [0]
  8,0    3       14     0.002000000     0  C   W 223490 + 16 [0]
  8,0    3       15     0.003000000     0  C  FN 0 [0]
  8,0    3       16     0.003000001     0  C   R 9999 + 8 [0]
CPU3 (8,0):
 Reads Queued:           1,      128KiB\t Writes Queued:           2,        8KiB
Total (8,0):
 Reads Queued:           1,      128KiB\t Writes Queued:           2,        8KiB

Throughput (R/W): 40KiB/s / 2KiB/s
Events (8,0): 16 entries
Skips: 0 forward (0 -   0.0%)
"""


def test_blkparse_pairs_issues_with_completions(tmp_path: Path) -> None:
    part, found = read(blkparse, BLKPARSE, tmp_path)
    assert [(row["op"], row["sector"], row["bytes"], row["issue_ns"], row["complete_ns"]) for row in found] == [
        ("write", 223490, 8192, 9507, 2_000_000),
        ("read", 64, 131072, 10_000, 1_000_000),
    ]
    assert found[0]["insert_ns"] == 6001
    assert (found[1]["comm"], found[1]["pid"], found[1]["dev"]) == ("some job", 700, "8:0")
    assert part.tracer is not None
    assert (part.tracer["lost"], part.tracer["merges"], part.tracer["in_flight_at_begin"]) == (0, 1, 1)
    assert (part.reasons, part.failures) == ([], [])
    assert list(part.skipped.first.values()) == ["trace.txt:11"]


def test_what_blkparse_skipped_is_lost(tmp_path: Path) -> None:
    part, _ = read(blkparse, BLKPARSE.replace(b"Skips: 0 forward (0", b"Skips: 2 forward (31"), tmp_path)
    assert part.reasons == ["31 events lost by the tracer"]


@ANY_FOLDER
@given(st.lists(st.tuples(st.integers(1, 10**9), st.integers(1, 10**6), st.integers(0, 20)), max_size=60))
def test_blkparse_pairs_like_brute_force(tmp_path: Path, made: list[tuple[int, int, int]]) -> None:
    free: dict[int, int] = {}
    events, wanted, now = [], [], 0
    for wait, took, sector in made:
        now = max(now + wait, free.get(sector, 0))
        free[sector] = now + took + 1
        wanted.append((now, now + took, sector * 8))
        events += [(now, "D", sector), (now + took, "C", sector)]
    text = "".join(
        f"259,0 1 {n} {t // 10**9}.{t % 10**9:09d} 5 {kind} R {sector * 8} + 8 [{'job' if kind == 'D' else 0}]\n"
        for n, (t, kind, sector) in enumerate(sorted(events, key=lambda event: event[0]))
    )
    part, found = read(blkparse, text.encode(), tmp_path)
    assert sorted((row["issue_ns"], row["complete_ns"], row["sector"]) for row in found) == sorted(wanted)
    assert not part.reasons


def test_fio_latency_logs_are_requests_with_latency(tmp_path: Path) -> None:
    part, found = read(fio_log, b"1, 500000, 0, 4096, 8192, 0x0000\n3, 250000, 1, 131072, 0, 0x0000\n", tmp_path)
    assert [(row["op"], row["bytes"], row["sector"], row["complete_ns"] - row["issue_ns"]) for row in found] == [
        ("read", 4096, 16, 500_000),
        ("write", 131072, 0, 250_000),
    ]
    assert any("millisecond" in note for note in part.notes)


def test_fio_means_are_no_requests(tmp_path: Path) -> None:
    part, found = read(fio_log, b"1000, 500000, 0, 0, 0, 0x0000\n", tmp_path)
    assert (found, part.skipped.counts) == ([], {fio_log._MEAN: 1})
    assert part.failures


def test_an_iolog_has_issues_and_no_completions(tmp_path: Path) -> None:
    text = b"fio version 3 iolog\n0 /f add\n0 /f open\n5 /f read 4096 8192\n7 /f write 0 512\n9 /f close\n"
    part, found = read(fio_log, text, tmp_path)
    assert [(row["issue_ns"], row["op"], row["sector"], row["bytes"], row["complete_ns"]) for row in found] == [
        (5_000_000, "read", 8, 8192, None),
        (7_000_000, "write", 0, 512, None),
    ]
    assert not part.skipped.counts
