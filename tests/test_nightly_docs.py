"""docs/nightly.md and the sweep and units that it speaks of, tried."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from analysis import ledger
from sweep.config import load
from sweep.plan import Grid
from tests import nights
from tests.test_decisions import World, sweep_file, world

__all__ = ["sweep_file", "world"]

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "nightly.md").read_text()
UNITS = ("offload-sweep-nightly.service", "offload-sweep-nightly.timer", "offload-sweep-told.service")
PYTHON = "/opt/offload-sweep/bin/python"


@pytest.mark.parametrize("words", [[], ["scale=small"]])
def test_the_nightly_sweep_is_filesystems_by_batch_sizes_with_two_engines(words: list[str]) -> None:
    sweep = load(str(ROOT / "conf" / "nightly.yaml"), words)
    trials = Grid(sweep).trials
    cells = {(t.config["workload"]["kind"], t.cell["fs"], t.cell["batch_size"]) for t in trials}
    assert len(cells) == (8 if words else 12)
    assert {kind for kind, _, _ in cells} == {"flexgen", "deepspeed_model"}
    assert sweep.name == ("nightly-small" if words else "nightly")
    assert sum(not trial.warmup for trial in trials) == 5 * len(cells)
    assert (sweep.retention.runs, sweep.on_impossible.name) == (60, "skip")


def test_every_column_of_the_ledger_is_on_its_page(world: World) -> None:
    from analysis.profile import _COLUMNS

    text = PAGE.partition("| column | meaning |")[2].partition("\n\n")[0]
    told = set(re.findall(r"`([\w.*]+)`", text)) | {*_COLUMNS}
    world.finish(world.plan(), started="2026-11-20T22:00:00+00:00")
    ledger.add(world.folder)
    columns = set(ledger.read(world.results / ledger.FILE).columns) | set(nights.night(0).columns)
    assert {name for name in columns if name not in told and not name.startswith("cell.")} == set()
    assert {name for name in told if "*" not in name and name != "role.kv_bytes"} <= columns | {*_COLUMNS, "trial"}


def test_the_queries_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [nights.night(n, sweep="nightly").rename(columns={"cell.storage.fs": "cell.fs"}) for n in (0, 1)]
    (tmp_path / "results").mkdir()
    ledger.append(tmp_path / "results" / ledger.FILE, pd.concat(rows, ignore_index=True))
    monkeypatch.chdir(tmp_path)
    said = []
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(code, "nightly.md", "exec"), {})  # noqa: S102
        said.append(out.getvalue())
    assert "20261102-020000" in said[0]
    assert "6.18.1" in said[1]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    for name in UNITS:
        text = (ROOT / "docs" / name).read_text()
        (tmp_path / name).write_text(text.replace(PYTHON, sys.executable))
    paths = [str(tmp_path / name) for name in UNITS]
    done = subprocess.run(["systemd-analyze", "verify", *paths], capture_output=True, text=True, timeout=60)
    about = [line for line in (done.stdout + done.stderr).splitlines() if any(name in line for name in UNITS)]
    assert (done.returncode, about) == (0, [])
    timer = (tmp_path / UNITS[1]).read_text()
    calendar = re.search(r"OnCalendar=(.*)", timer)
    assert calendar
    told = subprocess.run(["systemd-analyze", "calendar", calendar[1]], capture_output=True, text=True, timeout=60)
    assert "02:00:00" in told.stdout


def line_of(start: str) -> str:
    """Return what a line of the service or of the page says after its first words."""
    text = (ROOT / "docs" / UNITS[0]).read_text() + PAGE
    return next(line.strip().removeprefix(start) for line in text.splitlines() if line.strip().startswith(start))


def tried(command: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command as systemd and cron do: a shell, and next to nothing in the environment."""
    own = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(folder), "LANG": "C", **variables}
    own |= {"PYTHONPATH": str(ROOT), "OFFLOAD_SWEEP_STATE": os.environ["OFFLOAD_SWEEP_STATE"]}
    command = command.replace(PYTHON, sys.executable).replace("/var/lib/offload-sweep", str(folder))
    command = command.replace("/etc/offload-sweep", str(folder))
    return subprocess.run(["/bin/sh", "-c", command], env=own, cwd="/", capture_output=True, text=True, timeout=180)


@pytest.mark.ray
@pytest.mark.slow
def test_the_lines_of_service_and_cron_run(tmp_path: Path, state: Path) -> None:
    (tmp_path / "nightly.yaml").write_text(
        "workload: {kind: command, argv: ['true']}\n"
        f"storage: {{kind: directory, path: {tmp_path}, fs: auto}}\n"
        "trace: {tracer: none}\nceiling: {enabled: false}\n"
    )
    told = tried(line_of("ExecStart="), tmp_path, SWEEP=f"{tmp_path}/nightly.yaml", MORE="--baseline latest:7")
    assert told.returncode == 0, told.stdout + told.stderr
    assert (tmp_path / "results" / "nightly" / "latest" / "comparison.txt").is_file()
    cron = line_of("0 2 * * * ")
    good = tried(cron, tmp_path)
    assert (good.returncode, good.stdout, good.stderr) == (0, "", "")
    assert "against nightly/" in (tmp_path / "night.log").read_text()
    (tmp_path / "nightly.yaml").write_text("workload: {kind: nonsense}\n")
    bad = tried(cron, tmp_path)
    assert bad.stdout.startswith("exit code 2\n")
    assert "workload.kind: no workload 'nonsense'" in bad.stdout
