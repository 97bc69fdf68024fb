"""What jobs say about themselves: written by the job's own little log, read back here, followed while it runs."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis import schema
from tasks import phases
from tasks.jobs.phase_log import PHASES_VARIABLE, PhaseLog

BEGIN = {"event": "begin", "id": 1, "name": "load", "t_ns": 10, "bytes": 4096, "step": 3, "attributes": {"api": "aio"}}
END = {"event": "end", "id": 1, "t_ns": 20, "attributes": {"resident_pages": "0"}}


def read(tmp_path: Path, *lines: object) -> phases.Report:
    path = tmp_path / "phases.jsonl"
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return phases.read(path, "job")


def test_what_the_log_wrote_is_read_back(tmp_path: Path) -> None:
    log = PhaseLog(tmp_path / "log")
    with log.phase("init"):
        pass
    with log.phase("load", 4096, 7, api="aio", loop=2) as found:
        found["resident_pages"] = 0
    log.metric("tokens_per_s", 3.5, "1/s")
    log.done()
    report = phases.read(tmp_path / "log", "tensor_io")
    init, load = report.spans
    assert (init.process, init.name, init.size_bytes, init.step, init.attributes) == (
        "tensor_io",
        "init",
        None,
        None,
        {},
    )
    assert (load.name, load.size_bytes, load.step) == ("load", 4096, 7)
    assert load.attributes == {"api": "aio", "loop": "2", "resident_pages": "0"}
    assert init.end_ns is not None
    assert init.begin_ns <= init.end_ns <= load.begin_ns
    assert report.metrics == {"tokens_per_s": {"value": 3.5, "unit": "1/s"}}
    assert (report.done, report.errors, report.malformed) == (True, [], 0)


def test_a_job_that_dies_inside_a_phase_leaves_it_open(tmp_path: Path) -> None:
    log = PhaseLog(tmp_path / "log")
    with pytest.raises(OSError, match="full"), log.phase("store", 512):
        raise OSError("full")
    log.error("the disk is full")
    report = phases.read(tmp_path / "log", "job")
    assert [(s.name, s.end_ns) for s in report.spans] == [("store", None)]
    assert (report.done, report.errors) == (False, ["the disk is full"])


def test_the_log_goes_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PHASES_VARIABLE, str(tmp_path / "named"))
    PhaseLog().done()
    monkeypatch.delenv(PHASES_VARIABLE)
    PhaseLog().done()
    assert phases.read(tmp_path / "named", "job").done
    assert [p.name for p in tmp_path.iterdir()] == ["named"]


def test_no_file_is_an_empty_report(tmp_path: Path) -> None:
    assert phases.read(tmp_path / "nothing", "job") == phases.Report()


def test_phases_come_by_begin_whatever_the_order_of_their_ends(tmp_path: Path) -> None:
    inner, outer = {**BEGIN, "id": "b", "t_ns": 5, "name": "inner"}, {**BEGIN, "id": "a", "t_ns": 1, "name": "outer"}
    report = read(tmp_path, inner, outer, {**END, "id": "b", "t_ns": 8}, {**END, "id": "a", "t_ns": 9})
    assert [(s.name, s.begin_ns, s.end_ns) for s in report.spans] == [("outer", 1, 9), ("inner", 5, 8)]


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        '{"event": "begin", "id": 1, "name": "lo',
        "[]",
        "3",
        "null",
        '"event"',
        "{}",
        '{"event": "lunch"}',
        '{"event": ["begin"]}',
        '{"event": "begin"}',
        '{"event": "begin", "id": [1], "name": "x", "t_ns": 1}',
        '{"event": "begin", "id": 9, "name": "x", "t_ns": "soon"}',
        '{"event": "begin", "id": 9, "name": "x", "t_ns": null}',
        '{"event": "begin", "id": 9, "name": "x", "t_ns": Infinity}',
        '{"event": "begin", "id": 9, "name": "x", "t_ns": 99999999999999999999}',
        '{"event": "begin", "id": 9, "name": "x", "t_ns": 1, "step": 4000000000}',
        '{"event": "begin", "id": 9, "name": "x", "t_ns": 1, "bytes": "many"}',
        '{"event": "begin", "id": 9, "name": "x", "t_ns": 1, "attributes": [1]}',
        '{"event": "end", "id": 9}',
        '{"event": "metric", "name": "x"}',
        '{"event": "error"}',
        "[" * 100_000,
        "\x00\x01",
    ],
)
def test_a_malformed_line_is_counted_and_harms_no_other(tmp_path: Path, line: str) -> None:
    report = read(tmp_path, BEGIN, line, END, {"event": "done"})
    assert [(s.name, s.end_ns) for s in report.spans] == [("load", 20)]
    assert report.malformed == 1
    assert report.done
    phases.write(report.spans, tmp_path / "phases.parquet", {})


def test_text_may_hold_any_character(tmp_path: Path) -> None:
    strange = "a\u2028b\x85c\x1cd"
    report = read(tmp_path, json.dumps({**BEGIN, "name": strange}, ensure_ascii=False), END)
    assert [s.name for s in report.spans] == [strange]
    assert report.malformed == 0


def test_an_end_without_a_begin_is_no_phase(tmp_path: Path) -> None:
    assert read(tmp_path, END).spans == []


@given(st.lists(st.text(max_size=40) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps)))
def test_no_text_whatever_is_fatal(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    path = tmp_path_factory.mktemp("phases") / "log"
    path.write_text("\n".join(lines), errors="replace")
    assert phases.read(path, "job").spans == []
    phases.Follower(path).latest()


def test_spans_reach_the_file_as_its_schema_has_them(tmp_path: Path) -> None:
    report = read(tmp_path, BEGIN, END, {**BEGIN, "id": 2, "t_ns": 1, "bytes": None, "step": None, "attributes": None})
    phases.write(reversed(report.spans), tmp_path / "phases.parquet", {"trial": "x"})
    table = pq.read_table(tmp_path / "phases.parquet")
    assert table.schema.remove_metadata() == schema.PHASES
    first, second = table.to_pylist()
    assert (first["begin_ns"], first["end_ns"], first["bytes"], first["step"], first["attributes"]) == (
        1,
        None,
        None,
        None,
        [],
    )
    assert second == {
        "process": "job",
        "name": "load",
        "step": 3,
        "attributes": [("api", "aio"), ("resident_pages", "0")],
        "begin_ns": 10,
        "end_ns": 20,
        "bytes": 4096,
    }


def test_the_follower_tells_the_phase_begun_last(tmp_path: Path) -> None:
    follower = phases.Follower(tmp_path / "log")
    assert follower.latest() is None
    log = PhaseLog(tmp_path / "log")
    with log.phase("init"):
        assert follower.latest() == "init"
        assert follower.latest() is None
    with log.phase("warmup"), log.phase("load", 64 << 20, 2, api="aio", tensor_device="cpu", loop=0):
        assert follower.latest() == "load aio cpu 64 MiB step 2"
    log.done()
    assert follower.latest() is None


def test_the_follower_waits_for_the_end_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    follower = phases.Follower(path)
    told = []
    for character in (
        json.dumps(BEGIN) + "\n" + json.dumps(END) + "\nrubbish\n" + json.dumps({**BEGIN, "name": "x"}) + "\n"
    ):
        with path.open("a") as f:
            f.write(character)
        told.append(follower.latest())
    assert [text for text in told if text] == ["load aio 4 KiB step 3", "x aio 4 KiB step 3"]
    assert told.index("load aio 4 KiB step 3") == len(json.dumps(BEGIN))


def test_a_log_that_is_not_whole_is_doubted(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text(json.dumps(BEGIN) + "\nrubbish\n" + json.dumps({"event": "done"}) + "\n")
    report = phases.read(path, "tensor_io")
    assert report.done
    unreadable, unfinished = report.doubts()
    assert unreadable == "1 lines of the job's phase log could not be read"
    assert unfinished == f"the job never ended its phase {BEGIN['name']}"
