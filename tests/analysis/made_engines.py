"""Plausible trials of engines that offload weights or KV caches: passes as phases, reused sectors, samples.

Made in whole arrays, so that a trial can be as small as a test needs or as long as the study's.
"""

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
from tests.analysis.made_run import BEGIN_NS, MIB, _node, _run_record, made_ceiling

GIB = 1 << 30
KIB = 1 << 10
S = 1_000_000_000
#: `percent` of FlexGen's placements: all on the GPU but the weights, or but the KV cache.
WEIGHTS_ON_DISK, KV_ON_DISK, NOTHING_ON_DISK = (0, 0, 100, 0, 100, 0), (100, 0, 0, 0, 100, 0), (100, 0, 100, 0, 100, 0)
GPU = "NVIDIA H200"


@dataclass(frozen=True)
class Shape:
    """What an engine's trial looks like; `cache_mib` is read in every step, and what a step writes of it."""

    kind: str = "flexgen"
    percent: Sequence[int] = KV_ON_DISK
    batch_size: int = 16
    steps: int = 8
    step_s: float = 0.2
    data_mib: int = 64
    written_mib: float = 0.5
    request_kib: int = 128
    init_s: float = 0.4
    gpus: int = 0
    seed: int = 1


@dataclass
class Pieces:
    """Requests in arrays, piece by piece."""

    rng: np.random.Generator
    parts: list[dict[str, Any]] = field(default_factory=list)

    def add(self, op: str, begin_ns: float, end_ns: float, sector: int, total: float, size: int) -> None:
        """Move `total` bytes from `sector` on, evenly between begin and end, in requests of `size` bytes."""
        count = max(int(total) // size, 1)
        issue = np.linspace(begin_ns, end_ns, count, endpoint=False).astype(np.int64)
        wait = self.rng.gamma(3.0, 40_000, count).astype(np.int64) + 20_000
        at = sector + np.arange(count) * (size // 512)
        self.parts.append({"op": op, "issue": issue, "wait": wait, "sector": at, "size": np.full(count, size)})

    def table(self) -> pa.Table:
        joined = {
            name: np.concatenate([part[name] for part in self.parts]) for name in ("issue", "wait", "sector", "size")
        }
        names = ["read", "write"]
        op = np.concatenate([np.full(part["issue"].size, names.index(part["op"])) for part in self.parts])
        order = np.argsort(joined["issue"], kind="stable")
        count = order.size
        issue, op = joined["issue"][order], op[order].astype(np.int32)
        same = pa.array(np.zeros(count, np.int32))
        columns = {
            "issue_ns": issue,
            "complete_ns": issue + joined["wait"][order],
            "insert_ns": pa.nulls(count, pa.int64()),
            "op": pa.DictionaryArray.from_arrays(pa.array(op), names),
            "rwbs": pa.DictionaryArray.from_arrays(pa.array(op), ["R", "W"]),
            "sector": joined["sector"][order],
            "bytes": joined["size"][order],
            "error": same,
            "dev": pa.DictionaryArray.from_arrays(same, ["7:0"]),
            "comm": pa.DictionaryArray.from_arrays(same, ["python"]),
            "pid": pa.array(np.full(count, 4242, np.int32)),
        }
        schema = described(REQUESTS, {"tracer": "made"}, ("issue", "completion"))
        return pa.table([columns[name.name] for name in REQUESTS], schema=schema)


def make_engine_run(
    root: Path, shapes: Mapping[str, Sequence[Shape]], figures: Sequence[str], name: str = "made"
) -> Path:
    """Write a run of one trial per shape, by cell (`batch_size=16`), and return its folder."""
    run = root / "engines" / name
    plan = []
    for cell, repeats in shapes.items():
        axes = dict(part.split("=") for part in cell.split(",")) if cell else {}
        values = {axis: int(value) if value.isdigit() else value for axis, value in axes.items()}
        for repeat, shape in enumerate(repeats, 1):
            slug = f"{cell.replace('=', '-').replace(',', '_') or 'trial'}_rep-{repeat}"
            entry = {"id": f"{cell},rep={repeat}".lstrip(","), "slug": slug, "cell": values, "repeat": repeat}
            plan.append(entry)
            make_engine_trial(run / "trials" / slug, entry, shape)
    record = _run_record(name, plan, ()) | {"sweep": "engines", "figures": list(figures)}
    (run / "run.json").write_text(json.dumps(record))
    return run


def make_engine_trial(folder: Path, entry: Mapping[str, Any], shape: Shape) -> None:
    """Write one trial's folder."""
    (folder / "logs").mkdir(parents=True)
    (folder / "logs" / f"{shape.kind}.log").write_text("a line\n")
    phases, end_ns = _phases(shape)
    requests = _requests(shape)
    pq.write_table(requests, folder / "requests.parquet", compression="zstd")
    pq.write_table(
        pa.Table.from_pylist(phases, schema=described(PHASES, {"tracer": "made"})), folder / "phases.parquet"
    )
    pq.write_table(_samples(shape, end_ns), folder / "samples.parquet")
    (folder / "trial.json").write_text(json.dumps(_record(dict(entry), shape, requests, end_ns)))


def _step_begin(shape: Shape, step: int) -> int:
    return BEGIN_NS + int((shape.init_s + step * shape.step_s) * S)


def _phases(shape: Shape) -> tuple[list[dict[str, Any]], int]:
    end = _step_begin(shape, shape.steps + 1)
    spans: list[tuple[str, str, int | None, int, int]] = [
        (shape.kind, "job", None, BEGIN_NS, end + S // 50),
        (shape.kind, "init", None, BEGIN_NS + S // 100, BEGIN_NS + int(shape.init_s * S * 0.8)),
        (shape.kind, "warmup", None, BEGIN_NS + int(shape.init_s * S * 0.8), _step_begin(shape, 0)),
    ]
    for step in range(shape.steps + 1):
        name = "decode" if step else "prefill"
        spans.append((shape.kind, name, step, _step_begin(shape, step), _step_begin(shape, step + 1) - 1000))
    spans.append(("trial", "drain", None, end + S // 50, end + S // 10))
    names = ("process", "name", "step", "begin_ns", "end_ns")
    rows = [dict(zip(names, span, strict=True)) | {"attributes": [], "bytes": None} for span in spans]
    return rows, end + S // 8


def _requests(shape: Shape) -> pa.Table:
    pieces = Pieces(np.random.default_rng(shape.seed))
    size, start, step_ns = shape.request_kib * KIB, 1 << 22, shape.step_s * S
    data = shape.data_mib * MIB
    if shape.kind != "flexgen" or shape.percent[2] + shape.percent[3] == 100:  # weights, written once
        pieces.add("write", BEGIN_NS + shape.init_s * S * 0.1, BEGIN_NS + shape.init_s * S * 0.8, start, data, size)
    for step in range(shape.steps + 1):
        begin = _step_begin(shape, step)
        share = (0.25 + 0.75 * step / shape.steps) if shape.percent[2] + shape.percent[3] < 100 else 1
        busy = 0.45 + 0.4 * pieces.rng.random()
        if step or share == 1:
            pieces.add("read", begin, begin + step_ns * busy, start, data * share * 0.99, size)
            pieces.add("read", begin, begin + step_ns * busy, start + (1 << 21), data * share * 0.01, 4 * KIB)
        written = shape.written_mib * MIB * (8 if not step else 1)
        at = start + int(data * share) // 512 // 256 * 256
        pieces.add("write", begin + step_ns * 0.5, begin + step_ns * 0.95, at, written, size)
        pieces.add("write", begin + step_ns * 0.6, begin + step_ns * 0.9, 2048 + 8 * (step % 3), 16 * KIB, 4 * KIB)
    return pieces.table()


def _samples(shape: Shape, end_ns: int) -> pa.Table:
    rng = np.random.default_rng(shape.seed + 7)
    rows = []
    for t_ns in range(BEGIN_NS + S // 5, end_ns, S // 5):
        rows.append((t_ns, "cpu", "busy", float(rng.uniform(20, 70)), "%"))
        rows.append((t_ns, "cpu", "iowait", 15.0, "%"))
        rows.append((t_ns, "memory", "used", 4e9, "B"))
        for gpu in range(shape.gpus):
            since = (t_ns - BEGIN_NS) / S - shape.init_s
            busy = 0.0 if since < 0 else 95.0 if since % shape.step_s > shape.step_s * 0.7 else 12.0
            rows.append((t_ns, f"gpu{gpu}", "utilisation", float(np.clip(busy + rng.normal(0, 4), 0, 100)), "%"))
            rows.append((t_ns, f"gpu{gpu}", "memory_used", 6e10, "B"))
            rows.append((t_ns, f"gpu{gpu}", "power", 240.0, "W"))
    names = SAMPLES.names
    made = [dict(zip(names, (*row, None), strict=True)) for row in rows]
    return pa.Table.from_pylist(made, schema=described(SAMPLES, {}))


def _record(entry: dict[str, Any], shape: Shape, requests: pa.Table, end_ns: int) -> dict[str, Any]:
    moved = requests.select(["op", "bytes"]).group_by("op").aggregate([("bytes", "sum")]).to_pylist()
    traced = {"read": 0, "write": 0} | {row["op"]: row["bytes_sum"] for row in moved}
    settings = {"kind": shape.kind, "model": "opt-6.7b", "shape": {}, "batch_size": shape.batch_size}
    settings |= {"prompt_len": 512, "gen_len": shape.steps + 1}
    if shape.kind == "flexgen":
        settings |= {"percent": list(shape.percent), "num_batches": 1}
    return entry | {
        "schema_version": 1,
        "attempt": 1,
        "config": {"workload": settings, "limits": {"memory": "10GiB"}},
        "command": ["/opt/venv/bin/python", f"tasks/jobs/{shape.kind}.py", "job.json"],
        "node": _node() | {"gpus": [GPU] * shape.gpus},
        "device": {"name": "loop0", "dev": "7:0", "drive": "nvme0n1", "ram_backed": False},
        "storage": {"kind": "loop", "fs": "xfs", "queue": {"max_sectors_kb": 128}},
        "ceiling": made_ceiling(2.6, 1.4),
        "tracer": {
            "name": "ftrace",
            "requests": requests.num_rows,
            "lost": 0,
            "unmatched": 0,
            "begin_ns": BEGIN_NS,
            "end_ns": end_ns,
        },
        "verdict": {"state": "valid", "reasons": []},
        "bytes": {"expected": {"read": traced["read"] // 2, "write": 0}, "traced": traced, "counted": traced},
        "metrics": _metrics(shape),
        "started": "2026-11-20T10:33:50+00:00",
        "ended": "2026-11-20T10:35:02+00:00",
    }


def _metrics(shape: Shape) -> dict[str, Any]:
    decode_s, tokens = shape.steps * shape.step_s, shape.batch_size * (shape.steps + 1)
    values: dict[str, tuple[float, str]] = {
        "prefill_latency_s": (shape.step_s, "s"),
        "prefill_tokens_per_s": (shape.batch_size * 512 / shape.step_s, "1/s"),
        "decode_latency_s": (decode_s, "s"),
        "decode_tokens_per_s": (shape.batch_size * shape.steps / decode_s, "1/s"),
        "total_latency_s": (decode_s + shape.step_s, "s"),
        "tokens_per_s": (tokens / (decode_s + shape.step_s), "1/s"),
        "generated_tokens": (tokens, "tokens"),
        "model_bytes": (13_300_000_000, "B"),
        "cache_bytes": (shape.data_mib * MIB, "B"),
        "peak_host_memory_bytes": (9 * GIB, "B"),
        "memory_limit_bytes": (10 * GIB, "B"),
        "memory_peak_bytes": (10 * GIB - 4096, "B"),
        "oom_kills": (0, "1"),
    }
    if shape.gpus:
        values["peak_gpu_memory_bytes"] = (21 * GIB, "B")
    return {name: {"value": value, "unit": unit} for name, (value, unit) in values.items()}
