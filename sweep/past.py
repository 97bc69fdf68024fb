"""An earlier run as it lies on disk: which trials it finished, with which verdicts, under which fingerprints."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.files import own_folder
from sweep.errors import ConfigError


@dataclass(frozen=True)
class Finished:
    """What is left of a published trial's record; trials that agree share configuration and node half.

    `planned` is the digest of the configuration as it was planned, `code` that of the files that it depends on.
    """

    id: str
    slug: str
    state: str
    reasons: tuple[str, ...]
    hostname: str
    config: Mapping[str, Any] = field(repr=False)
    planned: str | None
    code: str | None
    node: Mapping[str, Any] | None = field(repr=False)
    attempt: int
    started: str
    metrics: Mapping[str, Any] = field(repr=False)

    def record(self, warmup: bool) -> dict[str, Any]:
        """Return what a driver keeps of a trial that ended."""
        verdict = {"state": self.state, "reasons": list(self.reasons)}
        own = {"metrics": self.metrics, "attempt": self.attempt, "node": {"hostname": self.hostname}}
        return {"verdict": verdict, **own, "warmup": warmup}


class Past:
    """One run folder. `record` is its `run.json`, `trials` what it published, by id; `unreadable` by folder name."""

    def __init__(self, path: Path) -> None:
        """Read the run in `path`, one trial after the other; ConfigError where it is none."""
        self.path = path
        self.record = read_run(path)
        self.trials: dict[str, Finished] = {}
        self.unreadable: list[str] = []
        self._shared: dict[str, Any] = {}
        for slug in _folders(path / "trials"):
            self._take(slug)
        self._shared.clear()

    def code(self, digest: str | None) -> Mapping[str, str] | None:
        """Return the files of code behind a digest, by path, with their hashes; None where the run does not tell."""
        found = (self.record.get("code") or {}).get(digest)
        return found if isinstance(found, dict) else None

    def _take(self, slug: str) -> None:
        try:
            told = json.loads((self.path / "trials" / slug / "trial.json").read_bytes())
            found = self._finished(slug, told)
        except FileNotFoundError:
            return  # never published
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            self.unreadable.append(slug)
        else:
            self.trials[found.id] = found

    def _finished(self, slug: str, told: Mapping[str, Any]) -> Finished:
        print_ = told["fingerprint"]
        if told["slug"] != slug or not isinstance(told["config"]["trace"]["tracer"], str):
            raise ValueError(slug)
        plan, node = print_.get("plan"), print_.get("node")
        return Finished(
            id=str(told["id"]),
            slug=slug,
            state=str(told["verdict"]["state"]),
            reasons=tuple(map(str, told["verdict"]["reasons"])),
            hostname=str((told["node"] or {}).get("hostname", "unknown")),
            config=self._one(told["config"]),
            planned=plan.get("config") if isinstance(plan, dict) else None,
            code=plan.get("code") if isinstance(plan, dict) else None,
            node=self._one(node) if isinstance(node, dict) else None,
            attempt=int(told["attempt"]),
            started=str(told["started"] or ""),
            metrics=dict(told["metrics"] or {}),
        )

    def _one(self, value: Any) -> Any:
        """Return the first value that was equal to this one: thousands of trials share a few."""
        return self._shared.setdefault(json.dumps(value, sort_keys=True), value)


def _folders(parent: Path) -> Iterator[str]:
    try:
        with os.scandir(parent) as entries:
            names = [entry.name for entry in entries]
    except OSError:
        return
    yield from sorted(names)


def read_run(path: Path) -> dict[str, Any]:
    """Return the `run.json` of the run in `path`; ConfigError where there is none that can be read."""
    try:
        found = json.loads((path / "run.json").read_bytes())
    except OSError as e:
        raise ConfigError(str(path), None, f"no run: run.json cannot be read ({e.strerror})") from None
    except ValueError as e:
        raise ConfigError(str(path / "run.json"), None, f"not valid JSON ({e})") from None
    if not isinstance(found, dict) or not isinstance(found.get("schema_version"), int):
        raise ConfigError(str(path / "run.json"), None, "not written by this program")
    for key, kind in (("plan", list), ("nodes", list), ("code", dict)):
        held = found.get(key)
        whole = held is None or isinstance(held, kind)
        if not whole or (isinstance(held, list) and not all(isinstance(entry, dict) for entry in held)):
            raise ConfigError(str(path / "run.json"), key, "is not what this program writes there")
    return found


def runs_of(folder: Path) -> list[Path]:
    """Return the runs in a sweep's folder, the oldest first, by their names."""
    return [folder / name for name in _folders(folder) if name != "latest" and is_run(folder / name)]


def is_run(path: Path) -> bool:
    """Say whether a run lies in `path`, which may be any text that a person wrote."""
    return os.path.isfile(path / "run.json")


def is_at_home(run: Path, results: Path, sweep: str) -> bool:
    """Say whether a run lies where those of its sweep are made, and not in an archive say."""
    return run.resolve().parent == (results / sweep).resolve()


def find(results: Path, sweep: str, run: str | None, at_head: bool = False) -> Path:
    """Return the run to resume: the one that `run` names, by id or path, or else the newest of the sweep.

    Raises ConfigError where there is none, or it is of another sweep; `at_head`: it may be on a cluster's head.
    """
    folder = (results / sweep).absolute()
    more = "; the results of a cluster are on its head: go on there" if at_head else ""
    found = _newest(folder, sweep, more) if run is None else _named(folder, sweep, run, more)
    if read_run(found).get("state") == "imported":
        raise ConfigError("--resume", None, f"{found} was imported from another tool's traces: nothing can go on there")
    return found


def _named(folder: Path, sweep: str, run: str, more: str) -> Path:
    places = [folder / run, Path(run).absolute()]
    found = next((own_folder(place) for place in places if is_run(place)), None)
    if found is None:
        known = [path.name for path in runs_of(folder)]
        listed = f"the runs of {sweep}: {', '.join(known[-5:])}" if known else f"{folder} holds no run"
        raise ConfigError("--run", None, f"{run} is no run", listed + more)
    told = read_run(found)
    if told.get("sweep") != sweep:
        text = f"{found} is a run of {told.get('sweep')!r}, not of {sweep!r}"
        raise ConfigError("--run", None, text, "give the sweep file that it was made from, or another run")
    return found


def _newest(folder: Path, sweep: str, more: str) -> Path:
    latest = folder / "latest"
    if is_run(latest):
        return own_folder(latest)
    if known := runs_of(folder):
        return known[-1]
    text = f"there is no run of {sweep} in {folder}"
    hint = "leave --resume out to start one, or name its folder with --results"
    raise ConfigError("--resume", None, text, hint + more)
