"""`report.html`: what it tells, and that nothing in a run can make it do something else."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from analysis import draw_run, load_run
from analysis.logs import tail
from analysis.report import write_report
from analysis.report.table import Cell, Column, Row, Table
from analysis.vega import json_for_script, page
from tests.analysis.made_run import (
    MIB,
    made_ceiling,
    make_run,
    phase_row,
    request_row,
    write_phases,
    write_record,
    write_requests,
)

HOSTILE = "</script><script>alert('x')</script><img src=x onerror=alert(1)>&\u2028{{ 7*7 }}<!--"


class Page(HTMLParser):
    """Collects elements and the text of scripts, as a browser would find them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data

    @classmethod
    def read(cls, path: Path) -> Page:
        parsed = cls()
        parsed.feed(path.read_text(encoding="utf-8"))
        return parsed


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page.read(Path(draw_run(make_run(tmp_path_factory.mktemp("results"), sizes=(MIB,)))["report"]))


def test_it_says_what_was_run_on_what_and_what_came_of_it(report: Page) -> None:
    for expected in (
        "Tensor offload through POSIX and aio",
        "python -m sweep conf/quickstart.yaml repeats=2",
        "2 min 24 s",
        "commit 0123456789ab with uncommitted changes",
        "AMD EPYC 9354, 2 CPUs",
        "6.18.2-amd64",
        "torch 2.13.0+cpu",
        "1742 events lost by the tracer",
        "tensor_io ended with exit code 1: No space left on device",
        "OSError: [Errno 28] No space left on device",
        "planned, no result",
        "loop0 on vda",
        "--spec 'a b.json'",
        "python -m sweep results/quickstart/20261120-103348/sweep.yaml",
    ):
        assert expected in report.text
    titles = {attributes["title"] for _, attributes in report.tags if attributes.get("title")}
    assert f"{12 * MIB // 2:,} bytes" in titles
    assert "traced equals counted" in titles


def test_it_needs_no_network_and_shares_one_copy_of_the_libraries(report: Page) -> None:
    for _, attributes in report.tags:
        for name in ("src", "href"):
            assert not re.match(r"(https?:)?//", attributes.get(name) or "")
    assert sum(len(script) > 500_000 for script in report.scripts) == 1
    charts = [json.loads(script) for script in report.scripts if script.startswith("{") and "$schema" in script]
    assert len(charts) == 1 + 2 * 5


def hostile_run(tmp_path: Path) -> Path:
    run = make_run(tmp_path, sizes=(MIB,), repeats=1)
    record = json.loads((run / "run.json").read_text())
    for key in ("description", "sweep", "user", "host", "cwd", "state", "started"):
        record[key] = HOSTILE
    record["argv"] = record["reproduce"] = ["python", HOSTILE]
    record["git"], record["versions"] = {"commit": HOSTILE}, {HOSTILE: HOSTILE}
    record["nodes"] = [{"hostname": HOSTILE, "gpus": [HOSTILE], "drives": [HOSTILE], "missing": {HOSTILE: HOSTILE}}]
    record["plan"].append({"id": HOSTILE, "slug": "none", "repeat": HOSTILE})
    (run / "run.json").write_text(json.dumps(record))
    for path in run.glob("trials/*/trial.json"):
        trial = json.loads(path.read_text())
        trial |= {
            "id": HOSTILE,
            "cell": {HOSTILE: HOSTILE, "fs": HOSTILE},
            "command": [HOSTILE],
            "metrics": {HOSTILE: HOSTILE},
        }
        trial["verdict"]["reasons"] = [HOSTILE] if trial["verdict"]["state"] != "valid" else []
        trial["device"]["name"] = trial["tracer"]["name"] = trial["node"]["hostname"] = HOSTILE
        path.write_text(json.dumps(trial))
        for log in path.parent.glob("logs/*.log"):
            log.write_text(HOSTILE)
    return run


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    paths = draw_run(hostile_run(tmp_path), None)
    report = Page.read(Path(paths["report"]))
    assert HOSTILE.replace("\u2028", "") in report.text.replace("\u2028", "")
    assert not [tag for tag, attributes in report.tags if any(name.startswith("on") for name in attributes)]
    assert all((attributes["src"] or "").startswith("data:") for tag, attributes in report.tags if tag == "img")
    assert not any("alert(" in script and not script.startswith("{") for script in report.scripts)
    for script in report.scripts:
        if script.startswith("{"):
            json.loads(script)
    for files in paths["figures"].values():
        single = Page.read(Path(files["html"]))
        assert sum(tag == "script" for tag, _ in single.tags) == 2
        assert "img" not in {tag for tag, _ in single.tags}


