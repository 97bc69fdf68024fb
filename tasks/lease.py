"""What an attempt has taken from the machine, written down before it is taken.

A lease is a JSON file of one attempt. Whoever holds it appends each resource before acquiring it and strikes it out
after releasing it, so that after a SIGKILL the next process knows exactly what is ours to undo, and touches nothing
else. Processes are recognised by the attempt's token in their environment.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tasks import device, queues
from tasks.device import boot_id
from tasks.state import state_dir

#: Environment variable that every process of an attempt carries.
TOKEN_VARIABLE = "OFFLOAD_SWEEP_ATTEMPT"

#: Name of the file that marks a folder as made by us, and so as ours to delete.
MARKER = ".offload-sweep"


def process_start(pid: int) -> str | None:
    """Return a value that tells this process from a later one with the same pid, or None where there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat[stat.rindex(")") + 2 :].split()
    return None if fields[0] == "Z" else fields[19]


class Lease:
    """The resources of one attempt, on disk in `<state>/attempts/<token>/lease.json`."""

    def __init__(self, folder: Path, token: str, owner: int) -> None:
        """Describe the attempt `token` in `folder`, owned by process `owner`; nothing is written yet."""
        self.folder = folder
        self.token = token
        self._owner = owner
        self._held: list[dict[str, Any]] = []
        self._file = folder / "lease.json"

    @classmethod
    def take(cls, token: str, owner: int | None = None) -> Lease:
        """Open a new lease, owned by `owner` (this process unless given)."""
        lease = cls(state_dir() / "attempts" / token, token, owner or os.getpid())
        # Logs lie in there that nothing has taken the secrets out of yet.
        lease.folder.parent.mkdir(exist_ok=True)
        with suppress(PermissionError):  # of another user, who has to see to it
            lease.folder.parent.chmod(0o700)
        lease.folder.mkdir(mode=0o700)
        (lease.folder / MARKER).touch()
        lease._write()
        return lease

    @classmethod
    def load(cls, folder: Path) -> Lease | None:
        """Return the lease in `folder`, or None where there is none that can be read."""
        try:
            value = json.loads((folder / "lease.json").read_text())
            lease = cls(folder, folder.name, value["owner"])
            lease._held = value["held"]
            start = value["owner_start"]
            lease._alive = value["boot_id"] == boot_id() and start is not None and process_start(lease._owner) == start
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return lease

    _alive = True

    @property
    def abandoned(self) -> bool:
        """Whether the process that took the lease is gone."""
        return not self._alive

    @contextmanager
    def hold(self, kind: str, **facts: Any) -> Iterator[dict[str, Any]]:
        """Hold one resource: written down before the body runs, undone and struck out after it."""
        entry = {"kind": kind, **facts}
        self._held.append(entry)
        self._write()
        try:
            yield entry
        finally:
            _UNDO[kind](entry)
            self._held.remove(entry)
            self._write()

    def corner(self, name: str) -> Lease:
        """Return this lease for one more tracer: what it holds stands here, its folder and token are its own."""
        corner = Lease(self.folder / name, f"{self.token}-{name}", self._owner)
        corner._held, corner._file = self._held, self._file
        corner.folder.mkdir()
        return corner

    def clean(self, alone: bool = False) -> list[str]:
        """End the attempt's processes, undo what is still held, remove the lease; return what could not be undone.

        `alone` says that its processes have ended.
        """
        if not alone:
            end_processes(self.token)
        problems: list[str] = []
        for entry in reversed(list(self._held)):
            if problems and entry["kind"] in ("loop", "folder"):
                continue  # what is still mounted lies in it
            try:
                _UNDO[entry["kind"]](entry)
            except (OSError, KeyError, subprocess.SubprocessError) as e:
                problems.append(f"{entry['kind']} {entry.get('path', '')}: {e}")
                continue
            # Undone once: the next time it might be somebody else's.
            self._held.remove(entry)
            if self.folder.is_dir():
                self._write()
        if not problems:
            shutil.rmtree(self.folder, ignore_errors=True)
        return problems

    def _write(self) -> None:
        value = {
            "owner": self._owner,
            "owner_start": process_start(self._owner),
            "boot_id": boot_id(),
            "held": self._held,
        }
        temporary = self._file.with_name("lease.json.new")
        temporary.write_text(json.dumps(value))
        temporary.replace(self._file)


def settings_to_give_back() -> dict[str, dict[str, str]]:
    """Return, by queue folder, the settings as they were before attempts of this machine changed them.

    Those of killed attempts too, which nobody has cleaned up after yet.
    """
    found: dict[str, dict[str, str]] = {}
    for folder in sorted((state_dir() / "attempts").glob("*")):
        lease = Lease.load(folder)
        for entry in lease._held if lease else ():
            if entry["kind"] == "queue" and entry.get("boot_id") == boot_id():
                found.setdefault(entry["folder"], {}).update(entry["values"])
    return found


