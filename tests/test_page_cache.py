"""Eviction on real files: cold means that no page of them is left in memory."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from tasks.jobs.page_cache import evict
from tasks.mounts import mount_of

SIZE = 64 * mmap.PAGESIZE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    if mount_of(tmp_path).fs in ("tmpfs", "ramfs"):
        pytest.skip(f"{tmp_path} lies in memory: its pages are the file")
    return tmp_path


def test_a_dirty_file_is_written_and_leaves_no_page(folder: Path) -> None:
    data = os.urandom(SIZE)
    (folder / "file").write_bytes(data)
    assert evict(str(folder / "file")) == 0
    assert (folder / "file").read_bytes() == data


def test_a_file_just_read_leaves_no_page(folder: Path) -> None:
    (folder / "file").write_bytes(bytes(SIZE))
    evict(str(folder / "file"))
    (folder / "file").read_bytes()
    assert evict(str(folder / "file")) == 0


def test_a_file_that_ends_within_a_page(folder: Path) -> None:
    (folder / "file").write_bytes(bytes(SIZE + 1))
    assert evict(str(folder / "file")) == 0


def test_an_empty_file(folder: Path) -> None:
    (folder / "file").touch()
    assert evict(str(folder / "file")) == 0


def test_pages_that_a_process_has_mapped_stay_and_are_counted(folder: Path) -> None:
    path = folder / "file"
    path.write_bytes(bytes(SIZE))
    with path.open("rb") as f, mmap.mmap(f.fileno(), SIZE, access=mmap.ACCESS_READ) as mapped:
        touched = sum(mapped[n * mmap.PAGESIZE] + 1 for n in range(8))
        assert evict(str(path)) >= touched
    assert evict(str(path)) == 0


def test_a_file_that_is_not_there(folder: Path) -> None:
    with pytest.raises(FileNotFoundError):
        evict(str(folder / "nothing"))
