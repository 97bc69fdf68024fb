"""What an engine that generates text reports: its passes as phases, and one set of numbers. Stands alone.

The definitions of latency and throughput are FlexGen's (`flexgen/flex_opt.py`, run_flexgen), for every engine: the
prefill is the pass that turns the prompts into the first token of each, decode the passes after it.
"""

from __future__ import annotations

import json
import os
import random
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from free_space import is_full
from gpu_memory import shortage
from phase_log import PhaseLog

#: Ids below this are special tokens of OPT: beginning, padding, end, unknown.
_FIRST_WORD = 4


class Phases:
    """One phase after the other: entering one leaves the one before."""

    def __init__(self, log: PhaseLog) -> None:
        """Tell them to `log`."""
        self._log = log
        self._open: AbstractContextManager[Any] | None = None

    def enter(self, name: str, step: int | None = None) -> None:
        """Begin the phase `name`."""
        self.leave()
        self._open = self._log.phase(name, None, step)
        self._open.__enter__()

    def leave(self) -> None:
        """End the phase that is open, if one is."""
        if self._open is not None:
            self._open.__exit__(None, None, None)
            self._open = None


def prompts(job: dict[str, Any]) -> list[int]:
    """Return the token ids of the one prompt that every sequence of a batch gets, without padding, by the seed."""
    vocabulary = job["shape"]["vocabulary"]
    drawn = random.Random(job["seed"])
    return [2] + [drawn.randrange(min(_FIRST_WORD, vocabulary - 1), vocabulary) for _ in range(job["prompt_len"] - 1)]


def report(log: PhaseLog, job: dict[str, Any], sequences: int, seconds: Sequence[float], sizes: dict[str, int]) -> None:
    """Report the engine's numbers: `seconds` of each pass, the prefill first; `sizes` in bytes, by name."""
    prefill, decode = seconds[0], sum(seconds[1:])
    generated = sequences * len(seconds)
    log.metric("prefill_latency_s", prefill, "s")
    log.metric("prefill_tokens_per_s", sequences * job["prompt_len"] / prefill, "1/s")
    log.metric("decode_latency_s", decode, "s")
    log.metric("decode_tokens_per_s", sequences * (len(seconds) - 1) / decode, "1/s")
    log.metric("total_latency_s", prefill + decode, "s")
    log.metric("tokens_per_s", generated / (prefill + decode), "1/s")
    log.metric("generated_tokens", generated, "tokens")
    for name, size in {**sizes, "peak_host_memory_bytes": _peak_host_memory_bytes()}.items():
        log.metric(name, size, "B")


def _peak_host_memory_bytes() -> int:
    """Return the greatest resident set of this process since it was started (proc(5), VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def run(main: Callable[[str], None], job_path: str) -> None:
    """Run `main`; where it fails, say why and end at once: an engine's threads would keep the process, or abort it."""
    try:
        main(job_path)
    except Exception as e:  # noqa: BLE001 - whatever the engine threw becomes the reason
        traceback.print_exc()
        try:
            job = json.loads(Path(job_path).read_text())
            PhaseLog().error(_in_words(e, job["offload_dir"]))
            sys.stdout.flush()
        finally:
            os._exit(1)


def _in_words(error: BaseException, offload_dir: str) -> str:
    """Return what an engine's error means; a full filesystem shows as all kinds of errors of the system."""
    told: str | None = shortage(error, "make workload.batch_size or the model smaller, or leave less of it on the GPU")
    if told:
        return told
    full = "the filesystem under test was full: " if is_full(offload_dir) else ""
    # Engines assert without words: then the line that did.
    text = str(error) or traceback.extract_tb(error.__traceback__)[-1].line
    return f"{full}{type(error).__name__}: {text}"


def check_shape(job: dict[str, Any]) -> None:
    """Raise ValueError where the checkpoint's own configuration has another shape than the job."""
    if job["checkpoint"] is None:
        return
    found = json.loads((Path(job["checkpoint"]) / "config.json").read_text())
    names = {
        "layers": "num_hidden_layers",
        "hidden": "hidden_size",
        "heads": "num_attention_heads",
        "vocabulary": "vocab_size",
        "positions": "max_position_embeddings",
    }
    for ours, theirs in names.items():
        if found.get(theirs) != job["shape"][ours]:
            text = f"{ours} {found.get(theirs)} ({theirs} of its config.json), the sweep asks for {job['shape'][ours]}"
            raise ValueError(f"workload.checkpoint: {job['checkpoint']} has {text}")


def device(job: dict[str, Any], torch: Any) -> str:
    """Return where to compute, `cuda` or `cpu`; raise ValueError where that is not to be had.

    A node with a GPU whose torch finds none must not pass as a measurement of that GPU.
    """
    # where it is not wanted it is not asked for: under a small limit of memory a job has no room for CUDA
    found = job["device"] != "cpu" and torch.cuda.is_available()
    if not found and (job["device"] == "cuda" or (job["device"] == "auto" and job["gpu"])):
        text = f"{job['device']} means CUDA on this node, and torch {torch.__version__} finds none"
        raise ValueError(f"workload.device: {text}: install a torch with CUDA, or say cpu")
    return "cuda" if found else "cpu"


def write_tokens(job: dict[str, Any], tokens: Sequence[Sequence[int]]) -> None:
    """Write the token ids of every sequence, prompt included, beside the job's description."""
    Path(job["tokens"]).write_text(json.dumps([[int(t) for t in row] for row in tokens]))
