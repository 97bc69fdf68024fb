"""`python -m analysis.replay`: what the exported files hold, and what is refused."""

from __future__ import annotations

import csv
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import AnalysisError, load_run, load_trial, trace
from analysis.replay import fio, table
from analysis.replay.__main__ import main
from analysis.replay.source import CHUNK_BYTES, Source, survey
from tests.analysis.made_run import (
    BEGIN_NS,
    MIB,
    make_run,
    phase_row,
    request_row,
    write_phases,
    write_record,
    write_requests,
)

US = 1000


def made_trial(folder: Path, rows: list[dict[str, Any]], recorded: tuple[str, ...] = ("issue", "completion")) -> Path:
    """Write a trial of these requests, with its begin at BEGIN_NS and a UTC clock that is 7 s ahead of it."""
    clock = {"monotonic_to_utc_offset_ns": 7_000_000_000}
    window = {"name": "made", "begin_ns": BEGIN_NS, "end_ns": BEGIN_NS + 60_000_000_000}
    write_record(folder, clock=clock, tracer=window, node={"hostname": "bench, 01"})
    write_requests(folder / "requests.parquet", rows, recorded)
    return folder


def row(at_us: int, op: str, size: int, offset: int = 0, took_us: int | None = 100, **changes: Any) -> dict[str, Any]:
    issue = BEGIN_NS + at_us * US
    complete = None if took_us is None else issue + took_us * US
    return request_row(issue, complete, op, size, offset // 512) | changes


def actions(iolog: Path) -> list[list[str]]:
    """Return the words of each line that is an action of I/O or a wait, its target left out."""
    lines = [line.split(" ") for line in iolog.read_text().splitlines()[1:]]
    return [words[1:] for words in lines if words[-1].isdigit()]


def moves(iolog: Path) -> list[list[str]]:
    """Return the actions that are no wait."""
    return [words for words in actions(iolog) if words[0] != "wait"]


ROWS = [
    row(10, "write", 4096, 8192),
    row(30, "flush", 0),
    row(31, "read", 512, 1536, took_us=500),
    row(40, "discard", MIB, 0),
    row(45, "write", 0, 0),
    row(90, "read", 131072, 10 * MIB, took_us=1),
]


def test_a_time_faithful_iolog_keeps_order_places_sizes_and_milliseconds(tmp_path: Path) -> None:
    trial = made_trial(tmp_path / "t", [*ROWS, row(2009, "write", 512, 512), row(4010, "read", 512, 1024)])
    job, iolog = fio.export(Source.of(load_trial(trial)), tmp_path)
    assert iolog.read_text().splitlines()[0] == "fio version 2 iolog"
    assert actions(iolog) == [
        ["wait", "1000", "0"],
        ["write", "8192", "4096"],
        ["sync", "0", "0"],
        ["read", "1536", "512"],
        ["read", str(10 * MIB), "131072"],
        ["wait", "1001", "0"],
        ["write", "512", "512"],
        ["wait", "1004", "0"],
        ["read", "1024", "512"],
    ]
    text = job.read_text()
    assert "iodepth=3\n" in text
    assert "bs=131072\n" in text
    assert "at least 10,616,832 bytes" in text
    assert "blocks of at most 512 bytes" in text
    assert "Left out: 1 discard of 1,048,576 bytes; 1 request without data." in text
    assert "OVERWRITES THE TARGET" in text


def test_as_fast_as_possible_is_an_iolog_without_waits(tmp_path: Path) -> None:
    trial = made_trial(tmp_path / "t", ROWS)
    assert main([str(trial), "--timing", "fast", "--iodepth", "7", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "replay.iolog").read_text().splitlines()[0] == "fio version 2 iolog"
    assert [words[0] for words in actions(tmp_path / "replay.iolog")] == ["write", "sync", "read", "read"]
    assert "iodepth=7\n" in (tmp_path / "replay.fio").read_text()


def test_reads_alone_are_told_to_be_harmless_and_to_need_written_blocks(tmp_path: Path) -> None:
    job, _ = fio.export(Source.of(load_trial(made_trial(tmp_path / "t", [row(1, "read", 4096)]))), tmp_path)
    assert "It only reads." in job.read_text()
    assert "write the target in full" in job.read_text()
    assert "OVERWRITES" not in job.read_text()


@settings(max_examples=100, deadline=None)
@given(gaps=st.lists(st.integers(0, 5_000), min_size=1, max_size=80), batch=st.integers(1, 50))
def test_every_request_comes_in_its_millisecond(
    tmp_path_factory: pytest.TempPathFactory, gaps: list[int], batch: int
) -> None:
    at = list(itertools.accumulate(gaps))
    folder = tmp_path_factory.mktemp("t")
    trial = made_trial(folder, [row(time, "read", 512, 512 * place) for place, time in enumerate(at)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "BATCH_ROWS", batch)
        _, iolog = fio.export(Source.of(load_trial(trial)), folder)
    now, found = None, []
    for action, offset, _ in actions(iolog):
        if action == "wait":
            assert now is None or int(offset) > now
            now = int(offset)
        else:
            found.append((int(offset) // 512, now))
    assert found == [(place, 1000 + (time - at[0]) // 1000) for place, time in enumerate(at)]


PLACES = st.lists(
    st.tuples(
        st.integers(0, 200),
        st.sampled_from(["read", "write", "flush"]),
        st.integers(1, 5000),
        st.integers(0, 40_000_000),
        st.integers(0, 300),
    ),
    min_size=1,
    max_size=60,
)


def requests_of(places: list[tuple[int, str, int, int, int]]) -> list[dict[str, Any]]:
    at, rows = 0, []
    for gap, op, sectors, sector, took in places:
        at += gap
        rows.append(row(at, op, 0 if op == "flush" else sectors * 512, sector * 512, took))
    return rows


@settings(max_examples=100, deadline=None)
@given(places=PLACES, batch=st.integers(1, 30))
def test_depth_span_and_alignment_agree_with_brute_force(
    tmp_path_factory: pytest.TempPathFactory, places: list[tuple[int, str, int, int, int]], batch: int
) -> None:
    rows = requests_of(places)
    trial = load_trial(made_trial(tmp_path_factory.mktemp("t"), rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "BATCH_ROWS", batch)
        found = survey(Source.of(trial))
    data = [one for one in rows if one["op"] != "flush"]
    deepest = 0
    for place, one in enumerate(data):
        flying = [other for other in data[:place] if max(other["complete_ns"], other["issue_ns"] + 1) > one["issue_ns"]]
        deepest = max(deepest, len(flying) + 1)
    if data:
        assert found.depth == deepest
        assert found.end_bytes == max(one["sector"] * 512 + one["bytes"] for one in data)
        assert found.low_bytes == min(one["sector"] * 512 for one in data)
        numbers = [number for one in data for number in (one["sector"] * 512, one["bytes"])]
        assert all(number % found.unit_bytes == 0 for number in numbers)
        assert any(number % (2 * found.unit_bytes) for number in numbers)


@settings(max_examples=100, deadline=None)
@given(places=PLACES)
def test_a_compact_replay_moves_used_parts_together_and_keeps_what_overlapped(
    tmp_path_factory: pytest.TempPathFactory, places: list[tuple[int, str, int, int, int]]
) -> None:
    rows = [one for one in requests_of(places) if one["op"] != "flush"]
    if not rows:
        return
    folder = tmp_path_factory.mktemp("t")
    job, iolog = fio.export(Source.of(load_trial(made_trial(folder, rows))), folder, depth=1, compact=True)
    used = {chunk for one in rows for chunk in _chunks(one["sector"] * 512, one["bytes"])}
    ranks = {chunk: rank for rank, chunk in enumerate(sorted(used))}
    moved = [(int(offset), int(size)) for _, offset, size in moves(iolog)]
    for one, (offset, size) in zip(rows, moved, strict=True):
        before = _chunks(one["sector"] * 512, one["bytes"])
        assert [ranks[chunk] for chunk in before] == _chunks(offset, size)
        assert offset % CHUNK_BYTES == one["sector"] * 512 % CHUNK_BYTES
    needed = max(offset + size for offset, size in moved)
    assert f"at least {needed:,} bytes" in job.read_text()
    assert needed <= len(used) * CHUNK_BYTES


def _chunks(offset: int, size: int) -> list[int]:
    return list(range(offset // CHUNK_BYTES, (offset + size - 1) // CHUNK_BYTES + 1))


def test_pieces_of_any_size_are_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(place, "read" if place % 3 else "write", 4096, place * 8192, took_us=40) for place in range(100)]
    trial = made_trial(tmp_path / "t", rows)
    write_phases(trial / "phases.parquet", [phase_row("load", BEGIN_NS + 50 * US, BEGIN_NS + 90 * US)])
    files = {}
    for size in (1 << 18, 7):
        monkeypatch.setattr(trace, "BATCH_ROWS", size)
        for phase in (None, "load"):
            out = tmp_path / f"{size}-{phase}"
            source = Source.of(load_trial(trial), phase)
            paths = [
                *fio.export(source, out),
                table.export_csv(source, out / "a"),
                table.export_snia(source, out / "b"),
            ]
            files[size, phase] = [path.read_text() for path in paths]
    assert files[7, None] == files[1 << 18, None]
    assert files[7, "load"] == files[1 << 18, "load"]
    assert "iodepth=40\n" in files[7, "load"][0]
    assert [line.split(" ")[1] for line in files[7, "load"][1].splitlines()[3:-1]].count("wait") == 1
    assert len(files[7, "load"][1].splitlines()) == 40 + 1 + 4


def test_a_phase_is_told_by_name_and_attributes(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path, sizes=(MIB, 2 * MIB), broken=False))
    trial = run.published[0]
    for phase in ("load aio cpu 2 MiB", "load aio 2MiB", f"load api=aio size_bytes={2 * MIB}"):
        _, iolog = fio.export(Source.of(trial, phase), tmp_path / "out")
        moved = Counter(action for action, _, _ in moves(iolog))
        assert moved == {"read": 3 * 2 * MIB // (128 << 10)}, phase
    found = survey(Source.of(trial, "store"))
    assert found.requests["write"] > 0
    assert found.requests["read"] == 0


def test_only_the_asked_device_is_replayed_and_several_need_asking(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row(1, "read", 4096), row(2, "read", 8192, dev="259:1"), row(3, "read", 8192, dev="259:1")]
    trial = made_trial(tmp_path / "t", rows)
    assert main([str(trial), "--out", str(tmp_path)]) == 2
    assert "--dev 259:1 (2 requests), 7:0 (1 request)" in capsys.readouterr().err
    assert main([str(trial), "--dev", "259:1", "--out", str(tmp_path)]) == 0
    assert [words[-1] for words in moves(tmp_path / "replay.iolog")] == ["8192", "8192"]


def test_a_trace_without_completions_needs_a_depth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trial = made_trial(tmp_path / "t", [row(1, "read", 4096, took_us=None)], ("issue",))
    assert main([str(trial), "--out", str(tmp_path)]) == 2
    assert "give --iodepth N" in capsys.readouterr().err
    assert main([str(trial), "--iodepth", "4", "--out", str(tmp_path)]) == 0
    assert "(in the trace: unknown)" in (tmp_path / "replay.fio").read_text()


def test_csv_has_every_column_and_times_since_the_window(tmp_path: Path) -> None:
    trial = made_trial(tmp_path / "t", ROWS)
    assert main([str(trial), "--format", "csv", "--out", str(tmp_path)]) == 0
    with (tmp_path / "requests.csv").open() as file:
        found = list(csv.DictReader(file))
    assert len(found) == len(ROWS)
    assert found[0]["issue_s"] == "0.000010000"
    assert found[0]["complete_s"] == "0.000110000"
    for one, made in zip(found, ROWS, strict=True):
        assert {key: one[key] for key in made} == {
            key: "" if value is None else str(value) for key, value in made.items()
        }


def test_snia_has_filetimes_bytes_and_response_times(tmp_path: Path) -> None:
    trial = made_trial(tmp_path / "t", [*ROWS, row(95, "write", 512, 512, took_us=None)])
    assert main([str(trial), "--format", "snia", "--out", str(tmp_path)]) == 0
    lines = [line.split(",") for line in (tmp_path / "snia.csv").read_text().splitlines()]
    assert [line[3:] for line in lines] == [
        ["Write", "8192", "4096", "1000"],
        ["Read", "1536", "512", "5000"],
        ["Read", str(10 * MIB), "131072", "10"],
        ["Write", "512", "512", ""],
    ]
    assert {(line[1], line[2]) for line in lines} == {("bench__01", "0")}
    unix_ns = (int(lines[0][0]) - 116_444_736_000_000_000) * 100
    assert unix_ns == BEGIN_NS + 10 * US + 7_000_000_000


def test_snia_without_utc_counts_from_the_window_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trial = made_trial(tmp_path / "t", ROWS)
    record = json.loads((trial / "trial.json").read_text())
    (trial / "trial.json").write_text(json.dumps(record | {"clock": None}))
    assert main([str(trial), "--format", "snia", "--out", str(tmp_path)]) == 0
    assert "warning: the trial does not know UTC" in capsys.readouterr().err
    assert [line.split(",")[0] for line in (tmp_path / "snia.csv").read_text().splitlines()] == ["100", "310", "900"]


def test_an_invalid_trial_is_exported_with_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, sizes=(MIB,), repeats=1)
    assert main([str(run), "fs=ext4,rep=2", "--out", str(tmp_path / "out")]) == 0
    assert "warning: the trial is invalid: 1742 events lost by the tracer" in capsys.readouterr().err
    assert "Verdict: invalid: 1742 events lost" in (tmp_path / "out" / "replay.fio").read_text()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "which of its trials? fs=ext4,rep=1; fs=xfs,rep=1"),
        (["fs=zfs,rep=1"], "no trial 'fs=zfs,rep=1'"),
        (["fs=xfs,rep=2"], "has no requests.parquet"),
        (["fs=xfs,rep=1", "--phase", "laod"], "no phase is called 'laod'; did you mean load?"),
        (["fs=xfs,rep=1", "--phase", "load aoi"], "no phase load has 'aoi'; did you mean aio?"),
        (["fs=xfs,rep=1", "--phase", "init"], "no requests were issued in the phase 'init'"),
        (["fs=xfs,rep=1", "--phase", "init", "--format", "csv"], "no requests were issued in the phase 'init'"),
        (["fs=xfs,rep=1", "--phase", "init", "--format", "snia"], "no requests were issued in the phase 'init'"),
        (["fs=xfs,rep=1", "--dev", "8:0"], "no requests on 8:0 were issued"),
        (["fs=xfs,rep=1", "--format", "csv", "--compact"], "--compact is for --format fio"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    run = make_run(tmp_path, sizes=(MIB,), repeats=1)
    slugs = {trial.id for trial in load_run(run).published}
    assert {"fs=ext4,rep=1", "fs=xfs,rep=1"} <= slugs
    out = tmp_path / "out"
    assert main([str(run), *more, "--out", str(out)]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert len([line for line in told.splitlines() if line.startswith("error: ")]) == 1
    assert not out.exists() or not list(out.iterdir())


def test_requests_out_of_order_are_refused(tmp_path: Path) -> None:
    trial = made_trial(tmp_path / "t", [row(9, "read", 512), row(5, "read", 512)])
    with pytest.raises(AnalysisError, match="not sorted"):
        fio.export(Source.of(load_trial(trial)), tmp_path)
