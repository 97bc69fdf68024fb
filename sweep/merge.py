"""One run of several of the same sweep, from several nights or machines; their trials are linked or copied."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from analysis.files import write_bytes
from sweep import lock
from sweep.comparison import code_changes, mapping_in, node_changes, plan_changes
from sweep.errors import UserError
from sweep.past import Finished, Past
from sweep.progress import counted

#: What a run may be called.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

#: How many differences one message lists.
_MOST = 5


@dataclass(frozen=True)
class Taken:
    """Which trials a merged run has, by the run that each comes from, and what was decided on the way."""

    runs: tuple[Past, ...]
    chosen: Mapping[str, tuple[Past, Finished]]
    notes: tuple[str, ...]
    #: In what the runs differ beyond single trials: files of code, kernels, drives; one line for each.
    differences: tuple[str, ...]

    def of(self, run: Past) -> list[Finished]:
        """Return the trials that come from one run."""
        return [finished for source, finished in self.chosen.values() if source is run]


def taken(paths: Sequence[Path]) -> Taken:
    """Choose among the trials of these runs; raise UserError where they cannot be one run.

    Of a trial that several runs have, a valid one is taken before others. Two valid ones must have the same
    fingerprint, or nobody could tell which the other trials belong to; then, and where none is valid, the newest is
    taken.
    """
    runs = _checked(paths)
    chosen: dict[str, tuple[Past, Finished]] = {}
    better = twice = 0
    for run in runs:
        for name, finished in run.trials.items():
            if name not in chosen:
                chosen[name] = (run, finished)
                continue
            other = chosen[name][1]
            if (finished.state == "valid") != (other.state == "valid"):
                better += 1
                takes = finished.state == "valid"
            else:
                twice += finished.started != other.started  # or it is the same, linked by an earlier merge
                if finished.state == "valid":
                    _check_same(chosen[name], (run, finished))
                takes = finished.started > other.started
            if takes:
                chosen[name] = (run, finished)
    notes = []
    if better:
        notes.append(f"{counted(better, 'trial')} valid in one run and not in another: the valid one is taken")
    if twice:
        notes.append(f"{counted(twice, 'trial')} in more than one run: the newest is taken")
    differences = tuple(_apart(chosen.values()))
    if differences:
        more = f"; and {len(differences) - _MOST} more" if len(differences) > _MOST else ""
        notes.append(f"the runs are not of the same: {'; '.join(differences[:_MOST])}{more}")
    return Taken(tuple(runs), chosen, tuple(notes), differences)


def _checked(paths: Sequence[Path]) -> list[Past]:
    """Return the runs, the oldest first; raise UserError where they do not belong together."""
    places = list(dict.fromkeys(path.resolve() for path in paths))
    if len(places) < 2:
        twice = ": these are all the same one" if len(paths) > 1 else ""
        raise UserError(f"merge: name two runs or more{twice}")
    for place in places:
        lock.refuse_driven(place)
    runs = [Past(place) for place in places]
    names = {str(run.record.get("sweep")): run for run in runs}
    if len(names) > 1:
        told = ", ".join(f"{run.path.name} is of {name}" for name, run in names.items())
        raise UserError(f"merge: runs of one sweep make one run; {told}")
    return sorted(runs, key=lambda run: (str(run.record.get("started")), run.path.name))


def _check_same(one: tuple[Past, Finished], other: tuple[Past, Finished]) -> None:
    changes = list(_differences(one, other))
    if not changes:
        return
    (first, finished), (second, _) = one, other
    lines = [
        f"merge: {finished.id} is valid in {first.path.name} and in {second.path.name}, and not the same there",
        *(f"  {change}" for change in changes[:_MOST]),
        *([f"  and {len(changes) - _MOST} more"] if len(changes) > _MOST else []),
        "  a run has one of each trial: leave one of the runs out",
    ]
    raise UserError("\n".join(lines))


def _differences(one: tuple[Past, Finished], other: tuple[Past, Finished]) -> Iterator[str]:
    (first, a), (second, b) = one, other
    yield from plan_changes(a.config, b.config)
    if a.code != b.code:
        before, after = first.code(a.code), second.code(b.code)
        yield from code_changes(before, after) if before and after else [f"code: {a.code} -> {b.code}"]
    yield from node_changes(a.node or {}, b.node or {})


def _apart(chosen: Iterable[tuple[Past, Finished]]) -> Iterator[str]:
    """Yield in what runs differ whose trials were taken: what each of two has and the other has not.

    A run on some of another's nodes has less of everything, and nothing else: that is no difference.
    """
    held: dict[str, dict[str, set[str]]] = {}
    for run, finished in chosen:
        for name, value in _circumstances(run, finished):
            held.setdefault(name, {}).setdefault(run.path.name, set()).add(value)
    for name, by_run in sorted(held.items()):
        if any(one - other and other - one for one, other in combinations(by_run.values(), 2)):
            told = (f"{' and '.join(sorted(values))} in {run}" for run, values in by_run.items())
            yield f"{name}: {', '.join(told)}"


def _circumstances(run: Past, finished: Finished) -> Iterator[tuple[str, str]]:
    """Yield what a trial ran with, as far as trials of other cells could be expected to have run with the same."""
    for path, told in (run.code(finished.code) or {}).items():
        yield f"code of {path}", told
    half = finished.node or {}
    for section in ("settings", "packages", "tools"):
        for name, value in mapping_in(half, section).items():
            yield f"node: {section}.{name}", str(value)
    for name in ("kernel", "cpu", "cpus", "gpus", "memory_gib", "python"):
        if half.get(name) is not None:
            yield f"node: {name}", str(half[name])
    for drive in mapping_in(half, "storage").get("drives") or ():
        if isinstance(drive, Mapping):
            yield "node: drive", f"{drive.get('model')} {drive.get('firmware')}"


def merged(found: Taken, name: str | None, argv: Sequence[str]) -> Path:
    """Make the merged run beside the newest of its runs, whole or not at all, and return its folder."""
    newest = found.runs[-1].path
    chosen = name if name is not None else _free_name(newest)
    if not _NAME.fullmatch(chosen) or chosen == "latest":
        raise UserError(f"merge: --into {chosen}: letters, digits, dots, - and _ make the name of a run")
    target = newest.parent / chosen
    if target.exists():
        raise UserError(f"merge: --into {target.name}: {target} exists; name another")
    temporary = newest.parent / f".merging-{target.name}-{os.getpid()}"
    try:
        (temporary / "trials").mkdir(parents=True)
        for run in found.runs:
            for finished in found.of(run):
                _link_tree(run.path / "trials" / finished.slug, temporary / "trials" / finished.slug)
        if (newest / "sweep.yaml").is_file():
            shutil.copyfile(newest / "sweep.yaml", temporary / "sweep.yaml")
        _write_record(temporary / "run.json", _record(found, target, argv))
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return target


def _free_name(newest: Path) -> str:
    names = (f"{newest.name}-merged{end}" for end in ("", *(f"-{n}" for n in range(2, 1000))))
    return next(name for name in names if not (newest.parent / name).exists())


def _link_tree(source: Path, target: Path) -> None:
    """Give every file below `source` a second name below `target`; copy it where that cannot be."""
    for folder, _, files in os.walk(source):
        to = target / Path(folder).relative_to(source)
        to.mkdir(parents=True)
        for name in files:
            try:
                os.link(Path(folder) / name, to / name)
            except OSError:  # another filesystem, or one without links
                shutil.copy2(Path(folder) / name, to / name)


def _write_record(path: Path, record: Mapping[str, Any]) -> None:
    write_bytes(path, json.dumps(record, indent=1).encode())


def _record(found: Taken, target: Path, argv: Sequence[str]) -> dict[str, Any]:
    """Return the merged `run.json`: the newest run's, with the plans, nodes and code of all."""
    newest, records = found.runs[-1].record, [run.record for run in found.runs]
    entries = [entry for record in [newest, *records] for entry in record.get("plan") or []]
    nodes = [node for record in records for node in record.get("nodes") or []]
    sources = [
        {"run_id": run.path.name, "path": str(run.path), "trials": len(found.of(run))}
        | {name: run.record.get(name) for name in ("host", "started", "ended", "state", "argv", "git")}
        for run in found.runs
    ]
    return {
        **{name: value for name, value in newest.items() if name not in ("resumed", "adaptive")},
        "run_id": target.name,
        "argv": list(argv),
        "state": "merged",
        "started": min((str(r["started"]) for r in records if r.get("started")), default=None),
        "ended": max((str(r["ended"]) for r in records if r.get("ended")), default=None),
        "plan": list({entry["id"]: entry for entry in reversed(entries)}.values())[::-1],
        "nodes": list({node.get("hostname"): node for node in nodes}.values()),
        "code": {digest: files for record in records for digest, files in (record.get("code") or {}).items()},
        "merged": sources,
        "differences": list(found.differences),
    }