def reap() -> list[str]:
    """Clean up after every attempt on this machine whose owner is gone; return what could not be undone."""
    with (state_dir() / "reaping.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _reap()


def _reap() -> list[str]:
    problems = []
    for folder in sorted((state_dir() / "attempts").glob("*")):
        lease = Lease.load(folder)
        if lease is not None and lease.abandoned:
            problems += lease.clean()
        elif lease is None and (folder / MARKER).exists() and time.time() - folder.stat().st_mtime > 60:
            problems += _unread(folder)
    return problems


def _unread(folder: Path) -> list[str]:
    """Remove an attempt that took nothing, for it never wrote a lease; of another, say that it cannot be read."""
    if (folder / "lease.json").exists():
        text = (
            "cannot be read: what its attempt took is not known; python -m sweep.doctor lists what has its name; then"
        )
        return [f"{folder / 'lease.json'} {text} rm -r {folder}"]
    shutil.rmtree(folder, ignore_errors=True)
    return []


def running(prefix: str) -> list[str]:
    """Return the tokens of the attempts on this machine that start with `prefix` and have an owner."""
    leases = (Lease.load(f) for f in sorted((state_dir() / "attempts").glob(f"{prefix}*")))
    return [lease.token for lease in leases if lease is not None and not lease.abandoned]


def processes_of(token: str) -> list[int]:
    """Return the pids of the processes, other than this one, that carry `token` in their environment."""
    wanted = f"{TOKEN_VARIABLE}={token}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if wanted in environment and int(folder.name) != os.getpid() and process_start(int(folder.name)):
            found.append(int(folder.name))
    return found


def end_processes(token: str, grace_s: float = 3.0) -> None:
    """End every other process of the attempt: SIGTERM, then SIGKILL after `grace_s`."""
    end = time.monotonic() + grace_s
    for sent, until in ((signal.SIGTERM, end), (signal.SIGKILL, end + 10)):
        if not (pids := processes_of(token)):
            return
        for pid in pids:
            _kill(pid, sent)
        while processes_of(token) and time.monotonic() < until:
            time.sleep(0.05)


def _kill(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60)


def _undo_mount(entry: dict[str, Any]) -> None:
    # A process that ended a moment ago may still pin the mount; a lazy unmount would hide a real user of it.
    for wait_s in (0.0, 0.2, 0.5, 1.0, 2.0):
        if not os.path.ismount(entry["path"]):
            return
        time.sleep(wait_s)
        if subprocess.run(["umount", entry["path"]], capture_output=True, timeout=60).returncode == 0:
            return
    _run("umount", entry["path"])


def _undo_loop(entry: dict[str, Any]) -> None:
    # Found by its image, which lies in our own folder: the number may by now belong to somebody else.
    found = subprocess.run(
        ["losetup", "--associated", entry["path"], "--noheadings", "--output", "NAME"], capture_output=True, text=True
    )
    for node in found.stdout.split():
        _run("losetup", "--detach", node)


def _undo_folder(entry: dict[str, Any]) -> None:
    if (Path(entry["path"]) / MARKER).exists():
        shutil.rmtree(entry["path"])


def _undo_queue(entry: dict[str, Any]) -> None:
    # After a reboot, or with other media under that name, the settings are somebody else's.
    disk, folder = entry["device"], Path(entry["folder"])
    same = entry["boot_id"] == boot_id() and entry["diskseq"] == (disk and device.disk_sequence(disk))
    if same and folder.exists():
        queues.write_queue(folder, entry["values"])


def _undo_ftrace(entry: dict[str, Any]) -> None:
    # Its readers are threads of a process that has ended by now, or is about to.
    folder = Path(entry["path"])
    for wait_s in (0.0, 0.1, 0.5, 1.0, 2.0):
        time.sleep(wait_s)
        if not folder.is_dir():
            return
        (folder / "tracing_on").write_text("0")
        with suppress(OSError):
            folder.rmdir()
            return
    folder.rmdir()


def _undo_cgroup(entry: dict[str, Any]) -> None:
    folder = Path(entry["path"])
    for wait_s in (0.0, 0.05, 0.2, 0.5, 1.0, 2.0):
        time.sleep(wait_s)
        if not folder.is_dir():
            return
        for pid in (folder / "cgroup.procs").read_text().split():
            _kill(int(pid), signal.SIGKILL)
        with suppress(OSError):
            folder.rmdir()
            return
    folder.rmdir()


_UNDO: dict[str, Callable[[dict[str, Any]], None]] = {
    "mount": _undo_mount,
    "loop": _undo_loop,
    "folder": _undo_folder,
    "queue": _undo_queue,
    "ftrace": _undo_ftrace,
    "cgroup": _undo_cgroup,
}
