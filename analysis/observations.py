"""What a run measured and where, as one table: the rows that runs are compared by, and that a ledger keeps."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.attribution import DATA
from analysis.ceiling import ceiling_of
from analysis.depth import ALL
from analysis.errors import AnalysisError
from analysis.metrics import WHOLE, phases
from analysis.run import Run, Trial, load_run
from analysis.spans import kinds_of
from analysis.summary import read_summary
from analysis.units import UNKNOWN

if TYPE_CHECKING:
    import pandas as pd

#: What an engine or a workload measured itself.
MEASURED = "metrics."
#: Whose bytes a row's are, `role.kv_bytes`, of the row's operation.
ROLE = "role."
#: Parts of `node` in `trial.json` that are the machine's; the others are its load, or stand in the fingerprint too.
_OF_NODES = (
    *("hostname", "os", "kernel", "cpu", "cpus", "gpus", "gpu_driver", "python", "packages", "numa_nodes"),
    *("cgroup_version", "cpu_driver", "cpu_governor", "cpu_boost", "smt", "transparent_hugepages", "vm"),
)
_OF_STORAGE = ("kind", "fs", "backing", "direct_io", "mkfs", "mount_options", "block_bytes", "image_bytes", "queue")
_OF_DEVICES = ("size_bytes", "logical_block_bytes", "drive_model", "ram_backed")
_OF_DRIVES = (
    *("model", "firmware", "transport", "rotational", "size_bytes", "physical_block_bytes", "numa_node"),
    "write_cache",
)
#: In the fingerprint, of a file that the job writes: another content each time.
_WRITTEN = "written by the job"


def of_run(run: Path | Run) -> pd.DataFrame:
    """Return one row per trial, span of time and operation (docs/metrics.md), with who and where beside it.

    - `sweep`, `run` (the run's id), `run_started`, `started` (of the trial; both UTC), `reasons` (of the verdict).
    - `cell`: canonical JSON of the axis values, the key by which the cells of two runs are matched.
    - `environment`: canonical JSON of a flat mapping, fact -> value: kernel, drives, queue settings, filesystem, mount
      options, versions, digest of the code on the node. What is another each time (paths of images, numbers of loop
      devices, free space, load) is not in it. `configuration`: the same of every key that the trial was given, with
      the tracer that was taken. Both are categories: few different texts, each on many rows.
    - `ceiling_read_gib_s`, `ceiling_write_gib_s`, `ceiling_measured_at`: what fio reached beside the trial, and when.
    - `role.*`, such as `role.kv_bytes`: whose bytes the row's are, of the whole trial and of phases that state theirs;
      only where the trial knows which file lay where.
    - `metrics.*`: what engine and node measured themselves, such as `metrics.tokens_per_s`; on rows of `trial` only.

    Failed and invalid trials have rows, warm-ups have none. Raises AnalysisError where `run` is no run.
    """
    import pandas as pd

    opened = run if isinstance(run, Run) else load_run(run)
    frame = opened.metrics()
    told = pd.DataFrame([_told(opened, trial) for trial in opened.published], columns=[*_TOLD])
    frame = frame.merge(told, on="slug", how="left", validate="many_to_one")
    measured = pd.DataFrame([{"slug": t.slug, "phase": WHOLE, **_measured(t)} for t in opened.published])
    if len(measured):
        frame = frame.merge(measured, on=["slug", "phase"], how="left", validate="many_to_one")
    if roles := _roles(opened):
        keys = ["slug", "phase", "op"]
        frame = frame.merge(pd.DataFrame(roles), on=keys, how="left", validate="one_to_one")
    for name in ("run_started", "started", "ceiling_measured_at"):
        frame[name] = pd.to_datetime(frame[name], utc=True, format="ISO8601", errors="coerce")
    for name in ("ceiling_read_gib_s", "ceiling_write_gib_s"):
        frame[name] = frame[name].astype("float64")
    for name in ("environment", "configuration"):
        frame[name] = frame[name].astype("category")
    return frame[[*_FIRST, *(name for name in frame.columns if name not in _FIRST)]]


_FIRST = ("sweep", "run", "run_started", "started", "cell", "trial", "slug", "repeat", "attempt", "verdict", "reasons")
_TOLD = (
    *("slug", "sweep", "run", "run_started", "started", "cell", "reasons", "environment", "configuration"),
    *("ceiling_read_gib_s", "ceiling_write_gib_s", "ceiling_measured_at"),
)


def planned(run: Run) -> frozenset[str] | None:
    """Return the cells of a run's plan, as `cell` has them; None where it has none. A search plans as it goes."""
    cells = [entry["cell"] for entry in run.plan if isinstance(entry.get("cell"), Mapping)]
    return frozenset(map(canonical, cells)) or None


def _told(run: Run, trial: Trial) -> dict[str, Any]:
    top = ceiling_of(trial)
    return {
        "slug": trial.slug,
        "sweep": run.sweep,
        "run": run.name,
        "run_started": run.record.get("started"),
        "started": trial.record.get("started"),
        "cell": canonical(trial.cell),
        "reasons": "; ".join(trial.reasons),
        "environment": canonical(environment(run, trial)),
        "configuration": canonical(configuration(trial)),
        "ceiling_read_gib_s": top.gib_s["read"] if top else None,
        "ceiling_write_gib_s": top.gib_s["write"] if top else None,
        "ceiling_measured_at": trial.section("ceiling").get("measured_at") if top else None,
    }


def _measured(trial: Trial) -> dict[str, float]:
    return {f"{MEASURED}{name}": float(value) for name, (value, _) in trial.measured.items()}


def _roles(run: Run) -> list[dict[str, Any]]:
    """Return the bytes by role of each trial, span and operation, phases of one kind taken together."""
    summary = read_summary(run)
    names = [name for name in summary.columns if name.startswith(ROLE)]
    if not names:
        return []
    kinds = {trial.slug: _kinds(trial) for trial in run.published}
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in summary.iter_rows(named=True):
        kind = WHOLE if row["phase"] == WHOLE else kinds[row["slug"]].get(row["begin_ns"])
        for name in names if kind is not None else ():
            role, op = name.removesuffix("_bytes").rsplit("_", 1)
            for one in (op, ALL) if row[name] is not None and op in DATA else ():
                own = found.setdefault((row["slug"], str(kind), one), {"slug": row["slug"], "phase": kind, "op": one})
                own[f"{role}_bytes"] = own.get(f"{role}_bytes", 0) + row[name]
    return list(found.values())


def _kinds(trial: Trial) -> dict[int, str]:
    """Return the kind of each phase by when it began; none where the trial's phases cannot be read."""
    try:
        return {phase.begin_ns: kind for kind, phase in kinds_of(phases(trial.path))}
    except AnalysisError:
        return {}


def canonical(value: Any) -> str:
    """Return JSON that is the same text for the same value: keys in order, 8.0 as 8."""
    return json.dumps(_plain(value), sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested mappings and of lists of mappings with their dotted names, `drives.0.model`."""
    nested = value if isinstance(value, Mapping) else None
    if isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
        nested = {str(place): one for place, one in enumerate(value)}
    if nested is None:
        yield name, value
        return
    for key, inner in nested.items():
        yield from flat(inner, f"{name}.{key}" if name else str(key))


def configuration(trial: Trial) -> dict[str, Any]:
    """Return every key that the trial was given, by its dotted name, with the tracer that was taken for `auto`."""
    found = dict(flat(trial.section("config")))
    return found | ({} if trial.tracer == UNKNOWN else {"trace.tracer": trial.tracer})


def environment(run: Run, trial: Trial) -> dict[str, Any]:
    """Return the facts of node, storage, tools and code that stay as they are from trial to trial, by dotted names.

    Those of the fingerprint come first; imported trials and old ones have only what their other sections tell.
    """
    fingerprint = trial.section("fingerprint")
    plan, node = (part if isinstance(part := fingerprint.get(half), Mapping) else {} for half in ("plan", "node"))
    identity = {key: value for key, value in node.items() if key not in ("storage", "settings")}
    settings = node.get("settings")
    facts = {key: trial.section("node").get(key) for key in _OF_NODES}
    facts |= {"tools": trial.section("node").get("tools")} | identity | (dict(settings) if settings else {})
    facts["beneath"] = node.get("storage")
    facts["storage"] = {key: trial.section("storage").get(key) for key in _OF_STORAGE}
    facts["device"] = _device(trial)
    facts["tracer"] = {key: trial.section("tracer").get(key) for key in ("name", "version")}
    facts["code"] = plan.get("code") if isinstance(plan, Mapping) else None
    facts["driver"] = run.record.get("versions")
    facts["git"] = run.record.get("git")
    found = {name: value for name, value in flat(facts) if name and value not in (None, UNKNOWN, _WRITTEN, {}, [])}
    return dict(sorted(found.items()))


def _device(trial: Trial) -> dict[str, Any]:
    told = trial.section("device")
    facts = {key: told.get(key) for key in _OF_DEVICES}
    drives = [one for one in told.get("drives") or () if isinstance(one, Mapping)]
    return facts | {"drives": [{key: one.get(key) for key in _OF_DRIVES} for one in drives]}
