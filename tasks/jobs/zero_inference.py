"""Generate text with DeepSpeed's ZeRO-Inference (ZeRO stage 3, weights on the drive), telling its passes as phases.

Stands alone, started as `python zero_inference.py JOB.json` under the engine's interpreter. The model is OPT as
transformers has it; DeepSpeed fetches each layer's weights from the drive before it runs and drops them afterwards.
"""

from __future__ import annotations

import gc
import json
import os
import re
import resource
import sys
import time
from pathlib import Path
from typing import Any

from aio_library import load_library, load_pinned
from generation_log import Phases, check_shape, device, prompts, report, run, write_tokens
from phase_log import PhaseLog

#: Made-up weights are views of one buffer of random numbers, each this many elements after the one before.
_STRIDE = 997

#: The spread of OPT's own initial weights.
_SPREAD = 0.02

_CAP_IPC_LOCK = 14


def main(job_path: str) -> None:
    """Run the job described in the file `job_path`."""
    job = json.loads(Path(job_path).read_text())
    log = PhaseLog()
    phases = Phases(log)
    phases.enter("init")
    check_shape(job)
    _check_locked_memory(job["locked_bytes"])
    import torch

    chosen = _device(job, torch)
    engine = _engine(job, torch, chosen)
    _check_offloaded(job)
    if chosen == "cuda":
        torch.cuda.reset_peak_memory_stats()  # the model is built in larger pieces than it is run in
    tokens, seconds = _generate(job, torch, engine, phases)
    sizes = {name: job[name] for name in ("model_bytes", "cache_bytes", "offloaded_bytes")}
    if chosen == "cuda":
        sizes["peak_gpu_memory_bytes"] = torch.cuda.max_memory_allocated()
    report(log, job, job["batch_size"], seconds, sizes)
    write_tokens(job, tokens)
    _release(torch, engine)
    log.done()


def _check_locked_memory(needed_bytes: int) -> None:
    """Raise OSError where the buffers cannot be locked into memory: DeepSpeed would crash on a null pointer."""
    limit_bytes, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    status = Path("/proc/self/status").read_text().splitlines()
    capabilities = next(int(line.split()[1], 16) for line in status if line.startswith("CapEff:"))
    if not capabilities >> _CAP_IPC_LOCK & 1 and limit_bytes != resource.RLIM_INFINITY and limit_bytes < needed_bytes:
        text = f"buffers of {needed_bytes} bytes cannot be locked into memory, where this user may lock {limit_bytes}"
        raise OSError(f"workload.buffer_count: {text}: raise that (ulimit -l counts KiB) or run as root")


def _device(job: dict[str, Any], torch: Any) -> str:
    """Return where to compute, and tell DeepSpeed."""
    chosen: str = device(job, torch)
    for name, wanted in (("dtype", "float16"), ("kv_offload", True)):
        if chosen == "cpu" and job[name] == wanted:
            raise ValueError(f"workload.{name}: {wanted} needs CUDA, and torch finds none")
    os.environ["DS_ACCELERATOR"] = chosen
    return chosen


# --- the engine ------------------------------------------------------------------------------------------------------


def _engine(job: dict[str, Any], torch: Any, device: str) -> Any:
    """Return DeepSpeed's engine with the model on the drive."""
    import deepspeed

    _start(job, torch, deepspeed, device)
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    name = {"cuda": "float16", "cpu": "bfloat16"}[device] if job["dtype"] == "auto" else job["dtype"]
    config = {**job["deepspeed"], {"float16": "fp16", "bfloat16": "bf16"}[name]: {"enabled": True}}
    told = HfDeepSpeedConfig(config)  # while it lives, transformers builds models the ZeRO-3 way
    with torch.no_grad():
        model = _model(job, torch, getattr(torch, name)).eval()
    engine = deepspeed.initialize(model=model, config=config)[0]
    engine.module.eval()
    del told
    return engine


def _start(job: dict[str, Any], torch: Any, deepspeed: Any, device: str) -> None:
    """Bring up DeepSpeed for one process, without a compiler and without a port."""
    from deepspeed.ops.op_builder import AsyncIOBuilder

    if job["async_io"]:
        # As DeepSpeed's builder leaves them after a build
        loaded = AsyncIOBuilder._loaded_ops
        loaded["async_io"], loaded["pin_memory"] = load_library(job["async_io"]), load_pinned(job["async_io"])
    # One process sends nothing to others: the operator that would be compiled for it is called incompatible.
    deepspeed.ops.__compatible_ops__ = {}
    backend = "nccl" if device == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
    deepspeed.init_distributed(backend)


