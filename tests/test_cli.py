"""The command line as a person meets it: help, version, keys, and a dry run that is quick and starts nothing."""

from __future__ import annotations

import os
import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sweep import cli
from sweep.errors import EXIT_INTERRUPTED, EXIT_TRIALS, EXIT_USER, EXIT_VALID
from tasks.spec import FILESYSTEMS
from tasks.tracers import TRACERS

ROOT = Path(__file__).parent.parent
#: What a glance at a sweep must not wait for.
HEAVY = ("torch", "deepspeed", "ray", "polars", "altair", "pandas", "numpy", "pyarrow")


def run(*argv: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sweep", *argv]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=60)


def children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_tells_of_every_option_and_exit_code() -> None:
    done = run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for option in ("CONF", "key=value", *(o for a in cli.parser()._actions for o in a.option_strings)):
        assert option in done.stdout
    codes = done.stdout.partition("exit codes")[2]
    for code in (EXIT_VALID, EXIT_USER, EXIT_TRIALS, EXIT_INTERRUPTED):
        assert re.search(rf"(^|\s){code}  \w", codes)


def test_the_examples_of_the_help_are_valid(capsys: pytest.CaptureFixture[str]) -> None:
    from sweep import config
    from sweep.plan import Grid
    from sweep.selection import Selection

    examples = [line for line in cli.parser().format_help().splitlines() if "-m sweep conf/" in line]
    assert len(examples) >= 3
    for line in examples:
        argv = shlex.split(re.split(r"\s{2,}", line.strip())[0])[3:]
        args = cli.parser().parse_intermixed_args(argv)
        sweep = config.load(args.conf, args.overrides)
        assert sweep.scenarios
        assert Selection(tuple(args.only), tuple(args.trial)).of(Grid(sweep).trials, sweep)


def test_version() -> None:
    done = run("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"offload-sweep \d+\.\d+\.\d+\n", done.stdout)


def test_keys_lists_what_a_sweep_file_may_hold() -> None:
    done = run("--keys")
    assert (done.returncode, done.stderr) == (0, "")
    keys = re.findall(r"^  (\S+)$", done.stdout, re.MULTILINE)
    for section in done.stdout.split("\nworkload, kind: "):
        within = re.findall(r"^  (\S+)$", section, re.MULTILINE)
        assert len(within) == len(set(within)) > 0
    assert {"repeats", "grid", "extends", "storage.fs", "storage.queue.max_sectors_kb", "workload.sizes"} <= set(keys)
    assert all(name in done.stdout for name in TRACERS)


def test_a_dry_run_shows_every_trial_and_takes_less_than_a_second(tmp_path: Path) -> None:
    conf = tmp_path / "everywhere.yaml"
    conf.write_text(
        "workload: {kind: tensor_io, sizes: [1MiB], apis: [posix]}\n"
        f"storage: {{kind: directory, path: {ROOT}, fs: {filesystem_of(ROOT)}}}\n"
        "trace: {tracer: none}\n"
        "grid: {workload.loops: [1, 2]}\n"
        "repeats: 2\n"
    )
    before = children_cpu_s()
    done = run(str(conf), "--dry-run", cwd=tmp_path)
    assert children_cpu_s() - before < 1
    assert (done.returncode, done.stderr) == (0, "")
    assert "4 trials, 2 cells x 2 repeats" in done.stdout
    assert re.findall(r"^  (\S+)  run  on ", done.stdout, re.MULTILINE) == [
        f"loops={loops},rep={rep}" for rep in (1, 2) for loops in (1, 2)
    ]
    assert "needs engine:torch, tracer:none; 1 MiB of disk\n" in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == [conf.name]


def filesystem_of(path: Path) -> str:
    from tasks.mounts import mount_of

    return mount_of(path).fs


def test_a_dry_run_of_the_quickstart_takes_less_than_a_second(tmp_path: Path) -> None:
    before = children_cpu_s()
    done = run("conf/quickstart.yaml", "--dry-run", cwd=tmp_path)
    assert children_cpu_s() - before < 1
    assert list(tmp_path.iterdir()) == []
    if done.returncode:
        # A machine that lacks something says what, for every trial, and nothing else.
        assert done.returncode == cli.EXIT_USER
        assert "no node can run" in done.stderr
        return
    assert "8 trials, 4 cells x up to 3 repeats" in done.stdout
    assert len(re.findall(r"^  scenario=\w+,fs=(ext4|xfs),rep=\d +run +on ", done.stdout, re.MULTILINE)) == 8
    assert done.stderr == ""


def test_a_glance_imports_no_engine_and_no_ray(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from sweep.cli import main\n"
        "try:\n"
        "    main(sys.argv[1:])\n"
        "finally:\n"
        f"    print('IMPORTED', [m for m in {HEAVY!r} if m in sys.modules])\n"
    )
    for argv in (["conf/quickstart.yaml", "--dry-run"], ["--keys"], ["--help"], ["conf/quickstart.yaml", "repeats=x"]):
        command = [sys.executable, "-c", code, *argv]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
        assert done.stdout.endswith("IMPORTED []\n"), argv


def test_the_filesystems_that_can_be_asked_for_are_those_that_can_be_made() -> None:
    done = run("conf/quickstart.yaml", "storage.fs=none", "grid={}", "--dry-run")
    assert done.returncode == cli.EXIT_USER
    assert f"valid: {', '.join(FILESYSTEMS)}" in done.stderr
