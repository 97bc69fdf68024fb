"""`flexgen`: FlexGen's benchmark with weights, KV cache or both offloaded (the study's Figs. 4 to 6)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import ClassVar

from tasks.cache import cache_dir
from tasks.models import ELEMENT_BYTES, FEED_FORWARD, POSITION_OFFSET, Shape
from tasks.spec import key
from tasks.workloads import Job, Problem, Span
from tasks.workloads.generation import PASSES, Generation, GenerationConfig, finished

_JOB = Path(__file__).parent.parent / "jobs" / "flexgen_generate.py"

#: Elements of the buffer each of FlexGen's copy threads relays through; a larger tensor kills the thread.
_COPY_ELEMENTS = 1 << 30

#: FlexGen's warm-up generates one token for prompts of this many.
_WARMUP_TOKENS = 32

#: FlexGen compresses to 4 bits, in groups of this many elements that share two 16-bit numbers.
_GROUP = 64

#: A numpy file begins with a header of this many bytes (numpy.lib.format, version 1.0, these shapes).
_HEADER_BYTES = 128

_PARTS = ("weights", "cache", "activations")


@dataclass
class Config(GenerationConfig):
    """Keys of `workload` when `kind: flexgen`."""

    percent: list[int] = key(
        lambda: [100, 0, 0, 0, 100, 0],
        "weights on GPU, on CPU; KV cache on GPU, on CPU; activations on GPU, on CPU: what lacks to 100 is on disk",
    )
    num_batches: int = key(1, "batches that share a layer's weights while they are loaded (num-gpu-batches)")
    overlap: bool = key(True, "copy the next layer's weights and cache while this one is computed")
    sep_layer: bool = key(True, "attention and MLP are loaded as two layers")
    pin_weight: bool = key(True, "weights on the CPU in page-locked memory")
    cpu_cache_compute: bool = key(False, "attention over the KV cache is computed on the CPU")
    compress_weight: bool = key(False, "weights in 4 bits")
    compress_cache: bool = key(False, "KV cache in 4 bits")
    least_share: float = key(
        0.5, "share of the expected reads that must reach the device: the page cache may answer the rest"
    )


_Config = Config


class Workload(Generation):
    """Runs the engine's own benchmark: a warm-up, then one generation."""

    Config: ClassVar[type] = Config
    _packages = ("flexgen", "torch", "transformers", "numpy")
    _config: _Config

    @property
    def figures(self) -> Sequence[str]:
        """Figures worth drawing, by what is on disk."""
        weights, cache = self._on_disk("weights") > 0, self._on_disk("cache") > 0
        return [*(["fig4"] if weights else []), *(["fig5", "fig6"] if cache else []), "tokens", "roofline"]

    def problems(self) -> list[Problem]:
        """Return what is wrong with the configuration beyond its types."""
        c = self._config
        if found := super().problems():
            return found
        if found := _percent_problems(c.percent):
            return found
        if self.shape.embedding:
            return [Problem("model", "opt-350m normalises after its layers, which FlexGen does not implement")]
        problems = []
        if c.num_batches < 1:
            problems.append(Problem("num_batches", f"must be 1 or more, not {c.num_batches}"))
        if not 0 <= c.least_share <= 1:
            problems.append(Problem("least_share", f"must be a share from 0 to 1, not {c.least_share}"))
        if self.shape.positions < _WARMUP_TOKENS + 1:
            text = f"{self.shape.positions} positions are too few: FlexGen warms up with {_WARMUP_TOKENS + 1}"
            problems.append(Problem("shape", text))
        return [*problems, *self._engine_problems()]

    def _engine_problems(self) -> Iterator[Problem]:
        """Yield what this version of the engine would fail on, or get wrong."""
        c = self._config
        if c.compress_cache and 0 < max(c.percent[2], c.percent[3], self._on_disk("cache")) < 100:
            yield Problem("compress_cache", "FlexGen compresses a KV cache in one place only, not one in several")
        if not c.overlap and max(map(self._on_disk, _PARTS)):
            text = "FlexGen's loop without it does not wait for what it loads from disk, and computes on garbage"
            yield Problem("overlap", f"must be true with anything on disk: {text}")
        largest, name = max(self._copies())
        if largest > _COPY_ELEMENTS:
            text = f"of {largest} elements is more than the {_COPY_ELEMENTS} that FlexGen copies at once"
            yield Problem("batch_size" if name == "a layer's keys" else "shape", f"{name} {text}: make it smaller")

    def _copies(self) -> Iterator[tuple[int, str]]:
        """Yield elements and name of what a copy thread moves at once; what is on the GPU needs none."""
        c, shape = self._config, self.shape
        yield 0, "nothing"
        if c.percent[0] < 100:
            yield shape.vocabulary * shape.hidden, "the token embedding"
            yield shape.hidden**2 * FEED_FORWARD, "a layer's weight"
        if c.percent[2] < 100:
            yield (c.prompt_len + c.gen_len) * c.batch_size * shape.hidden, "a layer's keys"

    def _on_disk(self, part: str) -> int:
        """Return the per cent of `weights`, `cache` or `activations` that is on disk."""
        first = 2 * _PARTS.index(part)
        return 100 - sum(self._config.percent[first : first + 2])

    # --- sizes -------------------------------------------------------------------------------------------------------

    @property
    def _sequences(self) -> int:
        return self._config.batch_size * self._config.num_batches

    def _weight_bytes_on_disk(self) -> int:
        """Return the bytes of weights on disk: FlexGen reads all of them in each pass."""
        return sum(self._file_bytes(tensor) for tensor in self._tensors_on_disk())

    def _tensors_on_disk(self) -> Iterator[tuple[int, ...]]:
        """Yield the dimensions of every tensor whose home is the disk.

        FlexGen orders a part of a layer's tensors along 100 %, disk first, then CPU, then GPU, and places each by the
        middle of its own stretch (`flex_opt.init_weight_list`).
        """
        for tensors in _layers(self.shape):
            sizes = [prod(tensor) for tensor in tensors]
            before = 0
            for tensor, size in zip(tensors, sizes, strict=True):
                middle = 100 * (before + size / 2) / sum(sizes)
                before += size
                if middle < self._on_disk("weights"):
                    yield tensor

    def _file_bytes(self, tensor: tuple[int, ...]) -> int:
        if self._config.compress_weight and len(tensor) > 1:
            return _compressed_bytes(prod(tensor[1:]), tensor[0])
        return prod(tensor) * ELEMENT_BYTES

    def _cache_bytes(self, positions: int) -> int:
        """Return the bytes on disk of keys and values of `positions` tokens of all sequences."""
        shape, c = self.shape, self._config
        # A cache in several places is parted by whole sequences, the disk takes what the roundings leave.
        elsewhere = sum(c.batch_size * percent // 100 for percent in c.percent[2:4])
        sequences = (c.batch_size - elsewhere) * c.num_batches if self._on_disk("cache") else 0
        if c.compress_cache:
            vectors = positions * sequences * shape.heads
            return 2 * shape.layers * _compressed_bytes(vectors, shape.hidden // shape.heads)
        return shape.cache_bytes(sequences, positions)

    def space_bytes(self) -> int:
        """Return the room for the weights and the whole KV cache on disk."""
        c = self._config
        files = 4 * (2 + 16 * self.shape.layers + 2 * self.shape.layers * c.num_batches)
        rounding = files * (_HEADER_BYTES + 4096)
        return self._weight_bytes_on_disk() + self._cache_bytes(c.prompt_len + c.gen_len - 1) + rounding

    # --- the job -----------------------------------------------------------------------------------------------------

    def job(self, folder: Path, offload_dir: Path, seed: int) -> Job:
        """Write the job's description to `folder` and return the command that runs it."""
        (folder / "logs").mkdir(exist_ok=True)
        path = self._describe(
            folder,
            offload_dir=str(offload_dir),
            num_batches=self._config.num_batches,
            arguments=self._arguments(folder, offload_dir),
            model_bytes=self.shape.weight_bytes,
            weights_dir=str(self._converted()),
            tokens=str(folder / "tokens.json"),
            seed=seed,
        )
        return Job("flexgen", self._command(_JOB, path))

    def _arguments(self, folder: Path, offload_dir: Path) -> list[str]:
        """Return the command line of FlexGen's benchmark, but for the weights."""
        c = self._config
        flags = {name: vars(c)[name] for name in ("cpu_cache_compute", "compress_weight", "compress_cache")}
        return [
            *("--offload-dir", str(offload_dir)),
            *("--prompt-len", str(c.prompt_len), "--gen-len", str(c.gen_len)),
            *("--gpu-batch-size", str(c.batch_size), "--num-gpu-batches", str(c.num_batches)),
            *("--percent", *(str(percent) for percent in c.percent)),
            *("--overlap", str(c.overlap), "--sep-layer", str(c.sep_layer), "--pin-weight", str(c.pin_weight)),
            *(f"--{name.replace('_', '-')}" for name, wanted in flags.items() if wanted),
            *("--log-file", str(folder / "logs" / "flexgen-benchmark.log")),
        ]

    def _converted(self) -> Path:
        """Return where a checkpoint's weights are kept in FlexGen's own form, in the node's cache.

        Files of another size or age make another checkpoint.
        """
        folder = Path(str(self._config.checkpoint))
        found = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.glob("*")) if p.is_file()]
        name = hashlib.sha256(repr((str(folder), found)).encode()).hexdigest()[:16]
        return cache_dir("flexgen-weights") / name

    def role(self, path: str) -> str:
        """Return what the job's script put in front of the name that FlexGen chose (tasks/jobs/flexgen_generate.py)."""
        role = path.partition("_")[0]
        return role if role in ("weights", "kv") else "file"

    def expected(self, spans: Sequence[Span]) -> dict[str, int]:
        """Return what the finished passes read from disk without a page cache, and what was put there.

        Each pass reads the weights on disk; decode step i reads the keys and values of the prompt and of i tokens;
        the prefill writes those of the prompt, each step but the last those of one token.
        """
        c = self._config
        weights = self._weight_bytes_on_disk()
        decodes = [s.step for s in finished(spans, "decode") if s.step is not None]
        known = -1 if c.cpu_cache_compute and not c.compress_cache else 0
        read = weights * len(finished(spans, *PASSES))
        read += sum(self._cache_bytes(c.prompt_len + step + known) for step in decodes)
        stored = c.prompt_len + len([step for step in decodes if step < c.gen_len - 1])
        written = self._cache_bytes(stored) if finished(spans, "prefill") else 0
        return {"read": read, "write": weights + written}

    def shares(self) -> Mapping[str, float]:
        """Return the least share of reads.

        FlexGen maps its files into memory: the page cache answers what fits beneath the memory limit, and what a
        deleted file had not yet written never reaches the device.
        """
        return {"read": self._config.least_share, "write": 0.0}


