"""DeepSpeed's asynchronous I/O operators, built once per machine and loaded from a cache.

`python -m tasks.async_io build` builds async_io, through DeepSpeed's own builder, so that no trial ever compiles; and
gds, its operator for GPUDirect Storage, on a machine with a GPU and the CUDA toolkit's cuFile.
Loading async_io imports torch and two shared objects, not DeepSpeed. It is DeepSpeed's build for the CPU on every
machine: the operator has no device code, moves CUDA tensors through torch, and so needs no CUDA toolkit.
"""

from __future__ import annotations

import fcntl
import functools
import glob
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType

from tasks.arguments import Parser
from tasks.cache import cache_dir
from tasks.errors import TaskError
from tasks.jobs.aio_library import load_library
from tasks.process import child, log_tail

BUILD_COMMAND = "python -m tasks.async_io build"

# DeepSpeed's aio resolves its pinned-memory manager from the second library.
_AIO, _PINNED, _GDS = "async_io", "pin_memory", "gds"

_BUILD = """
import sys
from deepspeed.ops import op_builder
getattr(op_builder, sys.argv[1])().load(verbose=True)
"""


@dataclass(frozen=True)
class _Operator:
    """One of DeepSpeed's operators: its builder, the accelerator that has it, the shared objects that come of it."""

    name: str
    builder: str
    accelerator: str
    objects: tuple[str, ...]


_OPERATORS = {
    _AIO: _Operator(_AIO, "AsyncIOBuilder", "cpu", (_AIO, _PINNED)),
    _GDS: _Operator(_GDS, "GDSBuilder", "cuda", (_GDS, _PINNED)),
}
_STEP = re.compile(r"^\[(\d+)/(\d+)\] .*?(?:-c \S*?([^/\s]+\.cpp) -o|-o (\S+\.so))", re.MULTILINE)


# On a terminal each line of progress replaces the one before it.
_CLEAR = "\r\033[K" if sys.stdout.isatty() else ""


class AsyncIOError(TaskError):
    """DeepSpeed's async_io is not built, cannot be built or cannot be loaded."""


def path(name: str = _AIO) -> Path:
    """Return where the operator for this environment and CPU lies, or would lie, without importing torch."""
    return cache_dir(name) / _key() / f"{name}.so"


def is_built(name: str = _AIO) -> bool:
    """Return whether the operator lies there."""
    try:
        return path(name).is_file()
    except AsyncIOError:
        return False


def gds_obstacle() -> str | None:
    """Return why GPUDirect Storage is not to be had on this machine, or None; whether it works only a trial can say."""
    if not glob.glob("/dev/nvidia[0-9]*"):
        return "no NVIDIA GPU on this node"
    if _cufile_home() is None:
        return "the CUDA toolkit's cuFile (cufile.h) is not installed on this node"
    return None if is_built(_GDS) else f"DeepSpeed's gds is not built on this node: run {BUILD_COMMAND}"


def _cufile_home() -> Path | None:
    """Return the CUDA toolkit that has cuFile, to compile against and to load."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    return next((Path(home) for home in homes if home and Path(home, "include", "cufile.h").is_file()), None)


@functools.cache
def load() -> ModuleType:
    """Return the operator's module, whose `aio_handle` does the I/O. Delete each handle before the process ends."""
    library = path()
    if not library.is_file():
        raise AsyncIOError(f"DeepSpeed's async_io is not built for this environment; run: {BUILD_COMMAND}")
    import torch  # noqa: F401  (its libraries must be in the process first)

    try:
        return load_library(library)
    except (ImportError, OSError) as e:
        raise AsyncIOError(f"{library} cannot be loaded ({e}); delete its folder and run: {BUILD_COMMAND}") from e


def build(progress: Callable[[str], None] = lambda line: None, name: str = _AIO) -> Path:
    """Build the operator unless it is there, tell `progress` how far it is, and return its path.

    Two builds at once, even from two clones, do the work once: the second waits for the first.
    """
    target, operator = path(name), _OPERATORS[name]
    with _lock(target.parent, progress):
        if not target.is_file():
            environment = _build_environment(operator)
            _check_tools(environment)
            for left in target.parent.parent.glob(f"{target.parent.name}.*/"):
                shutil.rmtree(left, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=f"{target.parent.name}.", dir=cache_dir(name)) as scratch:
                _compile(operator, Path(scratch), environment, progress)
                _publish(operator, Path(scratch), target.parent)
    return target


