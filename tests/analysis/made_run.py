"""A plausible run on disk, made from a seed: tensor_io trials with requests, phases and logs that agree."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.schema import PHASES, REQUESTS, SAMPLES, described

MIB = 1 << 20
BEGIN_NS = 5_000_000_000_000
SIZES = tuple(MIB << step for step in range(7))
REQUEST_BYTES = 128 * 1024
#: GiB/s that the made device reaches, by phase and api.
SPEED = {("store", "posix"): 0.9, ("store", "aio"): 1.6, ("load", "posix"): 1.3, ("load", "aio"): 2.2}
GIB_PER_NS = (1 << 30) / 1e9


@dataclass
class Made:
    """What a trial's tables hold, row by row."""

    requests: list[dict[str, Any]] = field(default_factory=list)
    phases: list[dict[str, Any]] = field(default_factory=list)
    now_ns: int = BEGIN_NS


def request_row(issue: int | None, complete: int | None, op: str, size: int, sector: int = 0) -> dict[str, Any]:
    rwbs = {"read": "RS", "write": "WS", "flush": "FF", "discard": "D"}.get(op, "N")
    return {
        "issue_ns": issue,
        "complete_ns": complete,
        "insert_ns": None,
        "op": op,
        "rwbs": rwbs,
        "sector": sector,
        "bytes": size,
        "error": 0,
        "dev": "7:0",
        "comm": "python",
        "pid": 4242,
    }


def phase_row(name: str, begin: int, end: int | None, size: int | None = None, **attributes: str) -> dict[str, Any]:
    return {
        "process": "tensor_io",
        "name": name,
        "step": None,
        "attributes": list(attributes.items()),
        "begin_ns": begin,
        "end_ns": end,
        "bytes": size,
    }


def write_requests(
    path: Path, rows: Sequence[Mapping[str, Any]], recorded: Sequence[str] = ("issue", "completion"), **options: Any
) -> None:
    table = pa.Table.from_pylist(list(rows), schema=described(REQUESTS, {"tracer": "made"}, recorded))
    pq.write_table(table, path, compression="zstd", **options)


def write_phases(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(list(rows), schema=described(PHASES, {"tracer": "made"})), path)


def write_record(trial_dir: Path, **changes: Any) -> None:
    """Write a minimal `trial.json`; `changes` replace its keys."""
    record = {"schema_version": 1, "id": "x=1,rep=1", "slug": trial_dir.name, "cell": {"x": 1}, "repeat": 1}
    record |= {"attempt": 1, "verdict": {"state": "valid", "reasons": []}, "tracer": {"name": "made"}}
    trial_dir.mkdir(parents=True, exist_ok=True)
    (trial_dir / "trial.json").write_text(json.dumps(record | changes))


def make_run(
    root: Path,
    sizes: Sequence[int] = SIZES,
    devices: Sequence[str] = ("cpu",),
    repeats: int = 2,
    broken: bool = True,
    name: str = "20261120-103348",
) -> Path:
    """Write a run of ext4 and xfs trials under `root`/quickstart and return its folder.

    `broken` adds an invalid trial (lost events), a failed one (no tables) and a planned one that never finished.
    """
    run = root / "quickstart" / name
    plan = []
    for place, (fs, repeat) in enumerate((fs, repeat) for fs in ("ext4", "xfs") for repeat in range(1, repeats + 1)):
        plan.append(_make_trial(run, fs, repeat, place, sizes, devices))
    if broken:
        plan.append(_make_trial(run, "ext4", repeats + 1, 11, sizes, devices, lost=1742))
        plan.append(_make_failed(run, "xfs", repeats + 1))
        plan.append({"id": "fs=xfs,rep=9", "slug": "fs-xfs_rep-9-0", "cell": {"fs": "xfs"}, "repeat": 9})
    (run / "run.json").write_text(json.dumps(_run_record(name, plan, devices)))
    latest = run.parent / "latest"
    latest.unlink(missing_ok=True)
    latest.symlink_to(name)
    return run


