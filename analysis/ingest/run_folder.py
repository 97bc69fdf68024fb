"""A run folder that appears whole: made beside its place under a hidden name, and renamed."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import platform
import re
import shutil
import socket
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from analysis.errors import AnalysisError
from analysis.files import write_bytes
from analysis.ingest import assembly
from analysis.ingest.tree import Found
from analysis.run import Trial, load_run
from analysis.schema import SCHEMA_VERSION
from analysis.summary import write_summary
from analysis.units import UNKNOWN, count_text
from analysis.workload import has_cache_on_disk, has_weights_on_disk, is_deepspeed_model, settings

#: How the folder of an import that is under way begins; the number of its process follows.
_HIDDEN = ".import-"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
#: What is worth drawing of which trials.
_FIGURES = {
    "fig2": lambda trial: settings(trial).get("kind") == "tensor_io",
    "fig3": is_deepspeed_model,
    "fig4": has_weights_on_disk,
    "fig5": has_cache_on_disk,
    "fig6": has_cache_on_disk,
}


def write(found: Found, source: Path, results: Path, name: str, argv: Sequence[str]) -> Path:
    """Import what was found into a new run `results/<name>/<run id>` and return its folder; nothing else is changed.

    Raises AnalysisError where `name` cannot name a folder. An error or an interrupt leaves nothing behind.
    """
    if not _NAME.fullmatch(name):
        raise AnalysisError(f"--name: {name!r} cannot name a folder; letters, digits, '.', '_' and '-' can")
    parent = results.absolute() / name
    parent.mkdir(parents=True, exist_ok=True)
    _remove_dead(parent)
    hidden = parent / f"{_HIDDEN}{os.getpid()}"
    started = _now()
    try:
        (hidden / "trials").mkdir(parents=True)
        plan = _write_trials(found, hidden)
        final = _free(parent, datetime.now().strftime("%Y%m%d-%H%M%S"))
        record = _record(found, source, name, final.name, argv, started, plan)
        write_bytes(hidden / "run.json", json.dumps(record, indent=1).encode())
        record["figures"] = _figures(hidden)
        write_bytes(hidden / "run.json", json.dumps(record, indent=1).encode())
        write_summary(hidden)
        hidden.rename(final)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    _point_latest(final)
    return final


def _write_trials(found: Found, run: Path) -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = []
    records: list[dict[str, Any]] = []
    for group in found.groups:
        folder = run / f"incoming-{len(records)}"
        folder.mkdir()
        for cell, parts in assembly.trials(group, folder):
            folder = run / f"incoming-{len(records)}"
            folder.mkdir(exist_ok=True)
            cells.append(cell)
            records.append(assembly.write(folder, parts, group.fs))
    plan = _plan(cells)
    for place, (identity, record) in enumerate(zip(plan, records, strict=True)):
        folder = run / f"incoming-{place}"
        write_bytes(folder / "trial.json", json.dumps(identity | record, indent=1).encode())
        folder.rename(run / "trials" / str(identity["slug"]))
    return plan


def _plan(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return id, slug, cell and repeat of each trial; trials of equal cells are repeats."""
    alike = {name for name in assembly.WHERE_VARYING if _same(cells, name)}
    repeats: Counter[str] = Counter()
    plan = []
    for cell in cells:
        own = {axis: value for axis, value in cell.items() if axis not in alike}
        words = ",".join(f"{axis}={value}" for axis, value in own.items())
        repeats[words] += 1
        identity = f"{words},rep={repeats[words]}"
        plan.append({"id": identity, "slug": _slug(identity), "cell": own, "repeat": repeats[words]})
    return plan


def _same(cells: Sequence[dict[str, Any]], axis: str) -> bool:
    """Say whether the trials of each job have the same value of an axis."""
    values: dict[Any, set[Any]] = {}
    for cell in cells:
        values.setdefault(cell.get("job"), set()).add(cell.get(axis))
    return all(len(own) == 1 for own in values.values())


def _record(
    found: Found,
    source: Path,
    name: str,
    run_id: str,
    argv: Sequence[str],
    started: str,
    plan: list[dict[str, Any]],
) -> dict[str, Any]:
    left = [f"{file} ({reason})" for file, reason in found.left]
    told = (
        f"; {count_text(len(left), 'file')} not used: {', '.join(left[:5])}{' …' if len(left) > 5 else ''}"
        if left
        else ""
    )
    return {
        "schema_version": SCHEMA_VERSION,
        "sweep": name,
        "run_id": run_id,
        "description": f"Imported from {source.name}: what others measured, as their files tell it{told}",
        "argv": list(argv),
        "started": started,
        "ended": _now(),
        "state": "imported",
        "user": _user(),
        "host": socket.gethostname(),
        "cwd": str(Path.cwd()),
        "versions": {"offload-sweep": _version(), "python": platform.python_version()},
        "nodes": [],
        "plan": plan,
        "figures": [],
        "import": {"source": str(source), "left": [{"file": file, "reason": reason} for file, reason in found.left]},
        "reproduce": list(argv),
    }


def _figures(run: Path) -> list[str]:
    trials: list[Trial] = load_run(run).published
    return [name for name, worth in _FIGURES.items() if any(worth(trial) for trial in trials)]


def _free(parent: Path, stamp: str) -> Path:
    """Return the first name for a run that is not taken."""
    place, turn = parent / stamp, 1
    while place.exists():
        turn += 1
        place = parent / f"{stamp}-{turn}"
    return place


def _point_latest(run: Path) -> None:
    """Point the sweep's `latest` link at the run, unless something else has that name."""
    link = run.parent / "latest"
    if link.is_symlink() or not link.exists():
        temporary = run.parent / f".latest-{run.name}"
        temporary.symlink_to(run.name)
        temporary.replace(link)


def _remove_dead(parent: Path) -> None:
    """Remove what imports left that were killed."""
    for path in parent.glob(f"{_HIDDEN}*"):
        pid = path.name.removeprefix(_HIDDEN)
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(path, ignore_errors=True)


def _slug(identity: str) -> str:
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", identity.replace(",", "\0")).strip("-").replace("\0", "_")
    return f"{readable[:80].strip('-._')}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return UNKNOWN


def _version() -> str:
    try:
        return metadata.version("offload-sweep")
    except metadata.PackageNotFoundError:
        return UNKNOWN
