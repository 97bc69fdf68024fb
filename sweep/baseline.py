"""`--baseline`: which earlier runs of a sweep a run is compared with when it has ended."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.errors import AnalysisError
from analysis.files import own_folder
from sweep import lock
from sweep.definition import Sweep
from sweep.errors import ConfigError, UserError
from sweep.past import is_run, read_run, runs_of
from sweep.plan import Grid

if TYPE_CHECKING:
    import pandas as pd

_OPTION = "--baseline"
_LATEST = re.compile(r"latest(?::(\d+))?")

#: More nights than these hold more of the past than of what is normal now.
_MOST_NIGHTS = 366


@dataclass(frozen=True)
class Base:
    """An earlier run: `folder` is None where only the ledger still has it."""

    run: str
    started: str
    folder: Path | None


@dataclass(frozen=True)
class Baseline:
    """The runs to compare with, the oldest first; none of them, and that is a first night."""

    bases: tuple[Base, ...]

    def __str__(self) -> str:
        """Return what will be compared, in words."""
        if not self.bases:
            return "no earlier run: this is the first, and there is nothing to compare it with"
        removed = [one.run for one in self.bases if one.folder is None]
        gone = f" (of {', '.join(removed)} what the ledger has: the folder was removed)" if removed else ""
        return f"{', '.join(one.run for one in self.bases)}{gone}"

    def told(self) -> list[tuple[str, str | None]]:
        """Return each base as whoever compares wants it: the run's id, and its folder where that is there."""
        return [(one.run, str(one.folder) if one.folder else None) for one in self.bases]


def check_words(words: Sequence[str]) -> None:
    """Raise ConfigError where a word asks for a number of nights that cannot be."""
    for word in words:
        match = _LATEST.fullmatch(word)
        if word.startswith("latest:") and not (match and 1 <= int(match[1]) <= _MOST_NIGHTS):
            text = f"{word} is no number of nights; write latest, or latest:N for the last N, 1 to {_MOST_NIGHTS}"
            raise ConfigError(_OPTION, None, text)


def find(
    results: Path,
    sweep: Sweep,
    plan: Grid,
    words: Sequence[str],
    resumed: Path | None = None,
    at_head: bool = False,
) -> Baseline:
    """Return what `words` name: `latest`, `latest:N`, runs by id or path; `resumed` is the run that is gone on with.

    `at_head`: the runs may be on a cluster's head, and this machine another one.
    Raises ConfigError where a named run is not there, is of another sweep, or has no trial in common with the plan.
    """
    check_words(words)
    folder = (results / sweep.name).absolute()
    found: dict[str, Base] = {}
    for word in words:
        match = _LATEST.fullmatch(word)
        if match:
            bases = _latest(folder, int(match[1] or 1), resumed)
        else:
            bases = [_named(folder, sweep.name, word, plan, at_head)]
        found |= {one.run if one.folder is None else str(one.folder.resolve()): one for one in bases}
    if resumed and any(one.folder and one.folder.resolve() == resumed.resolve() for one in found.values()):
        raise ConfigError(_OPTION, None, f"{resumed.name} is the run that is gone on with: it cannot be its own base")
    return Baseline(tuple(sorted(found.values(), key=lambda one: one.started)))


# --- latest ----------------------------------------------------------------------------------------------------------


def _latest(folder: Path, nights: int, resumed: Path | None) -> list[Base]:
    """Return the newest finished runs of all trials of the sweep, of those that began before this one."""
    found = {path.name: Base(path.name, told, path) for path, told in _finished(folder)}
    for run, started in _whole_in_ledger(folder):
        if not is_run(folder / run):  # a run that is there says itself how it ended, and whether it goes on
            found[run] = Base(run, started, None)
    if resumed:
        begun = str(read_run(resumed).get("started") or "")
        found = {run: one for run, one in found.items() if run != resumed.name and one.started < begun}
    return sorted(found.values(), key=lambda one: (one.started, one.run))[-nights:]


def _finished(folder: Path) -> list[tuple[Path, str]]:
    found = []
    for path in runs_of(folder):
        try:
            record = read_run(path)
        except ConfigError:
            continue  # one that cannot be read is nothing to compare with
        if record.get("state") == "finished" and not record.get("selection") and not lock.driver(path):
            found.append((path, str(record.get("started") or "")))
    return found


def _whole_in_ledger(folder: Path) -> list[tuple[str, str]]:
    """Return the finished whole runs that the ledger has of a sweep; none where it cannot be read."""
    try:
        runs = _of_ledger(folder)
    except AnalysisError:
        return []
    return [
        (str(run), own.run_started.min().isoformat(timespec="seconds"))
        for run, own in runs
        if own.run_state.iloc[-1] == "finished" and bool(own.run_whole.iloc[-1])
    ]


def _of_ledger(folder: Path) -> list[tuple[str, pd.DataFrame]]:
    """Return the ledger's rows of a sweep by run."""
    from analysis import ledger

    file = ledger.of_results(folder.parent)
    if not file.exists():
        return []
    frame = ledger.read(file, folder.name, ["run_started", "run_state", "run_whole"])
    return [(str(run), own) for run, own in frame.groupby("run", sort=False)] if len(frame) else []


# --- a named one -----------------------------------------------------------------------------------------------------


def _named(folder: Path, sweep: str, word: str, plan: Grid, at_head: bool) -> Base:
    """Return the run that a person names, from its folder or from the ledger."""
    path = next((own_folder(place) for place in (folder / word, Path(word).absolute()) if is_run(place)), None)
    if path is None:
        return _removed(folder, sweep, word, at_head)
    record = read_run(path)
    if record.get("sweep") != sweep:
        text = f"{path} is a run of {record.get('sweep')!r}, not of {sweep!r}: they cannot be compared"
        raise ConfigError(_OPTION, None, text, _known(folder, sweep))
    if holder := lock.driver(path):
        raise ConfigError(_OPTION, None, f"{path} goes on: {holder}", "wait for its end")
    planned = {entry.get("id") for entry in record.get("plan") or []}
    if planned and not any(trial.id in planned for trial in plan.every):
        text = f"no trial of {path} is in this sweep: its axes have other values, or others are axes"
        raise ConfigError(_OPTION, None, text, _known(folder, sweep))
    return Base(path.name, str(record.get("started") or ""), path)


def _removed(folder: Path, sweep: str, word: str, at_head: bool) -> Base:
    try:
        runs = dict(_of_ledger(folder))
    except AnalysisError as error:
        raise UserError(f"{_OPTION}: {word} has no folder, and {error}") from None
    if word not in runs:
        more = "; the results of a cluster are on its head: name it there" if at_head else ""
        raise ConfigError(_OPTION, None, f"{word} is no run of {sweep}", _known(folder, sweep) + more)
    return Base(word, runs[word].run_started.min().isoformat(timespec="seconds"), None)


def _known(folder: Path, sweep: str) -> str:
    runs = [path.name for path in runs_of(folder)]
    return f"the runs of {sweep}: {', '.join(runs[-5:])}; or latest" if runs else f"{folder} holds no run; write latest"
