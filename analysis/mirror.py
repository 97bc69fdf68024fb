"""The mirror of a run at a URL: what nodes put there is fetched and checked, and the rest follows the run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.bucket import Bucket

#: What of a run's folder is no part of its mirror, or has its own way there.
_NOT_COPIED = ("trials", "incoming", "superseded", "run.json")


class Mirror:
    """A run at `<url>/<sweep>/<run id>`, laid out as in its folder; a trial is there once its `trial.json` is.

    Only the head gives trials their place; nodes write under `incoming/`, each attempt under its own name.
    """

    def __init__(self, folder: Path, shared: str) -> None:
        """Follow the run in `folder`; nothing is written yet."""
        self._folder = folder
        self._bucket = Bucket(f"{shared.rstrip('/')}/{folder.parent.name}/{folder.name}")
        self._complete: set[str] = set()
        self._put: dict[Path, tuple[int, int]] = {}
        self._one, self._ended = threading.Lock(), False

    @property
    def url(self) -> str:
        """The URL of the mirror."""
        return self._bucket.url

    def fetch(self, slug: str, token: str, files: Sequence[Mapping[str, Any]], folder: Path) -> None:
        """Fetch what an attempt put there, into `folder`; whoever asked verifies it."""
        for file in files:
            if file["size_bytes"]:
                self._bucket.get(f"incoming/{slug}-{token}/{file['name']}", folder / file["name"], file["size_bytes"])

    def complete(
        self, slug: str, token: str, names: Sequence[str], record: bytes, is_latest: Callable[[], bool]
    ) -> None:
        """Give what an attempt put there its place, `trial.json` last; what an earlier attempt left goes.

        Nothing where it is not the latest any more: a later one may have its place there already. Nor where the run has
        ended: then whatever is missing is put there.
        """
        with self._one:
            if self._ended or not is_latest():
                return
            self._complete.discard(slug)
            self._bucket.remove(f"trials/{slug}/trial.json")
            self._bucket.remove(f"trials/{slug}")
            for name in names:
                self._bucket.move(f"incoming/{slug}-{token}/{name}", f"trials/{slug}/{name}")
            self._bucket.write(f"trials/{slug}/trial.json", record)
            self._complete.add(slug)

    def bring_up_to_date(self) -> None:
        """Put there what the mirror lacks, or has an older version of, once the run has ended; `run.json` last.

        Trials that are not the run's any more, for a resume dropped them, are removed there.
        """
        with self._one:
            self._ended = True
            records = {path.parent.name: path for path in (self._folder / "trials").glob("*/trial.json")}
            for slug in sorted({*self._bucket.names("trials")} - records.keys()):
                self._bucket.remove(f"trials/{slug}")
            for slug in sorted(records.keys() - self._complete):
                self._bring_trial(records[slug])
            self._bucket.remove("incoming")
        for path in sorted(self._folder.rglob("*")):
            top = path.relative_to(self._folder).parts[0]
            if top not in _NOT_COPIED and not top.startswith(".") and not top.endswith(".lock") and path.is_file():
                self._bring(path)
        self._bring(self._folder / "run.json")

    def _bring_trial(self, record: Path) -> None:
        """Put a trial there whole, one of an attempt that was cut short, or of the driver; unless it is there."""
        slug = record.parent.name
        if self._bucket.read(f"trials/{slug}/trial.json") != record.read_bytes():
            self._bucket.remove(f"trials/{slug}")
            files = [path for path in record.parent.rglob("*") if path.is_file() and path != record]
            for path in (*sorted(files), record):
                self._bucket.put(path, str(path.relative_to(self._folder)))
        self._complete.add(slug)

    def _bring(self, path: Path) -> None:
        told = path.stat()
        if self._put.get(path) != (told.st_size, told.st_mtime_ns):
            self._bucket.put(path, str(path.relative_to(self._folder)))
            self._put[path] = (told.st_size, told.st_mtime_ns)
