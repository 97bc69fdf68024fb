"""GPU samples by NVML, with a stand-in for its bindings: which GPUs, what of them, and what happens when it fails."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

from tasks import counters, gpu
from tasks.device import Devices
from tasks.sampler import Sampler


class NVMLError(Exception):
    pass


class LibraryNotFound(NVMLError):
    pass


class DriverNotLoaded(NVMLError):
    pass


class FakeNvml(ModuleType):
    """`pynvml` on a machine with GPUs of these UUIDs; `fails` maps a function's name to what it raises."""

    NVMLError = NVMLError
    NVMLError_LibraryNotFound = LibraryNotFound
    NVMLError_DriverNotLoaded = DriverNotLoaded
    NVML_TEMPERATURE_GPU = 0
    NVML_CLOCK_SM = 1
    NVML_PCIE_UTIL_TX_BYTES, NVML_PCIE_UTIL_RX_BYTES = 0, 1
    nvmlMemory_v2 = 2

    def __init__(self, *uuids: str) -> None:
        super().__init__("pynvml")
        self.uuids = uuids
        self.fails: dict[str, Exception] = {}
        self.open = 0
        self.held_bytes: dict[int, int] = {}
        self.reserved_is_used = False
        for name, answer in {
            "nvmlInit": lambda: self._count(1),
            "nvmlShutdown": lambda: self._count(-1),
            "nvmlDeviceGetCount": lambda: len(self.uuids),
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetUUID": lambda gpu: self.uuids[gpu],
            "nvmlDeviceGetUtilizationRates": lambda gpu: SimpleNamespace(gpu=90 + gpu, memory=12),
            "nvmlDeviceGetMemoryInfo": self._memory,
            "nvmlDeviceGetComputeRunningProcesses": lambda gpu: [SimpleNamespace(pid=70 + gpu)],
            "nvmlDeviceGetPowerUsage": lambda gpu: 250_500,
            "nvmlDeviceGetTemperature": lambda gpu, sensor: 41 + sensor,
            "nvmlDeviceGetClockInfo": lambda gpu, clock: 1980 * clock,
            "nvmlDeviceGetPcieThroughput": lambda gpu, counter: 1000 + counter,
        }.items():
            setattr(self, name, self._guarded(name, answer))

    def _memory(self, gpu: int, version: int = 1) -> SimpleNamespace:
        if version != self.nvmlMemory_v2:
            return SimpleNamespace(used=1 << 30, total=1 << 37)
        reserved, held = 1 << 29, self.held_bytes.get(gpu, 0)
        # some drivers count what they reserve as used
        used = held + reserved * self.reserved_is_used
        return SimpleNamespace(total=1 << 37, reserved=reserved, used=used, free=(1 << 37) - reserved - held)

    def _count(self, by: int) -> None:
        self.open += by

    def _guarded(self, name: str, answer: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if name in self.fails:
                raise self.fails[name]
            return answer(*arguments, **named)

        return call


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml("GPU-aaa1", "GPU-aaa2", "GPU-bbb1")
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return fake


def readings(gpus: gpu.Gpus) -> list[tuple[str, str, float, str]]:
    """Return source, name, value and unit of all that the GPUs tell now."""
    told = []
    for one in (*gpus.quick, *gpus.slow):
        values = zip(one.columns, one.read(0), strict=True)
        told += [(one.name, name, value, unit) for (name, unit), value in values if not math.isnan(value)]
    return told


def sources() -> list[str]:
    with gpu.visible() as gpus:
        assert gpus.trouble is None
        return list(dict.fromkeys(source for source, *_ in readings(gpus)))


def test_every_gpu_has_its_readings_with_units(nvml: FakeNvml) -> None:
    nvml.uuids = ("GPU-only",)
    with gpu.visible() as gpus:
        assert nvml.open == 1
        assert readings(gpus) == [
            ("gpu0", "utilisation", 90.0, "%"),
            ("gpu0", "memory_utilisation", 12.0, "%"),
            ("gpu0", "memory_used", float(1 << 30), "B"),
            ("gpu0", "power", 250.5, "W"),
            ("gpu0", "temperature", 41.0, "°C"),
            ("gpu0", "sm_clock", 1980.0, "MHz"),
            ("gpu0", "pcie_tx", 1_000_000.0, "B/s"),
            ("gpu0", "pcie_rx", 1_001_000.0, "B/s"),
        ]
    assert nvml.open == 0


@pytest.mark.parametrize(
    ("devices", "seen"),
    [
        (None, ["gpu0", "gpu1", "gpu2"]),
        ("", []),
        ("-1", []),
        ("1", ["gpu1"]),
        ("2, 0", ["gpu2", "gpu0"]),
        ("GPU-bbb1", ["gpu2"]),
        ("GPU-b", ["gpu2"]),
        ("GPU-aaa", []),
        ("GPU-aaa2,0", ["gpu1", "gpu0"]),
        ("0,7,1", ["gpu0"]),
        ("MIG-x", []),
        ("NoDevFiles", []),
    ],
)
def test_only_the_gpus_that_cuda_shows(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch, devices: str | None, seen: list[str]
) -> None:
    if devices is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
    assert sources() == seen


@pytest.mark.parametrize("error", [LibraryNotFound("none"), DriverNotLoaded("none")])
def test_a_machine_without_gpu_has_no_samples_and_no_trouble(nvml: FakeNvml, error: NVMLError) -> None:
    nvml.fails["nvmlInit"] = error
    assert sources() == []
    nvml.fails.clear()
    nvml.uuids = ()
    assert sources() == []


@pytest.mark.parametrize("function", ["nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetUUID"])
def test_a_gpu_that_cannot_be_opened_is_told(nvml: FakeNvml, function: str) -> None:
    nvml.fails[function] = NVMLError("Driver/library version mismatch")
    with gpu.visible() as gpus:
        assert readings(gpus) == []
        assert gpus.trouble == "GPUs not sampled: Driver/library version mismatch"


def test_bindings_that_are_not_installed_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with gpu.visible() as gpus:
        assert readings(gpus) == []
        assert "pynvml" in str(gpus.trouble)


def test_what_nvml_refuses_is_told_once_and_the_rest_goes_on(nvml: FakeNvml) -> None:
    nvml.uuids = ("GPU-only",)
    nvml.fails["nvmlShutdown"] = NVMLError("Uninitialized")
    nvml.fails["nvmlDeviceGetPcieThroughput"] = NVMLError("Not Supported")
    with gpu.visible() as gpus:
        assert len(readings(gpus)) == 6
        nvml.fails["nvmlDeviceGetMemoryInfo"] = NVMLError("GPU is lost")
        for _ in range(3):
            names = [name for _, name, *_ in readings(gpus)]
            assert names == ["utilisation", "memory_utilisation", "power", "temperature", "sm_clock"]
        assert gpus.trouble == (
            "memory_used of gpu0 could not be sampled any further: GPU is lost; "
            "pcie_tx of gpu0 could not be sampled: Not Supported; pcie_rx of gpu0 could not be sampled: Not Supported"
        )


def sampled(tmp_path: Path, while_running: Callable[[], object]) -> tuple[list[dict[str, Any]], Sampler]:
    watch = Sampler(Devices(()), interval_ms=10, drives=[])
    with watch.sampling():
        time.sleep(0.1)
        while_running()
        time.sleep(0.2)
    watch.write(tmp_path / "samples.parquet", {})
    return pq.read_table(tmp_path / "samples.parquet").to_pylist(), watch


def test_the_sampler_writes_gpu_samples_beside_the_others(nvml: FakeNvml, tmp_path: Path) -> None:
    rows, watch = sampled(tmp_path, lambda: None)
    assert watch.trouble is None
    assert {"cpu", "memory", "gpu0", "gpu1", "gpu2"} <= {row["source"] for row in rows}
    assert {(row["value"], row["unit"]) for row in rows if (row["source"], row["name"]) == ("gpu1", "utilisation")} == {
        (91.0, "%")
    }
    assert nvml.open == 0


def test_what_blocks_in_nvml_holds_nothing_else_up(nvml: FakeNvml, tmp_path: Path) -> None:
    nvml.nvmlDeviceGetPcieThroughput = lambda gpu, counter: time.sleep(0.02) or 5  # type: ignore[func-returns-value]
    rows, watch = sampled(tmp_path, lambda: None)
    threads = watch.facts()["threads"]
    # six readings of 20 ms, and as much time again without
    assert threads["pcie"]["interval_ms"] == 240
    assert threads["pcie"]["longest_ms"] >= 120
    assert threads["gpu"]["samples"] > 20
    assert {row["value"] for row in rows if row["name"] == "pcie_rx"} == {5000.0}


def test_the_sampler_goes_on_without_nvml_and_says_so(nvml: FakeNvml, tmp_path: Path) -> None:
    def break_it() -> None:
        for name in ("UtilizationRates", "MemoryInfo", "PowerUsage", "Temperature", "ClockInfo"):
            nvml.fails[f"nvmlDeviceGet{name}"] = NVMLError("GPU is lost")

    rows, watch = sampled(tmp_path, break_it)
    last = {row["source"]: row["t_ns"] for row in rows if not row["name"].startswith("pcie")}
    assert last["gpu0"] < last["memory"]
    assert str(watch.trouble).count("GPU is lost") == 6
    assert "power of gpu0, gpu1, gpu2 could not be sampled any further: GPU is lost" in str(watch.trouble)


def test_other_troubles_are_told_with_nvmls(nvml: FakeNvml, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml.fails["nvmlInit"] = NVMLError("Unknown Error")

    def broken(self: object, t_ns: int) -> list[float]:
        raise OSError("no meminfo")

    monkeypatch.setattr(counters.Table, "read", broken)
    _, watch = sampled(tmp_path, lambda: None)
    told = "could not be sampled to the end: OSError: no meminfo"
    assert watch.trouble == f"memory {told}; paging {told}; GPUs not sampled: Unknown Error"


@pytest.mark.parametrize("reserved_is_used", [False, True])
def test_a_gpu_that_others_use_is_told(
    nvml: FakeNvml, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reserved_is_used: bool
) -> None:
    monkeypatch.setattr(gpu, "_RELEASE_S", 0.1)
    nvml.reserved_is_used = reserved_is_used
    _, watch = sampled(tmp_path, lambda: None)
    assert watch.trouble is None
    nvml.held_bytes = {1: 3 << 30}
    _, watch = sampled(tmp_path, lambda: None)
    told = "others held 3 GiB of the memory of gpu1 (process 71) when the job {}: they may have computed beside it"
    assert watch.trouble == told.format("began")
    nvml.held_bytes = {}
    _, watch = sampled(tmp_path, lambda: nvml.held_bytes.update({1: 3 << 30}))
    assert watch.trouble == told.format("had ended")


def test_what_the_job_itself_held_is_not_others(nvml: FakeNvml, tmp_path: Path) -> None:
    def ends_soon() -> None:
        nvml.held_bytes = {0: 3 << 30}
        threading.Timer(0.4, nvml.held_bytes.clear).start()

    _, watch = sampled(tmp_path, ends_soon)
    assert nvml.held_bytes == {}
    assert watch.trouble is None


@pytest.mark.parametrize(
    ("refused", "told"),
    [
        ("MemoryInfo", None),
        ("ComputeRunningProcesses", "others held 3 GiB of the memory of gpu0 when the job began: they may have"),
    ],
)
def test_a_driver_that_cannot_tell_who_uses_a_gpu(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch, refused: str, told: str | None
) -> None:
    monkeypatch.setattr(gpu, "_RELEASE_S", 0.1)
    nvml.held_bytes = {0: 3 << 30}
    nvml.fails[f"nvmlDeviceGet{refused}"] = NVMLError("Not Supported")
    with gpu.visible() as gpus:
        with gpus.watched():
            pass
        assert gpus.trouble == (told and f"{told} computed beside it")