def _model(job: dict[str, Any], torch: Any, dtype: Any) -> Any:
    """Return the model, every layer moved to the drive as soon as it is made."""
    from transformers import OPTConfig, OPTForCausalLM

    if job["checkpoint"]:
        return OPTForCausalLM.from_pretrained(job["checkpoint"], dtype=dtype)
    shape = job["shape"]
    width = shape["embedding"] or shape["hidden"]
    config = OPTConfig(
        num_hidden_layers=shape["layers"],
        hidden_size=shape["hidden"],
        ffn_dim=4 * shape["hidden"],
        num_attention_heads=shape["heads"],
        vocab_size=shape["vocabulary"],
        max_position_embeddings=shape["positions"],
        word_embed_proj_dim=width,
        do_layer_norm_before=width == shape["hidden"],
    )
    weights = _made_up(job, torch, dtype)
    return OPTForCausalLM.from_pretrained(None, config=config, state_dict=weights, dtype=dtype)


def _made_up(job: dict[str, Any], torch: Any, dtype: Any) -> dict[str, Any]:
    """Return weights that take no more memory than the largest tensor, and no room on any drive.

    Random numbers, not zeros: a drive, or the host below a virtual one, may not write zeros at all.
    """
    sizes = {name: torch.Size(size) for name, size in job["tensors"]}
    longest = max(size.numel() for size in sizes.values()) + _STRIDE * len(sizes)
    random = torch.Generator().manual_seed(job["seed"])
    numbers = torch.empty(longest, dtype=dtype).normal_(0, _SPREAD, generator=random)
    return {
        name: numbers[_STRIDE * place : _STRIDE * place + size.numel()].view(size)
        for place, (name, size) in enumerate(sizes.items())
    }


def _check_offloaded(job: dict[str, Any]) -> None:
    """Raise RuntimeError unless DeepSpeed put the weights where they belong."""
    folder = Path(job["offload_dir"]) / "zero_stage_3"
    found = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    least, most = job["offloaded_bytes"], job["file_bytes_at_most"]
    if not least <= found <= most:
        raise RuntimeError(f"DeepSpeed put {found} bytes into {folder}, not {least} to {most} as the shape says")


def _release(torch: Any, engine: Any) -> None:
    """Delete the aio handles: their threads must be gone before the interpreter ends, or it aborts."""
    for swapper in {parameter.nvme_swapper for parameter in engine.module.parameters()}:
        swapper.aio_read_handle = swapper.aio_write_handle = None
    gc.collect()
    torch.distributed.destroy_process_group()


# --- generation ------------------------------------------------------------------------------------------------------


class Passes:
    """The passes of one generation: each lasts until the model is called again, or the generation returns."""

    def __init__(self, phases: Phases, measured: bool) -> None:
        self._phases, self._measured = phases, measured
        self._begun: list[float] = []

    def begin(self, *_: Any) -> None:
        """Begin the next pass; a hook before the model's own and DeepSpeed's."""
        step = len(self._begun)
        self._begun.append(time.monotonic())
        if self._measured:
            self._phases.enter("decode" if step else "prefill", step)
        else:
            self._phases.enter("warmup")

    def end(self) -> list[float]:
        """End the last pass and return the seconds of each."""
        self._phases.leave()
        ends = [*self._begun[1:], time.monotonic()]
        return [end - self._begun[step] for step, end in enumerate(ends)]


def _generate(job: dict[str, Any], torch: Any, engine: Any, phases: Phases) -> tuple[Any, list[float]]:
    """Return the tokens of every sequence, prompts included, and the seconds of each pass after a warm-up."""
    prompt = torch.tensor([prompts(job)] * job["batch_size"], device=engine.device)
    phases.leave()
    model = engine.module
    model.generation_config.eos_token_id = None  # never stop early
    options = {"cache_implementation": "offloaded"} if job["kv_offload"] else {}
    for measured, count in ((False, 1), (True, job["gen_len"])):
        passes = Passes(phases, measured)
        hook = model.register_forward_pre_hook(passes.begin, prepend=True)
        with torch.no_grad():
            tokens = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=False,
                min_new_tokens=count,
                max_new_tokens=count,
                use_cache=True,
                **options,
            )
        seconds = passes.end()
        hook.remove()
    if tokens.shape != (job["batch_size"], job["prompt_len"] + job["gen_len"]) or len(seconds) != job["gen_len"]:
        raise RuntimeError(f"transformers returned {tuple(tokens.shape)} tokens after {len(seconds)} passes")
    return tokens.tolist(), seconds


def _prepare_environment() -> None:
    """Set what DeepSpeed and transformers take from the environment, before either is imported."""
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")
    os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is to be fetched
    # An environment of its own builds the operator when it first needs it: with its ninja, and for architectures
    # without the letter that DeepSpeed cannot parse.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    if "TORCH_CUDA_ARCH_LIST" in os.environ:
        os.environ["TORCH_CUDA_ARCH_LIST"] = re.sub(r"(\d)a\b", r"\1", os.environ["TORCH_CUDA_ARCH_LIST"])


if __name__ == "__main__":
    _prepare_environment()
    run(main, sys.argv[1])
