"""The data files of the package: `conf/` and `bpftrace/`, top-level in a clone, inside packages when installed."""

from __future__ import annotations

from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent


def conf_dir() -> Path:
    """Return the folder of the sweeps that come with the package."""
    return _data("sweep", "conf")


def bpftrace_script(name: str) -> Path:
    """Return the path of a bpftrace script such as `requests.bt`; raise FileNotFoundError where there is none."""
    script = _data("tasks", "bpftrace") / name
    if not script.is_file():
        raise FileNotFoundError(f"no bpftrace script {name!r} in {script.parent}")
    return script


def _data(package: str, folder: str) -> Path:
    # The installed place first: beside an installed package, a folder named `conf` is somebody else's.
    installed = _ROOT / package / folder
    return installed if installed.is_dir() else _ROOT / folder
