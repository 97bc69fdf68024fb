"""Ending a child that the kernel does not let end."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from tasks import process
from tasks.errors import TaskError
from tasks.lease import Lease
from tasks.spec import Backing, Storage
from tasks.storage import volume
from tests.conftest import TOKENS


@pytest.mark.root
def test_a_job_that_a_hung_drive_holds_is_given_up(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write to a frozen filesystem waits in the kernel, as one to a drive that does not answer does."""
    monkeypatch.setattr(process, "_KILL_LIMIT_S", 1.0)
    lease = Lease.take(f"{TOKENS}-hung")
    with volume(Storage(fs="xfs", backing=Backing.tmpfs, image_size="384MiB"), lease) as found:
        frozen = str(found.mount.path)
        subprocess.run(["fsfreeze", "--freeze", frozen], check=True)
        try:
            begin = time.monotonic()
            with (
                pytest.raises(TaskError, match="cannot be ended: it waits in the kernel"),
                process.child(["touch", str(found.offload_dir / "x")], tmp_path / "log", dict(os.environ)) as job,
            ):
                time.sleep(0.5)
            assert time.monotonic() - begin < 20
        finally:
            subprocess.run(["fsfreeze", "--unfreeze", frozen], check=True)
            job.wait(20)
