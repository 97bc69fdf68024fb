"""`python -m analysis RUN`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from analysis.__main__ import main
from tests.analysis.made_run import MIB, make_run


def test_it_draws_again_and_prints_the_paths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, sizes=(MIB,), repeats=1, broken=False)
    assert main([str(run.parent), "--figures", "fig2, sizes"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1 + 2
    assert all(Path(line).is_file() for line in printed)
    assert not list((run / "figures").glob("timeline*"))
    assert not (run / "report.html").exists()
    assert main([str(run)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == str(run / "report.html")
    assert "reproduced: DeepNVMe's aio loads tensors faster than POSIX reads do" in printed
    assert "not testable here: 7 of the study's 9 statements" in printed
    assert "advice: single-repeat" in printed
    assert list((run / "figures").glob("timeline*"))


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such folder"), ("", "neither a run"), ("not json", "not valid JSON"), ("{}", "no schema_version")],
)
def test_a_wrong_path_is_one_line_and_exit_2(tmp_path: Path, content: str | None, message: str) -> None:
    folder = tmp_path / "run"
    if content is not None:
        folder.mkdir()
    if content:
        (folder / "run.json").write_text(content)
    command = [sys.executable, "-m", "analysis", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr
    assert not (folder / "report.html").exists()


def test_an_unknown_figure_is_refused_before_drawing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, sizes=(MIB,), repeats=1, broken=False)
    assert main([str(run), "--figures", "sizes,fig7"]) == 2
    said = capsys.readouterr().err
    assert said == "error: no figure is called 'fig7'; did you mean fig6?\n"
    assert said.count("\n") == 1
    assert not (run / "figures").exists()
