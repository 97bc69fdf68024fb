"""`python -m analysis RUN`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from analysis import AnalysisError, load_run
from analysis.__main__ import _names, main
from analysis.figures import FIGURES, draw
from tests.analysis.made_run import MIB, make_run


def test_it_draws_again_and_prints_the_paths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, sizes=(MIB, 2 * MIB, 4 * MIB), repeats=1, broken=False)
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


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("metric:tokens_per_s@batch", "no axis 'batch'"),
        ("metric:decod/read.iops@fs", "no trial of this run has a phase 'decod' with read"),
        ("metric:metric.foo@fs", "no trial of this run has metric.foo"),
        ("", "--figures names no figure; write one or more of fig2,"),
        (" , ", "--figures names no figure"),
        ("zzzz", "roofline"),
    ],
)
def test_what_the_run_does_not_have_is_refused_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], asked: str, said: str
) -> None:
    run = make_run(tmp_path, sizes=(MIB,), repeats=1, broken=False)
    assert main([str(run), "--figures", asked]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert not (run / "figures").exists()
    assert not (run / "report.html").exists()


def test_in_a_sweeps_own_list_it_is_a_picture_that_says_so(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path, sizes=(MIB,), repeats=1, broken=False))
    (drawn,) = draw(run, ["metric:tokens_per_s@batch"], run.path / "figures")
    assert drawn.reason is not None
    assert "no axis 'batch'" in drawn.reason
    with pytest.raises(AnalysisError, match="no axis 'batch'"):
        run.figure("metric:tokens_per_s@batch")


@pytest.mark.parametrize("words", [["--figures", "fig2", "sizes"], ["--figures", "fig2,", "sizes"]])
def test_figures_are_named_with_commas_or_spaces(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    run = make_run(tmp_path, sizes=(MIB,), repeats=1, broken=False)
    assert main([str(run), *words]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 2


def test_all_are_all() -> None:
    assert _names(["all", "fig2"]) == list(FIGURES)
    with pytest.raises(SystemExit):
        main(["one", "two"])
