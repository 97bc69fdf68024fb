"""`--keep`: the files stay where the record says, nothing else does, and only what is ours is removed."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tasks import kept
from tasks.errors import StorageError
from tasks.lease import MARKER, Lease, reap
from tasks.spec import Storage, StorageKind
from tasks.storage import volume
from tests.conftest import trial_config, trial_spec

JOB = {"kind": "command", "argv": ["dd", "if=/dev/zero", "of={offload_dir}/cache.bin", "bs=1M", "count=8"]}
COMMAND = JOB | {"expect_write": "8MiB", "expect_read": None, "env": {}, "values": {}, "space": "8MiB"}


def in_directory(folder: Path) -> Storage:
    return Storage(kind=StorageKind.directory, fs="auto", path=str(folder))


def directory_kept(state: Path, tmp_path: Path, token: str = "t-1") -> dict[str, Any]:
    folder = tmp_path / "data"
    folder.mkdir(exist_ok=True)
    with volume(in_directory(folder), Lease.take(token), "fs=xfs,rep=1") as found:
        (found.offload_dir / "cache.bin").write_bytes(b"x" * 8192)
    facts = kept.kept(token)
    assert facts is not None
    return facts


def test_files_in_a_directory_stay(state: Path, tmp_path: Path) -> None:
    facts = directory_kept(state, tmp_path)
    assert (Path(facts["files"]) / "cache.bin").read_bytes() == b"x" * 8192
    assert facts["mount"] is None
    assert facts["size_bytes"] >= 8192
    assert json.loads((state / "attempts" / "t-1" / "lease.json").read_text())["held"] == []


def test_the_next_sweep_neither_reaps_nor_meets_them(state: Path, tmp_path: Path) -> None:
    facts = directory_kept(state, tmp_path)
    assert reap() == []
    again = directory_kept(state, tmp_path, "t-2")
    assert {note["name"] for note in kept.notes()} == {"t-1", "t-2"}
    assert Path(facts["path"]).is_dir()
    assert Path(again["path"]).is_dir()


def test_without_being_asked_nothing_stays(state: Path, tmp_path: Path) -> None:
    with volume(in_directory(tmp_path), Lease.take("t-1")) as found:
        (found.offload_dir / "cache.bin").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    assert kept.kept("t-1") is None


def test_a_trial_that_breaks_off_leaves_nothing(state: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(KeyboardInterrupt), volume(in_directory(tmp_path / "data"), Lease.take("t-1"), "rep=1"):
        raise KeyboardInterrupt
    assert list((tmp_path / "data").iterdir()) == []
    assert kept.notes() == []


def test_the_command_lists_and_removes(state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = directory_kept(state, tmp_path), directory_kept(state, tmp_path, "t-2")
    assert kept.main([]) == 0
    out = capsys.readouterr().out
    assert f"t-1  fs=xfs,rep=1  {kept.notes()[0]['since']}" in out
    assert f"{first['path']}/offload" in out
    assert "KiB kept on this machine; python -m tasks.kept --remove gives them back" in out
    assert kept.main(["--remove", "t-3"]) == 2
    assert "nothing is kept here under the name t-3" in capsys.readouterr().err
    assert kept.main(first["remove"][3:]) == 0
    assert not Path(first["path"]).exists()
    assert Path(second["path"]).exists()
    assert kept.main(["--remove"]) == 0
    assert list((tmp_path / "data").iterdir()) == []
    capsys.readouterr()
    assert kept.main([]) == 0
    assert capsys.readouterr().out == "nothing kept on this machine\n"


def test_only_what_carries_our_mark_is_removed(state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = directory_kept(state, tmp_path)
    (Path(facts["path"]) / MARKER).unlink()
    assert kept.main(["--remove"]) == 2
    assert "does not carry our mark" in capsys.readouterr().err
    assert (Path(facts["files"]) / "cache.bin").exists()


def test_a_note_that_leads_elsewhere_removes_nothing(state: Path, tmp_path: Path) -> None:
    facts = directory_kept(state, tmp_path)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / MARKER).touch()
    note = kept.notes()[0]
    link = tmp_path / f"{kept.KEPT_PREFIX}link"
    link.symlink_to(precious)
    for path in (precious, link):
        with pytest.raises(StorageError):
            kept.remove(note | {"path": str(path)})
    assert (precious / MARKER).exists()
    assert Path(facts["path"]).exists()


def test_what_is_not_there_now_is_remembered(state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A drive that is not mounted, looked at by a dry run or by hand; and mounted again."""
    from tasks import machine

    facts = directory_kept(state, tmp_path)
    away = tmp_path / "away"
    Path(facts["path"]).rename(away)
    machine.offer()
    assert not kept.room()
    assert kept.main([]) == 0
    assert f"not there now: {facts['path']}" in capsys.readouterr().out
    assert kept.main(["--remove"]) == 2
    assert f"rm {state / 'kept' / 't-1.json'}" in capsys.readouterr().err
    assert os.listdir(state / "kept") == ["t-1.json"]
    away.rename(facts["path"])
    assert kept.main(["--remove"]) == 0
    assert os.listdir(state / "kept") == []


