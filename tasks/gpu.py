"""What NVIDIA GPUs do, by NVML: the library behind nvidia-smi, through its official bindings (nvidia-ml-py)."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from tasks.units import format_bytes

_KB = 1000

#: More than a GPU holds for nobody, beside what its driver reserves; the context of a process of CUDA alone is larger.
_NOBODYS_BYTES = 256 << 20

#: How long the memory of a process that ended may take to be given back.
_RELEASE_S = 2.0


@dataclass(frozen=True)
class _Reading:
    """Name and unit of a value, and how NVML is asked for it."""

    name: str
    unit: str
    ask: Callable[[Any, Any], float]


#: What NVML answers at once, in microseconds.
_QUICK = (
    _Reading("utilisation", "%", lambda nvml, gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu),
    _Reading("memory_utilisation", "%", lambda nvml, gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).memory),
    _Reading("memory_used", "B", lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used),
    _Reading("power", "W", lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000),
    _Reading("temperature", "°C", lambda nvml, gpu: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU)),
    _Reading("sm_clock", "MHz", lambda nvml, gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM)),
)

#: What it counts for 20 ms before it answers, in KB/s, packet headers included. Its counters of bytes (field values 197
#: and 198) answer at once but wrap at 4 GiB, which takes 67 ms at the rate of PCIe 5.0 x16.
_SLOW = (
    _Reading(
        "pcie_tx", "B/s", lambda nvml, gpu: nvml.nvmlDeviceGetPcieThroughput(gpu, nvml.NVML_PCIE_UTIL_TX_BYTES) * _KB
    ),
    _Reading(
        "pcie_rx", "B/s", lambda nvml, gpu: nvml.nvmlDeviceGetPcieThroughput(gpu, nvml.NVML_PCIE_UTIL_RX_BYTES) * _KB
    ),
)

#: How long one slow reading blocks.
SLOW_READING_NS = 20_000_000


class Gpu:
    """Some readings of one GPU, as a source of samples. What NVML refuses is not asked again, the rest goes on."""

    def __init__(self, name: str, nvml: Any, handle: Any, readings: Sequence[_Reading]) -> None:
        """Read the GPU of `handle` through the module `nvml`."""
        self.name = name
        self.columns = [(reading.name, reading.unit) for reading in readings]
        self.refused: dict[str, str] = {}
        self._nvml, self._handle, self._readings = nvml, handle, readings
        self._answered: set[str] = set()

    def read(self, t_ns: int) -> list[float]:
        """Return the readings of now, NaN for one that NVML refuses."""
        return [math.nan if one.name in self.refused else self._ask(one) for one in self._readings]

    def _ask(self, reading: _Reading) -> float:
        try:
            value = float(reading.ask(self._nvml, self._handle))
        except self._nvml.NVMLError as e:
            any_further = " any further" if reading.name in self._answered else ""
            self.refused[reading.name] = f"not be sampled{any_further}: {e}"
            return math.nan
        self._answered.add(reading.name)
        return value

    def held(self) -> str | None:
        """Say what processes hold of its memory now, or None: nothing, or an older driver, which cannot tell."""
        with suppress(self._nvml.NVMLError):
            memory = self._nvml.nvmlDeviceGetMemoryInfo(self._handle, version=self._nvml.nvmlMemory_v2)
            # not `used`: what the driver reserves may be in it, or not (nvmlMemory_v2_t in NVML's R525 and R590)
            held_bytes = memory.total - memory.free - memory.reserved
            if held_bytes > _NOBODYS_BYTES:
                return f"{format_bytes(held_bytes)} of the memory of {self.name}{self._holders()}"
        return None

    def _holders(self) -> str:
        """Return the processes in words, by the driver's numbers, which need not be those of this container."""
        with suppress(self._nvml.NVMLError):
            pids = [process.pid for process in self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)]
            if pids:
                return f" (process {', '.join(map(str, pids))})"
        return ""

    def close(self) -> None:
        """Nothing to let go of: NVML is shut down for all GPUs at once."""


class Gpus:
    """The GPUs that a job started from here may use; none where there is no GPU."""

    def __init__(self, nvml: Any = None, handles: Mapping[str, Any] | None = None, trouble: str | None = None) -> None:
        """Read the GPUs of `handles`, by their name, through the module `nvml`."""
        self._trouble = trouble
        found = (handles or {}).items()
        self.quick = [Gpu(name, nvml, handle, _QUICK) for name, handle in found]
        self.slow = [Gpu(name, nvml, handle, _SLOW) for name, handle in found]

    @property
    def trouble(self) -> str | None:
        """What could not be read, in words, or None."""
        among: dict[tuple[str, str], list[str]] = {}
        for gpu in (*self.quick, *self.slow):
            for reading, why in gpu.refused.items():
                among.setdefault((reading, why), []).append(gpu.name)
        told = [f"{reading} of {', '.join(gpus)} could {why}" for (reading, why), gpus in among.items()]
        return "; ".join(filter(None, [self._trouble, *told])) or None

    def held(self, release_s: float) -> str | None:
        """Say what of their memory processes hold after waiting `release_s` at most for its release, or None."""
        end_s = time.monotonic() + release_s
        while True:
            held = " and ".join(filter(None, (gpu.held() for gpu in self.quick)))
            if not held or time.monotonic() >= end_s:
                return held or None
            time.sleep(0.05)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Add to `trouble` who uses the GPUs when the body begins, while no job runs, or else when it has ended."""
        held, when = self.held(_RELEASE_S), "when the job began"
        try:
            yield
        finally:
            if not held:
                held, when = self.held(_RELEASE_S), "when the job had ended"
            if held:
                others = f"others held {held} {when}: they may have computed beside it"
                self._trouble = "; ".join(filter(None, [self._trouble, others]))


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
