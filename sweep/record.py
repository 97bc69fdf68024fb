"""What `run.json` tells of a run: who, where, when, with which versions, on which nodes, and what was planned."""

from __future__ import annotations

import datetime
import os
import platform
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis.schema import SCHEMA_VERSION
from sweep import __version__
from sweep.code import table_of
from sweep.definition import Sweep
from sweep.exposure import without_secret
from sweep.options import Options
from sweep.placement import Node
from sweep.plan import Grid, plan_entry
from tasks import interpreter
from tasks.machine import user_name


def new_record(sweep: Sweep, plan: Grid, folder: Path, nodes: Sequence[Node], options: Options) -> dict[str, Any]:
    """Return the record of a run that begins now."""
    return {
        "schema_version": SCHEMA_VERSION,
        "sweep": sweep.name,
        "run_id": folder.name,
        "description": sweep.description,
        "argv": ["python", "-m", "sweep", *map(without_secret, options.argv)],
        "started": now(),
        "ended": None,
        "state": "running",
        "user": user_name(),
        "host": socket.gethostname(),
        "cwd": str(Path.cwd()),
        "git": _git_state(),
        "versions": {
            "offload-sweep": __version__,
            "python": platform.python_version(),
            **interpreter.installed(["ray", "polars", "altair"]),
        },
        "nodes": [node.record() for node in nodes],
        "plan": [plan_entry(t) for t in plan.planned],
        "code": table_of(t.config for t in plan.trials),
        "selection": options.selection.to_json(),
        "skipped": [{"id": words, "reason": reason} for words, reason in plan.skipped],
        "figures": list(sweep.figures),
        "reproduce": ["python", "-m", "sweep", shown(folder / "sweep.yaml"), *options.selection.argv()],
    }


def _git_state() -> dict[str, Any] | None:
    """Return commit and cleanness of the clone that this code lies in, or None where it is no clone."""
    root = Path(__file__).resolve().parent.parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("rev-parse", "--show-toplevel") != str(root):
        return None
    return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}


def now() -> str:
    """Return the time in UTC, as records have it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def shown(path: Path) -> str:
    """Return a path as a person would type it here."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
