"""What NVIDIA GPUs do, by NVML: the library behind nvidia-smi, through its official bindings (nvidia-ml-py)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

#: Source, name, value and unit of one sample.
Reading = tuple[str, str, float, str]

#: Name, unit and how NVML is asked. Its PCIe counters are left out: each of them blocks for 20 ms.
_READINGS: tuple[tuple[str, str, Callable[[Any, Any], float]], ...] = (
    ("utilisation", "%", lambda nvml, gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu),
    ("memory_used", "B", lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used),
    ("power", "W", lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000),
)


class Gpus:
    """The GPUs that a job started from here may use; none where there is no GPU."""

    def __init__(self, nvml: Any = None, handles: Mapping[str, Any] | None = None, trouble: str | None = None) -> None:
        """Read the GPUs of `handles`, by their name, through the module `nvml`."""
        self._nvml = nvml
        self._asked = [(source, gpu, *reading) for source, gpu in (handles or {}).items() for reading in _READINGS]
        self._troubles = [trouble] if trouble else []

    @property
    def trouble(self) -> str | None:
        """What could not be read, in words, or None."""
        return "; ".join(self._troubles) or None

    def read(self) -> list[Reading]:
        """Return the samples of now. What NVML refuses is not asked again, the rest goes on."""
        found = []
        for asked in tuple(self._asked):
            source, gpu, name, unit, ask = asked
            try:
                found.append((source, name, float(ask(self._nvml, gpu)), unit))
            except self._nvml.NVMLError as e:
                self._asked.remove(asked)
                self._troubles.append(f"{name} of {source} could not be sampled any further: {e}")
        return found


@contextmanager
def visible() -> Iterator[Gpus]:
    """Provide the GPUs that CUDA_VISIBLE_DEVICES leaves in sight. Never raises: what is wrong is their `trouble`."""
    nvml, trouble = _started()
    if nvml is None:
        yield Gpus(trouble=trouble)
        return
    try:
        yield _opened(nvml)
    finally:
        with suppress(nvml.NVMLError):  # the readings have told what is broken
            nvml.nvmlShutdown()


def _started() -> tuple[Any, str | None]:
    """Return the bindings with NVML started, or None and why, unless that is just that there is no GPU."""
    try:
        import pynvml
    except ImportError as e:
        return None, f"GPUs not sampled: {e}"
    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
        return None, None
    except pynvml.NVMLError as e:
        return None, f"GPUs not sampled: {e}"
    return pynvml, None


def _opened(nvml: Any) -> Gpus:
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        uuids = [nvml.nvmlDeviceGetUUID(handle) for handle in handles]
    except nvml.NVMLError as e:
        return Gpus(trouble=f"GPUs not sampled: {e}")
    chosen = _chosen(os.environ.get("CUDA_VISIBLE_DEVICES"), uuids)
    return Gpus(nvml, {f"gpu{index}": handles[index] for index in chosen})


def _chosen(visible_devices: str | None, uuids: Sequence[str]) -> list[int]:
    """Return the indices of the GPUs that CUDA shows: all, or those listed before the first that is none.

    An entry is an index or the beginning of a UUID. CUDA may number unequal GPUs otherwise than NVML does, unless
    CUDA_DEVICE_ORDER is PCI_BUS_ID; equal ones have one order.
    """
    if visible_devices is None:
        return list(range(len(uuids)))
    found: list[int] = []
    for entry in map(str.strip, visible_devices.split(",")):
        meant = [n for n, uuid in enumerate(uuids) if str(n) == entry or (entry and uuid.startswith(entry))]
        if len(meant) != 1:
            break
        found += meant
    return list(dict.fromkeys(found))