def _percent_problems(percent: list[int]) -> list[Problem]:
    if len(percent) != 2 * len(_PARTS):
        return [Problem("percent", f"must be six numbers, as in [100, 0, 0, 0, 100, 0], not {percent}")]
    for place, part in enumerate(_PARTS):
        pair = percent[2 * place : 2 * place + 2]
        if min(pair) < 0 or sum(pair) > 100:
            text = f"{pair[0]} on GPU and {pair[1]} on CPU must be 0 or more and 100 or less together"
            return [Problem("percent", f"{part}: {text}")]
    if tuple(percent[4:]) not in ((100, 0), (0, 100)):
        text = "FlexGen needs all of them on GPU (100, 0) or on CPU (0, 100): it fails with some of them on disk"
        return [Problem("percent", f"activations: {text}; not {percent[4]}, {percent[5]}")]
    return []


def _layers(shape: Shape) -> Iterator[list[tuple[int, ...]]]:
    """Yield the tensors of each part that FlexGen places by itself, in its order (`flex_opt.init_weight`)."""
    hidden, wide, vector = shape.hidden, shape.hidden * FEED_FORWARD, (shape.hidden,)
    square = [(hidden, hidden), vector]
    yield [(shape.vocabulary, hidden), (shape.positions + POSITION_OFFSET, hidden)]
    for _ in range(shape.layers):
        yield [*square, *square, *square, *square, vector, vector]
        yield [(wide, hidden), (wide,), (hidden, wide), vector, vector, vector]
    yield [vector, vector, (shape.vocabulary, hidden)]


def _compressed_bytes(rows: int, columns: int) -> int:
    """Return the bytes of `rows` x `columns` elements in 4 bits, groups along the columns."""
    groups = -(-columns // _GROUP)
    return rows * groups * (_GROUP // 2 + 2 * ELEMENT_BYTES)