def test_what_was_in_memory_is_forgotten_when_asked_to(state: Path, tmp_path: Path) -> None:
    facts = directory_kept(state, tmp_path)
    Path(facts["path"]).rename(tmp_path / "lost")
    file = state / "kept" / "t-1.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"in_memory": True}))
    assert kept.main(["--remove", "t-1"]) == 0
    assert kept.notes() == []


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"name": "t-0"}', "\udcff"])
def test_a_note_that_cannot_be_read_is_told_and_hides_no_other(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    from tasks import leftovers, machine

    directory_kept(state, tmp_path)
    broken = state / "kept" / "t-0.json"
    broken.write_bytes(content.encode(errors="surrogateescape"))
    machine.offer()
    assert any(f"{broken} cannot be read" in text for text in leftovers.troubles())
    assert kept.main([]) == 0
    printed = capsys.readouterr()
    assert "t-1  fs=xfs" in printed.out
    assert f"kept: {broken} cannot be read: find / -name offload-sweep-kept-t-0" in printed.err
    assert broken.exists()


@pytest.mark.root
@pytest.mark.parametrize(("fs", "backing"), [("ext4", "disk"), ("xfs", "tmpfs"), ("btrfs", "tmpfs")])
def test_an_image_stays_unmounted_and_can_be_mounted_again(
    state: Path, left_behind: Any, capsys: pytest.CaptureFixture[str], fs: str, backing: str
) -> None:
    from tasks.trial import run_trial

    spec = trial_spec(trial_config("ftrace", fs, backing, COMMAND), keep=True)
    lease = Lease.take(spec.token)
    record = run_trial(spec, lease, lambda text: None)
    assert record["verdict"]["state"] != "failed", record["verdict"]
    facts = record["kept"]
    assert facts["in_memory"] is (backing == "tmpfs")
    assert "disk.img" in kept.described(facts)
    lease.clean()
    reap()
    assert [one for one in left_behind() if "kept" not in one] == []
    subprocess.run(facts["mount"], check=True)
    try:
        assert (Path(facts["files"]) / "cache.bin").stat().st_size == 8 << 20
        assert kept.main(facts["remove"][3:]) == 2
        assert "is in use: umount" in capsys.readouterr().err
    finally:
        subprocess.run(["umount", facts["mount"][-1]], check=True)
    assert kept.main(facts["remove"][3:]) == 0
    assert left_behind() == []


def test_a_refusal_for_want_of_room_names_them(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sweep import cli

    directory_kept(state, tmp_path)
    (tmp_path / "s.yaml").write_text(
        "workload: {kind: command, argv: [ls], space: 9000TiB}\n"
        f"storage: {{kind: directory, fs: auto, path: {tmp_path}}}\ntrace: {{tracer: none}}\n"
    )
    assert cli.main([str(tmp_path / "s.yaml"), "--dry-run"]) == 2
    assert re.search(r"free on \S+; --keep left \d+ KiB there: python -m tasks.kept", capsys.readouterr().err)