def main(arguments: list[str] | None = None) -> int:
    """Run the command line: `build` or `path`."""
    parser = Parser(prog="python -m tasks.async_io", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("action", choices=["build", "path"], help="build it unless it is there; or say where it is")
    try:
        action = parser.parse_args(arguments).action
        if action == "build":
            print(f"{_CLEAR}async_io: ready in {build(_show).parent}")
            _build_gds()
        elif is_built():
            print(path())
        else:
            raise AsyncIOError(f"not built; run: {BUILD_COMMAND}")
    except TaskError as e:
        print(f"{_CLEAR}async_io: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _build_gds() -> None:
    """Build gds where the machine has what it needs; a machine where that fails goes on without."""
    if _cufile_home() is None or not glob.glob("/dev/nvidia[0-9]*"):
        return
    try:
        print(f"{_CLEAR}gds: ready in {build(_show, _GDS).parent}")
    except AsyncIOError as e:
        print(f"{_CLEAR}gds: going on without GPUDirect Storage: {e}", file=sys.stderr)


def _key() -> str:
    """Return what the binary depends on, as a folder name: versions, Python's ABI, and the CPU (-march=native)."""
    try:
        versions = [f"{name}-{metadata.version(name)}" for name in ("deepspeed", "torch")]
    except metadata.PackageNotFoundError as e:
        raise AsyncIOError(f"{e.name} is not installed in {sys.prefix}") from None
    return "_".join([*versions, str(sysconfig.get_config_var("SOABI")), _cpu()])


def _cpu() -> str:
    """Return a short hash of the CPU's model and instruction sets."""
    wanted = ("vendor_id", "model name", "flags", "CPU implementer", "CPU part", "Features", "isa")
    first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    lines = [line for line in first.splitlines() if line.split("\t")[0].strip(" :") in wanted]
    return hashlib.sha256("\n".join([os.uname().machine, *lines]).encode()).hexdigest()[:10]


@contextmanager
def _lock(folder: Path, progress: Callable[[str], None]) -> Iterator[None]:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = folder.with_name(f"{folder.name}.lock").open("w")
    except OSError as e:
        raise AsyncIOError(f"cannot write to {folder.parent}: {e.strerror}; OFFLOAD_SWEEP_CACHE names another") from e
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another build of it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build_environment(operator: _Operator) -> dict[str, str]:
    environment = dict(os.environ)
    environment["DS_ACCELERATOR"] = operator.accelerator
    environment.setdefault("MAX_JOBS", str(len(os.sched_getaffinity(0))))
    environment["PYTHONUNBUFFERED"] = "1"
    # ninja comes with the Python packages
    environment["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), environment.get("PATH", os.defpath)])
    # Some CUDA machines set an architecture, 9.0a, whose letter DeepSpeed cannot parse.
    if "TORCH_CUDA_ARCH_LIST" in environment:
        environment["TORCH_CUDA_ARCH_LIST"] = re.sub(r"(\d)a\b", r"\1", environment["TORCH_CUDA_ARCH_LIST"])
    return environment


def _check_tools(environment: Mapping[str, str]) -> None:
    """Refuse within a second what would fail after a minute, and say what is missing."""
    compiler = environment.get("CXX", "c++")
    if shutil.which(compiler, path=environment["PATH"]) is None:
        raise AsyncIOError(f"no C++ compiler ({compiler}) on this machine (Debian: g++)")
    if shutil.which("ninja", path=environment["PATH"]) is None:
        raise AsyncIOError(f"no ninja; run: {sys.executable} -m pip install ninja")
    include = sysconfig.get_path("include")
    for header, package in (("libaio.h", "libaio-dev"), ("Python.h", "python3-dev")):
        command = [compiler, "-E", "-x", "c++", f"-I{include}", "-include", header, os.devnull]
        if subprocess.run(command, capture_output=True, env=environment, stdin=subprocess.DEVNULL).returncode:
            raise AsyncIOError(f"the compiler does not find {header} (Debian: {package})")


def _compile(operator: _Operator, scratch: Path, environment: dict[str, str], progress: Callable[[str], None]) -> None:
    log, start = scratch / "build.log", time.monotonic()
    environment = {**environment, "TORCH_EXTENSIONS_DIR": str(scratch)}
    with child([sys.executable, "-c", _BUILD, operator.builder], log, environment) as process:
        last = ""
        while process.poll() is None:
            time.sleep(0.3)
            line = _last_step(log.read_text(errors="replace"))
            if line != last or _CLEAR:
                progress(f"{line or 'starting DeepSpeed'} … {time.monotonic() - start:.0f} s")
            last = line
    if process.returncode or not (scratch / operator.name / f"{operator.name}.so").is_file():
        raise AsyncIOError(f"DeepSpeed's build failed with exit code {process.returncode}:\n{log_tail(log, 25)}")


def _last_step(log: str) -> str:
    steps = _STEP.findall(log)
    if not steps:
        return ""
    done, total, source, library = steps[-1]
    return f"[{done}/{total}] {f'compiled {source}' if source else f'linked {library}'}"


def _publish(operator: _Operator, scratch: Path, folder: Path) -> None:
    """Move what a trial loads into place in one step: a folder that is there is complete."""
    complete = scratch / "complete"
    complete.mkdir()
    for name in operator.objects:
        os.rename(scratch / name / f"{name}.so", complete / f"{name}.so")
    os.rename(scratch / "build.log", complete / "build.log")
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(complete, folder)


def _show(line: str) -> None:
    print(f"{_CLEAR}async_io: {line}", end="" if _CLEAR else "\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
