"""Mounts as /proc/self/mountinfo lists them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tasks.mounts import Mount, device_number, mount_of, mounts, parse_mountinfo

MOUNTINFO = r"""
22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw,errors=remount-ro
23 22 0:21 / /proc rw,nosuid shared:5 - proc proc rw
24 22 8:17 /sub /data rw,noatime shared:6 master:7 - xfs /dev/sdb1 rw,attr2,inode64
25 22 7:0 / /mnt/my\040disk\011x rw - ext4 /dev/loop0 rw
26 22 0:44 / /mnt/a\134040b rw - tmpfs my\040\043tmpfs rw,size=4k
27 24 7:1 / /data rw - btrfs /dev/loop1 rw
28 22 0:45 / /mnt/host rw - nfs4 host:/a\040b rw,vers=4.2 - x
""".strip()


def named(path: str, number: int) -> Mount:
    return Mount(path, f"7:{number}", "ext4", f"/dev/loop{number}", "rw")


def test_every_column_in_its_place() -> None:
    data = parse_mountinfo(MOUNTINFO)[2]
    assert data == Mount("/data", "8:17", "xfs", "/dev/sdb1", "rw,noatime,rw,attr2,inode64")


def test_escaped_characters_are_restored_once() -> None:
    found = parse_mountinfo(MOUNTINFO)
    assert found[3].path == "/mnt/my disk\tx"
    assert found[4].path == r"/mnt/a\040b"
    assert found[4].source == "my #tmpfs"
    assert found[6].source == "host:/a b"


@pytest.mark.parametrize("name", ["/mnt/a\u2028b", "/mnt/a\xa0b", "/mnt/a\x0bb", os.fsdecode(b"/mnt/caf\xe9")])
def test_names_with_characters_that_the_kernel_does_not_escape(name: str) -> None:
    (found,) = parse_mountinfo(f"22 1 8:1 / {name} rw - ext4 /dev/sda1 rw\n")
    assert found.path == name


def test_the_longest_prefix_holds_a_path(tmp_path: Path) -> None:
    inner, beside = tmp_path / "a" / "b", tmp_path / "a" / "bc"
    inner.mkdir(parents=True)
    beside.mkdir()
    among = [named("/", 0), named(str(inner), 1), named(str(inner.parent), 2)]
    assert mount_of(inner, among).dev == "7:1"
    assert mount_of(inner / "not there yet", among).dev == "7:1"
    assert mount_of(beside, among).dev == "7:2"
    assert mount_of(tmp_path, among).dev == "7:0"
    assert mount_of("/", among).dev == "7:0"


def test_the_last_of_several_mounts_on_a_folder_hides_the_others() -> None:
    assert mount_of("/data/x", parse_mountinfo(MOUNTINFO)).fs == "btrfs"


def test_a_link_leads_to_the_mount_of_its_target(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "here").symlink_to(tmp_path / "there")
    among = [named("/", 0), named(str((tmp_path / "there").resolve()), 1)]
    assert mount_of(tmp_path / "here", among).dev == "7:1"


def test_this_machine(tmp_path: Path) -> None:
    assert "/" in {m.path for m in mounts()}
    assert mount_of("/proc/self").fs == "proc"
    major, minor = map(int, device_number(tmp_path).split(":"))
    assert os.stat(tmp_path).st_dev == os.makedev(major, minor) or mount_of(tmp_path).source.startswith("/dev/")
