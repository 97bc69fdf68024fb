"""Whether a filesystem is full, asked by taking room: what filesystems keep back they count as free. Stands alone."""

from __future__ import annotations

import errno
import os
from contextlib import suppress

#: Larger than what a job writes at once.
_PROBE_BYTES = 4 << 20


def is_full(folder: str | os.PathLike[str]) -> bool:
    """Return whether 4 MiB more no longer fit into `folder`; False where that cannot be found out."""
    path = os.path.join(folder, ".offload-sweep-probe")
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as e:
        return e.errno in (errno.ENOSPC, errno.EDQUOT)
    try:
        os.posix_fallocate(fd, 0, _PROBE_BYTES)
    except OSError as e:
        return e.errno in (errno.ENOSPC, errno.EDQUOT)
    finally:
        os.close(fd)
        with suppress(OSError):
            os.unlink(path)
    return False
