"""`report.md`: the report's facts in Markdown, and that nothing in a run can make them something else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt  # comes with rich

from analysis import draw_run, load_run
from analysis.findings import findings
from analysis.report import write_report
from analysis.report.markdown import escaped, fenced
from tests.analysis.made_run import MIB, make_run, write_record

HOSTILE = "a|b `c` *d* <e> [f](g) \\| _h_ # i\n## j\n- k\u2028$l$ &amp; ~m~ ```"


def cells(line: str) -> list[str]:
    """Return the cells of a row as GFM splits it: at each pipe that no backslash escapes."""
    return re.split(r"(?<!\\)(?:\\\\)*\|", line.strip())[1:-1]


def tables(text: str) -> list[list[list[str]]]:
    """Return the rows of each table of a document, code blocks left out."""
    found: list[list[list[str]]] = []
    fence, before = "", ""
    for line in text.split("\n"):
        if fence:
            fence = "" if line.strip() == fence else fence
        elif match := re.match("`{3,}", line):
            fence = match[0]
        elif line.startswith("|"):
            if not before.startswith("|"):
                found.append([])
            found[-1].append(cells(line))
        before = line
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = make_run(tmp_path_factory.mktemp("results"), sizes=(MIB,))
    (run / "sweep.yaml").write_text("name: quickstart\n")
    return run


@pytest.fixture(scope="module")
def document(run: Path) -> str:
    return Path(draw_run(run)["report_md"]).read_text(encoding="utf-8")


def test_it_tells_what_came_of_the_run(run: Path, document: str) -> None:
    for expected in (
        "# quickstart, run 20261120-103348",
        "**Trials:** 4 valid, 1 invalid, 1 failed, 1 planned without result.",
        "### fs=xfs,rep=3: failed",
        "OSError: [Errno 28] No space left on device",
        "| fs=xfs,rep=9 | missing: planned, no result |",
        "python -m sweep results/quickstart/20261120-103348/sweep.yaml",
        "| bench-01 |",
        "## Metrics",
    ):
        assert expected in document
    for one in findings(load_run(run)):
        assert f"**{escaped(one.claim)}**: *{one.state}*" in document


def test_its_links_lead_to_files(run: Path, document: str) -> None:
    links = re.findall(r"\]\(([^)]+)\)", document)
    assert any(link == "figures/fig2.png" for link in re.findall(r"!\[[^]]*\]\(([^)]+)\)", document))
    assert len(links) >= 1 + 2 * 5
    assert all((run / unquote(link)).is_file() for link in links)


def test_every_row_has_the_cells_of_its_head(document: str) -> None:
    found = tables(document)
    assert {"Trial", "Host"} <= {table[0][0].strip() for table in found}
    for table in found:
        assert {len(row) for row in table} == {len(table[0])}


def told(run: Path, text: str) -> None:
    """Put a text wherever a run holds one."""
    write_record(
        run / "trials" / "a",
        id=text,
        cell={text: text},
        verdict={"state": "failed", "reasons": [text]},
        node={"hostname": text, "kernel": text},
        device={"name": text, "drives": [{"name": text, "model": text}]},
        bytes={"traced": {"read": 1, "write": 1}, "counted": {"read": 1, "write": 2}},
        command=[text],
        trouble=text,
    )
    (run / "trials" / "a" / "logs").mkdir(exist_ok=True)
    (run / "trials" / "a" / "logs" / "x.log").write_text(text, encoding="utf-8", errors="replace")
    plan = [{"id": text, "slug": "b", "repeat": text}]
    record = {"schema_version": 1, "sweep": text, "description": text, "plan": plan, "reproduce": [text]}
    (run / "run.json").write_text(json.dumps(record))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=60))
@example(text=HOSTILE)
@example(text="\\")
@example(text="\n```\n| a | b |\n````")
def test_any_text_keeps_the_shape_of_the_tables(tmp_path: Path, text: str) -> None:
    told(tmp_path, text)
    found = tables(write_report(load_run(tmp_path), [])["md"].read_text(encoding="utf-8"))
    assert len(found) >= 2
    for table in found:
        assert {len(row) for row in table} == {len(table[0])}


def test_half_a_surrogate_pair_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"schema_version": 1, "description": "a \\ud800 b"}')
    paths = write_report(load_run(tmp_path), [])
    assert all("a ? b" in path.read_text(encoding="utf-8") for path in paths.values())


@given(text=st.text(alphabet=st.characters(codec="utf-8"), max_size=60))
def test_escaped_text_reads_as_it_was_in_one_line(text: str) -> None:
    shown = escaped(text)
    assert len(shown.splitlines()) <= 1
    plain = " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text).split())
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(shown)
    assert [token.type for token in tokens] == (["paragraph_open", "inline", "paragraph_close"] if plain else [])
    inside = [child for token in tokens for child in token.children or ()]
    assert {child.type for child in inside} <= {"text"}
    assert "".join(child.content for child in inside) == plain


@given(text=st.text(alphabet="`a\n ", max_size=40))
def test_a_block_of_code_ends_where_its_text_does(text: str) -> None:
    first, *inside, last = fenced(text, "sh").split("\n")
    assert "\n".join(inside) == text
    assert first == f"{last}sh"
    assert not any(line.strip().startswith(last) for line in inside)


@pytest.mark.parametrize(("text", "shown"), [("10.1 s", "10.1 s"), ("1. a", "1\\. a"), ("- a", "\\- a"), ("-1", "-1")])
def test_what_only_begins_a_list_is_escaped_only_there(text: str, shown: str) -> None:
    assert escaped(text) == shown


def test_names_stay_readable_and_emphasis_is_none() -> None:
    assert escaped("batch_size=16, _a_") == "batch_size=16, \\_a\\_"
    assert escaped("__init__") == "\\_\\_init\\_\\_"
