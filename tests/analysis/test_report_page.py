"""`report.html`: what it tells, and that nothing in a run can make it do something else."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from analysis import draw_run, load_run
from analysis.advice import advice
from analysis.figures import Drawn
from analysis.findings import NOT_TESTABLE, findings
from analysis.logs import tail
from analysis.profile import read_profile
from analysis.report import write_report
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


Attributes = dict[str, str | None]


@dataclass
class Cell:
    tag: str
    attributes: Attributes
    text: str = ""

    @property
    def key(self) -> float | None:
        """The number it sorts by."""
        found = self.attributes["data-sort"]
        return float(found) if found else None


@dataclass
class Row:
    attributes: Attributes
    cells: list[Cell] = field(default_factory=list)


@dataclass
class Grid:
    attributes: Attributes
    rows: list[Row] = field(default_factory=list)

    @property
    def body(self) -> list[Row]:
        return [row for row in self.rows if row.cells[0].tag == "td"]

    @property
    def columns(self) -> list[str]:
        """The labels of the columns, each below that of its group, in the order of the cells."""
        heads = [row.cells for row in self.rows if row.cells[0].tag == "th"]
        groups = [cell.text for cell in heads[0] for _ in range(int(cell.attributes.get("colspan") or 1))]
        labels = {
            int(cell.attributes["data-column"] or 0): cell.text
            for row in heads
            for cell in row
            if "data-column" in cell.attributes
        }
        assert sorted(labels) == list(range(len(groups)))
        return [
            label if label == groups[place] else f"{groups[place]} {label}" for place, label in sorted(labels.items())
        ]

    def column(self, name: str) -> list[Cell]:
        place = self.columns.index(name)
        return [row.cells[place] for row in self.body]


class Page(HTMLParser):
    """Collects elements and the text of scripts, as a browser would find them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.tables: list[Grid] = []
        self._cell: Cell | None = None
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "table":
            self.tables.append(Grid(dict(attrs)))
        elif tag == "tr":
            self.tables[-1].rows.append(Row(dict(attrs)))
        elif tag in ("td", "th"):
            self._cell = Cell(tag, dict(attrs))
            self.tables[-1].rows[-1].cells.append(self._cell)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""
        if tag in ("td", "th"):
            self._cell = None

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data
            if self._cell:
                self._cell.text += data

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


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = make_run(tmp_path_factory.mktemp("results"), sizes=(MIB,))
    (run / "sweep.yaml").write_text("name: quickstart  # as it was\n")
    return run


@pytest.fixture(scope="module")
def bare(run: Path) -> Page:
    """The page without figures, which take most of the time."""
    return read(run)


def read(run: Path) -> Page:
    return Page.read(write_report(load_run(run), [])["html"])


def table(page: Page, *columns: str) -> Grid:
    """Return the sortable table that has these columns."""
    sortable = [grid for grid in page.tables if grid.attributes.get("class") == "sortable"]
    return next(grid for grid in sortable if {*columns} <= {*grid.columns})


def test_every_link_within_the_page_leads_somewhere(report: Page) -> None:
    places = [attributes.get("id") for _, attributes in report.tags if attributes.get("id")]
    assert len(places) == len({*places})
    links = [attributes.get("href") or "" for tag, attributes in report.tags if tag == "a"]
    inner = {link[1:] for link in links if link.startswith("#")}
    assert {"failures", "findings", "advice", "figures", "trials", "metrics", "nodes", "each", "again"} <= inner
    assert inner <= {*places}


def test_tables_of_trials_say_what_each_cell_sorts_by(bare: Page) -> None:
    sortable = [grid for grid in bare.tables if grid.attributes.get("class") == "sortable"]
    assert len(sortable) >= 2
    for grid in sortable:
        for row in grid.body:
            assert len(row.cells) == len(grid.columns)
            for cell in row.cells:
                if "number" in (cell.attributes["class"] or "").split():
                    assert cell.key is not None or cell.text in ("unknown", "–")


