"""An offload job that is easy to check: direct writes and reads at known offsets of one file, one at a time."""

import fcntl
import json
import mmap
import os
import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tasks" / "jobs"))
from phase_log import PhaseLog

_FS_IOC_FIEMAP = 0xC020660B
_FLAG_SYNC = 1


def extents(fd: int) -> list[tuple[int, int, int]]:
    """Return the file's extents as (logical, physical, length) in bytes (fiemap.rst)."""
    room = 64
    answer = bytearray(struct.pack("=QQLLLL", 0, 2**64 - 1, _FLAG_SYNC, 0, room, 0) + bytes(56 * room))
    fcntl.ioctl(fd, _FS_IOC_FIEMAP, answer)
    count = struct.unpack_from("=L", answer, 20)[0]
    return [struct.unpack_from("=QQQ", answer, 32 + 56 * i) for i in range(count)]


def main(path: str) -> None:
    job = json.loads(Path(path).read_text())
    log = PhaseLog()
    file = os.path.join(job["offload_dir"], "pattern")
    with log.phase("init"), open(file, "wb") as f:
        f.write(bytes(job["file_bytes"]))
        os.fsync(f.fileno())
    fd = os.open(file, os.O_RDWR | os.O_DIRECT)
    for name, move in (("store", os.pwritev), ("load", os.preadv)):
        with log.phase(name, sum(n for _, n in job["pattern"]), extents=json.dumps(extents(fd))):
            for offset, count in job["pattern"]:
                with mmap.mmap(-1, count) as buffer:
                    buffer[:] = bytes(count)  # btrfs reads through the page cache into memory that is not there yet
                    move(fd, [buffer], offset)
    os.close(fd)
    log.done()


if __name__ == "__main__":
    main(sys.argv[1])
