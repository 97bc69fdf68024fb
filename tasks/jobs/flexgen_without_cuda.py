"""The stand-ins FlexGen needs on a machine without CUDA; nothing else of the engine is replaced, or touched on CUDA.

Its `cuda:0` becomes host memory that keeps its device type, so that every placement, copy and copy thread is the
engine's own. Streams and synchronisation have nothing to wait for, pinning has nothing to pin, and products of 16-bit
numbers, which CPUs do slowly, are computed in 32.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any


class _Over:
    """A module with some of its names replaced."""

    def __init__(self, below: Any, **names: Any) -> None:
        self.__dict__.update(names)
        self._below = below

    def __getattr__(self, name: str) -> Any:
        return getattr(self._below, name)


def _nothing(*args: object, **options: object) -> None:
    return None


def _zero(*args: object, **options: object) -> int:
    return 0


def install() -> None:
    """Bind the stand-ins into FlexGen's modules."""
    import torch
    from flexgen import flex_opt, pytorch_backend
    from flexgen.pytorch_backend import DeviceType, TorchDevice

    def empty(*size: Any, pin_memory: object = None, **options: Any) -> Any:
        found = torch.empty(*size, **options)
        found.is_pinned = lambda: bool(pin_memory)  # the engine takes another way for memory that is not
        return found

    def linear(x: Any, weight: Any, bias: Any = None) -> Any:
        found = torch.nn.functional.linear(x.float(), weight.float(), None if bias is None else bias.float())
        return found.to(x.dtype)

    def bmm(a: Any, b: Any) -> Any:
        return torch.bmm(a.float(), b.float()).to(a.dtype)

    def begin(device: Any, name: str, *capacity: Any) -> None:
        host = pytorch_backend.global_cpu_device
        original(device, "cpu", *capacity)
        if name != "cpu":
            device.name, device.device_type = name, DeviceType.CUDA
            pytorch_backend.global_cpu_device = host

    cuda = _Over(
        torch.cuda,
        Stream=_nothing,
        stream=lambda stream: nullcontext(),
        synchronize=_nothing,
        set_device=_nothing,
        memory_allocated=_zero,
        max_memory_allocated=_zero,
    )
    original = TorchDevice.__init__
    TorchDevice.__init__ = begin
    flex_opt.torch = pytorch_backend.torch = _Over(torch, cuda=cuda, empty=empty, bmm=bmm)
    pytorch_backend.F = _Over(torch.nn.functional, linear=linear)
    torch.Tensor.cuda = torch.Tensor.pin_memory = lambda tensor, *options: tensor
