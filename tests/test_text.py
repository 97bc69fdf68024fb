"""Hostile text from a node does not reach the terminal as it is, nor the report as markup."""

import io
import json
import re
import shutil

import pytest
from rich.console import Console

from analysis.drawing import draw_run
from sweep.progress import Lines, Live
from tasks.text import printable
from tests.analysis.made_run import make_run

EVIL = "\x1b]0;owned\x07\x1b[2J\rgone\x9b31m \u202egnp.exe\x08"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\ttext\nµ → ✓", "plain\ttext\nµ → ✓"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\rb\r\nc", "a\\rb\nc"),
        ("\x00\x7f\x9b\u202e", "\\x00\\x7f\\x9b\\u202e"),
        ("[bold]no markup[/]", "[bold]no markup[/]"),
    ],
)
def test_controls_are_written_out(text, shown):
    assert printable(text) == shown


def everything(progress):
    progress.started("a=1", f"node {EVIL}", 1)
    progress.phase("a=1", f"waiting {EVIL}")
    progress.say(EVIL)
    progress.tell(EVIL)
    progress.finished("a=1", "failed", [f"[bold]reason[/bold] {EVIL}"], f"log {EVIL}\nmore", False)


@pytest.mark.parametrize("kind", ["lines", "live"])
def test_a_hostile_node_cannot_play_with_the_terminal(kind):
    out = io.StringIO()
    if kind == "lines":
        everything(Lines(1, out))
    else:
        live = Live(1, Console(file=out, highlight=False, width=300, color_system=None))
        everything(live)
        live._console.print(live._render())
    text = out.getvalue()
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text)
    assert "[bold]reason[/bold]" in text
    assert "\\x1b]0;owned" in text


SCRIPT = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.mark.slow
def test_a_hostile_record_is_no_markup_in_the_report(tmp_path):
    """Ids, reasons, host names, logs and values of a node stand in the report as text, in its data too."""
    run = make_run(tmp_path)
    for path in run.glob("trials/*/trial.json"):
        record = json.loads(path.read_text())
        record["verdict"]["reasons"] = [SCRIPT]
        record["verdict"]["state"] = "invalid" if "rep=2" in record["id"] else record["verdict"]["state"]
        for section in ("node", "device", "storage", "tracer"):
            if isinstance(record.get(section), dict):
                record[section] |= {"hostname": SCRIPT, "drive_model": SCRIPT}
        record["id"], record["trouble"] = f"{record['id']}{SCRIPT}", SCRIPT
        record["cell"] |= {"evil": SCRIPT}
        record["metrics"] = {**(record.get("metrics") or {}), SCRIPT: 1.0}
        path.write_text(json.dumps(record))
        (path.parent / "logs").mkdir(exist_ok=True)
        (path.parent / "logs" / "job.log").write_text(SCRIPT + EVIL)
    shutil.rmtree(run / "figures", ignore_errors=True)
    draw_run(run)
    assert "alert(1)" in (run / "report.html").read_text()
    for page in [run / "report.html", *run.glob("figures/*.html"), *run.glob("figures/*.svg")]:
        text = page.read_text()
        assert "</script><script>alert(1)" not in text, page
        assert "<img src=x onerror" not in text, page
