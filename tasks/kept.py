"""Offload files that `--keep` left on this node: where they are, how to look at them, and their removal.

python -m tasks.kept                      what is kept here
python -m tasks.kept --remove [NAME ...]  remove all of it, or these
"""

from __future__ import annotations

import datetime
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.arguments import Parser
from tasks.errors import StorageError, TaskError
from tasks.lease import MARKER
from tasks.mounts import mount_of, mounts
from tasks.state import FOLDER_PREFIX, state_dir
from tasks.text import printable
from tasks.units import format_bytes

#: How a folder begins that no clean-up of an attempt knows; its lease's name for it does not.
KEPT_PREFIX = f"{FOLDER_PREFIX}kept-"

#: Name of a loop image, and of the folder to mount it in, within the folder of an attempt.
IMAGE, MOUNT_POINT = "disk.img", "mnt"

#: Folder of an attempt's filesystem that the job writes to.
OFFLOAD = "offload"

#: Environment variable that asks a job to leave the files which it would remove at its end.
KEEP_VARIABLE = "OFFLOAD_SWEEP_KEEP"


def keep(folder: Path, name: str, trial: str) -> None:
    """Take the folder of an attempt, unmounted by now, out of reach of every clean-up, and write down where it is.

    It is written down first: a crash in between leaves a note of nothing.
    """
    target = folder.with_name(f"{KEPT_PREFIX}{name}")
    note = {
        "name": name,
        "trial": trial,
        "path": str(target),
        "image": str(target / IMAGE) if (folder / IMAGE).exists() else None,
        "size_bytes": _size_bytes(folder),
        "in_memory": mount_of(folder).fs == "tmpfs",
        "since": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    _write(_notes_dir() / f"{name}.json", note)
    folder.rename(target)


def _write(file: Path, note: Mapping[str, Any]) -> None:
    """Write a note so that a machine that goes down has the whole of it, or none."""
    temporary = file.with_suffix(".new")
    with temporary.open("w") as f:
        f.write(json.dumps(note))
        f.flush()
        os.fsync(f.fileno())
    temporary.replace(file)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def kept(name: str) -> dict[str, Any] | None:
    """Return what a trial's record says of the files that the attempt `name` left, or None where it left none."""
    note = next((note for note in notes() if note["name"] == name), None)
    if note is None:
        return None
    files, mount = f"{note['path']}/{OFFLOAD}", None
    if note["image"]:
        point = f"{note['path']}/{MOUNT_POINT}"
        files, mount = f"{point}/{OFFLOAD}", ["mount", "-o", "loop,ro", note["image"], point]
    facts = {key: note[key] for key in ("path", "size_bytes", "in_memory")}
    return facts | {"mount": mount, "files": files, "remove": ["python", "-m", "tasks.kept", "--remove", name]}


def kept_device(device: str) -> dict[str, Any]:
    """Return what a trial's record says of a scratch device, whose filesystem stays until the next trial formats it."""
    mount, files = ["mount", "-o", "ro", device, "/mnt"], f"/mnt/{OFFLOAD}"
    return {"path": device, "size_bytes": None, "in_memory": False, "mount": mount, "files": files, "remove": None}


def described(facts: Mapping[str, Any]) -> str:
    """Return in words where kept files are, from the record of their trial."""
    size = "" if facts["size_bytes"] is None else f"{format_bytes(facts['size_bytes'])}, "
    size += "in memory, " if facts["in_memory"] else ""
    look = f"see with {shlex.join(facts['mount'])} && ls {facts['files']}" if facts["mount"] else facts["files"]
    return f"{size}{look}" + ("" if facts["remove"] else "; until the next trial on that device")


def notes() -> list[dict[str, Any]]:
    """Return what is kept on this node, oldest first, also what is not there now: its drive may be mounted again."""
    found = [note for file in _files() if (note := _read(file)) is not None]
    return sorted(found, key=lambda note: (note["since"], note["name"]))


def unreadable() -> list[str]:
    """Return in words which notes on this node cannot be read, and what to do about them."""
    return [
        f"{file} cannot be read: find / -name {KEPT_PREFIX}{file.stem} says where the files are that it is about;"
        " remove those and the note"
        for file in _files()
        if _read(file) is None
    ]


def is_there(note: Mapping[str, Any]) -> bool:
    """Say whether the files of a note are there now; they are not where their drive is not mounted."""
    return Path(note["path"]).is_dir()


def room() -> Counter[str]:
    """Return the bytes that are kept on this node, by the path of the mount they lie on."""
    found: Counter[str] = Counter()
    for note in filter(is_there, notes()):
        found[mount_of(note["path"]).path] += note["size_bytes"]
    return found


def _files() -> list[Path]:
    return sorted(_notes_dir().glob("*.json"))


def _read(file: Path) -> dict[str, Any] | None:
    """Return a note, or None where that is no whole one."""
    try:
        note = json.loads(file.read_text())
        texts = [note[key] for key in ("name", "trial", "path", "since")]
        whole = all(isinstance(text, str) for text in texts) and isinstance(note["size_bytes"], int)
        return note if whole and note["name"] == file.stem and note.keys() >= {"image", "in_memory"} else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remove(note: Mapping[str, Any]) -> None:
    """Remove one folder and its note; StorageError where it is not ours, in use, or not there now."""
    folder, file = Path(note["path"]), _notes_dir() / f"{note['name']}.json"
    if not is_there(note) and note["in_memory"]:
        file.unlink()  # which has forgotten it
        return
    if not is_there(note):
        raise StorageError(f"{folder} is not there now: mount its drive; or, where it is gone for good, rm {file}")
    if not folder.name.startswith(KEPT_PREFIX) or folder.is_symlink() or not (folder / MARKER).exists():
        raise StorageError(f"{folder} does not carry our mark ({MARKER}); it stays")
    if within := [mount.path for mount in mounts() if Path(mount.path).is_relative_to(folder.resolve())]:
        raise StorageError(f"{folder} is in use: umount {within[-1]}")
    if nodes := list(_loops(note["image"])):
        raise StorageError(f"{note['image']} is in use: losetup --detach {nodes[0]}, once it is unmounted")
    shutil.rmtree(folder)
    file.unlink()


def _loops(image: str | None) -> Iterator[str]:
    if image is None or shutil.which("losetup") is None:
        return
    argv = ["losetup", "--associated", image, "--noheadings", "--output", "NAME"]
    yield from subprocess.run(argv, capture_output=True, text=True, timeout=60).stdout.split()


def _notes_dir() -> Path:
    folder = state_dir() / "kept"
    folder.mkdir(exist_ok=True)
    return folder


def _size_bytes(folder: Path) -> int:
    """Return the room that a folder takes."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 2 where something named is not there, or could not be removed."""
    parser = Parser(prog="python -m tasks.kept", description="Files that --keep left on this machine.")
    parser.add_argument("--remove", metavar="NAME", nargs="*", help="remove these; without a name, all of them")
    try:
        wanted = parser.parse_args(argv).remove
        found = notes()
        for trouble in unreadable():
            print(printable(f"kept: {trouble}"), file=sys.stderr)
        if wanted is None:
            return _listed(found)
        if unknown := sorted({*wanted} - {note["name"] for note in found}):
            raise StorageError(f"nothing is kept here under the name {unknown[0]}; python -m tasks.kept lists what is")
        return _removed([note for note in found if not wanted or note["name"] in wanted])
    except (TaskError, OSError) as error:
        print(printable(f"kept: {error}"), file=sys.stderr)
        return 2


def _listed(found: Sequence[Mapping[str, Any]]) -> int:
    for note in found:
        facts = kept(note["name"])
        assert facts is not None
        where = described(facts) if is_there(note) else f"not there now: {note['path']}"
        print(printable(f"{note['name']}  {note['trial']}  {note['since']}\n    {where}"))
    total = sum(note["size_bytes"] for note in found if is_there(note))
    removal = "; python -m tasks.kept --remove gives them back" if found else ""
    print(f"{format_bytes(total) if found else 'nothing'} kept on this machine{removal}")
    return 0


def _removed(found: Sequence[Mapping[str, Any]]) -> int:
    left = 0
    for note in found:
        try:
            remove(note)
            print(printable(f"removed {note['path']}"))
        except (StorageError, OSError) as error:
            print(printable(f"kept: {error}"), file=sys.stderr)
            left += 1
    return 2 if left else 0


if __name__ == "__main__":
    sys.exit(main())
