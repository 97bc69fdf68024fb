"""`report.md`: the same facts as the page, and nothing in a run that Markdown takes for markup."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from analysis import draw_run, load_run
from analysis.report.content import gathered
from analysis.report.markdown import code, escaped, fenced
from tests.analysis.made_run import MIB, make_run
from tests.analysis.test_report_page import hostile_run

GITHUB = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw_run(run := make_run(tmp_path_factory.mktemp("results"), sizes=(MIB,), repeats=1))
    return run / "report.md"


def test_it_tells_what_the_page_tells(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    for expected in (
        "python -m sweep conf/quickstart.yaml repeats=2",
        "1742 events lost by the tracer",
        "OSError: [Errno 28] No space left on device",
        "planned, no result",
        "## Findings",
        "## What the device saw",
        "not testable here",
        "AMD EPYC 9354, 2 CPUs",
    ):
        assert expected in text
    html = GITHUB.render(text)
    assert html.count("<table>") >= 5


def test_pictures_lie_where_it_says(report: Path) -> None:
    links = re.findall(r"\]\((figures/[^)]+)\)", report.read_text(encoding="utf-8"))
    assert len(links) >= 5
    for link in links:
        assert (report.parent / link).is_file()


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    run = hostile_run(tmp_path)
    draw_run(run)
    html = GITHUB.render((run / "report.md").read_text(encoding="utf-8"))
    assert "<script" not in html
    assert "<img src=x" not in html


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1))
def test_escaped_text_is_one_cell_of_plain_text(text: str) -> None:
    tokens = GITHUB.parse(f"| a | b |\n| --- | --- |\n| {escaped(text)} | end |\n")
    kinds = {token.type for token in tokens}
    inner = [child.type for token in tokens for child in token.children or ()]
    assert "td_open" in kinds
    assert [token.content for token in tokens if token.type == "inline"][-1] == "end"
    assert {*inner} <= {"text", "text_special"}


@given(st.text(st.sampled_from("`~a \n"), max_size=30))
def test_code_keeps_its_fences(text: str) -> None:
    block = GITHUB.parse(fenced(text))
    assert [token.type for token in block] == ["fence"]
    assert block[0].content == f"{text}\n"
    if text.strip():
        inline = GITHUB.parse(code(text))[1].children or []
        assert [child.type for child in inner_code(inline)] == ["code_inline"]


def inner_code(children: list) -> list:
    return [child for child in children if child.type != "text" or child.content.strip()]


def test_a_trial_runs_again_alone_from_its_own_configuration(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path, sizes=(MIB,), repeats=1, broken=False))
    again = gathered(run, []).parts[0].again
    assert again is not None
    written = again.split("<<'END_OF_SWEEP'\n")[1].split("END_OF_SWEEP\n")[0]
    sweep = tmp_path / "again.yaml"
    sweep.write_text(written)
    assert yaml.safe_load(written)["workload"] == {"kind": "tensor_io"}
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from sweep import config; print(config.load(sys.argv[1], []).name)", sweep],
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "quickstart-again", done.stderr
