"""A drive of a test's own, in memory: a loop device with a filesystem, whose speed a cgroup can take down."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

#: cgroup v1: of the root group, for the threads of the loop device above belong to no other.
BLKIO = Path("/sys/fs/cgroup/blkio")
#: What a drive is held to, in bytes per second; it must be able to do more than twice as much.
RATE = 64 << 20
#: Of a drive for `benchmarks/held.yaml`.
SIZE_BYTES = 2 << 30
_PROBE_BYTES = 256 << 20


def throttles() -> list[Path]:
    """Return the files that hold the rates of reads and writes; none where this kernel has no cgroup v1 blkio."""
    files = [BLKIO / f"blkio.throttle.{op}_bps_device" for op in ("read", "write")]
    return [file for file in files if file.is_file()]


class Drive:
    """A mounted filesystem on a loop device over memory."""

    def __init__(self, folder: Path, device: str) -> None:
        self.folder, self.device = folder, device
        self.number = Path(f"/sys/block/{Path(device).name}/dev").read_text().strip()

    def slow_down(self, read_bytes_s: float, write_bytes_s: float) -> None:
        """Hold the drive to these rates."""
        for file, rate in zip(throttles(), (read_bytes_s, write_bytes_s), strict=True):
            file.write_text(f"{self.number} {round(rate)}")

    def hold(self) -> None:
        """Hold the drive to `RATE`; raise RuntimeError where it is too slow for it, or goes on as it likes."""
        free = self.write_bytes_s(_PROBE_BYTES)
        if free < 2 * RATE:
            raise RuntimeError(f"{self.device} takes {free / 1e6:.0f} MB/s, too little to hold it to {RATE / 1e6:.0f}")
        self.slow_down(RATE, RATE)
        now = self.write_bytes_s(_PROBE_BYTES)
        if abs(now / RATE - 1) > 0.1:
            raise RuntimeError(f"{self.device} takes {now / 1e6:.0f} MB/s, though it is held to {RATE / 1e6:.0f}")

    def write_bytes_s(self, size_bytes: int) -> float:
        """Return how many bytes per second a file takes that is written past the page cache."""
        target = self.folder / "probe"
        begun = time.monotonic()
        _run("dd", "if=/dev/zero", f"of={target}", "bs=1M", f"count={size_bytes >> 20}", "oflag=direct")
        took_s = time.monotonic() - begun
        target.unlink()
        return size_bytes / took_s

    def let_go(self) -> None:
        """Hold it to none: a throttle outlives the loop device that it was meant for."""
        self.slow_down(0, 0)


@contextmanager
def made(folder: Path, size_bytes: int) -> Iterator[Drive]:
    """Make a drive below `folder`, and remove it again."""
    memory, mount = folder / "memory", folder / "drive"
    with ExitStack() as stack:
        for path in (memory, mount):
            path.mkdir()
        _run("mount", "-t", "tmpfs", "-o", f"size={size_bytes + (64 << 20)}", "tmpfs", str(memory))
        stack.callback(_run, "umount", str(memory))
        image = memory / "image"
        with image.open("wb") as file:
            # all of its memory now: a page that is written to for the first time takes ten times as long
            os.posix_fallocate(file.fileno(), 0, size_bytes)
        device = _run("losetup", "--find", "--show", str(image))
        stack.callback(_run, "losetup", "-d", device)
        _run("mkfs.xfs", "-q", "-f", "-K", device)
        _run("mount", device, str(mount))
        stack.callback(_run, "umount", str(mount))
        drive = Drive(mount, device)
        stack.callback(drive.let_go)
        yield drive


def _run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
