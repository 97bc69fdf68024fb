"""The code that runs on nodes, file by file: which of it a workload's trials depend on, and its hashes.

A file of `tasks/workloads` or `tasks/jobs` counts for the workloads that reach it: by imports, or by naming the script.
One that nobody reaches, and everything else, counts for all: what is overlooked here makes trials run once too often,
never once too seldom.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import analysis
import tasks
from tasks.errors import TaskError
from tasks.workloads import WORKLOADS

#: A file changed less than this ago is read again, whatever its inode says.
_FRESH_NS = 2_000_000_000

#: What files were when they were last read: what their inodes said, and their hashes.
_seen: dict[Path, tuple[tuple[int, ...] | None, str]] = {}

#: Folders whose files can belong to single workloads.
_OWNED = ("tasks/workloads/", "tasks/jobs/")


def digest(value: Any) -> str:
    """Return a short hash of JSON values, the same whatever the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


@cache
def code_hash() -> str:
    """Return a hash of this package's code, all of it: a node runs what its trials depend on, and what sends them."""
    root = Path(tasks.__file__).parent.parent
    modules = [p for name in ("analysis", "sweep") for p in sorted((root / name).rglob("*.py"))]
    return digest(_hashes() | {_path_of(file, root): _hash(file) for file in modules})


def code_of(config: Mapping[str, Any]) -> Mapping[str, str]:
    """Return the files that a trial with this configuration depends on, by path, with a short hash of each."""
    tracer, stacks = config["trace"]["tracer"], bool(config["trace"].get("stacks"))
    return _code(config["workload"]["kind"], tracer in ("auto", "bpftrace"), stacks)


def digest_of(config: Mapping[str, Any]) -> str:
    """Return one hash of the files of `code_of`; a run tells by it which files they were."""
    tracer, stacks = config["trace"]["tracer"], bool(config["trace"].get("stacks"))
    return _digest(config["workload"]["kind"], tracer in ("auto", "bpftrace"), stacks)


def check_unchanged(config: Mapping[str, Any], planned: str) -> None:
    """Raise TaskError where the files that a trial depends on are not those of its plan, on this machine, now.

    They are looked at again each time: scripts start from the disk, whatever was imported long ago.
    """
    kind, stacks = config["workload"]["kind"], bool(config["trace"].get("stacks"))
    # Either will do: the plan may have said `auto` where the node has settled for another tracer.
    known = {path: told for bpftrace in (True, False) for path, told in _code(kind, bpftrace, stacks).items()}
    places = _files() | _foreign_file(kind)
    now = {path: _hash_now(places[path]) for path in known}
    if any(
        digest({path: now[path] for path in _code(kind, bpftrace, stacks)}) == planned for bpftrace in (True, False)
    ):
        return
    changed = [path for path, told in now.items() if told != known[path]]
    which = f" ({', '.join(changed[:3])}{' ...' if len(changed) > 3 else ''})" if changed else ""
    raise TaskError(
        f"the code on this machine{which} is not the one that the sweep was planned with: it was changed meanwhile; "
        "end the sweep, and go on with --resume"
    )


def is_script(path: str) -> bool:
    """Say whether a file of `code_of` is a script of bpftrace, which only some tracers need."""
    return path.endswith(".bt")


def table_of(configs: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, str]]:
    """Return the files of code behind each digest that trials with these configurations have."""
    return {digest_of(config): code_of(config) for config in configs}


@cache
def _digest(kind: str, bpftrace: bool, stacks: bool) -> str:
    return digest(_code(kind, bpftrace, stacks))


@cache
def _code(kind: str, bpftrace: bool, stacks: bool) -> dict[str, str]:
    apart = {"bpftrace/requests.bt": bpftrace, "bpftrace/stacks.bt": stacks}
    owners = _owners()
    return _foreign(kind) | {
        path: told
        for path, told in _hashes().items()
        if (path not in owners or kind in owners[path]) and apart.get(path, True)
    }


