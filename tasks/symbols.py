"""Names for code addresses of processes that may be gone: where their files were mapped, and those files' ELF symbols.

ELF as in elf(5), 64-bit little-endian. Symbol tables are read with NumPy: libtorch has half a million entries.
"""

from __future__ import annotations

import ctypes
import os
import re
from bisect import bisect_right
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

_PROGRAM = np.dtype([("type", "<u4"), ("flags", "<u4"), *((n, "<u8") for n in ("offset", "vaddr", "paddr", "filesz"))])
_SECTION_NAMES = ("flags", "addr", "offset", "size")
_SECTION = np.dtype([("name", "<u4"), ("type", "<u4"), *((n, "<u8") for n in _SECTION_NAMES), ("link", "<u4")])
_SYMBOL = np.dtype(
    [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("shndx", "<u2"), ("value", "<u8"), ("size", "<u8")]
)
_PT_LOAD = 1
_SHT_SYMTAB, _SHT_DYNSYM = 2, 11
_FUNCTIONS = (2, 10)  # STT_FUNC, STT_GNU_IFUNC
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) ..(.). ([0-9a-f]+) \S+ \d+ *(.*)")


@dataclass(frozen=True)
class Mapping:
    """A file's part that a process executes, by address."""

    begin: int
    end: int
    offset: int
    path: str


class AddressSpace:
    """The code of one process, as `/proc/<pid>/maps` showed it; read again, it also knows what was loaded since."""

    def __init__(self, pid: int) -> None:
        self._path = Path(f"/proc/{pid}/maps")
        self._mappings: dict[int, Mapping] = {}
        self._begins: list[int] = []

    def look(self) -> None:
        """Read the mappings of now; those of a process that has ended stay as they were."""
        try:
            text = self._path.read_text(errors="replace")
        except OSError:
            return
        self._mappings |= {m.begin: m for m in mappings(text)}
        self._begins = sorted(self._mappings)

    def __bool__(self) -> bool:
        return bool(self._mappings)

    def name(self, address: int, returns: bool) -> str | None:
        """Return the function at `address`, or None where no code is; `returns` if a call is about to return to it."""
        # The call that returns to the first instruction after a function was the function's last.
        at = address - 1 if returns else address
        place = bisect_right(self._begins, at)
        m = self._mappings[self._begins[place - 1]] if place else None
        return _in_file(m.path, at - m.begin + m.offset) if m and at < m.end else None


def mappings(text: str) -> list[Mapping]:
    """Return the executable mappings in the text of `/proc/<pid>/maps` (proc_pid_maps(5))."""
    found = (_MAPPING.fullmatch(line) for line in text.splitlines())
    return [Mapping(int(m[1], 16), int(m[2], 16), int(m[4], 16), m[5]) for m in found if m and m[3] == "x"]


def _in_file(path: str, offset: int) -> str:
    """Return what is at an offset of a mapped file: `pread (libc.so.6)`, or `libc.so.6+0xaddress` without a symbol."""
    if not path.startswith("/"):
        return path if path.startswith("[") else "[anonymous code]"
    symbols = _symbols(path)
    address = symbols.address(offset)
    name, file = symbols.function(address), os.path.basename(path)
    return f"{demangled(name)} ({file})" if name else f"{file}+{address:#x}"


@cache
def _symbols(path: str) -> Symbols:
    return Symbols(Path(path))


class Symbols:
    """The function symbols of one ELF file; none where it is no such file, is gone, or is stripped."""

    def __init__(self, path: Path) -> None:
        """Read the symbol table of `path`, or the dynamic one of a stripped file."""
        self._segments = np.empty(0, _PROGRAM)
        self._table = np.empty(0, _SYMBOL)
        self._names = b""
        try:
            self._read(np.memmap(path, np.uint8, "r"))
        except (OSError, ValueError, IndexError):
            return

    def _read(self, file: npt.NDArray[np.uint8]) -> None:
        if bytes(file[:6]) != b"\x7fELF\x02\x01":
            raise ValueError("no 64-bit little-endian ELF file")
        programs_at, sections_at = (int(n) for n in file[32:48].view("<u8"))
        program_size, programs, section_size, sections = (int(n) for n in file[54:62].view("<u2"))
        segments = _records(file, programs_at, program_size, programs, _PROGRAM)
        self._segments = segments[segments["type"] == _PT_LOAD]
        headers = _records(file, sections_at, section_size, sections, _SECTION)
        for kind in (_SHT_SYMTAB, _SHT_DYNSYM):
            for header in headers[headers["type"] == kind]:
                at, size = int(header["offset"]), int(header["size"])
                table = np.frombuffer(file[at : at + size].tobytes(), _SYMBOL)
                table = table[np.isin(table["info"] & 15, _FUNCTIONS) & (table["value"] > 0)]
                if len(table):
                    names = headers[header["link"]]
                    self._names = file[int(names["offset"]) : int(names["offset"] + names["size"])].tobytes()
                    self._table = table[np.argsort(table["value"], kind="stable")]
                    return

    def address(self, offset: int) -> int:
        """Return the address that the file gives the byte at `offset`."""
        for segment in self._segments:
            if segment["offset"] <= offset < segment["offset"] + segment["filesz"]:
                return int(segment["vaddr"]) + offset - int(segment["offset"])
        return offset

    def function(self, address: int) -> str | None:
        """Return the function whose code is at an address of the file; of several names the plainest."""
        values = self._table["value"]
        last = int(np.searchsorted(values, np.uint64(address), "right")) - 1
        if last < 0:
            return None
        start = int(values[last])
        found = [
            s for s in self._table[np.searchsorted(values, values[last]) : last + 1] if address < start + s["size"]
        ]
        names = [self._names[s["name"] : self._names.index(b"\0", s["name"])].decode(errors="replace") for s in found]
        return min(names, key=lambda n: (n.startswith("_"), len(n)), default=None)


def _records(
    file: npt.NDArray[np.uint8], at: int, size: int, count: int, kind: np.dtype[np.void]
) -> npt.NDArray[np.void]:
    """Return `count` records of `size` bytes each, their first fields as `kind` names them."""
    table = file[at : at + size * count].reshape(count, size)[:, : kind.itemsize]
    return np.ascontiguousarray(table).view(kind)[:, 0]


def demangled(name: str) -> str:
    """Return a C++ symbol as C++ writes it, with the C++ library's own `__cxa_demangle` (Itanium C++ ABI, 3.4)."""
    library = _cxx() if name.startswith("_Z") else None
    if library is None:
        return name
    status = ctypes.c_int()
    text = library.__cxa_demangle(name.encode(), None, None, ctypes.byref(status))
    if not text:
        return name
    try:
        return ctypes.string_at(text).decode(errors="replace")
    finally:
        ctypes.CDLL(None).free(ctypes.c_void_p(text))


@cache
def _cxx() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL("libstdc++.so.6")
    except OSError:
        return None
    library.__cxa_demangle.restype = ctypes.c_void_p
    return library