def test_the_table_of_trials_sorts_and_filters_by_what_it_holds(run: Path, bare: Page) -> None:
    grid = next(grid for grid in bare.tables if grid.attributes.get("id") == "trials-table")
    verdicts = Counter(row.attributes["data-verdict"] for row in grid.body)
    assert verdicts == {"valid": 4, "invalid": 1, "failed": 1, "missing": 1}
    by_id = {trial.id: trial for trial in load_run(run).published}
    for name, cell, took in zip(*(grid.column(name) for name in ("Trial", "Read traced", "Took")), strict=True):
        trial = by_id.get(name.text)
        assert cell.key == (trial and trial.byte_count("traced", "read"))
        assert took.key == (trial and 19)


def test_metrics_are_those_of_the_profile(run: Path, bare: Page) -> None:
    told = read_profile(load_run(run)).filter((pl.col("phase") == "trial") & pl.col("op").is_in(["read", "write"]))
    told = told.filter(pl.col("requests").is_not_null())
    grid = table(bare, "Latency p99.9", "Queue depth mean")
    assert [cell.text for cell in grid.column("Trial")] == told["trial"].to_list()
    for label, name in (
        ("Requests", "requests"),
        ("Bandwidth (GiB/s) peak", "bandwidth_peak_gib_s"),
        ("Latency p99.9", "d2c_p999_us"),
        ("Queue depth mean", "depth_mean"),
        ("Sectors footprint", "footprint_bytes"),
        ("Ceiling window", "ceiling_share"),
    ):
        assert [cell.key for cell in grid.column(label)] == pytest.approx(told[name].to_list())
    assert "Nothing was measured on the device in 1 trial: fs=xfs,rep=3." in bare.text
    assert "Shares above 100 %" not in bare.text


