"""Real block devices for tests: loops over files in memory, partitions of them, filesystems mounted on them."""

import os
import subprocess
import uuid
from contextlib import contextmanager
from pathlib import Path

MIB = 1 << 20

#: In memory, and not below any state folder: what is mounted here is not a trial's.
BASE = Path("/dev/shm")


def sh(*argv):
    return subprocess.run([str(a) for a in argv], check=True, capture_output=True, text=True).stdout.strip()


@contextmanager
def loop(size_bytes=384 * MIB):
    """Provide a loop device over a sparse file in memory: its node."""
    image = BASE / f"block-device-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    with image.open("wb") as f:
        f.truncate(size_bytes)
    try:
        node = sh("losetup", "--find", "--show", image)
        try:
            yield node
        finally:
            subprocess.run(["losetup", "--detach", node], check=True)
    finally:
        image.unlink()


@contextmanager
def partition(node, start_bytes, size_bytes, number=1):
    """Provide a partition of `node`, made by ioctl: kernels without partition tables can do that too."""
    sh("addpart", node, number, start_bytes // 512, size_bytes // 512)
    try:
        yield f"{node}p{number}"
    finally:
        sh("delpart", node, number)


@contextmanager
def mounted(fs, node, *options, mkfs=()):
    """Make a filesystem on `node`, mount it, provide the folder."""
    force = {"ext4": ["-q", "-F"], "xfs": ["-q", "-f"], "btrfs": ["-q", "-f"]}[fs]
    sh(f"mkfs.{fs}", *force, *mkfs, node)
    folder = BASE / f"mount-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    try:
        sh("mount", "-t", fs, *(["-o", ",".join(options)] if options else []), node, folder)
        try:
            yield folder
        finally:
            sh("umount", folder)
    finally:
        folder.rmdir()


def setting(node, name, folder="queue"):
    """Return a queue setting of a loop device as the kernel shows it."""
    return Path(f"/sys/block/{Path(node).name}/{folder}/{name}").read_text().strip()
