"""Reading what `bpftrace/requests.bt` prints: every line is a request, counted as a fault, or known to be neither."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis import schema
from tasks.device import Device, Devices
from tasks.lease import Lease
from tasks.spec import Trace
from tasks.tracers import Capture, Window, bpftrace

WINDOW = Window(100, 200)
NO_FAULTS = {"lost": 0, "unmatched": 0, "overtaken": 0, "malformed": 0, "errors": 0}
START = b"Attaching 6 probes...\nB\t50\n"


def request(
    issue: int = 110, complete: int = 120, rwbs: bytes = b"RS", sector: int = 64, sectors: int = 8, comm: bytes = b"job"
) -> bytes:
    return b"R\t%d\t%d\t%s\t%d\t%d\t0\t7\t%s" % (issue, complete, rwbs, sector, sectors, comm)


@pytest.fixture
def tracer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bpftrace.Tracer:
    """The tracer, on a machine whose bpftrace knows its version and no more."""
    program = tmp_path / "bin" / "bpftrace"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho bpftrace v0.17.0\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setenv("OFFLOAD_SWEEP_STATE", str(tmp_path / "state"))
    return bpftrace.Tracer(Trace(), Devices((Device("loop9", "7:9"),)), Lease.take("token"), {})


def written(tracer: bpftrace.Tracer, printed: bytes, errors: bytes = b"") -> tuple[Capture, list[dict]]:
    """Return what the tracer makes of its output and its log, and the rows of the file."""
    (script,) = tracer._scripts
    script._output.write_bytes(printed)
    script._log.write_bytes(errors)
    path = script._output.with_name("requests.parquet")
    capture = tracer.write(WINDOW, path)
    table = pq.read_table(path)
    assert schema.recorded_events(table.schema) == ("issue", "completion")
    rows = table.to_pylist()
    assert capture.requests == len(rows)
    assert capture.bytes is not None
    for op in ("read", "write", "discard"):
        assert capture.bytes[op] == sum(row["bytes"] for row in rows if row["op"] == op)
    return capture, rows


def faults(tracer: bpftrace.Tracer, line: bytes) -> dict[str, int]:
    """Return the faults that are counted for one line between two good ones."""
    capture, rows = written(tracer, START + request() + b"\n" + line + b"\n" + request() + b"\n\n\n")
    assert len(rows) == 2
    return {name: n for name, n in capture.faults.items() if n}


def test_a_request_with_all_its_fields(tracer: bpftrace.Tracer) -> None:
    capture, rows = written(tracer, START + b"R\t110\t120\tWSM\t64\t8\t-5\t7\tkworker/0:1\n\n\n")
    assert rows == [
        {
            "issue_ns": 110,
            "complete_ns": 120,
            "insert_ns": None,
            "op": "write",
            "rwbs": "WSM",
            "sector": 64,
            "bytes": 4096,
            "error": -5,
            "dev": "7:9",
            "comm": "kworker/0:1",
            "pid": 7,
        }
    ]
    assert capture.bytes == {"read": 0, "write": 4096, "discard": 0}
    assert capture.faults == {**NO_FAULTS, "errors": 1}


def test_requests_come_out_by_issue_time(tracer: bpftrace.Tracer) -> None:
    lines = [request(130, 140), request(110, 150, b"WS"), request(120, 160, b"DS", 0, 1 << 23)]
    capture, rows = written(tracer, b"\n".join(lines))
    assert [row["issue_ns"] for row in rows] == [110, 120, 130]
    assert capture.bytes == {"read": 4096, "write": 4096, "discard": 4 << 30}


def test_a_flush_has_no_bytes_and_no_name(tracer: bpftrace.Tracer) -> None:
    capture, rows = written(tracer, b"R\t110\t120\tFF\t0\t0\t0\t0\t\n")
    assert [(row["op"], row["bytes"], row["comm"]) for row in rows] == [("flush", 0, "")]
    assert capture.faults == NO_FAULTS


@pytest.mark.parametrize(
    ("issue", "complete", "kept"),
    [(50, 60, 0), (50, 100, 0), (50, 101, 1), (199, 300, 1), (200, 300, 0), (10, 500, 1)],
)
def test_a_request_belongs_to_the_window_it_overlaps(
    tracer: bpftrace.Tracer, issue: int, complete: int, kept: int
) -> None:
    capture, rows = written(tracer, request(issue, complete) + b"\n")
    assert len(rows) == kept
    assert capture.faults == NO_FAULTS


def test_no_output_at_all(tracer: bpftrace.Tracer) -> None:
    nothing = {"read": 0, "write": 0, "discard": 0}
    assert written(tracer, b"") == (Capture(0, nothing, nothing, faults=NO_FAULTS), [])


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b"Lost 12 events", {"lost": 12}),
        (b"[2026] lost 3 events on cpu 1", {"lost": 3}),
        (b"O\t150\tWS\t64\t8", {"overtaken": 1}),
        (b"O\t99\tWS\t64\t8", {}),
        (b"O\t201\tWS\t64\t8", {}),
        (b"U\t150\tRS\t64\t8", {"unmatched": 1}),
        (b"U\t100\tRS\t64\t8", {}),
        (b"U\t200\tRS\t64\t8", {}),
        (b"@issued[64]: (150, 7, job)", {"unmatched": 1}),
        (b"@issued[64]: (150, 7, kworker/u4:1)", {"unmatched": 1}),
        (b"@issued[64]: (150, 7, a, b) c: (1, 2, d)", {"unmatched": 1}),
        (b"@issued[-8]: (150, 7, job)", {"unmatched": 1}),
        (b"@issued[-8]: (99, 7, job)", {}),
        (b"@issued[64]: (99, 7, job)", {}),
        (b"@issued[64]: (99, 7, kworker/u4:150)", {}),
        (b"@issued[64]: (201, 7, job)", {}),
        (b"@issued[64]: (15", {"unmatched": 1}),
        (b"U", {"malformed": 1}),
        (b"O\t", {"overtaken": 1}),
        (b"U\tx\tRS", {"unmatched": 1}),
        (b"R", {"malformed": 1}),
        (b"R\t", {"malformed": 1}),
        (b"R\t110\t120\tRS\t64", {"malformed": 1}),
        (b"R\t110\t120\tRS\t64\t8\t0\t7\tjob\textra", {"malformed": 1}),
        (b"R\t110\tR\t110\t120\tRS\t64\t8\t0\t7\tjob", {"malformed": 1}),
        (b"R\t\t120\tRS\t64\t8\t0\t7\tjob", {"malformed": 1}),
        (b"R\t110\t120\tRS\t64\t\t0\t7\tjob", {"malformed": 1}),
        (b"R\t110\t12x\tRS\t64\t8\t0\t7\tjob", {"malformed": 1}),
        (b"R\t110\t120\tRS\tNULL\t8\t0\t7\tjob", {"malformed": 1}),
        (b"R\t110\t120\tRS\t64\t8\t0\t99999999999\tjob", {"malformed": 1}),
        (b"0\t120\tRS\t64\t8\t0\t7\tjob", {"malformed": 1}),
        (b"WARNING: something new", {"malformed": 1}),
        (b"\xff\xfe", {"malformed": 1}),
        (b"Attaching 6 probes...", {}),
        (b"", {}),
    ],
)
def test_other_lines_are_counted_for_what_they_are(tracer: bpftrace.Tracer, line: bytes, found: dict[str, int]) -> None:
    assert faults(tracer, line) == found


def test_losses_are_found_in_both_streams(tracer: bpftrace.Tracer) -> None:
    errors = b"Lost 5 events\nsomething else\nLost 70 events\n"
    capture, _ = written(tracer, b"Lost 1000 events\n" + request() + b"\nLost 200 events", errors)
    assert capture.faults == {**NO_FAULTS, "lost": 1275}


@pytest.mark.parametrize(
    "comm",
    [
        b"a b",
        b'"quoted"',
        b'"',
        b"a,b,c",
        b"'",
        b"Lost 3 events",
        b"R",
        b"@issued[1]: 5",
        b"\\t",
        b"NULL",
        b"nan",
        b" x ",
    ],
)
def test_any_name_of_a_process_is_kept(tracer: bpftrace.Tracer, comm: bytes) -> None:
    capture, rows = written(tracer, request(comm=comm) + b"\n" + request(comm=b"job") + b"\n")
    assert [row["comm"] for row in rows] == [comm.decode(), "job"]
    assert capture.faults == NO_FAULTS


def test_a_name_that_is_no_text_loses_its_strange_bytes_only(tracer: bpftrace.Tracer) -> None:
    capture, rows = written(tracer, request(comm=b"caf\xe9!") + b"\n")
    assert [row["comm"] for row in rows] == ["caf\ufffd!"]
    assert capture.faults == NO_FAULTS


@pytest.mark.parametrize("block_bytes", [1, 7, 64, 100, 4096])
def test_the_pieces_it_is_read_in_do_not_matter(
    tracer: bpftrace.Tracer, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    lines = [START.rstrip(), *(request(100 + n, 150 + n, sector=n) for n in range(40)), b"Lost 3 events"]
    monkeypatch.setattr(bpftrace, "_BLOCK_BYTES", block_bytes)
    capture, rows = written(tracer, b"\n".join(lines))
    assert [row["sector"] for row in rows] == list(range(40))
    assert capture.faults == {**NO_FAULTS, "lost": 3}


@given(st.integers(0, 200))
def test_a_line_torn_anywhere_is_malformed_unless_only_the_name_is_shorter(cut: int) -> None:
    line = request(comm=b"some-name")
    torn = line[:cut]
    counts = dict(NO_FAULTS)
    table = bpftrace._parse(b"\n".join([request(), torn, request()]), counts, WINDOW)
    readable = torn.count(b"\t") == 8
    assert table.num_rows == 2 + readable
    assert counts == {**NO_FAULTS, "malformed": int(bool(torn) and not readable)}
