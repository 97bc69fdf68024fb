"""Leases: what an attempt takes is written down before, undone after, and undone by the next if its owner died."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tasks import lease as leases
from tasks.lease import MARKER, TOKEN_VARIABLE, Lease, end_processes, processes_of, reap, running

Start = Callable[..., "subprocess.Popen[bytes]"]


ROOT = Path(__file__).parent.parent

#: Takes a lease on folders, in a process of its own, and holds it until it is killed.
HOLD = """
import contextlib, sys, time
from tasks.lease import Lease
lease = Lease.take(sys.argv[1])
with contextlib.ExitStack() as stack:
    for path in sys.argv[2:]:
        stack.enter_context(lease.hold("folder", path=path))
    print("held", flush=True)
    time.sleep(60)
"""


pytestmark = pytest.mark.usefixtures("state")


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts processes; with a token they carry it in their environment."""
    started: list[subprocess.Popen[bytes]] = []

    def run(token: str = "", argv: tuple[str, ...] = ("sleep", "60")) -> subprocess.Popen[bytes]:
        environment = dict(os.environ) | ({TOKEN_VARIABLE: token} if token else {})
        started.append(subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, cwd=ROOT))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def undone(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was undone of a kind of resource that only these tests know."""
    names: list[str] = []
    monkeypatch.setitem(leases._UNDO, "thing", lambda entry: names.append(entry["path"]))
    return names


def held(lease: Lease) -> list[str]:
    return [entry["path"] for entry in json.loads((lease.folder / "lease.json").read_text())["held"]]


def made(folder: Path, marked: bool = True) -> Path:
    folder.mkdir(parents=True)
    (folder / "file").touch()
    if marked:
        (folder / MARKER).touch()
    return folder


def holder(start: Start, token: str, *folders: Path) -> subprocess.Popen[bytes]:
    """Return a process that holds a lease on `folders`."""
    process = start(argv=(sys.executable, "-c", HOLD, token, *map(str, folders)))
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    return process


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def rewrite(lease: Lease, **values: object) -> None:
    path = lease.folder / "lease.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# --- holding ---------------------------------------------------------------------------------------------------------


def test_resources_are_written_down_while_held_and_undone_in_reverse(undone: list[str]) -> None:
    lease = Lease.take("token")
    assert held(lease) == []
    with lease.hold("thing", path="a"):
        assert held(lease) == ["a"]
        with lease.hold("thing", path="b"):
            assert held(lease) == ["a", "b"]
            assert undone == []
        assert (held(lease), undone) == (["a"], ["b"])
    assert (held(lease), undone) == ([], ["b", "a"])


def test_an_exception_undoes_too(undone: list[str]) -> None:
    lease = Lease.take("token")
    with pytest.raises(KeyError), lease.hold("thing", path="a"), lease.hold("thing", path="b"):
        raise KeyError
    assert (held(lease), undone) == ([], ["b", "a"])


def test_what_cannot_be_undone_stays_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    lease = Lease.take("token")
    monkeypatch.setitem(leases._UNDO, "thing", lambda entry: os.unlink(entry["path"]))
    with pytest.raises(FileNotFoundError), lease.hold("thing", path="/no/such/file"):
        pass
    assert held(lease) == ["/no/such/file"]


def test_nobody_else_reads_what_an_attempt_leaves(state: Path) -> None:
    """Its logs hold secrets until it ends; a folder of an earlier version is closed too."""
    (state / "attempts").mkdir(mode=0o755)
    lease = Lease.take("own")
    assert {path.stat().st_mode & 0o777 for path in (lease.folder, lease.folder.parent)} == {0o700}


def test_a_token_is_taken_once() -> None:
    Lease.take("token")
    with pytest.raises(FileExistsError):
        Lease.take("token")


def test_cleaning_undoes_in_reverse_and_removes_the_lease(undone: list[str]) -> None:
    lease = Lease.take("token")
    rewrite(lease, held=[{"kind": "thing", "path": "a"}, {"kind": "thing", "path": "b"}])
    loaded = Lease.load(lease.folder)
    assert loaded is not None
    assert loaded.clean() == []
    assert undone == ["b", "a"]
    assert not lease.folder.exists()


# --- what a dead owner left ------------------------------------------------------------------------------------------


def test_what_a_killed_owner_held_is_removed(start: Start, state: Path, tmp_path: Path) -> None:
    first, second = made(tmp_path / "first"), made(tmp_path / "second")
    kill(holder(start, "token", first, second))
    assert first.exists()
    assert reap() == []
    assert not first.exists()
    assert not second.exists()
    assert list((state / "attempts").iterdir()) == []


def test_a_living_owner_keeps_what_it_holds(start: Start, state: Path, tmp_path: Path) -> None:
    folder = made(tmp_path / "folder")
    owner = holder(start, "abc-1", folder)
    assert running("abc") == ["abc-1"]
    assert running("xyz") == []
    assert reap() == []
    assert folder.exists()
    assert owner.poll() is None
    kill(owner)
    assert running("abc") == []


def test_only_folders_with_our_mark_are_removed(start: Start, state: Path, tmp_path: Path) -> None:
    ours, foreign = made(tmp_path / "ours"), made(tmp_path / "foreign", marked=False)
    kill(holder(start, "token", ours, foreign, tmp_path / "never made"))
    assert reap() == []
    assert not ours.exists()
    assert (foreign / "file").exists()


def test_a_later_process_with_the_same_pid_is_not_the_owner(undone: list[str]) -> None:
    lease = Lease.take("token")
    assert reap() == []
    assert lease.folder.exists()
    rewrite(lease, owner_start="1", held=[{"kind": "thing", "path": "a"}])
    assert reap() == []
    assert undone == ["a"]


@pytest.mark.parametrize("values", [{"boot_id": "another"}, {"owner_start": None, "owner": 2**22 + 1}])
def test_owners_of_another_boot_or_unknown_are_gone(values: dict[str, object]) -> None:
    lease = Lease.take("token")
    rewrite(lease, **values)
    assert reap() == []
    assert not lease.folder.exists()


def test_what_cannot_be_undone_is_told_and_tried_again(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(leases._UNDO, "thing", lambda entry: os.unlink(entry["path"]))
    lease = Lease.take("token")
    rewrite(lease, owner_start="1", held=[{"kind": "thing", "path": str(tmp_path / "file")}])
    (problem,) = reap()
    assert problem.startswith(f"thing {tmp_path / 'file'}: ")
    assert lease.folder.exists()
    (tmp_path / "file").touch()
    assert reap() == []
    assert not lease.folder.exists()


def test_what_was_undone_once_is_not_undone_again(undone: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    lease = Lease.take("stuck")
    lease._held = [{"kind": "fails", "path": "/mnt"}, {"kind": "fake", "path": "queue"}]
    lease._write()

    def refuse(entry: dict[str, object]) -> None:
        raise OSError("busy")

    monkeypatch.setitem(leases._UNDO, "fails", refuse)
    monkeypatch.setitem(leases._UNDO, "fake", lambda entry: undone.append(str(entry["path"])))
    for _ in range(2):
        again = Lease.load(lease.folder)
        assert again is not None
        assert again.clean() == ["fails /mnt: busy"]
    assert undone == ["queue"]


def test_a_kind_that_this_version_does_not_know_is_told(undone: list[str]) -> None:
    lease = Lease.take("token")
    entries = [{"kind": "thing", "path": "a"}, {"kind": "of another version", "path": "b"}]
    rewrite(lease, owner_start="1", held=entries)
    assert len(reap()) == 1
    assert undone == ["a"]


LONG_AGO = (time.time() - 3600,) * 2


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"owner": 1}'])
def test_a_lease_that_cannot_be_read_is_left_and_told_once_it_is_old(text: str) -> None:
    """What it named may still be mounted: its folder is the last that knows its name."""
    lease = Lease.take("token")
    (lease.folder / "lease.json").write_text(text)
    assert reap() == []
    os.utime(lease.folder, LONG_AGO)
    (told,) = reap()
    assert f"{lease.folder}/lease.json cannot be read" in told
    assert f"rm -r {lease.folder}" in told
    assert lease.folder.exists()


def test_an_attempt_that_never_wrote_its_lease_is_removed_once_it_is_old() -> None:
    lease = Lease.take("token")
    (lease.folder / "lease.json").unlink()
    os.utime(lease.folder, LONG_AGO)
    assert reap() == []
    assert not lease.folder.exists()


def test_old_folders_without_our_mark_are_left_alone(state: Path) -> None:
    foreign = made(state / "attempts" / "foreign", marked=False)
    os.utime(foreign, (0, 0))
    assert reap() == []
    assert foreign.exists()


def test_nothing_to_reap(state: Path) -> None:
    assert reap() == []


# --- processes -------------------------------------------------------------------------------------------------------


def test_processes_are_known_by_the_whole_token(start: Start) -> None:
    mine = start("key-1")
    start("key-12")
    start()
    assert processes_of("key-1") == [mine.pid]
    assert processes_of("key") == []


def test_only_the_processes_of_the_token_are_ended(start: Start) -> None:
    mine, other = start("key-1"), start("key-2")
    end_processes("key-1")
    assert mine.wait(5) == -15
    assert other.poll() is None


def test_a_process_that_does_not_listen_is_killed(start: Start) -> None:
    stubborn = start("key-1", ("sh", "-c", 'trap "" TERM; echo ready; while :; do sleep 0.1; done'))
    assert stubborn.stdout is not None
    stubborn.stdout.readline()
    end_processes("key-1", grace_s=0.2)
    assert stubborn.wait(5) == -9


def test_reaping_ends_the_processes_of_a_dead_owner(start: Start) -> None:
    owner = holder(start, "key-1")
    orphan = start("key-1")
    assert reap() == []
    assert orphan.poll() is None
    kill(owner)
    assert reap() == []
    assert orphan.wait(5) == -15


def test_an_ended_process_that_nobody_waited_for_is_gone(start: Start) -> None:
    child = start("key-1", ("true",))
    for _ in range(500):
        if leases.process_start(child.pid) is None:
            break
        time.sleep(0.01)
    assert leases.process_start(child.pid) is None
    assert processes_of("key-1") == []
