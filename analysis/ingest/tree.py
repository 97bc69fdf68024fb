"""Which files of a source belong to one trial."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from analysis.errors import AnalysisError
from analysis.ingest import bite_size, blkparse, commands, deepnvme, fio_log, generation, nvidia
from analysis.ingest.kinds import kind_of
from analysis.ingest.part import Source

_FILESYSTEM = re.compile(r"(?<![a-z0-9])(ext[234]|xfs|btrfs|f2fs|zfs|bcachefs|tmpfs)(?![a-z0-9])", re.I)
#: What the study's files of one experiment differ in.
_SUFFIX = re.compile(r"(?:[-_.](?:gpu|bpftrace|block|blkparse|trace|log|nvidia|smi))+$")
_TOGETHER = (bite_size.KIND, blkparse.KIND, generation.KIND, nvidia.KIND, commands.KIND)


@dataclass
class Group:
    """The files of one trial by kind (of a trial of tensors there are many); `fs` is the filesystem in their paths."""

    files: list[tuple[str, Source]]
    fs: str | None

    @property
    def kinds(self) -> set[str]:
        """The kinds of its files."""
        return {kind for kind, _ in self.files}


@dataclass
class Found:
    """What a source holds: groups of files, and those that nothing can be made of, with the reason."""

    groups: list[Group] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)


def find(root: Path, kind: str | None = None) -> Found:
    """Return the groups of a file or folder; `kind` says what every file is taken for.

    Raises AnalysisError where there is no such source.
    """
    found = Found()
    named: dict[str, list[tuple[str, Source]]] = {}
    sources = list(_sources(root))
    names = {source.name for source in sources}
    for source in sources:
        try:
            told = kind_of(source.path) if kind is None or root.is_dir() else kind
        except AnalysisError as error:
            found.left.append((source.name, str(error).rpartition(": ")[2]))
            continue
        if kind is not None and told != kind:
            found.left.append((source.name, f"not of the kind {kind}"))
        elif told == fio_log.KIND and (reason := fio_log.unusable(source.name, names)):
            found.left.append((source.name, reason))
        elif told is None:
            found.left.append((source.name, "empty" if not source.path.stat().st_size else "of no known kind"))
        else:
            named.setdefault(_place(told, source), []).append((told, source))
    for place, files in named.items():
        found.groups += _groups(root, place, files, found.left)
    return found


def _sources(root: Path) -> Iterator[Source]:
    if not root.exists():
        raise AnalysisError(f"{root}: no such file or folder")
    if not root.is_dir():
        yield Source(root, root.name)
        return
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            path = Path(folder) / name
            yield Source(path, str(path.relative_to(root)))


def _place(kind: str, source: Source) -> str:
    """Return what the files that may be one trial share: a folder, or being tensors."""
    if kind == deepnvme.KIND:
        return deepnvme.KIND
    return f"{source.name}\0" if kind == fio_log.KIND else str(PurePath(source.name).parent)


def _groups(root: Path, place: str, files: list[tuple[str, Source]], left: list[tuple[str, str]]) -> list[Group]:
    if place == deepnvme.KIND:
        by_fs: dict[str | None, list[tuple[str, Source]]] = {}
        for one in files:
            by_fs.setdefault(_filesystem(root, one[1]), []).append(one)
        return [Group(own, fs) for fs, own in by_fs.items()]
    groups = []
    for own in _together(files):
        if {kind for kind, _ in own} == {commands.KIND}:
            left += [(source.name, "command lines without the files they wrote") for _, source in own]
        else:
            groups.append(Group(own, _filesystem(root, own[0][1])))
    return groups


def _together(files: Sequence[tuple[str, Source]]) -> list[list[tuple[str, Source]]]:
    """Return the files of one folder by experiment: by what their names begin with, where a kind occurs twice."""
    traces = [kind for kind, _ in files if kind in (bite_size.KIND, blkparse.KIND)]
    if len(traces) <= 1 and all([kind for kind, _ in files].count(kind) <= 1 for kind in _TOGETHER):
        return [list(files)]
    by_stem: dict[tuple[str, int], list[tuple[str, Source]]] = {}
    for kind, source in files:
        if kind == commands.KIND:
            continue
        stem = _SUFFIX.sub("", PurePath(source.name).stem)
        turn = sum(_same_role(kind, other) for key, own in by_stem.items() if key[0] == stem for other, _ in own)
        by_stem.setdefault((stem, turn), []).append((kind, source))
    rest = [one for one in files if one[0] == commands.KIND]
    for one in rest:
        names = commands.outputs(one[1])
        home = next((own for own in by_stem.values() if names & {PurePath(s.name).name for _, s in own}), None)
        if home is None or any(kind == commands.KIND for kind, _ in home):
            by_stem[one[1].name, 0] = [one]
        else:
            home.append(one)
    return list(by_stem.values())


def _same_role(kind: str, other: str) -> bool:
    traces = (bite_size.KIND, blkparse.KIND)
    return kind == other or (kind in traces and other in traces)


def _filesystem(root: Path, source: Source) -> str | None:
    found = _FILESYSTEM.findall(f"{root.name}/{source.name}" if root.is_dir() else source.name)
    return found[-1].lower() if found else None


def run_name(root: Path) -> str:
    """Return what a run imported from `root` is called: the name of the file or folder."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", root.resolve().name if root.is_dir() else root.stem).strip("-._")
    return name or "imported"
