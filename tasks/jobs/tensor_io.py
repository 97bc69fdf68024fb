"""Store and load one tensor at a time, through POSIX and through DeepSpeed's aio (the study's Fig. 2).

Stands alone, started as `python tensor_io.py JOB.json` under the engine's interpreter. Every store goes to a new file
and every load reads a file that was evicted from the page cache, both counted in the phase's attributes.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from aio_library import load_library
from gpu_memory import shortage
from page_cache import evict
from phase_log import PhaseLog

_BYTES_PER_WRITE = 1 << 30  # Linux moves at most 0x7ffff000 bytes a call (write(2))


def main(job_path: str) -> None:
    """Run the job described in the file `job_path`."""
    with open(job_path) as f:
        job = json.load(f)
    log = PhaseLog()
    with log.phase("init"):
        import torch

        torch.manual_seed(job["seed"])
        devices = _devices(job["tensor_devices"], torch)
    left = ""
    for name in job["apis"]:
        with _api(name, torch, job) as api:
            for device in api.devices(devices):
                _remove(left)  # one file at a time: there may be no room for two
                _warm_up(log, api, job["offload_dir"], device, min(job["sizes_bytes"]))
                for size_bytes in job["sizes_bytes"]:
                    _remove(left)
                    left = _measure(log, torch, job, api, device, size_bytes)
    if "OFFLOAD_SWEEP_KEEP" not in os.environ:
        _remove(left)
    log.done()


def _devices(wanted: list[str], torch: Any) -> list[str]:
    """Return the tensor devices to measure; `auto` is the CPU, and CUDA where there is one."""
    found = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return found if wanted == ["auto"] else wanted


def _warm_up(log: PhaseLog, api: Any, folder: str, device: str, size_bytes: int) -> None:
    """Store and load once unmeasured: first calls start threads, look up the drive and reserve memory."""
    path = os.path.join(folder, "warmup.pt")
    with api.tensor(size_bytes, device) as tensor:
        tensor.zero_()
        with log.phase("warmup", None, api=api.name, tensor_device=device, size_bytes=size_bytes):
            api.store(tensor, path)
            evict(path)
            api.load(tensor, path)
    _remove(path)


def _measure(log: PhaseLog, torch: Any, job: dict[str, Any], api: Any, device: str, size_bytes: int) -> str:
    """Store, then load, one tensor of `size_bytes` on `device`, `loops` times each; return the path of its file."""
    path = os.path.join(job["offload_dir"], f"tensor-{api.name}-{device}-{size_bytes}.pt")
    facts = {"api": api.name, "tensor_device": device, "size_bytes": size_bytes}
    with api.tensor(size_bytes, device) as source, api.tensor(size_bytes, device) as target:
        _fill(torch, source)
        for loop in range(job["loops"]):
            _remove(path)
            with log.phase("store", size_bytes, **facts, loop=loop) as found:
                found["write_ns"] = _timed_ns(lambda: api.store(source, path))
                found["fsync_ns"] = _timed_ns(lambda: _fsync(path)) if job["fsync"] else "none"
        for loop in range(job["loops"]):
            target.zero_()
            resident = evict(path)
            with log.phase("load", size_bytes, **facts, loop=loop, resident_pages=resident):
                api.load(target, path)
                _synchronise(torch, device)
            if job["verify"] and not torch.equal(source, target):
                raise ValueError(f"{api.name} load of {size_bytes} bytes to {device} returned other data than stored")
    return path


def _fill(torch: Any, tensor: Any) -> None:
    """Fill a byte tensor with random data, eight bytes at a time: one by one, 4 GiB take longer than to store them."""
    whole = tensor.numel() // 8 * 8
    tensor[:whole].view(torch.int64).random_()
    tensor[whole:].random_(0, 256)


def _synchronise(torch: Any, device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def _timed_ns(work: Callable[[], None]) -> int:
    begin = time.monotonic_ns()
    work()
    return time.monotonic_ns() - begin


def _remove(path: str) -> None:
    if os.path.exists(path):
        os.unlink(path)


def _fsync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def _api(name: str, torch: Any, job: dict[str, Any]) -> Iterator[Any]:
    """Provide the store and load of one API."""
    if name == "posix":
        yield Posix(torch)
        return
    if name == "gds":
        _try_gds(job)
    api = {"aio": Aio, "gds": Gds}[name](torch, job)
    try:
        yield api
    finally:
        # The handle's threads must be gone before the interpreter ends, or the process aborts about half the time.
        del api.handle
        gc.collect()


class Posix:
    """write(2) and read(2) through the page cache; a GPU tensor goes through host memory."""

    name = "posix"

    def __init__(self, torch: Any) -> None:
        self._torch = torch

    def devices(self, wanted: list[str]) -> list[str]:
        """Return the tensor devices it can serve."""
        return wanted

    @contextmanager
    def tensor(self, size_bytes: int, device: str) -> Iterator[Any]:
        """Provide a byte tensor."""
        yield self._torch.empty(size_bytes, dtype=self._torch.uint8, device=device)

    def store(self, tensor: Any, path: str) -> None:
        """Write the tensor to a new file."""
        data = memoryview(tensor.cpu().numpy())
        with open(path, "wb", buffering=0) as f:
            at = 0
            while at < len(data):
                at += f.write(data[at : at + _BYTES_PER_WRITE]) or 0

    def load(self, tensor: Any, path: str) -> None:
        """Read the file into the tensor."""
        host = tensor if tensor.device.type == "cpu" else self._torch.empty_like(tensor, device="cpu")
        data = memoryview(host.numpy())
        with open(path, "rb", buffering=0) as f:
            at = 0
            while at < len(data) and (count := f.readinto(data[at : at + _BYTES_PER_WRITE])):
                at += count
        if at < len(data):
            raise ValueError(f"{path} ended after {at} of {len(data)} bytes")
        if host is not tensor:
            tensor.copy_(host)


class Aio:
    """DeepSpeed's aio handle: libaio with O_DIRECT, split into blocks over threads."""

    name = "aio"

    def __init__(self, torch: Any, job: dict[str, Any]) -> None:
        self._torch = torch
        self._pinned = job["pinned"]
        settings = ("block_bytes", "queue_depth", "single_submit", "overlap_events", "parallelism")
        self.handle = self._operator(job)(*(job[name] for name in settings))

    def _operator(self, job: dict[str, Any]) -> Any:
        _check_lockable(max(job["sizes_bytes"]))
        library = load_library(job["async_io"]) if job["async_io"] else _built_by_deepspeed("AsyncIOBuilder")
        return library.aio_handle

    def devices(self, wanted: list[str]) -> list[str]:
        """Return the tensor devices it can serve."""
        return wanted

    @contextmanager
    def tensor(self, size_bytes: int, device: str) -> Iterator[Any]:
        """Provide a byte tensor; on the CPU in page-locked memory, which the kernel transfers to directly."""
        if device != "cpu" or not self._pinned:
            yield self._torch.empty(size_bytes, dtype=self._torch.uint8, device=device)
            return
        locked = self.handle.new_cpu_locked_tensor(size_bytes, self._torch.empty(0, dtype=self._torch.uint8))
        try:
            yield locked
        finally:
            self.handle.free_cpu_locked_tensor(locked)

    def store(self, tensor: Any, path: str) -> None:
        """Write the tensor to the file."""
        _check(self.handle.sync_pwrite(tensor, path, 0), "write", path)

    def load(self, tensor: Any, path: str) -> None:
        """Read the file into the tensor."""
        _check(self.handle.sync_pread(tensor, path, 0), "read", path)