def _tensor_io(seed: int, sizes: Sequence[int], devices: Sequence[str], slow: float) -> Made:
    rng = np.random.default_rng(seed)
    made = Made()
    made.phases.append(phase_row("init", BEGIN_NS, BEGIN_NS + 180_000_000))
    made.now_ns = BEGIN_NS + 200_000_000
    for name in ("store", "load"):
        for api in ("posix", "aio"):
            for device in devices:
                for size in sizes:
                    for loop in range(3):
                        speed = SPEED[name, api] * slow * (0.8 if device == "cuda" else 1)
                        _phase(made, rng, name, api, device, size, loop, speed)
    made.phases.append(phase_row("drain", made.now_ns, made.now_ns + 30_000_000))
    made.now_ns += 40_000_000
    return made


def _phase(
    made: Made, rng: np.random.Generator, name: str, api: str, device: str, size: int, loop: int, speed: float
) -> None:
    overhead = 400_000 if api == "posix" else 150_000
    begin, moving = made.now_ns, int(size / (speed * GIB_PER_NS) * rng.uniform(0.93, 1.07))
    unit = REQUEST_BYTES if api == "aio" else 4 * REQUEST_BYTES
    count = -(-size // unit)
    op = "write" if name == "store" else "read"
    for place in range(count):
        issue = begin + overhead // 2 + moving * place // count
        wait = int(rng.gamma(3.0, 60_000))
        made.requests.append(request_row(issue, issue + wait, op, min(unit, size - place * unit), place * unit // 512))
    end = begin + overhead + moving
    if name == "store" and api == "posix":
        made.requests.append(request_row(end - 1000, end - 500, "flush", 0))
        made.requests.append(request_row(end - 400, end - 100, "write", 4096 * int(rng.integers(1, 4))))
    attributes = {"api": api, "tensor_device": device, "size_bytes": str(size), "loop": str(loop)}
    made.phases.append(phase_row(name, begin, end, size, **attributes))
    made.now_ns = end + 2_000_000


def _make_trial(
    run: Path, fs: str, repeat: int, seed: int, sizes: Sequence[int], devices: Sequence[str], lost: int = 0
) -> dict[str, Any]:
    entry = _entry(fs, repeat)
    folder = run / "trials" / entry["slug"]
    (folder / "logs").mkdir(parents=True)
    made = _tensor_io(seed, sizes, devices, 1.0 if fs == "ext4" else 0.85)
    made.requests.sort(key=lambda row: row["issue_ns"])
    write_requests(folder / "requests.parquet", made.requests)
    write_phases(folder / "phases.parquet", made.phases)
    pq.write_table(SAMPLES.empty_table(), folder / "samples.parquet")
    (folder / "logs" / "tensor_io.log").write_text("".join(f"line {n}\n" for n in range(100)))
    traced = {op: sum(row["bytes"] for row in made.requests if row["op"] == op) for op in ("read", "write")}
    moved = {
        op: sum(row["bytes"] or 0 for row in made.phases if row["name"] == name)
        for op, name in (("read", "load"), ("write", "store"))
    }
    verdict = {"state": "invalid", "reasons": [f"{lost} events lost by the tracer"]} if lost else None
    record = _trial_record(entry, made, verdict)
    record["bytes"] = {"expected": moved, "traced": traced, "counted": traced}
    record["tracer"] |= {"lost": lost, "requests": len(made.requests)}
    (folder / "trial.json").write_text(json.dumps(record))
    return entry


def _make_failed(run: Path, fs: str, repeat: int) -> dict[str, Any]:
    entry = _entry(fs, repeat)
    folder = run / "trials" / entry["slug"]
    (folder / "logs").mkdir(parents=True)
    lines = [f"writing tensor {n}" for n in range(60)] + ["OSError: [Errno 28] No space left on device"]
    (folder / "logs" / "tensor_io.log").write_text("\n".join(lines) + "\n")
    verdict = {"state": "failed", "reasons": ["tensor_io ended with exit code 1: No space left on device"]}
    record = _trial_record(entry, Made(), verdict)
    record |= {"tracer": {"name": "bpftrace", "version": "0.17"}, "bytes": None, "metrics": None, "storage": None}
    (folder / "trial.json").write_text(json.dumps(record))
    return entry


def _entry(fs: str, repeat: int) -> dict[str, Any]:
    slug = f"fs-{fs}_rep-{repeat}-{repeat}fa9c{len(fs)}"
    return {"id": f"fs={fs},rep={repeat}", "slug": slug, "cell": {"fs": fs}, "repeat": repeat}


def _trial_record(entry: dict[str, Any], made: Made, verdict: dict[str, Any] | None) -> dict[str, Any]:
    return entry | {
        "schema_version": 1,
        "attempt": 1,
        "fingerprint": {"plan": "3fa9c1", "node": "77b0e2"},
        "config": {"workload": {"kind": "tensor_io"}},
        "command": ["/opt/venv/bin/python", "-m", "tasks.workloads.tensor_io", "--loops", "3", "--spec", "a b.json"],
        "node": _node(),
        "device": {"name": "loop0", "dev": "7:0", "drive": "vda", "ram_backed": False, "size_bytes": 4 << 30},
        "storage": {
            "kind": "loop",
            "fs": entry["cell"]["fs"],
            "mount_options": "rw,noatime",
            "image_bytes": 4 << 30,
            "direct_io": True,
            "queue": {"max_sectors_kb": 128},
        },
        "ceiling": made_ceiling(2.6, 6.4),
        "tracer": {
            "name": "bpftrace",
            "version": "0.17.0",
            "requests": 0,
            "lost": 0,
            "unmatched": 0,
            "overtaken": 0,
            "malformed": 0,
            "begin_ns": BEGIN_NS,
            "end_ns": made.now_ns,
        },
        "clock": {"boot_id": "b1", "monotonic_to_utc_offset_ns": 0},
        "verdict": verdict or {"state": "valid", "reasons": []},
        "metrics": {"resident_pages_before_load": 0},
        "started": "2026-11-20T10:33:50+00:00",
        "ended": "2026-11-20T10:34:09+00:00",
    }


def made_ceiling(read: float, write: float) -> dict[str, Any]:
    """Return what `trial.json` says of a ceiling of so many GiB/s."""
    speeds = {"sequential_read": read, "sequential_write": write, "random_read": read * 0.9, "random_write": write}
    return {
        "state": "cached",
        "reason": None,
        "measured_at": "2026-11-20T09:02:11+00:00",
        **{f"{name}_gib_s": value for name, value in speeds.items()},
        "first_write_gib_s": write / 4,
        "settings": {"block_bytes": 128 * 1024, "depth": 32, "jobs": 1, "fio": "fio-3.33"},
    }


def _node() -> dict[str, Any]:
    return {
        "hostname": "bench-01",
        "kernel": "6.18.2-amd64",
        "cpu": "AMD EPYC 9354",
        "cpus": 2,
        "memory_bytes": 24 << 30,
        "gpus": [],
        "packages": {"torch": "2.13.0+cpu", "deepspeed": "0.19.8"},
    }


def _run_record(name: str, plan: list[dict[str, Any]], devices: Sequence[str]) -> dict[str, Any]:
    gpus = [{"name": "NVIDIA H200", "memory_bytes": 139 << 30}] if "cuda" in devices else []
    drives = [{"name": "vda", "path": "/var/lib/offload-sweep", "free_bytes": 200 << 30, "ram_backed": False}]
    return {
        "schema_version": 1,
        "sweep": "quickstart",
        "run_id": name,
        "description": "Tensor offload through POSIX and aio on two filesystems.",
        "argv": ["python", "-m", "sweep", "conf/quickstart.yaml", "repeats=2"],
        "started": "2026-11-20T10:33:48+00:00",
        "ended": "2026-11-20T10:36:12+00:00",
        "state": "finished",
        "user": "root",
        "host": "bench-01",
        "cwd": "/home/user/offload-sweep",
        "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": True},
        "versions": {"offload-sweep": "0.1.0", "ray": "2.60.0"},
        "nodes": [_node() | {"gpus": gpus, "drives": drives, "missing": {"gpu": "no /dev/nvidia*"}}],
        "plan": plan,
        "figures": ["fig2", "bandwidth", "sizes"],
        "reproduce": ["python", "-m", "sweep", f"results/quickstart/{name}/sweep.yaml"],
    }
