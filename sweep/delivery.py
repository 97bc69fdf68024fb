"""How a node's files reach the run where the sweep names a shared place: a folder that all mount, or a URL."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping
from functools import cache
from io import FileIO
from pathlib import Path
from typing import Any

from analysis.bucket import Bucket
from analysis.errors import AnalysisError
from analysis.files import sync
from tasks.errors import DeliveryError
from tasks.launch import Outcome
from tasks.spec import TrialSpec

_PIECE_BYTES = 8 << 20

#: A slow share takes what was written when it is told to: so many pieces at a time, for that gives no sign of life.
_PIECES_A_SYNC = 4


def check(home: Mapping[str, Any], token: str) -> None:
    """Raise DeliveryError, before anything is measured, where this node cannot put files where the run's are."""
    if "folder" not in home:
        _probe(home["url"])
        return
    folder = Path(home["folder"])
    hint = "mount the same folder at the same path on head and nodes, or leave data.shared out"
    try:
        there = (folder / home["marker"]).read_text()
    except OSError as e:
        raise DeliveryError(f"data.shared: {folder} is not the head's folder here ({e.strerror}); {hint}") from None
    if there != home["secret"]:
        raise DeliveryError(f"data.shared: {folder} is another folder here than on the head; {hint}")
    probe = folder / "incoming" / f".probe-{token}"
    try:
        probe.touch()
        probe.unlink()
    except OSError as e:
        text = f"data.shared: this node cannot write to {folder} ({e.strerror}); nodes need the head's user there"
        raise DeliveryError(text) from None


@cache
def _probe(url: str) -> None:
    # once in a worker's life: it costs a request or three
    try:
        Bucket(url).probe()
    except AnalysisError as e:
        raise DeliveryError(f"data.shared, on this node: {e}") from None


def put(home: Mapping[str, Any], spec: TrialSpec, outcome: Outcome, announce: Callable[[], None]) -> None:
    """Put an attempt's files where the head looks for them, under the attempt's own name."""
    place = f"incoming/{spec.slug}-{spec.token}"
    try:
        for file in outcome.files:
            source = outcome.folder / file["name"]
            if "folder" in home:
                _copy(source, Path(home["folder"]) / place / file["name"], announce)
            else:
                Bucket(home["url"]).put(source, f"{place}/{file['name']}", announce)
    except AnalysisError as e:
        raise DeliveryError(f"data.shared: {e}") from None
    except OSError as e:
        raise DeliveryError(f"data.shared: {e.filename or place} cannot be written: {e.strerror or e}") from None


def _copy(source: Path, target: Path, announce: Callable[[], None]) -> None:
    """Copy a file so that it is there whole or not at all. Its folder was made by the head, and is not made anew."""
    temporary = target.with_name(f".{target.name}.part")
    with source.open("rb") as f, temporary.open("wb", buffering=0) as out:
        for number in itertools.count(1):
            piece = f.read(_PIECE_BYTES)
            _write(out, piece)
            if not piece or number % _PIECES_A_SYNC == 0:
                os.fdatasync(out.fileno())
            announce()
            if not piece:
                break
    temporary.replace(target)
    sync(target.parent)


def _write(out: FileIO, piece: bytes) -> None:
    written = 0
    while written < len(piece):
        written += out.write(memoryview(piece)[written:])
