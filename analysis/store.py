"""A run's folder on the head node: receives trials in bounded pieces and publishes each whole or not at all."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis import profile, summary
from analysis.drawing import draw_run
from analysis.errors import AnalysisError
from analysis.files import STORE_LOCK, locked, write_bytes
from analysis.run import load_run, load_trial

#: What a node may call a file of a trial; anything else could leave the run's folder.
_FILE_NAME = re.compile(r"(logs/)?[A-Za-z0-9_][A-Za-z0-9_.-]*")
_SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class RunStore:
    """One run on disk, as DESIGN has it. Only the attempt announced last may write to a trial."""

    def __init__(self, path: str) -> None:
        """Hold the run in the folder `path`, which `create` makes."""
        self._path = Path(path)
        self._record: dict[str, Any] = {}
        self._attempts: dict[str, str] = {}
        self._published: dict[str, str] = {}
        self._summary = summary.Growing(self._path / "summary.parquet")

    def create(self, record: Mapping[str, Any], sweep_yaml: str) -> None:
        """Make the folder with `run.json` and `sweep.yaml`, and point the sweep's `latest` link at it."""
        (self._path / "trials").mkdir(parents=True)
        self._hold()
        write_bytes(self._path / "sweep.yaml", sweep_yaml.encode())
        self.update(record)
        link = self._path.parent / "latest"
        if link.is_symlink() or not link.exists():
            temporary = self._path.parent / f".latest-{self._path.name}"
            temporary.symlink_to(self._path.name)
            temporary.replace(link)

    def resume(self, fields: Mapping[str, Any], sweep_yaml: str, again: Sequence[str]) -> None:
        """Go on with a run that is there: set fields of `run.json`, and move aside the trials `again`, by slug.

        They and the `sweep.yaml` that they were made by are kept in `superseded/`.
        """
        self._hold()
        shutil.rmtree(self._path / "incoming", ignore_errors=True)
        self._record = load_run(self._path).record
        before = self._path / "sweep.yaml"
        if before.is_file() and before.read_text() != sweep_yaml:
            before.rename(self._superseded("sweep.yaml"))
        write_bytes(before, sweep_yaml.encode())
        for table in ("summary.parquet", profile.FILE):
            summary.forget(self._path / table, again)
        for slug in again:
            if (folder := self._path / "trials" / slug).exists():
                folder.rename(self._superseded(slug))
        self.update(fields)

    def _hold(self) -> None:
        """Be the only process that writes to the run, as long as this one lives."""
        try:
            self._lock = locked(self._path / STORE_LOCK)
        except BlockingIOError:
            raise AnalysisError(f"{self._path}: another process writes to this run") from None

    def _superseded(self, name: str) -> Path:
        """Return where something of that name goes that is not the run's any more; nothing there is replaced."""
        folder = self._path / "superseded"
        folder.mkdir(exist_ok=True)
        return next(path for n in itertools.count(1) if not (path := folder / f"{name}-earlier-{n}").exists())

    def update(self, fields: Mapping[str, Any]) -> None:
        """Set fields of `run.json`."""
        self._record |= fields
        write_bytes(self._path / "run.json", json.dumps(self._record, indent=1).encode())

    def expect(self, slug: str, token: str) -> None:
        """Let the attempt `token`, and no earlier one, write to the trial `slug`."""
        if not (_SLUG.fullmatch(slug) and _SLUG.fullmatch(token)):
            raise AnalysisError(f"{slug!r} or {token!r} cannot name a folder")
        self._attempts[slug] = token

    def receive(self, slug: str, token: str, name: str, offset: int, piece: bytes) -> None:
        """Write one piece of a trial's file; pieces of a file come in order, and a piece may come twice."""
        path = self._incoming(slug, token) / _checked(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("r+b" if path.exists() else "wb") as f:
            if f.seek(0, os.SEEK_END) < offset:
                raise AnalysisError(f"{slug}: {name} lacks the bytes before {offset}")
            f.seek(offset)
            f.truncate()
            f.write(piece)

    def publish(self, slug: str, token: str, record: Mapping[str, Any], files: Sequence[Mapping[str, Any]]) -> None:
        """Check the received files, publish the trial, refresh the summary.

        `files` lists name, size_bytes and sha256 as the node saw them. The folder appears at once, with `trial.json`
        the last file in it; what an earlier attempt published moves to `superseded/`.
        """
        folder = self._incoming(slug, token)
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            _verify(folder / _checked(file["name"]), file)
        write_bytes(folder / "trial.json", json.dumps(record, indent=1).encode())
        for path in (folder / "trial.json", *(folder / file["name"] for file in files), folder):
            _sync(path)
        final = self._path / "trials" / slug
        if final.exists():
            old = self._path / "superseded" / f"{slug}-{self._published.get(slug, 'earlier')}"
            old.parent.mkdir(exist_ok=True)
            final.rename(old)
        folder.rename(final)
        _sync(final.parent)
        self._published[slug] = token
        if not record.get("warmup"):
            self._summary.add(slug, summary.summary_rows(load_trial(final)))

    def published(self, slug: str, token: str) -> dict[str, Any] | None:
        """Return the record that the attempt `token` published of the trial `slug`, or None where it did not."""
        if self._published.get(slug) != token:
            return None
        record: dict[str, Any] = json.loads((self._path / "trials" / slug / "trial.json").read_text())
        return record

    def finish(self, fields: Mapping[str, Any]) -> None:
        """Close the run: drop what never became a trial, complete the summary, set fields of `run.json`."""
        shutil.rmtree(self._path / "incoming", ignore_errors=True)
        self._summary.write()
        self.update(fields)

    def draw(self) -> dict[str, Any]:
        """Draw figures and report; see `analysis.drawing.draw_run`."""
        return draw_run(self._path)

    def _incoming(self, slug: str, token: str) -> Path:
        if self._attempts.get(slug) != token:
            raise AnalysisError(f"{slug}: attempt {token} was given up; its data are not taken any more")
        return self._path / "incoming" / f"{slug}-{token}"


def _checked(name: str) -> str:
    if not _FILE_NAME.fullmatch(name):
        raise AnalysisError(f"{name!r} is no file name of a trial")
    return name


def _verify(path: Path, file: Mapping[str, Any]) -> None:
    if not path.exists() and not file["size_bytes"]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with path.open("rb") as f:
        same = hashlib.file_digest(f, "sha256").hexdigest() == file["sha256"]
    if not same:
        raise AnalysisError(f"{file['name']} arrived damaged: its SHA-256 is not the node's")


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
