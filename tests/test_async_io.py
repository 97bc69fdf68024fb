"""DeepSpeed's async_io: the cache that it lies in, and that what was built reads and writes the bytes it is given."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tasks import async_io

ROOT = Path(__file__).parent.parent

#: In a process of its own: a handle that is alive when its process ends aborts it half the time.
WRITE_AND_READ = """
import sys, time
import torch
from tasks import async_io
module = async_io.load()
assert "deepspeed" not in sys.modules
block, depth, name = 1 << 20, 8, sys.argv[1]
handle = module.aio_handle(block, depth, False, True, 1)
out = torch.randint(0, 256, (4 << 20,), dtype=torch.uint8)
back = torch.zeros_like(out)
handle.sync_pwrite(out, name)
with open(name, "rb") as f:
    assert f.read() == out.numpy().tobytes()
handle.sync_pread(back, name)
assert torch.equal(out, back)
del handle
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OFFLOAD_SWEEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def publish(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "async_io.so").touch()


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment})


def test_writes_and_reads_a_tensor(tmp_path: Path) -> None:
    if not async_io.is_built():
        assert "CI" not in os.environ, "set-up should have built async_io here"
        pytest.skip(f"DeepSpeed's async_io is not built: {async_io.BUILD_COMMAND}")
    done = run("-c", WRITE_AND_READ, str(tmp_path / "tensor"))
    assert done.returncode == 0, done.stderr


def test_the_path_names_versions_and_lies_in_the_cache(cache: Path) -> None:
    path = async_io.path()
    assert path.is_relative_to(cache)
    assert "deepspeed-" in path.parent.name
    assert "torch-" in path.parent.name


def test_looking_for_it_imports_neither_torch_nor_deepspeed() -> None:
    code = "import sys; from tasks import async_io; async_io.is_built(); print('torch' in sys.modules)"
    assert run("-c", code).stdout.strip() == "False"


def test_not_built_says_what_to_run(cache: Path) -> None:
    assert not async_io.is_built()
    done = run("-m", "tasks.async_io", "path")
    assert done.returncode == 1
    assert "python -m tasks.async_io build" in done.stderr
    with pytest.raises(async_io.AsyncIOError, match="is not built"):
        async_io.load.__wrapped__()


def test_what_is_built_is_not_built_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(async_io.path().parent)
    monkeypatch.setattr(async_io, "_compile", pytest.fail)
    assert async_io.build() == async_io.path()


def test_two_builds_at_once_compile_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Path] = []
    first_compiles, second_waits = threading.Event(), threading.Event()

    def compile_(operator: object, scratch: Path, environment: dict[str, str], progress: object) -> None:
        compiled.append(scratch)
        first_compiles.set()
        assert second_waits.wait(30)
        for name in ("async_io", "pin_memory"):
            (scratch / name).mkdir()
            (scratch / name / f"{name}.so").touch()
        (scratch / "build.log").touch()

    monkeypatch.setattr(async_io, "_compile", compile_)
    monkeypatch.setattr(async_io, "_check_tools", lambda environment: None)
    first = threading.Thread(target=async_io.build)
    first.start()
    assert first_compiles.wait(30)
    second = threading.Thread(target=async_io.build, args=(lambda line: second_waits.set(),))
    second.start()
    first.join(30)
    second.join(30)
    assert len(compiled) == 1
    assert async_io.is_built()
    assert not compiled[0].exists()


def test_without_a_compiler_it_says_so_at_once(cache: Path) -> None:
    done = run("-m", "tasks.async_io", "build", CXX="no-such-compiler")
    assert done.returncode == 1
    assert "no C++ compiler (no-such-compiler)" in done.stderr


def test_a_failed_build_shows_the_end_of_its_log(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(async_io, "_check_tools", lambda environment: None)
    monkeypatch.setattr(async_io, "_BUILD", "print('[1/2] c++ broken'); raise SystemExit(7)")
    with pytest.raises(async_io.AsyncIOError, match=r"exit code 7:\n\[1/2\] c\+\+ broken"):
        async_io.build()
    assert not async_io.is_built()
    assert [f.suffix for f in async_io.path().parent.parent.iterdir()] == [".lock"]


@pytest.mark.parametrize(("given", "used"), [("9.0a", "9.0"), ("8.0 9.0a", "8.0 9.0"), ("9.0", "9.0")])
def test_architectures_that_deepspeed_cannot_parse(given: str, used: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", given)
    operator = async_io._OPERATORS["async_io"]
    assert async_io._build_environment(operator)["TORCH_CUDA_ARCH_LIST"] == used


def test_without_a_gpu_there_is_no_gpudirect_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(async_io.glob, "glob", lambda pattern: [])
    assert async_io.gds_obstacle() == "no NVIDIA GPU on this node"


def test_gpudirect_storage_needs_cufile_and_a_build(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(async_io.glob, "glob", lambda pattern: ["/dev/nvidia0"])
    monkeypatch.setattr(async_io, "_cufile_home", lambda: None)
    assert "cuFile (cufile.h) is not installed" in str(async_io.gds_obstacle())
    monkeypatch.setattr(async_io, "_cufile_home", lambda: tmp_path)
    assert f"run {async_io.BUILD_COMMAND}" in str(async_io.gds_obstacle())
    async_io.path("gds").parent.mkdir(parents=True)
    async_io.path("gds").touch()
    assert async_io.gds_obstacle() is None


def test_progress_names_the_file_and_the_step() -> None:
    log = "[1/4] c++ -MMD -c /a/page_alloc.cpp -o page_alloc.o \n[2/13] c++ -c /a/b/deepspeed_py_aio.cpp -o x.o\n"
    assert async_io._last_step("") == ""
    assert async_io._last_step(log) == "[2/13] compiled deepspeed_py_aio.cpp"
    log += "[13/13] c++ a.o b.o -shared -laio -o async_io.so\n"
    assert async_io._last_step(log) == "[13/13] linked async_io.so"
