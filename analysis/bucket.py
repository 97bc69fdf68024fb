"""A run's files at a URL that fsspec knows, such as S3: nodes put trials there, the head checks and completes them."""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from analysis.errors import AnalysisError

#: Bytes that are in memory at once of a file that is put or fetched; object stores count parts, at most 10 000.
_PIECE_BYTES, _MOST_PARTS = 8 << 20, 9_000

#: Where folders are part of a name and need not be made; making them might make a bucket.
_OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oci", "memory")

_CREDENTIALS = re.compile(r"://[^/@\s]*@")


def is_url(place: str) -> bool:
    """Say whether a place is a URL, and no path."""
    return "://" in place


class Bucket:
    """The folder behind a URL. Every trouble with it is an AnalysisError that names it."""

    def __init__(self, url: str) -> None:
        """Find what `url` is served by; nothing is read or written yet."""
        self.url = url.rstrip("/")
        if _CREDENTIALS.search(url):
            raise AnalysisError("must hold no user or password: they belong into the environment of head and nodes")
        scheme = url.partition("://")[0]
        import fsspec

        try:
            self._files, self._root = fsspec.core.url_to_fs(self.url)
        except ImportError as e:
            extra = "pip install 'offload-sweep[s3]'" if scheme in ("s3", "s3a") else str(e)
            raise AnalysisError(f"{scheme}:// needs a package that is not installed here: {extra}") from None
        except ValueError:
            known = ", ".join(name for name in ("file", "s3", "gs", "abfs", "sftp", "hdfs"))
            raise AnalysisError(f"nothing known serves {scheme}://; for example: {known}") from None
        self._folders = scheme not in _OBJECT_STORES

    def probe(self) -> None:
        """Write, read and remove a small file; raise AnalysisError where that does not work."""
        name, content = f".offload-sweep-probe-{uuid.uuid4().hex}", b"probe"  # others may try the place now, too
        self.write(name, content)
        with self._trouble("read", name):
            if self._files.cat_file(self._path(name)) != content:
                raise OSError("it does not hold what was written a moment ago")
        self.remove(name)

    def put(self, source: Path, name: str, announce: Callable[[], None] = lambda: None) -> None:
        """Copy a local file to `name`, in bounded pieces."""
        block_bytes = max(_PIECE_BYTES, source.stat().st_size // _MOST_PARTS)
        with (
            self._trouble("write", name),
            source.open("rb") as f,
            self._files.open(self._made(name), "wb", block_size=block_bytes) as out,
        ):
            while piece := f.read(_PIECE_BYTES):
                out.write(piece)
                announce()

    def get(self, name: str, target: Path, size_bytes: int) -> None:
        """Copy the file `name` to a local one, in bounded pieces, and no more of it than `size_bytes` and one piece."""
        with (
            self._trouble("read", name),
            self._files.open(self._path(name), "rb", block_size=_PIECE_BYTES, cache_type="none") as f,
            target.open("wb") as out,
        ):
            while out.tell() <= size_bytes and (piece := f.read(_PIECE_BYTES)):
                out.write(piece)

    def write(self, name: str, content: bytes) -> None:
        """Make `name` a file of this content."""
        with self._trouble("write", name):
            self._files.pipe_file(self._made(name), content)

    def read(self, name: str) -> bytes | None:
        """Return a small file's content, None where there is none."""
        with self._trouble("read", name):
            try:
                content: bytes = self._files.cat_file(self._path(name))
            except FileNotFoundError:
                return None
            return content

    def names(self, folder: str) -> list[str]:
        """Return the names of what is in a folder, none where there is no such folder."""
        with self._trouble("list", folder):
            self._files.invalidate_cache()
            try:
                return [
                    path.rstrip("/").rpartition("/")[2] for path in self._files.ls(self._path(folder), detail=False)
                ]
            except FileNotFoundError:
                return []

    def move(self, name: str, new: str) -> None:
        """Give a file another name; where the store can, without fetching it."""
        with self._trouble("write", new):
            self._files.mv(self._path(name), self._made(new))

    def remove(self, name: str) -> None:
        """Remove a file, or all that is in a folder; it may be absent."""
        with self._trouble("remove", name), contextlib.suppress(FileNotFoundError):
            self._files.invalidate_cache()
            self._files.rm(self._path(name), recursive=True)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _made(self, name: str) -> str:
        """Return the path of a file whose folder is made where that is needed."""
        path = self._path(name)
        if self._folders:
            self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
        return path

    @contextlib.contextmanager
    def _trouble(self, verb: str, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as e:  # noqa: BLE001 - what the many libraries behind fsspec raise has nothing in common
            raise AnalysisError(f"cannot {verb} {self.url}/{name}: {_first_line(e)}") from None


def _first_line(error: Any) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
