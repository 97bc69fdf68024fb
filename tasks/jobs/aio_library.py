"""Loads DeepSpeed's aio and gds operators from their shared objects. Stands alone, like everything here."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path
from types import ModuleType


def load_library(library: str | Path) -> ModuleType:
    """Return the module in the file `library`; raise ImportError or OSError where it cannot be loaded.

    torch must be imported by now: its libraries hold symbols that this one needs, and so does DeepSpeed's pinned-memory
    manager, `pin_memory.so` in the same folder, which is loaded globally here.
    """
    path = Path(library)
    ctypes.CDLL(str(_pinned(path)), mode=ctypes.RTLD_GLOBAL)
    return _extension(path)


def load_pinned(library: str | Path) -> ModuleType:
    """Return the module of the pinned-memory manager beside `library`, which must be loaded by now."""
    return _extension(_pinned(Path(library)))


def _pinned(library: Path) -> Path:
    return library.with_name("pin_memory.so")


def _extension(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python extension")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
