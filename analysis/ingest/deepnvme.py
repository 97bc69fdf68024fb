"""Output of DeepNVMe's example scripts (py_store_cpu_tensor.py, aio_load_gpu_tensor.py, ...): a tensor's bandwidth.

The last line is `aio load_cpu: 0.0625 GB, 0.0154 secs,  4.04 GB/sec`, with the mean of `loop` loops; its GB are GiB
(the scripts divide by 1 << 30). How single loops differed, and when they ran, is not in the file.
"""

from __future__ import annotations

import re

from analysis.ingest import text
from analysis.ingest.part import DURATIONS, Part, PhaseRow, Source
from analysis.units import GIB, NS_PER_S

KIND = "deepnvme"
ABOUT = "output of DeepNVMe's store and load scripts (aio load_cpu: 1.0 GB, 0.24 secs,  4.15 GB/sec)"

_NUMBER = rb"(\d+(?:\.\d+)?(?:e-?\d+)?)"
_RESULT = re.compile(
    rb"^\s*(py|aio|gds) (store|load)_(cpu|gpu):\s+%s GB,\s+%s secs,\s+%s GB/sec\s*$" % (_NUMBER, _NUMBER, _NUMBER), re.M
)
_ARGUMENTS = re.compile(rb"^args = Namespace\((.*)\)", re.M)
_APIS = {"py": "posix", "aio": "aio", "gds": "gds"}
_DEVICES = {"cpu": "cpu", "gpu": "cuda"}
#: Half of the last place that GB/sec is printed with, and what is lost where the scripts add and divide.
_PRECISION = 0.00501


def recognises(head: bytes) -> bool:
    """Say whether a file that has `head` at its beginning or end is such an output."""
    return bool(_RESULT.search(head)) or (b"validate=" in head and bool(_ARGUMENTS.search(head)))


def read(source: Source) -> Part:
    """Return one phase that stands for all loops: `bytes` and duration of all, as the mean tells them."""
    part = Part(source, KIND, clock=DURATIONS)
    loops = None
    for number, line in text.lines(part):
        if told := _ARGUMENTS.match(line.encode()):
            found = re.search(rb"\bloop=(\d+)", told[1])
            loops = int(found[1]) if found else None
        elif found := _RESULT.match(line.encode()):
            _result(part, found, loops, number)
    if part.lines and not part.phases:
        part.skipped.add("a file without a result (an output that ends early)", source.name, part.lines)
    return part


def _result(part: Part, found: re.Match[bytes], loops: int | None, line: int) -> None:
    api, name, device = (found[place].decode() for place in (1, 2, 3))
    size, seconds, told = round(float(found[4]) * GIB), float(found[5]), float(found[6])
    if not size or not seconds or abs(size / GIB / seconds - told) > _PRECISION:
        part.skipped.add("a result whose size, time and bandwidth disagree", part.source.name, line)
        return
    count = loops or 1
    attributes = {"api": _APIS[api], "tensor_device": _DEVICES[device], "size_bytes": str(size)}
    attributes |= {"loops": str(loops) if loops else "unknown", "file": part.source.name}
    span = round(seconds * count * NS_PER_S)
    part.phases.append(PhaseRow(name, 0, span, None, size * count, attributes))
    part.workload = {"kind": "tensor_io", "loops": loops}
