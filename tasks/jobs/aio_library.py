"""Loads DeepSpeed's aio operator from its shared object. Stands alone, like everything here."""

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
    ctypes.CDLL(str(path.with_name("pin_memory.so")), mode=ctypes.RTLD_GLOBAL)
    spec = importlib.util.spec_from_file_location("async_io", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python extension")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
