"""A run's folder on the head node: receives trials in bounded pieces and publishes each whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import re
import shutil
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis import history, judgement, ledger, profile, retention, summary
from analysis.bucket import is_url
from analysis.drawing import draw_run
from analysis.errors import AnalysisError, StoreFull
from analysis.files import STORE_LOCK, locked, sync, write_bytes
from analysis.intake import check_nothing_else, checked_files, record_text, verify
from analysis.mirror import Mirror
from analysis.observed import observed
from analysis.run import load_run, load_trial
from analysis.units import bytes_text

#: What may name the folder of a trial or of an attempt.
_SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")

#: By this file nodes know that the shared folder they see is the run's.
_MARKER = ".shared"

#: Room that trials leave on the disk of the results: for the run's own record, its summary and its figures.
_RESERVE_BYTES = 32 << 20

#: A trial with more than this is analysed while no other such trial is: what that takes in memory is one's.
_LARGE_BYTES = 8 << 20


@dataclass
class _Incoming:
    """What the attempt `token` said that it would send, by name, and how many bytes of it have come."""

    token: str
    files: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    received_bytes: int = 0

    @property
    def size_bytes(self) -> int:
        return sum(file["size_bytes"] for file in self.files.values())


class RunStore:
    """One run on disk, as DESIGN has it. Only the attempt announced last may write to a trial.

    Pieces and publications may come from several threads at once; one trial's come from one at a time.
    """

    def __init__(self, path: str, shared: str | None = None) -> None:
        """Hold the run in the folder `path`, which `create` makes.

        `shared` is where nodes put their files themselves: a folder that they mount too, in which `path` is, or a URL.
        """
        self._path = Path(path)
        self._mirror = Mirror(self._path, shared) if shared and is_url(shared) else None
        self._secret = uuid.uuid4().hex if shared and not self._mirror else None
        self._record: dict[str, Any] = {}
        self._attempts: dict[str, str] = {}
        self._incoming: dict[str, _Incoming] = {}
        self._published: dict[str, str] = {}
        self._given_up: set[str] = set()
        self._asked: dict[str, str] = {}
        self._observed: dict[tuple[str, str], dict[str, Any]] = {}
        self._closed = False
        self._summary = summary.Growing(self._path / "summary.parquet")
        self._guard, self._large = threading.RLock(), threading.Lock()

    def create(self, record: Mapping[str, Any], sweep_yaml: str) -> None:
        """Make the folder with `run.json` and `sweep.yaml`, and point the sweep's `latest` link at it.

        Not where that is a run of the whole sweep, and this one of some of its trials.
        """
        (self._path / "trials").mkdir(parents=True)
        (self._path / "incoming").mkdir()
        self._hold()
        with self._telling_when_full():
            write_bytes(self._path / "sweep.yaml", sweep_yaml.encode(), durably=True)
        self.update(record)
        link = self._path.parent / "latest"
        if (link.is_symlink() or not link.exists()) and not (record.get("selection") and _is_whole(link)):
            temporary = self._path.parent / f".latest-{self._path.name}"
            temporary.symlink_to(self._path.name)
            temporary.replace(link)
        for folder in (self._path, self._path.parent, self._path.parent.parent):
            sync(folder)

    def resume(self, fields: Mapping[str, Any], sweep_yaml: str, again: Sequence[str]) -> None:
        """Go on with a run that is there: set fields of `run.json`, and move aside the trials `again`, by slug.

        They and the `sweep.yaml` that they were made by are kept in `superseded/`. What an actor that was killed left
        half is removed.
        """
        self._hold()
        self._clear_leftovers()
        judgement.forget(self._path)
        self._record = load_run(self._path).record
        before = self._path / "sweep.yaml"
        if before.is_file() and before.read_text() != sweep_yaml:
            before.rename(self._superseded("sweep.yaml"))
        with self._telling_when_full():
            write_bytes(before, sweep_yaml.encode(), durably=True)
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
        if self._secret:
            write_bytes(self._path / _MARKER, self._secret.encode(), durably=True)

    def _clear_leftovers(self) -> None:
        shutil.rmtree(self._path / "incoming", ignore_errors=True)
        (self._path / "incoming").mkdir(exist_ok=True)
        for name in ("run.json", "sweep.yaml", "summary.parquet", profile.FILE):
            for left in self._path.glob(f".{name}.*"):
                left.unlink()

    def _superseded(self, name: str) -> Path:
        """Return where something of that name goes that is not the run's any more; nothing there is replaced."""
        folder = self._path / "superseded"
        folder.mkdir(exist_ok=True)
        return next(path for n in itertools.count(1) if not (path := folder / f"{name}-earlier-{n}").exists())

    def home(self) -> dict[str, Any] | None:
        """Return where nodes put their files: None (they send them), a `folder` known by its marker, or a `url`."""
        if self._mirror:
            return {"url": self._mirror.url}
        if self._secret:
            return {"folder": str(self._path), "marker": _MARKER, "secret": self._secret}
        return None

    def update(self, fields: Mapping[str, Any]) -> None:
        """Set fields of `run.json`."""
        self._record |= fields
        with self._telling_when_full():
            write_bytes(self._path / "run.json", json.dumps(self._record, indent=1).encode(), durably=True)

    def meet(self, node: Mapping[str, Any]) -> None:
        """Take a node that joined late among those of `run.json`, in place of what it said of itself before."""
        others = [one for one in self._record.get("nodes") or [] if one.get("hostname") != node["hostname"]]
        self.update({"nodes": [*others, node]})

    def plan(self, entries: Sequence[Mapping[str, Any]], outcome: Mapping[str, Any]) -> None:
        """Take trials into the plan of `run.json` that are to run too, and what the plan chose until now."""
        known = self._record.get("plan") or []
        there = {entry.get("id") for entry in known}
        self.update({"plan": [*known, *(one for one in entries if one["id"] not in there)], "adaptive": dict(outcome)})

    def expect(self, slug: str, token: str, metric: str | None = None) -> None:
        """Let the attempt `token`, and no earlier one, write to the trial `slug`; of it a `metric` may be asked for."""
        if not (_SLUG.fullmatch(slug) and _SLUG.fullmatch(token)):
            raise AnalysisError(f"{slug!r} or {token!r} cannot name a folder")
        with self._guard:
            if token in self._given_up:
                raise AnalysisError(f"{slug}: attempt {token} was given up before it began")
            earlier = self._attempts.get(slug)
            self._attempts[slug] = token
            self._asked |= {slug: metric} if metric else {}
            self._incoming.pop(slug, None)
        if earlier:
            shutil.rmtree(self._folder(slug, earlier), ignore_errors=True)

    def declare(self, slug: str, token: str, files: Sequence[Mapping[str, Any]]) -> None:
        """Take note of the files that an attempt is about to send: name, size_bytes and sha256 as the node saw them.

        Raises StoreFull where the disk has no room for them, AnalysisError where they cannot be a trial's.
        """
        told = checked_files(slug, files)
        with self._guard:
            self._check_token(slug, token)
            incoming = self._incoming.get(slug) or _Incoming(token, told)
            if incoming.files != told:
                raise AnalysisError(f"{slug}: other files than those that the attempt said it would send")
            others = [one for name, one in self._incoming.items() if name != slug]
            self._check_room(slug, incoming, sum(one.size_bytes - one.received_bytes for one in others))
            self._incoming[slug] = incoming
        with self._telling_when_full():
            folder = self._folder(slug, token)
            (folder / "logs" if any("/" in name for name in told) else folder).mkdir(parents=True, exist_ok=True)

    def receive(self, slug: str, token: str, name: str, offset: int, piece: bytes) -> None:
        """Write one piece of a declared file; pieces may come in any order, and twice."""
        with self._guard:
            self._check_token(slug, token)
            incoming = self._incoming.get(slug)
            file = incoming.files.get(name) if incoming else None
        if incoming is None or file is None:
            raise AnalysisError(f"{slug}: {name!r} is no file that the attempt said it would send")
        if offset < 0 or offset + len(piece) > file["size_bytes"]:
            raise AnalysisError(f"{slug}: {name} has {file['size_bytes']} bytes, and none at {offset + len(piece)}")
        with self._telling_when_full():
            handle = os.open(self._folder(slug, token) / name, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            try:
                written = 0
                while written < len(piece):
                    written += os.pwrite(handle, memoryview(piece)[written:], offset + written)
            finally:
                os.close(handle)
        with self._guard:
            incoming.received_bytes = min(incoming.received_bytes + len(piece), incoming.size_bytes)

    def publish(
        self,
        slug: str,
        token: str,
        record: Mapping[str, Any],
        files: Sequence[Mapping[str, Any]],
        pieces: Sequence[tuple[str, int, bytes]] = (),
    ) -> None:
        """Check the received files, publish the trial, take its rows into the summary.

        `pieces` are those of the files that come with it: name, offset, bytes. The folder appears at once, with
        `trial.json` in it; what an earlier attempt published moves to `superseded/`.
        """
        text = record_text(slug, record)
        self.declare(slug, token, files)
        for piece in pieces:
            self.receive(slug, token, *piece)
        folder, final = self._folder(slug, token), self._path / "trials" / slug
        with self._telling_when_full():
            if self._mirror:
                self._mirror.fetch(slug, token, files, folder)
            for file in files:
                verify(folder / file["name"], file)
            check_nothing_else(folder, [file["name"] for file in files])
            write_bytes(folder / "trial.json", text)
            for path in (*(folder / file["name"] for file in files), folder / "trial.json"):
                sync(path)
            for path in {(folder / file["name"]).parent for file in files} | {folder}:
                sync(path)
            self._make_final(slug, token, folder, final)
        if self._mirror:
            names = [file["name"] for file in files]
            self._mirror.complete(slug, token, names, text, lambda: self._published.get(slug) == token)
        if not record.get("warmup"):
            self._add_to_summary(slug, token, final, sum(file["size_bytes"] for file in files))
            if slug in self._asked and record["verdict"]["state"] == "valid":
                # now, before its node is told that it is done: nothing of ours computes while a node measures
                self._observed[slug, token] = self._observe(final, self._asked[slug])

    def observe(self, slug: str, metric: str) -> dict[str, Any]:
        """Return a metric of a published trial, or why it has none (`analysis.observed`)."""
        known = self._observed.get((slug, self._published.get(slug, "")))
        if known is not None and self._asked.get(slug) == metric:
            return known
        return self._observe(self._path / "trials" / slug, metric)

    def _observe(self, trial: Path, metric: str) -> dict[str, Any]:
        found: dict[str, Any] = {"missing": "its data cannot be analysed"}
        with contextlib.suppress(Exception), self._large:
            found = observed(trial, metric)
        return found

    def published(self, slug: str, token: str) -> dict[str, Any] | None:
        """Return the record that the attempt `token` published of the trial `slug`, or None where it did not."""
        with self._guard:
            if self._published.get(slug) != token:
                return None
            record: dict[str, Any] = json.loads((self._path / "trials" / slug / "trial.json").read_text())
            return record

    def give_up(self, slug: str, token: str, record: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the record that the attempt `token` published; where it did not, publish `record` in its place.

        It is None then, and whatever the attempt still sends, says or is publishing comes too late.
        """
        own = f"{token}-driver"
        with self._guard:
            if known := self.published(slug, token):
                return known
            self._given_up.add(token)
            self.expect(slug, own)
        try:
            self.publish(slug, own, record, [])
        except AnalysisError:
            if not self.published(slug, own):
                raise
            # of its copy at a URL, then: the end of the run makes up for that
        return None

    def finish(self, fields: Mapping[str, Any]) -> str | None:
        """Close the run: drop what never became a trial, complete the summary, set fields of `run.json`.

        Returns what was wrong with its copy at a URL, None where nothing was: the run itself is whole either way.
        """
        with self._guard:
            self._closed = True
            shutil.rmtree(self._path / "incoming", ignore_errors=True)
        try:
            with self._telling_when_full(), self._guard:
                self._summary.write()
        finally:
            (self._path / _MARKER).unlink(missing_ok=True)
            self.update(fields)
        return self._copy()

    def enter(self) -> int:
        """Enter the run's attempts in the ledger (`analysis.ledger.add`); return how many it lacked."""
        return ledger.add(self._path)

    def judge(self, bases: Sequence[tuple[str, str | None]]) -> dict[str, Any]:
        """Compare the run with its bases; see `analysis.judgement.judge`."""
        with self._telling_when_full():
            return judgement.judge(self._path, bases)

    def refresh_history(self) -> str:
        """Draw the history of the run's sweep; return its page."""
        with self._telling_when_full():
            return str(history.write(self._path.parent))

    def retire(self, runs: int | None, size_bytes: int | None, used: Sequence[str]) -> list[str]:
        """Remove the runs of the sweep that are too many or too large; return what was done, a line each."""
        keep = [self._path, *map(Path, used)]
        going = retention.excess(self._path.parent, runs, size_bytes, keep)
        return list(retention.remove(self._path.parent, going))

    def draw(self) -> dict[str, Any]:
        """Draw figures and report; see `analysis.drawing.draw_run`. `trouble` is that of the copy, see `finish`."""
        with self._telling_when_full():
            drawn = draw_run(self._path)
        return drawn | {"trouble": self._copy()}

    def _copy(self) -> str | None:
        """Bring the run's copy at a URL up to date, where it has one; return what was wrong with that."""
        try:
            if self._mirror:
                self._mirror.bring_up_to_date()
        except AnalysisError as e:
            return str(e)
        return None

    def _make_final(self, slug: str, token: str, folder: Path, final: Path) -> None:
        """Give a trial's folder its place, in one step, unless the attempt was given up meanwhile."""
        with self._guard:
            self._check_token(slug, token)
            if final.exists():
                known = self._published.get(slug)
                old = self._path / "superseded" / f"{slug}-{known}" if known else self._superseded(slug)
                old.parent.mkdir(exist_ok=True)
                final.rename(old)
                sync(old.parent)
            folder.rename(final)
            sync(final.parent)
            self._published[slug] = token
            del self._incoming[slug]

    def _add_to_summary(self, slug: str, token: str, final: Path, size_bytes: int) -> None:
        """Take the rows of a published trial into the summary.

        Trouble with it is no trouble of the trial: whoever reads the summary computes what it lacks, and meets it.
        """
        with contextlib.suppress(Exception):
            with self._large if size_bytes > _LARGE_BYTES else contextlib.nullcontext():
                rows = summary.summary_rows(load_trial(final))
            with self._guard:
                if self._published.get(slug) == token:
                    self._summary.add(slug, rows)

    def _folder(self, slug: str, token: str) -> Path:
        return self._path / "incoming" / f"{slug}-{token}"

    def _check_token(self, slug: str, token: str) -> None:
        if self._attempts.get(slug) != token:
            raise AnalysisError(f"{slug}: attempt {token} was given up; its data are not taken any more")
        if self._closed:
            raise AnalysisError(f"{slug}: the run has ended; nothing is taken any more")

    def _check_room(self, slug: str, incoming: _Incoming, promised_bytes: int) -> None:
        """Refuse a trial that the disk has no room for beside what others are sending (`promised_bytes`)."""
        needed = incoming.size_bytes - incoming.received_bytes
        free = shutil.disk_usage(self._path).free
        if needed + promised_bytes + _RESERVE_BYTES > free:
            others = f" and the trials that others send {bytes_text(promised_bytes)}" if promised_bytes else ""
            raise StoreFull(
                f"the disk of {self._path} is full: {bytes_text(free)} are free, {slug} needs {bytes_text(needed)}"
                f"{others}, and {bytes_text(_RESERVE_BYTES)} stay free for the run's own files"
            )

    @contextlib.contextmanager
    def _telling_when_full(self) -> Iterator[None]:
        """Turn the kernel's word of a full disk into StoreFull."""
        try:
            yield
        except OSError as e:
            if e.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            free = bytes_text(shutil.disk_usage(self._path).free)
            raise StoreFull(f"the disk of {self._path} is full ({e.strerror}; {free} are free)") from None


def _is_whole(run: Path) -> bool:
    """Say whether there is a run of all trials of its sweep."""
    try:
        return not load_run(run).record.get("selection")
    except (AnalysisError, OSError):
        return False
