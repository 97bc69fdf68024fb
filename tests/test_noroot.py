"""A user without root: what runs, what the report says is missing, and what is refused by name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tasks import async_io
from tasks.cache import cache_dir

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.ray]

ROOT = Path(__file__).parent.parent
NOBODY = 65534


def within_reach(home: Path) -> str:
    """Return shell that runs its arguments where everybody can reach this Python, be it in root's own home."""
    base = Path(sys.base_prefix).resolve()
    closed = [p for p in [*base.parents][::-1] if not p.stat().st_mode & 0o001]
    if not closed:
        return 'exec "$@"'
    (home / "python").mkdir(exist_ok=True)
    # In a mount namespace of its own: an open folder in place of the closed one, with nothing but this Python in it.
    return f"""
        mount --bind {base} {home}/python
        mount -t tmpfs -o mode=755 none {closed[0]}
        mkdir -p {base}
        mount --bind {home}/python {base}
        exec "$@"
    """


@pytest.fixture
def user(tmp_path_factory: pytest.TempPathFactory):
    """Return a function that runs `python -m sweep` as a user without root, with a home of that user's own."""
    home = Path("/var/tmp") / f"offload-sweep-user-{os.getpid()}"
    home.mkdir(mode=0o755)
    cache = home / "cache"
    if async_io.is_built():
        shutil.copytree(cache_dir("async_io"), cache / "async_io")
    for path in [home, *home.rglob("*")]:
        os.chown(path, NOBODY, NOBODY)
    environment = {
        "HOME": str(home),
        "PATH": os.environ["PATH"],
        "OFFLOAD_SWEEP_CACHE": str(cache),
        "TMPDIR": "/var/tmp",
    }

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        argv = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", sys.executable, "-m", "sweep"]
        argv += [*arguments, "--results", str(home / "results")]
        inside = ["unshare", "--mount", "sh", "-ec", within_reach(home), "sh", *argv]
        return subprocess.run(inside, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)

    yield run, home
    shutil.rmtree(home)


def test_the_quickstart_without_root_measures_and_says_what_is_missing(user) -> None:
    run, home = user
    done = run("conf/quickstart-noroot.yaml", "repeats=1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 trials: 2 valid" in done.stdout
    for folder in (home / "results/quickstart-noroot/latest/trials").iterdir():
        check_trial(folder)
    report = (home / "results/quickstart-noroot/latest/report.html").read_text()
    assert "no single requests" in report
    assert "not drawn: sizes" in done.stdout
    assert sorted(p.name for p in (home / ".local/state/offload-sweep").glob("offload-sweep-*")) == []


def check_trial(folder: Path) -> None:
    record = json.loads((folder / "trial.json").read_text())
    assert record["tracer"]["name"] == "diskstats"
    assert record["verdict"] == {"state": "valid", "reasons": []}
    assert record["bytes"]["traced"] is None
    assert record["bytes"]["counted"]["read"] >= record["bytes"]["expected"]["read"] > 0
    assert record["storage"]["fs"] not in ("auto", "unknown")
    assert not (folder / "requests.parquet").exists()


def test_memory_that_a_user_may_not_lock_is_told_in_words(user) -> None:
    run, _ = user
    done = run("conf/quickstart-noroot.yaml", "repeats=1", "scenarios.aio.workload.sizes=[4MiB, 1GiB]")
    assert done.returncode == 3
    assert "aio locks a buffer of the tensor's size (1048576 KiB), and this user may lock" in done.stdout
    assert "2 trials: 1 valid, 1 failed" in done.stdout


def test_the_quickstart_names_the_cells_that_need_root(user) -> None:
    run, home = user
    done = run("conf/quickstart.yaml")
    assert done.returncode == 2
    assert done.stderr.count("Traceback") == 0
    assert "no node can run 8 of 8 trials" in done.stderr
    assert "scenario=tensors,fs=ext4,rep=1" in done.stderr
    assert "storage.kind: needs root: run the sweep as root on this node" in done.stderr
    assert "quickstart-noroot" in done.stderr
    assert not (home / "results").exists()
