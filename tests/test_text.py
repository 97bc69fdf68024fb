"""Hostile text from a node does not reach the terminal as it is, nor the report as markup."""

import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import ray
from rich.console import Console

from analysis.drawing import draw_run
from analysis.errors import AnalysisError
from sweep import cluster, doctor, membership, run
from sweep.checkup import examined
from sweep.ending import conclude, tell_what_is_kept
from sweep.errors import ClusterError
from sweep.membership import Answer
from sweep.options import Options
from sweep.placement import Node
from sweep.progress import Lines, Live
from tasks import kept
from tasks.text import printable
from tests.analysis.made_run import make_run
from tests.test_doctor import an_offer

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


def refused(monkeypatch):
    """One node that is left out beside one that is not, both with names of their own."""
    answers = [Answer(EVIL, "1", None, None, f"node {EVIL} has other code"), Answer("b", "2", None, Node(an_offer([])))]
    monkeypatch.setattr(membership, "candidates", list)
    monkeypatch.setattr(membership, "asked", lambda entries: answers)
    cluster._nodes()


def examined_and_refused(monkeypatch):
    offer = replace(an_offer([], {"fs:xfs": EVIL}), hostname=EVIL)
    monkeypatch.setattr(doctor, "of_this_machine", lambda: examined(offer, {"problems": [EVIL]}))
    assert doctor.main([]) == 2
    refusal = ClusterError(f"no node can take part: {EVIL}")
    monkeypatch.setattr(doctor, "of_this_machine", lambda: (_ for _ in ()).throw(refusal))
    assert doctor.main([]) == 2


def kept_here(monkeypatch):
    note = {"name": "t-1", "trial": EVIL, "since": "now", "path": f"/{EVIL}", "image": None, "size_bytes": 1}
    monkeypatch.setattr(kept, "notes", lambda: [note | {"in_memory": False}])
    assert kept.main([]) == 0
    assert kept.main(["--remove"]) == 2


def ended(monkeypatch):
    options = Options(Path("results"))
    tell_what_is_kept(f"stopped: {EVIL}", {}, "1 trial", Path("run"), options)
    drawn = {"run": "run", "report": None, "ruled_out": {"timeline": EVIL}}
    conclude({}, drawn)
    run._tell_of_copy(EVIL)
    raised = ray.exceptions.RayTaskError("draw", "", AnalysisError(EVIL))
    monkeypatch.setattr(ray, "get", lambda ref: (_ for _ in ()).throw(raised))
    run._draw(MagicMock(), Path("run"))


@pytest.mark.parametrize("tell", [refused, examined_and_refused, kept_here, ended])
def test_nor_where_a_line_is_just_printed(tell, state, monkeypatch, capsys):
    tell(monkeypatch)
    text = "".join(capsys.readouterr())
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text)
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
