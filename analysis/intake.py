"""What a node sends, looked at before it becomes part of a run: names, sizes, hashes, the record."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.errors import AnalysisError
from analysis.run import STATES
from analysis.schema import SCHEMA_VERSION
from analysis.units import bytes_text

#: What a node may call a file of a trial; anything else could leave the run's folder.
_FILE_NAME = re.compile(r"(logs/)?[A-Za-z0-9_][A-Za-z0-9_.-]{0,150}")
_TAKEN = ("logs", "trial.json")
_SHA256 = re.compile(r"[0-9a-f]{64}")

#: More than this is no trial of ours: files of one, and bytes of its record.
_MOST_FILES, _RECORD_BYTES = 1000, 16 << 20


def checked_files(slug: str, files: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return what a node says of a trial's files by name; raise AnalysisError where they cannot be a trial's."""
    told = {_checked(file)["name"]: file for file in files[: _MOST_FILES + 1]}
    if len(told) != len(files):
        raise AnalysisError(f"{slug}: {len(files)} files, of which some have one name, or too many for a trial")
    return told


def _checked(file: Mapping[str, Any]) -> Mapping[str, Any]:
    name, size_bytes, sha256 = (file.get(key) for key in ("name", "size_bytes", "sha256"))
    if not isinstance(name, str) or not _FILE_NAME.fullmatch(name) or name in _TAKEN:
        raise AnalysisError(f"{name!r} is no file name of a trial")
    if not isinstance(size_bytes, int) or size_bytes < 0 or not _SHA256.fullmatch(str(sha256)):
        raise AnalysisError(f"{name}: {size_bytes!r} and {sha256!r} are no size and SHA-256")
    return file


def record_text(slug: str, record: Mapping[str, Any]) -> bytes:
    """Return `trial.json` of a record; raise AnalysisError where readers of the run could not read it."""
    wrong = []
    for key, kinds in {"id": str, "cell": dict, "repeat": int, "attempt": int, "verdict": dict}.items():
        if not isinstance(record.get(key), kinds):
            wrong.append(key)
    if record.get("schema_version") != SCHEMA_VERSION:
        wrong.append("schema_version")
    if record.get("slug") != slug:
        wrong.append("slug")
    verdict = record.get("verdict")
    if isinstance(verdict, dict):
        reasons = verdict.get("reasons")
        if verdict.get("state") not in STATES or not isinstance(reasons, (list, tuple)):
            wrong.append("verdict")
    if wrong:
        raise AnalysisError(f"{slug}: the record of its attempt is none of a trial: {', '.join(wrong)}")
    try:
        text = json.dumps(record, indent=1).encode()
    except (TypeError, ValueError, RecursionError) as e:
        raise AnalysisError(f"{slug}: the record of its attempt is no JSON ({e})") from None
    if len(text) > _RECORD_BYTES:
        raise AnalysisError(f"{slug}: the record of its attempt has {bytes_text(len(text))}: too much")
    return text


def verify(path: Path, file: Mapping[str, Any]) -> None:
    """Refuse a file that is not, to the byte, what the node said of it."""
    if not path.exists() and not file["size_bytes"]:
        path.touch()
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise AnalysisError(f"{file['name']} did not arrive") from None
    with open(handle, "rb") as f:
        told = os.fstat(handle)
        same = stat.S_ISREG(told.st_mode) and told.st_size == file["size_bytes"]
        if not same or hashlib.file_digest(f, "sha256").hexdigest() != file["sha256"]:
            raise AnalysisError(f"{file['name']} arrived damaged: its size or SHA-256 is not the node's")


def check_nothing_else(folder: Path, names: Sequence[str]) -> None:
    """Refuse what was not declared: links above all, which would lead out of the run."""
    known = {folder / name for name in names} | {folder / "logs", folder / "trial.json"}
    for path in (*folder.iterdir(), *((folder / "logs").iterdir() if (folder / "logs").is_dir() else ())):
        if path not in known or path.is_symlink():
            raise AnalysisError(f"{path.name!r} came with the trial, but is none of its files")