def _foreign(kind: str) -> dict[str, str]:
    """Return the file of a workload that lies in a package of somebody else's, with its hash."""
    return {path: _hash(file) for path, file in _foreign_file(kind).items()}


def _foreign_file(kind: str) -> dict[str, Path]:
    """Return where that file lies on this machine, by a path that is the same on all."""
    module = WORKLOADS[kind]
    found = None if module.startswith("tasks.") else importlib.util.find_spec(module)
    return {f"{module.replace('.', '/')}.py": Path(found.origin)} if found and found.origin else {}


@cache
def _files() -> dict[str, Path]:
    """Return the files that a node runs by their paths in the project."""
    root = Path(tasks.__file__).parent
    found = [p for p in sorted(root.rglob("*")) if p.suffix in (".py", ".bt")]
    found.append(Path(analysis.__file__).parent / "schema.py")
    if (scripts := root.parent / "bpftrace").is_dir() and not (root / "bpftrace").is_dir():
        found += sorted(scripts.glob("*.bt"))
    return {_path_of(file, root.parent): file for file in found}


def _path_of(file: Path, root: Path) -> str:
    """Return a file's path in the project, the same from a clone and from an installed package."""
    if file.suffix == ".bt":
        return f"bpftrace/{file.name}"
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else f"{file.parent.name}/{file.name}"


@cache
def _hashes() -> dict[str, str]:
    return {path: _hash(file) for path, file in _files().items()}


def _hash(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    except FileNotFoundError:
        return "(none)"


def _hash_now(file: Path) -> str:
    """Return a file's hash as it is now; what it was where its inode says that nothing was written since."""
    try:
        told = file.stat()
    except FileNotFoundError:
        return _hash(file)
    key = (told.st_dev, told.st_ino, told.st_size, told.st_mtime_ns, told.st_ctime_ns)
    known = _seen.get(file)
    if known is None or known[0] != key:
        # Written a moment ago, it may be written again within the clock's tick, and look the same.
        fresh = time.time_ns() - told.st_ctime_ns < _FRESH_NS
        known = (None if fresh else key, _hash(file))
        _seen[file] = known
    return known[1]


@cache
def _owners() -> dict[str, frozenset[str]]:
    """Return, for each file that single workloads own, the kinds of those."""
    files = _files()
    owned = [path for path in files if path.startswith(_OWNED) and not path.endswith("/__init__.py")]
    shared = set(_reached([path for path in files if path not in owned]))
    found: dict[str, set[str]] = {}
    for kind, module in WORKLOADS.items():
        for path in _reached([f"{module.replace('.', '/')}.py"]):
            found.setdefault(path, set()).add(kind)
    return {path: frozenset(found[path]) for path in owned if path in found and path not in shared}


def _reached(paths: Iterable[str]) -> Iterator[str]:
    """Yield these files and those of `_OWNED` that they lead to."""
    waiting, seen = [path for path in paths if path in _files()], set()
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen.add(path)
            yield path
            waiting += [other for other in _named(path) if other in _files() and other.startswith(_OWNED)]


@cache
def _named(path: str) -> tuple[str, ...]:
    """Return what a file may lead to: modules that it imports, scripts that it names, as paths."""
    source = _files()[path].read_bytes()
    if path.endswith(".bt") or not (path.startswith(_OWNED) or b"jobs" in source or b"workloads" in source):
        return ()
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [path for name in node.names for path in _paths_of(name.name)]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{name.name}" for name in node.names)]
            found += [path for name in names for path in _paths_of(name)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.endswith(".py"):
            found.append(f"tasks/jobs/{node.value.rpartition('/')[2]}")
    return tuple(dict.fromkeys(found))


def _paths_of(module: str) -> tuple[str, str]:
    """Return where a module could lie: in the project, or beside the other scripts that jobs import by bare name."""
    path = module.replace(".", "/")
    return f"{path}.py", f"tasks/jobs/{path}.py"