class Gds(Aio):
    """DeepSpeed's handle for GPUDirect Storage: cuFile moves between drive and GPU memory registered with it."""

    name = "gds"

    def _operator(self, job: dict[str, Any]) -> Any:
        return (load_library(job["gds"]) if job["gds"] else _built_by_deepspeed("GDSBuilder")).gds_handle

    def devices(self, wanted: list[str]) -> list[str]:
        """Return the tensor devices it can serve: GPU memory only."""
        return [device for device in wanted if device != "cpu"]

    @contextmanager
    def tensor(self, size_bytes: int, device: str) -> Iterator[Any]:
        """Provide a byte tensor that cuFile knows."""
        tensor = self._torch.empty(size_bytes, dtype=self._torch.uint8, device=device)
        self.handle.pin_device_tensor(tensor)
        try:
            yield tensor
        finally:
            self.handle.unpin_device_tensor(tensor)


#: Stores and loads a MiB; DeepSpeed's operator ends the process where cuFile refuses.
_GDS_TRIAL = """
import sys, torch
sys.path.insert(0, sys.argv[1])
import tensor_io
api = tensor_io.Gds(torch, {"pinned": True, "gds": sys.argv[3] or None, "block_bytes": 1 << 20, "queue_depth": 1,
                            "single_submit": False, "overlap_events": False, "parallelism": 1})
with api.tensor(1 << 20, "cuda") as tensor:
    api.store(tensor, sys.argv[2])
    api.load(tensor, sys.argv[2])
"""


def _try_gds(job: dict[str, Any]) -> None:
    """Raise OSError, with cuFile's words, where GPUDirect Storage does not work on this folder."""
    path = os.path.join(job["offload_dir"], "gds-trial.pt")
    command = [sys.executable, "-c", _GDS_TRIAL, os.path.dirname(os.path.abspath(__file__)), path, job["gds"] or ""]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        said = [line for line in (done.stderr + done.stdout).splitlines() if "error" in line.lower()] or ["no reason"]
        raise OSError(f"GPUDirect Storage does not work on this folder: {said[-1].strip()}")
    _remove(path)


def _built_by_deepspeed(builder: str) -> Any:
    """Return the operator of an environment of its own, which DeepSpeed compiles there at its first use."""
    from deepspeed.ops import op_builder

    return getattr(op_builder, builder)().load()


def _check_lockable(size_bytes: int) -> None:
    """Raise OSError where this user may not lock a buffer of this size: DeepSpeed does, and aborts where it cannot."""
    _, most = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if os.geteuid() == 0 or most == resource.RLIM_INFINITY:
        return
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (most, most))
    if size_bytes > most:
        raise OSError(
            f"aio locks a buffer of the tensor's size ({size_bytes >> 10} KiB), and this user may lock {most >> 10} "
            "KiB (ulimit -l): raise that in /etc/security/limits.conf, or leave larger sizes to posix"
        )


def _check(count: int, verb: str, path: str) -> None:
    # The handle returns the number of operations it completed, and reports trouble on stderr only.
    if count < 1:
        raise OSError(f"aio {verb} of {path} returned {count}")


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except Exception as e:
        told = shortage(e, "leave the larger workload.sizes out, or cuda out of workload.tensor_devices")
        PhaseLog().error(told or f"{type(e).__name__}: {e}")
        raise
    sys.stdout.flush()
    os._exit(0)  # torch takes more than half a second to leave, under the tracer's eyes
