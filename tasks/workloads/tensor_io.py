"""`tensor_io`: one tensor at a time, stored and loaded through POSIX and DeepSpeed's aio (the study's Fig. 2)."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tasks import async_io, interpreter
from tasks.spec import key
from tasks.units import format_bytes, parse_bytes
from tasks.workloads import Job, Problem, Span

APIS = ("posix", "aio", "gds")
DEVICES = ("auto", "cpu", "cuda")

#: libaio with O_DIRECT moves whole blocks: 512 or 4096 bytes; a page is good for both.
_ALIGNMENT = 4096
_JOB = Path(__file__).parent.parent / "jobs" / "tensor_io.py"


@dataclass
class Config:
    """Keys of `workload` when `kind: tensor_io`."""

    sizes: list[int | str] = key(lambda: ["1MiB", "16MiB", "128MiB"], "tensor sizes, each stored and loaded")
    apis: list[str] = key(
        lambda: ["posix", "aio"],
        "posix: read and write through the page cache; aio: DeepSpeed's libaio; gds: its GPUDirect Storage (CUDA)",
    )
    tensor_devices: list[str] = key(lambda: ["auto"], "cpu, cuda, or auto: cpu, and cuda on a node that has a GPU")
    loops: int = key(5, "measurements of each store and each load inside one trial")
    fsync: bool = key(True, "a store ends when its data is on the device; false: when the call returns")
    verify: bool = key(True, "compare what was loaded with what was stored, outside the measured phase")
    block_size: int | str = key("1MiB", "aio: bytes of one I/O request handed to libaio")
    queue_depth: int = key(32, "aio: requests in flight per thread")
    parallelism: int = key(1, "aio: threads that share one tensor (intra_op_parallelism)")
    single_submit: bool = key(False, "aio: submit requests one by one")
    overlap_events: bool = key(True, "aio: submit new requests while others complete")
    pinned: bool = key(True, "aio: CPU tensors in page-locked memory")
    python: str | None = key(None, "interpreter of the environment torch and DeepSpeed live in; null: the sweep's")


_Config = Config


class Workload:
    """Stores and loads tensors of several sizes in one process; every store and load is a phase."""

    Config: ClassVar[type] = Config
    figures: ClassVar[Sequence[str]] = ("fig2", "roofline")
    says_done: ClassVar[bool] = True
    metric: ClassVar[str] = "all.d2c_mean_us"

    def __init__(self, config: _Config) -> None:
        """Take a configuration whose types are right."""
        self._config = config

    def problems(self) -> list[Problem]:
        """Return what is wrong with the configuration beyond its types."""
        c = self._config
        found = [*_unknown("apis", c.apis, APIS), *_unknown("tensor_devices", c.tensor_devices, DEVICES)]
        lists = ("sizes", "apis", "tensor_devices")
        if "gds" in c.apis and c.tensor_devices == ["cpu"]:
            found.append(Problem("apis", "gds moves CUDA tensors only, and tensor_devices names the CPU"))
        found += [Problem(name, "must not be empty") for name in lists if not vars(c)[name]]
        if "auto" in c.tensor_devices and len(c.tensor_devices) > 1:
            found.append(Problem("tensor_devices", "auto stands alone: write [auto], or name the devices"))
        found += [
            Problem(name, f"must be 1 or more, not {vars(c)[name]}")
            for name in ("loops", "queue_depth", "parallelism")
            if vars(c)[name] < 1
        ]
        for name, values in (("sizes", c.sizes), ("block_size", [c.block_size])):
            found += [p for value in values if (p := _size_problem(name, value, c.parallelism)) is not None]
        return found

    def needs(self) -> dict[str, str]:
        """Return the engine for aio, and the GPU where it is named."""
        needs = {}
        if self._config.python is None:
            needs["engine:torch"] = "workload.kind"
            if "aio" in self._config.apis:
                needs["engine:async_io"] = "workload.apis"
            if "gds" in self._config.apis:
                needs["engine:gds"] = "workload.apis"
        if "gds" in self._config.apis:
            needs["gpu"] = "workload.apis"
        if "cuda" in self._config.tensor_devices:
            needs["gpu"] = "workload.tensor_devices"
        return needs

    def wants_gpu(self) -> bool:
        """Say whether CUDA tensors are measured where there is a GPU."""
        return self._config.tensor_devices == ["auto"]

    def space_bytes(self) -> int:
        """Return the room for the largest tensor: there is one file at a time."""
        return max(self._sizes())

    def _sizes(self) -> list[int]:
        return [parse_bytes(size) for size in self._config.sizes]

    def job(self, folder: Path, offload_dir: Path, seed: int) -> Job:
        """Write the job's description to `folder` and return the command that runs it."""
        c = self._config
        description: dict[str, Any] = {
            "offload_dir": str(offload_dir),
            "sizes_bytes": self._sizes(),
            "block_bytes": parse_bytes(c.block_size),
            "async_io": self._library("async_io", "aio"),
            "gds": self._library("gds", "gds"),
            "seed": seed,
        }
        names = ["apis", "tensor_devices", "loops", "fsync", "verify", "queue_depth", "parallelism"]
        names += ["single_submit", "overlap_events", "pinned"]
        description |= {name: vars(c)[name] for name in names}
        path = folder / "tensor_io.json"
        path.write_text(json.dumps(description, indent=1))
        return Job("tensor_io", [interpreter.command(c.python), str(_JOB), str(path)])

    def _library(self, name: str, api: str) -> str | None:
        """Return the operator built at set-up; None where none is needed, or an environment of its own builds one."""
        return str(async_io.path(name)) if api in self._config.apis and self._config.python is None else None

    def role(self, path: str) -> str:
        """Return that every file is a tensor."""
        return "tensor"

    def expected(self, spans: Sequence[Span]) -> dict[str, int]:
        """Return the tensor bytes of the finished loads and stores that must reach the device.

        A warm-up is one of each. Without fsync a POSIX store may end in memory, and its file is gone before the next:
        only the last of each tensor is sure to be written, ahead of its loads.
        """
        read = write = 0
        last: dict[tuple[str, int], int] = {}
        for span in spans:
            moved = span.size_bytes or 0
            if span.end_ns is None:
                continue
            if span.name == "warmup":
                read += int(span.attributes["size_bytes"])
                write += int(span.attributes["size_bytes"])
            elif span.name == "load":
                read += moved
            elif span.name == "store" and not self._config.fsync and span.attributes.get("api") == "posix":
                last[span.attributes.get("tensor_device", ""), moved] = moved
            elif span.name == "store":
                write += moved
        return {"read": read, "write": write + sum(last.values())}

    def shares(self) -> Mapping[str, float]:
        """Return that every byte must reach the device: loads are cold, and what is written outlives its phase."""
        return {"read": 1.0, "write": 1.0}

    def doubts(self, spans: Sequence[Span]) -> list[str]:
        """Return a reason where loads were not cold."""
        warm = [s for s in spans if s.name == "load" and s.attributes.get("resident_pages") != "0"]
        if not warm:
            return []
        pages = warm[0].attributes.get("resident_pages", "unknown")
        return [f"{len(warm)} loads were not cold: {pages} pages of the file were in memory before the first of them"]

    def python(self) -> str | None:
        """Return the interpreter of the engine's own environment, or None for ours."""
        return self._config.python

    def packages(self) -> Sequence[str]:
        """Return the engines."""
        return ("torch",) if self._config.apis == ["posix"] else ("torch", "deepspeed")

    def files(self) -> Sequence[str]:
        """Return nothing: all of the job is ours."""
        return ()


def _unknown(name: str, values: list[str], known: Sequence[str]) -> list[Problem]:
    found = [Problem(name, f"lists {v!r} twice") for i, v in enumerate(values) if v in values[:i]]
    for value in values:
        if value not in known:
            near = difflib.get_close_matches(value, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            found.append(Problem(name, f"{value!r} is not one of {', '.join(known)}{hint}"))
    return found


def _size_problem(name: str, value: int | str, parallelism: int) -> Problem | None:
    try:
        size_bytes = parse_bytes(value)
    except ValueError as e:
        return Problem(name, str(e))
    unit = _ALIGNMENT * (max(parallelism, 1) if name == "sizes" else 1)
    if size_bytes % unit:
        return Problem(name, f"{value} is no multiple of {format_bytes(unit)}, which direct I/O needs")
    return None
