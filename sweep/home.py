"""Where a run's data have their home: the results folder of the head, a folder that all mount, or a URL beside it."""

from __future__ import annotations

import socket
from pathlib import Path

from analysis.errors import AnalysisError
from sweep.errors import ConfigError

_KEY = "data.shared"

#: What `--results` is where nobody says otherwise.
RESULTS = "results"


def checked_place(source: str, shared: str | None) -> str | None:
    """Return `data.shared`; raise ConfigError where it cannot be a place, wherever it is looked at from."""
    if shared is None:
        return None
    if "://" in shared:
        from analysis.bucket import Bucket

        try:
            Bucket(shared)
        except AnalysisError as e:
            raise ConfigError(source, _KEY, str(e)) from None
    elif not Path(shared).is_absolute():
        text = f"must be a path that starts with /, the same on head and nodes, or a URL; not {shared!r}"
        raise ConfigError(source, _KEY, text)
    return shared


def results_of(shared: str | None, stated: str) -> Path:
    """Return the folder of results: `--results` as it is `stated`, or the shared folder that the sweep names."""
    if shared is None or "://" in shared:
        return Path(stated)
    if stated not in (RESULTS, shared):
        text = f"would not be used: {_KEY} says that results are in {shared}"
        raise ConfigError("--results", None, text, f"leave it out, or set {_KEY}=null")
    return Path(shared)


def is_shared_folder(shared: str | None) -> bool:
    """Say whether the results are where head and nodes see the same files."""
    return shared is not None and "://" not in shared


def check_at_head(head: str, shared: str | None, option: str = "--resume") -> None:
    """Raise ConfigError where `option` needs earlier runs and this is not its cluster's head, HOST:PORT.

    What they have finished, and the locks of their drivers, are looked for on this machine's disk.
    """
    if not is_shared_folder(shared) and not _is_own(head.rpartition(":")[0].strip("[]")):
        text = f"the results of a cluster are on its head, {head}, and this is another machine"
        raise ConfigError(option, None, text, f"run it there, or keep results in a folder that all mount: {_KEY}")


def _is_own(ip: str) -> bool:
    """Say whether an address is this machine's: only then can it be listened at."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.bind((ip, 0))
    except OSError:
        return False
    return True


def probe(source: str, shared: str | None) -> None:
    """Raise ConfigError where the place that a sweep names is not to be had from here.

    A folder must be there: made anew, it would lie on this machine's own disk where the share is not mounted. A URL is
    written to and read again.
    """
    if shared is None:
        return
    if "://" not in shared:
        if not Path(shared).is_dir():
            hint = "mount the share, or make the folder: it is not made, for then it might be on another disk"
            raise ConfigError(source, _KEY, f"there is no folder {shared} on this machine", hint)
        return
    from analysis.bucket import Bucket

    try:
        Bucket(shared).probe()
    except AnalysisError as e:
        text = "credentials come from the environment, of the head and of every node; the bucket must be there"
        raise ConfigError(source, _KEY, str(e), text) from None
