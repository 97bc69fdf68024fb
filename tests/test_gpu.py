"""GPU samples by NVML, with a stand-in for its bindings: which GPUs, what of them, and what happens when it fails."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

from tasks import gpu, sampler
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

    def __init__(self, *uuids: str) -> None:
        super().__init__("pynvml")
        self.uuids = uuids
        self.fails: dict[str, Exception] = {}
        self.open = 0
        for name, answer in {
            "nvmlInit": lambda: self._count(1),
            "nvmlShutdown": lambda: self._count(-1),
            "nvmlDeviceGetCount": lambda: len(self.uuids),
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetUUID": lambda gpu: self.uuids[gpu],
            "nvmlDeviceGetUtilizationRates": lambda gpu: SimpleNamespace(gpu=90 + gpu, memory=1),
            "nvmlDeviceGetMemoryInfo": lambda gpu: SimpleNamespace(used=1 << 30, total=1 << 37),
            "nvmlDeviceGetPowerUsage": lambda gpu: 250_500,
        }.items():
            setattr(self, name, self._guarded(name, answer))

    def _count(self, by: int) -> None:
        self.open += by

    def _guarded(self, name: str, answer: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if name in self.fails:
                raise self.fails[name]
            return answer(*arguments)

        return call


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml("GPU-aaa1", "GPU-aaa2", "GPU-bbb1")
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return fake


def sources() -> list[str]:
    with gpu.visible() as gpus:
        assert gpus.trouble is None
        return list(dict.fromkeys(source for source, *_ in gpus.read()))


def test_every_gpu_has_its_readings_with_units(nvml: FakeNvml) -> None:
    nvml.uuids = ("GPU-only",)
    with gpu.visible() as gpus:
        assert nvml.open == 1
        assert gpus.read() == [
            ("gpu0", "utilisation", 90.0, "%"),
            ("gpu0", "memory_used", float(1 << 30), "B"),
            ("gpu0", "power", 250.5, "W"),
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
        assert gpus.read() == []
        assert gpus.trouble == "GPUs not sampled: Driver/library version mismatch"


def test_bindings_that_are_not_installed_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with gpu.visible() as gpus:
        assert gpus.read() == []
        assert "pynvml" in str(gpus.trouble)


def test_what_nvml_refuses_is_told_once_and_the_rest_goes_on(nvml: FakeNvml) -> None:
    nvml.uuids = ("GPU-only",)
    nvml.fails["nvmlShutdown"] = NVMLError("Uninitialized")
    with gpu.visible() as gpus:
        assert len(gpus.read()) == 3
        nvml.fails["nvmlDeviceGetUtilizationRates"] = NVMLError("GPU is lost")
        for _ in range(3):
            assert [name for _, name, *_ in gpus.read()] == ["memory_used", "power"]
        assert gpus.trouble == "utilisation of gpu0 could not be sampled any further: GPU is lost"


class Still:
    """A device on which nothing happens."""

    in_flight = 0

    def counters(self) -> Still:
        return self

    def since(self, before: Still) -> dict[str, int]:
        return {"read": 0, "write": 0, "discard": 0}


def sampled(tmp_path: Path, while_running: Callable[[], object]) -> tuple[list[dict[str, Any]], str | None]:
    watch: Any = Sampler(Still(), interval_ms=5)  # type: ignore[arg-type]
    with watch.sampling():
        deadline = time.monotonic() + 20
        while len({row[0] for row in watch._rows}) < 3 and time.monotonic() < deadline:
            time.sleep(0.005)
        while_running()
        seen = len(watch._rows)
        while len(watch._rows) < seen + 30 and time.monotonic() < deadline:
            time.sleep(0.005)
    watch.write(tmp_path / "samples.parquet", {})
    return pq.read_table(tmp_path / "samples.parquet").to_pylist(), watch.trouble


def test_the_sampler_writes_gpu_samples_beside_the_others(nvml: FakeNvml, tmp_path: Path) -> None:
    rows, trouble = sampled(tmp_path, lambda: None)
    assert trouble is None
    assert {row["source"] for row in rows} == {"device", "cpu", "memory", "gpu0", "gpu1", "gpu2"}
    assert {(row["value"], row["unit"]) for row in rows if (row["source"], row["name"]) == ("gpu1", "utilisation")} == {
        (91.0, "%")
    }
    assert nvml.open == 0


def test_the_sampler_goes_on_without_nvml_and_says_so(nvml: FakeNvml, tmp_path: Path) -> None:
    def break_it() -> None:
        for name in ("UtilizationRates", "MemoryInfo", "PowerUsage"):
            nvml.fails[f"nvmlDeviceGet{name}"] = NVMLError("GPU is lost")

    rows, trouble = sampled(tmp_path, break_it)
    last = {row["source"]: row["t_ns"] for row in rows}
    assert last["gpu0"] < last["cpu"]
    assert str(trouble).count("GPU is lost") == 9


def test_other_troubles_are_told_with_nvmls(nvml: FakeNvml, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml.fails["nvmlInit"] = NVMLError("Unknown Error")

    def broken() -> list[tuple[str, float]]:
        raise OSError("no meminfo")

    monkeypatch.setattr(sampler, "_memory", broken)
    watch = Sampler(Still(), interval_ms=1)  # type: ignore[arg-type]
    with watch.sampling():
        time.sleep(0.2)
    assert watch.trouble == "sampling ended early: OSError: no meminfo; GPUs not sampled: Unknown Error"
