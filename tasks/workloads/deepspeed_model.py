"""`deepspeed_model`: ZeRO-Inference, weights on the drive by DeepSpeed's ZeRO stage 3 (the study's Fig. 3)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, ClassVar

from tasks import async_io
from tasks.models import ELEMENT_BYTES
from tasks.spec import key
from tasks.units import MIB, format_bytes, parse_bytes
from tasks.workloads import Job, Problem, Span
from tasks.workloads.generation import PASSES, Generation, GenerationConfig, finished

DTYPES = ("auto", "float16", "bfloat16")

_JOB = Path(__file__).parent.parent / "jobs" / "zero_inference.py"

#: DeepSpeed never swaps a smaller tensor, whatever block_size says (swap_tensor/utils.py, MIN_AIO_BYTES).
_SMALLEST_SWAPPED_BYTES = MIB

#: What each aio thread moves is a multiple of this (swap_tensor/utils.py, AIO_ALIGNED_BYTES).
_SWAP_UNIT_BYTES = 1024

#: libaio with O_DIRECT moves whole blocks: 512 or 4096 bytes; a page is good for both.
_ALIGNMENT = 4096

#: A shared tensor stays in memory until its next use if fewer elements come in between (stage3_max_reuse_distance).
_REUSE_ELEMENTS = 1_000_000_000

#: With less of the weights offloaded than this the trial would measure something else.
_LEAST_OFFLOADED = 0.5


@dataclass
class Config(GenerationConfig):
    """Keys of `workload` when `kind: deepspeed_model`."""

    dtype: str = key("auto", "of the weights: float16 (CUDA only), bfloat16, or auto: what the device is good at")
    block_size: int | str = key("1MiB", "aio: bytes of one request handed to libaio; smaller tensors stay in memory")
    queue_depth: int = key(32, "aio: requests in flight per thread")
    parallelism: int = key(1, "aio: threads that share one tensor (intra_op_parallelism)")
    single_submit: bool = key(False, "aio: submit requests one by one")
    overlap_events: bool = key(True, "aio: submit new requests while others complete")
    buffer_count: int = key(5, "buffers in page-locked memory between drive and model; 2 or more")
    buffer_size: int | str | None = key(
        None, "bytes of each buffer (DeepSpeed's own key counts elements); null: as large as the largest tensor"
    )
    pin_memory: bool = key(True, "CUDA: tensors too small to offload lie in page-locked memory")
    kv_offload: bool = key(False, "CUDA: the KV cache lies in host memory, a layer at a time on the GPU")


_Config = Config


class Workload(Generation):
    """Loads a model through ZeRO-3 onto the drive, warms up with one token, then generates."""

    Config: ClassVar[type] = Config
    _packages = ("deepspeed", "torch", "transformers", "accelerate")
    _config: _Config

    @property
    def figures(self) -> Sequence[str]:
        """Figures worth drawing of such trials."""
        return ("fig3", "tokens", "roofline")

    # --- what is refused ---------------------------------------------------------------------------------------------

    def problems(self) -> list[Problem]:
        """Return what is wrong with the configuration beyond its types."""
        found = [*super().problems(), *self._number_problems(), *self._device_problems()]
        return found or [*self._swap_problems()]

    def _number_problems(self) -> Iterator[Problem]:
        c = self._config
        for name, least in (("queue_depth", 1), ("parallelism", 1), ("buffer_count", 2)):
            if vars(c)[name] < least:
                yield Problem(name, f"must be {least} or more, not {vars(c)[name]}")
        try:
            if parse_bytes(c.block_size) % _ALIGNMENT:
                text = f"{c.block_size} is no multiple of {format_bytes(_ALIGNMENT)}, which direct I/O needs"
                yield Problem("block_size", text)
        except ValueError as e:
            yield Problem("block_size", str(e))
        try:
            parse_bytes(c.buffer_size if c.buffer_size is not None else 1)
        except ValueError as e:
            yield Problem("buffer_size", str(e))

    def _device_problems(self) -> Iterator[Problem]:
        c = self._config
        if c.dtype not in DTYPES:
            yield Problem("dtype", f"{c.dtype!r} is not one of {', '.join(DTYPES)}")
        if c.dtype == "float16" and c.device == "cpu":
            yield Problem("dtype", "float16 is for CUDA: DeepSpeed refuses it on the CPU; write bfloat16 or auto")
        if c.kv_offload and c.device == "cpu":
            yield Problem("kv_offload", "is for CUDA: on the CPU the KV cache lies in host memory already")

    def _swap_problems(self) -> Iterator[Problem]:
        """Yield a problem where little would be offloaded, silently, or a tensor would not fit its buffer."""
        weights, offloaded = self.shape.weight_bytes, sum(self._large())
        if offloaded < weights * _LEAST_OFFLOADED:
            yield self._too_little(weights, offloaded)
        elif self._config.buffer_size is not None and self._buffer_bytes() < max(self._offloaded()):
            text = f"{format_bytes(self._buffer_bytes())} is less than the largest offloaded tensor"
            yield Problem("buffer_size", f"{text} ({format_bytes(max(self._offloaded()))}); null sizes it to that")

    def _too_little(self, weights: int, offloaded: int) -> Problem:
        sizes = sorted(self._tensor_bytes(), reverse=True)
        part = f"{format_bytes(offloaded)} ({len(self._large())} of {len(sizes)} tensors)"
        text = f"of {format_bytes(weights)} of weights only {part} would be offloaded: DeepSpeed keeps tensors"
        largest = next(size for n, size in enumerate(sizes) if sum(sizes[: n + 1]) >= weights * _LEAST_OFFLOADED)
        if largest < _SMALLEST_SWAPPED_BYTES:
            name = "model" if self._config.model else "shape"
            return Problem(name, f"{text} below 1 MiB in memory, whatever block_size says; choose a wider model")
        at_most = format_bytes(largest // MIB * MIB)
        return Problem("block_size", f"{text} below block_size, and below 1 MiB, in memory; choose at most {at_most}")

    def needs(self) -> dict[str, str]:
        """Return the engine, and the GPU where something asks for it."""
        c = self._config
        needs = super().needs()
        if c.python is None:
            needs["engine:async_io"] = "workload.kind"
        for name, wanted in (("kv_offload", c.kv_offload), ("dtype", c.dtype == "float16")):
            if wanted:
                needs.setdefault("gpu", f"workload.{name}")
        return needs

    # --- sizes -------------------------------------------------------------------------------------------------------

    def _tensor_bytes(self) -> list[int]:
        return [prod(size) * ELEMENT_BYTES for _, size in self.shape.tensors()]

    def _smallest(self) -> int:
        """Return the bytes of the smallest tensor that DeepSpeed swaps."""
        return max(_SMALLEST_SWAPPED_BYTES, parse_bytes(self._config.block_size))

    def _large(self) -> list[int]:
        return [size for size in self._tensor_bytes() if size >= self._smallest()]

    def _aligned(self, size: int) -> int:
        """Return the bytes that move for a tensor of `size` bytes: every aio thread moves whole units."""
        unit = _SWAP_UNIT_BYTES * self._config.parallelism
        return -(-size // unit) * unit

    def _offloaded(self) -> list[int]:
        """Return the bytes on the drive of every offloaded tensor, the shared ones once."""
        return [self._aligned(size) for size in self._large()]

    def _embedding(self) -> int:
        """Return the bytes on the drive of the token embedding, which is the output layer's weight too."""
        size = self.shape.vocabulary * self.shape.embedding_width * ELEMENT_BYTES
        return self._aligned(size) if size >= self._smallest() else 0

    def _embedding_stays(self) -> bool:
        """Say whether the token embedding stays in memory from the first layer to the last."""
        between = self.shape.parameters - self.shape.vocabulary * self.shape.embedding_width
        return between < _REUSE_ELEMENTS

    def _buffer_bytes(self) -> int:
        wanted = self._config.buffer_size
        return max(self._offloaded()) if wanted is None else parse_bytes(wanted) // ELEMENT_BYTES * ELEMENT_BYTES

    def space_bytes(self) -> int:
        """Return the room for the offloaded weights; the output layer's file is made before it is shared."""
        files = [*self._offloaded(), self._embedding()]
        return sum(files) + len(files) * _ALIGNMENT

    # --- the job -----------------------------------------------------------------------------------------------------

    def job(self, folder: Path, offload_dir: Path, seed: int) -> Job:
        """Write the job's description to `folder` and return the command that runs it."""
        c = self._config
        offloaded = sum(self._offloaded())
        path = self._describe(
            folder,
            offload_dir=str(offload_dir),
            tensors=list(self.shape.tensors()),
            dtype=c.dtype,
            kv_offload=c.kv_offload,
            async_io=str(async_io.path()) if c.python is None else None,
            deepspeed=self._deepspeed(offload_dir),
            offloaded_bytes=offloaded,
            file_bytes_at_most=offloaded + self._embedding(),
            locked_bytes=c.buffer_count * self._buffer_bytes(),
            model_bytes=self.shape.weight_bytes,
            cache_bytes=self.shape.cache_bytes(c.batch_size, c.prompt_len + c.gen_len),
            tokens=str(folder / "tokens.json"),
            seed=seed,
        )
        return Job("deepspeed", self._command(_JOB, path))

    def _deepspeed(self, offload_dir: Path) -> dict[str, Any]:
        """Return DeepSpeed's own configuration, but for the type of the weights.

        What no key of ours sets is as in DeepSpeedExamples (inference/huggingface/zero_inference/run_model.py).
        """
        c, hidden = self._config, self.shape.hidden
        aio = {name: vars(c)[name] for name in ("queue_depth", "single_submit", "overlap_events")}
        return {
            "train_micro_batch_size_per_gpu": c.batch_size,
            "zero_optimization": {
                "stage": 3,
                "stage3_prefetch_bucket_size": 2 * hidden * hidden,
                "stage3_param_persistence_threshold": hidden,
                "stage3_max_live_parameters": 2 * hidden * hidden,
                "stage3_max_reuse_distance": _REUSE_ELEMENTS,
                "offload_param": {
                    "device": "nvme",
                    "nvme_path": str(offload_dir),
                    "pin_memory": c.pin_memory,
                    "buffer_count": c.buffer_count,
                    "buffer_size": self._buffer_bytes() // ELEMENT_BYTES,
                },
            },
            "aio": {"block_size": parse_bytes(c.block_size), "intra_op_parallelism": c.parallelism, **aio},
        }

    def role(self, path: str) -> str:
        """Return that a file holds weights: DeepSpeed puts nothing else on the drive, the KV cache stays in memory."""
        return "weights"

    def expected(self, spans: Sequence[Span]) -> dict[str, int]:
        """Return what the finished phases read and wrote, through direct I/O.

        The model is built on the drive (one write of each tensor, and of the output layer before it is shared), then
        every tensor is read, given its weights and written back. Each pass reads each tensor once; the token embedding,
        used first and last, twice in the first pass, which DeepSpeed learns the order from, and in every pass of a
        model so large that it is dropped in between.
        """
        once, again = sum(self._offloaded()), self._embedding()
        built, first = (len(finished(spans, name)) for name in ("init", "warmup"))
        passes = len(finished(spans, *PASSES))
        repeated = first if self._embedding_stays() else passes
        return {"read": once * (built + passes) + again * repeated, "write": (2 * once + again) * built}

    def shares(self) -> Mapping[str, float]:
        """Return that nothing stands between the job and the device.

        The rest is for filesystems of whole 4 KiB blocks: what does not fill them goes through the page cache there.
        """
        return {"read": 0.95, "write": 0.95}
