"""The command that goes on with a run where it stopped."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from sweep.cli import parser
from sweep.options import Options


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run1").mkdir()
    (tmp_path / "latest").symlink_to("run1")
    return tmp_path / "run1"


@pytest.mark.parametrize(
    ("argv", "again"),
    [
        (["a.yaml", "n=1"], ["a.yaml", "n=1", "--resume"]),
        (["a.yaml", "--fail-fast", "n=1"], ["a.yaml", "n=1", "--resume"]),
        (["--max-failures", "3", "a.yaml", "--max-failures=2"], ["a.yaml", "--resume"]),
        (["a.yaml", "workload.env.HF_TOKEN=x"], ["a.yaml", "workload.env.HF_TOKEN=${oc.env:HF_TOKEN}", "--resume"]),
    ],
)
def test_what_stopped_a_run_does_not_stop_it_again(folder: Path, argv: list[str], again: list[str]) -> None:
    told = shlex.split(Options(folder.parent, argv=tuple(argv)).again(folder))
    assert told == ["python", "-m", "sweep", *again]
    args = parser().parse_intermixed_args(told[3:])
    assert (args.max_failures, args.fail_fast, args.resume) == (None, False, True)


def test_a_run_that_is_resumed_is_so_again(folder: Path) -> None:
    argv = ("a.yaml", "--resume", "--fail-fast")
    assert Options(folder.parent, argv=argv, resume=True).again(folder) == "python -m sweep a.yaml --resume"


def test_a_run_that_is_not_the_latest_is_named(folder: Path) -> None:
    other = folder.with_name("run2")
    other.mkdir()
    assert Options(folder.parent, argv=("a.yaml",)).again(other) == "python -m sweep a.yaml --resume --run run2"
    argv = ("a.yaml", "--resume", "--run", "run2")
    assert Options(folder.parent, argv=argv, resume=True, run="run2").again(other).endswith("--resume --run run2")