def test_a_share_above_the_ceiling_is_explained(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    for path in copy.glob("trials/*/trial.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"ceiling": made_ceiling(0.001, 0.001)}))
    (copy / "metrics.parquet").unlink(missing_ok=True)
    assert "Shares above 100 % of the ceiling: fio measured less" in read(copy).text


def test_the_busiest_phase_is_one_in_which_much_moved(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"schema_version": 1}')
    folder, second = tmp_path / "trials" / "a", 10**9
    tracer = {"name": "made", "begin_ns": 0, "end_ns": 4 * second}
    write_record(folder, tracer=tracer, ceiling=made_ceiling(2.0, 2.0))
    rows = [request_row(10, second // 2, "read", 1024 * MIB), request_row(2 * second, 2 * second + 9, "read", MIB)]
    write_requests(folder / "requests.parquet", rows)
    write_phases(
        folder / "phases.parquet",
        [phase_row("decode", 0, second), phase_row("drain", 2 * second, 2 * second + 10_000)],
    )
    read_row, write_row = table(read(tmp_path), "Ceiling window").body
    assert [cell.text for cell in read_row.cells[-2:]] == ["13 %", "50 % (decode)"]
    assert [cell.text for cell in write_row.cells[-2:]] == ["0.0 %", "unknown"]


def test_findings_and_advice_are_told_with_their_trials(run: Path, bare: Page) -> None:
    opened = load_run(run)
    grid = next(grid for grid in bare.tables if grid.rows[0].cells[0].text == "Statement")
    assert [row.cells[0].text for row in grid.body] == [one.claim for one in findings(opened)]
    assert [row.cells[1].text for row in grid.body] == [one.state for one in findings(opened)]
    outcomes = Counter(
        attributes["class"] for _, attributes in bare.tags if "outcome" in (attributes.get("class") or "")
    )
    assert outcomes["outcome untested"] == sum(one.state == NOT_TESTABLE for one in findings(opened)) > 0
    for one in advice(opened):
        assert one.told in bare.text
        assert f"advice-{one.code}" in {attributes.get("id") for _, attributes in bare.tags}


def test_commands_can_be_copied(bare: Page) -> None:
    buttons = [attributes for tag, attributes in bare.tags if tag == "button" and attributes.get("class") == "copy"]
    pres = {attributes.get("id") for tag, attributes in bare.tags if tag == "pre"}
    assert len(buttons) == 6 + 2
    assert {attributes["data-copy"] for attributes in buttons} <= pres
    assert "name: quickstart  # as it was" in bare.text


def chart(run: Path, trial: str | None) -> Drawn:
    files = {"png": run / "figures" / f"sizes-{trial} 1.png"}
    return Drawn("sizes", f"sizes-{trial}", "Sizes", trial, None, {"mark": "bar"}, "<svg/>", files, ())


def sections(page: Page) -> list[Attributes]:
    return [
        attributes for tag, attributes in page.tags if tag == "details" and "trial" in (attributes.get("class") or "")
    ]


def test_sections_of_many_trials_are_closed(tmp_path: Path, bare: Page) -> None:
    assert len(sections(bare)) == 6
    assert all("open" in attributes for attributes in sections(bare))
    (tmp_path / "run.json").write_text('{"schema_version": 1}')
    for number in range(9):
        write_record(tmp_path / "trials" / f"t{number}", id=f"x={number % 3},rep={number}", cell={"x": number % 3})
    run = load_run(tmp_path)
    drawn = [chart(tmp_path, trial) for trial in (None, *(one.slug for one in run.published))]
    page = Page.read(write_report(run, drawn)["html"])
    assert [tag for tag, _ in page.tags].count("img") == 1
    assert "figures/sizes-t0%201.png" in {attributes.get("href") for _, attributes in page.tags}
    assert sum(script == '{"mark":"bar"}' for script in page.scripts) == 1 + 9
    assert len(sections(page)) == 9
    assert not any("open" in attributes for attributes in sections(page))
    assert page.text.index("x=0,rep=6", page.text.index("Trial by trial")) < page.text.rindex("x=1,rep=1")


def test_an_imported_trial_tells_what_is_known_and_what_is_missing(tmp_path: Path) -> None:
    record = {"schema_version": 1, "state": "imported", "nodes": [], "import": {"source": "there", "left": []}}
    record["import"]["left"] = [{"file": "odd.bin", "reason": "nothing reads it"}]
    (tmp_path / "run.json").write_text(json.dumps(record))
    imported = {"files": [{"name": "a.txt", "kind": "bite_size", "bytes": 9, "lines": 3}], "lines": 3, "skipped": {}}
    folder = tmp_path / "trials" / "a"
    tracer = {"name": "bite-size", "begin_ns": 0, "end_ns": 1000}
    write_record(
        folder, tracer=tracer, bytes={"traced": {"read": 8192}}, trouble="no completions", **{"import": imported}
    )
    rows = [request_row(100 * place, None, "read", 4096, 8 * place) for place in range(2)]
    write_requests(folder / "requests.parquet", rows, recorded=("issue",))
    page = read(tmp_path)
    for expected in ("Note: no completions.", "odd.bin (nothing reads it)", "a.txt, 3 lines", "No node is recorded."):
        assert expected in page.text
    assert "No trial knows: Bandwidth (GiB/s) peak, Latency, Queue depth, Busy, Ceiling." in page.text
    grid = table(page, "Requests", "Mean size")
    assert [cell.text for cell in grid.column("Requests")] == ["2", "0"]
    assert [cell.text for cell in grid.column("Mean size")] == ["4 KiB", "–"]


def test_it_needs_no_network_and_shares_one_copy_of_the_libraries(report: Page) -> None:
    for _, attributes in report.tags:
        for name in ("src", "href"):
            assert not re.match(r"(https?:)?//", attributes.get(name) or "")
    assert sum(len(script) > 500_000 for script in report.scripts) == 1
    charts = [json.loads(script) for script in report.scripts if script.startswith("{")]
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
    assert set(paths["ruled_out"]) == {"bandwidth-a", "sizes-a"}
    text = Page.read(Path(paths["report"])).text
    assert text.count("the tracer of this trial, diskstats, records no single requests") == 1
    assert text.count("the device's counters were not sampled") == 1
    assert load_run(tmp_path).published[0].state == "valid"


def test_a_log_tail_is_bounded_and_without_terminal_escapes(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_bytes(b"a" * 10**6 + b"\n\x1b[31mred\x1b[0m \x07bell\r50 %\r100 %\nlast \xff\n")
    assert tail(log, 4) == "red bell\n50 %\n100 %\nlast \ufffd"
