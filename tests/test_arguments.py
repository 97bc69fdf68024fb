"""Command lines that cannot be read: one message with the nearest right word, no usage and no traceback."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from sweep import cli, doctor, node, runs
from tasks import async_io, kept
from tasks.arguments import Parser, UsageError


@pytest.mark.parametrize(
    ("main", "argv", "near", "program"),
    [
        (cli.main, ["conf/quickstart.yaml", "--resum"], "--resume", "sweep"),
        (cli.main, ["conf/quickstart.yaml", "--max-failure=3"], "--max-failures", "sweep"),
        (node.main, ["--joni", "10.0.0.1:6379"], "--join", "sweep.node"),
        (node.main, ["--with", "gpu"], "--without", "sweep.node"),
        (doctor.main, ["--adress", "auto"], "--address", "sweep.doctor"),
        (runs.main, ["--result", "x"], "--results", "sweep.runs"),
        (runs.main, ["merge", "a", "b", "--int", "x"], "--into", "sweep.runs merge"),
        (kept.main, ["--rmove"], "--remove", "tasks.kept"),
        (async_io.main, ["biuld"], "build", "tasks.async_io"),
    ],
)
def test_a_slip_is_told_with_what_was_meant(
    main: Callable[[list[str]], int],
    argv: list[str],
    near: str,
    program: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(argv) != 0
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 2)
    assert ": command line: " in err
    assert err.endswith(f"did you mean {near}? More: python -m {program} --help\n")


@pytest.mark.parametrize("argv", [["--nothing-like-it"], ["--results"]])
def test_what_is_like_nothing_or_only_lacks_a_value_has_no_hint(argv: Sequence[str]) -> None:
    parser = Parser(prog="python -m x")
    parser.add_argument("--results")
    with pytest.raises(UsageError, match=r"\n  More: python -m x --help$"):
        parser.parse_args(argv)
