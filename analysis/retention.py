"""Which runs of a sweep are kept: the newest, by number and size. What goes is in the ledger first."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from analysis.errors import AnalysisError
from analysis.files import DRIVER_LOCK, STORE_LOCK, held, locked, sync
from analysis.units import bytes_text

#: States of runs that a sweep made and that --resume could go on with; for so long nobody is late to do so.
_UNFINISHED = ("running", "interrupted", "stopped", "broken")
_RESUMABLE = timedelta(hours=24)

#: Runs that a person made of others, or of other tools' traces, are a person's to remove.
_BY_HAND = ("merged", "imported")

#: What a run is called while it is removed: a removal that was cut short is ended by the next one.
_GOING = ".removed-"


@dataclass(frozen=True)
class Removal:
    """A run that has to go, what it takes on disk, and by which limit."""

    run: Path
    size_bytes: int
    limit: str

    def __str__(self) -> str:
        return f"{self.run.name} ({bytes_text(self.size_bytes)}; {self.limit})"


@dataclass(frozen=True)
class _Kept:
    run: Path
    record: dict[str, Any]
    size_bytes: int


def excess(
    folder: Path, runs: int | None, size_bytes: int | None, used: Collection[Path] = (), coming: int = 0
) -> list[Removal]:
    """Return the runs of a sweep's folder that are too many, or too large together, the oldest first.

    Both limits are of all runs that sweeps made there. Not removed, whatever the limits: those `used`, the one that
    `latest` points at, those that are driven or written to now, and unfinished ones of the last 24 hours. Of
    runs that are still `coming`, so many more, `latest` will be one.
    """
    known = sorted(_runs(folder), key=lambda one: (str(one.record.get("started") or ""), one.run.name))
    safe = {path.resolve() for path in (*used, *([] if coming else [folder / "latest"]))}
    number, total = len(known) + coming, sum(one.size_bytes for one in known)
    found = []
    for one in known:
        limit = None
        if runs is not None and number > runs:
            limit = f"there are {number} runs, {runs} are kept"
        elif size_bytes is not None and total > size_bytes:
            limit = f"all take {bytes_text(total)}, {bytes_text(size_bytes)} are kept"
        if limit is None:
            break
        if one.run.resolve() in safe or _in_use(one):
            continue
        found.append(Removal(one.run, one.size_bytes, limit))
        number, total = number - 1, total - one.size_bytes
    return found


def remove(folder: Path, going: Sequence[Removal]) -> Iterator[str]:
    """Remove these runs of a sweep's folder, and yield a line on each: that it is gone, or why it stays.

    One that the ledger does not have to the last attempt is entered first; it stays where that cannot be done.
    """
    for left in folder.glob(f"{_GOING}*"):
        shutil.rmtree(left, ignore_errors=True)
    for one in going:
        try:
            _enter(one.run)
            with ExitStack() as stack:
                for name in (DRIVER_LOCK, STORE_LOCK):
                    stack.enter_context(locked(one.run / name))
                _delete(one.run)
        except BlockingIOError:
            yield f"run {one.run.name} stays: somebody has begun to use it"
        except (AnalysisError, OSError) as error:
            yield f"run {one.run.name} stays: {error}"
        else:
            yield f"removed run {one}; its figures are in the ledger"


def _enter(run: Path) -> None:
    from analysis import ledger

    ledger.add(run)
    if not ledger.complete(run):
        raise AnalysisError(f"not all of its trials are in {ledger.of_run_folder(run)}")


def _delete(run: Path) -> None:
    """Remove a run's folder so that it is there whole or is no run any more."""
    going = run.with_name(f"{_GOING}{run.name}")
    run.rename(going)
    sync(run.parent)
    (going / "run.json").unlink()
    shutil.rmtree(going)


def _runs(folder: Path) -> Iterator[_Kept]:
    """Yield the runs that sweeps made in a folder; whatever else is there is none of ours."""
    with suppress(OSError):
        for entry in sorted(os.scandir(folder), key=lambda one: one.name):
            path = Path(entry.path)
            if entry.name.startswith(".") or not entry.is_dir(follow_symlinks=False):
                continue
            with suppress(OSError, ValueError):
                record = json.loads((path / "run.json").read_bytes())
                ours = isinstance(record, dict) and isinstance(record.get("schema_version"), int)
                if ours and record.get("sweep") == folder.name and record.get("state") not in _BY_HAND:
                    yield _Kept(path, record, _size_bytes(path))


def _in_use(one: _Kept) -> bool:
    if any(held(one.run / name) for name in (DRIVER_LOCK, STORE_LOCK)):
        return True
    return one.record.get("state") in _UNFINISHED and _age(one.record) < _RESUMABLE


def _age(record: dict[str, Any]) -> timedelta:
    """Return how long ago a run began, or was last gone on with; of one that does not say so, no time at all."""
    sessions = [one for one in record.get("resumed") or [] if isinstance(one, dict)]
    begun = [one.get("started") for one in (record, *sessions)]
    try:
        return datetime.now(UTC) - datetime.fromisoformat(str(begun[-1]))
    except (TypeError, ValueError):
        return timedelta(0)


def _size_bytes(folder: Path) -> int:
    """Return what a run takes on disk; a file that several runs share (merged ones) counts in each."""
    found = 0
    for at, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                found += (Path(at) / name).lstat().st_blocks * 512
    return found
