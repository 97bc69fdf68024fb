"""Mounted filesystems, as the kernel lists them in /proc/self/mountinfo (proc(5))."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mount:
    """One mount: where, which filesystem, which device, with which options."""

    path: str
    dev: str
    fs: str
    source: str
    options: str


def mounts() -> list[Mount]:
    """Return this process's mounts, in mount order."""
    return parse_mountinfo(Path("/proc/self/mountinfo").read_text(errors="surrogateescape"))


def parse_mountinfo(text: str) -> list[Mount]:
    """Return the mounts that `text` lists."""
    found = []
    # By newline and space only: the kernel leaves other white space in names as it is.
    for line in filter(None, text.split("\n")):
        left, right = line.split(" - ", 1)
        _, _, dev, _, path, options = left.split(" ")[:6]
        fs, source, super_options = right.split(" ", 2)
        found.append(Mount(_unescape(path), dev, fs, _unescape(source), f"{options},{super_options}"))
    return found


def _unescape(text: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\043", "#"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text


def mount_of(path: str | os.PathLike[str], among: list[Mount] | None = None) -> Mount:
    """Return the mount that `path` lies on: the last one whose folder is the longest prefix of it."""
    real = os.path.realpath(path)
    holding = [m for m in among or mounts() if real == m.path or real.startswith(m.path.rstrip("/") + "/")]
    longest = max(len(m.path) for m in holding)
    return next(m for m in reversed(holding) if len(m.path) == longest)


def device_number(path: str | os.PathLike[str]) -> str:
    """Return the `major:minor` of the block device behind the filesystem that `path` lies on.

    btrfs and other multi-device filesystems show an anonymous number in stat(2); there the mount's source tells.
    Where there is no block device (tmpfs, network, overlay) the anonymous number comes back.
    """
    number = os.stat(path).st_dev
    if os.major(number) == 0:
        source = mount_of(path).source
        if source.startswith("/dev/") and os.path.exists(source) and stat.S_ISBLK(os.stat(source).st_mode):
            number = os.stat(source).st_rdev
    return f"{os.major(number)}:{os.minor(number)}"