def test_json_in_a_script_survives_and_closes_nothing() -> None:
    text = json_for_script({"a": HOSTILE})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"a": HOSTILE}
    assert "</title><script>" not in page({"$schema": "x"}, "</title><script>")


def test_a_bare_run_still_has_a_report(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"schema_version": 1}')
    assert "No trial has finished." in Page.read(Path(draw_run(tmp_path)["report"])).text
    nothing: dict[str, Any] = dict.fromkeys(
        ["id", "cell", "repeat", "node", "device", "storage", "tracer", "bytes", "verdict"]
    )
    write_record(tmp_path / "trials" / "a", **nothing)
    write_record(tmp_path / "trials" / "b", bytes={"traced": {"read": 5}, "counted": {"read": 7}, "expected": None})
    report = Page.read(Path(draw_run(tmp_path)["report"]))
    assert "no reason recorded" in report.text
    assert "traced is -2 bytes against counted" in {attributes.get("title") for _, attributes in report.tags}


def test_diskstats_trials_say_which_figures_their_tracer_rules_out(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"schema_version": 1}')
    write_record(tmp_path / "trials" / "a", tracer={"name": "diskstats", "begin_ns": 0, "end_ns": 10})
    paths = draw_run(tmp_path)
    assert set(paths["ruled_out"]) == {"timeline-a", "sizes-a"}
    text = Page.read(Path(paths["report"])).text
    assert text.count("the tracer of this trial, diskstats, records no single requests") == 1
    assert text.count("the device's counters were not sampled") == 1
    assert load_run(tmp_path).published[0].state == "valid"


def test_an_imported_run_tells_what_is_missing(tmp_path: Path) -> None:
    left = [{"file": "odd.bin", "reason": "nothing reads it"}]
    record = {"schema_version": 1, "description": "a \ud800 b", "import": {"source": "there", "left": left}}
    (tmp_path / "run.json").write_text(json.dumps(record))
    folder = tmp_path / "trials" / "a"
    tracer = {"name": "bite-size", "begin_ns": 0, "end_ns": 1000}
    write_record(folder, tracer=tracer, trouble="no completions were recorded")
    rows = [request_row(100 * place, None, "read", 4096, 8 * place) for place in range(2)]
    write_requests(folder / "requests.parquet", rows, recorded=("issue",))
    written = write_report(load_run(tmp_path), [])
    for path in (written, written.with_suffix(".md")):
        text = path.read_text(encoding="utf-8")
        for expected in ("a ? b", "no completions were recorded", "odd.bin (nothing reads it)"):
            assert expected in text


def test_the_busiest_phase_is_one_in_which_much_moved(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"schema_version": 1}')
    folder, second = tmp_path / "trials" / "a", 10**9
    write_record(folder, tracer={"name": "made", "begin_ns": 0, "end_ns": 4 * second}, ceiling=made_ceiling(2.0, 2.0))
    rows = [request_row(10, second // 2, "read", 1024 * MIB), request_row(2 * second, 2 * second + 9, "read", MIB)]
    write_requests(folder / "requests.parquet", rows)
    phases = [phase_row("decode", 0, second), phase_row("drain", 2 * second, 2 * second + 10_000)]
    write_phases(folder / "phases.parquet", phases)
    text = write_report(load_run(tmp_path), []).with_suffix(".md").read_text(encoding="utf-8")
    assert "| read | 2 GiB/s | 13 % | 50 % | decode |" in text
    assert "| write | 2 GiB/s | 0.0 % | – | – |" in text


def test_a_log_tail_is_bounded_and_without_terminal_escapes(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_bytes(b"a" * 10**6 + b"\n\x1b[31mred\x1b[0m \x07bell\r50 %\r100 %\nlast \xff\n")
    assert tail(log, 4) == "red bell\n50 %\n100 %\nlast \ufffd"


def test_columns_that_no_trial_knows_are_named_in_a_sentence() -> None:
    columns = (
        Column("Trial"),
        Column("read", "Bytes"),
        Column("write", "Bytes"),
        Column("Lost"),
        Column("p50", "Time"),
    )
    unknown = Cell("unknown", kind="unknown")
    rows = (Row((Cell("a"), Cell("1 KiB", 1024), unknown, unknown, unknown)), Row((Cell("b"), *[unknown] * 4)))
    table = Table("t", "T", "", columns, rows, ("One more thing.",)).known
    assert [column.label for column in table.columns] == ["Trial", "read"]
    assert [[cell.text for cell in row.cells] for row in table.rows] == [["a", "1 KiB"], ["b", "unknown"]]
    assert table.after == ("One more thing.", "No trial knows: Bytes write, Lost, Time.")
