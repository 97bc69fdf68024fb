"""What engines that generate text have in common: the model, the lengths, the device, the interpreter."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tasks import interpreter, machine, models
from tasks.models import Shape
from tasks.spec import key
from tasks.workloads import Problem, Span

DEVICES = ("auto", "cpu", "cuda")

#: Phases in which the engine runs the whole model once.
PASSES = ("warmup", "prefill", "decode")

#: Names under which transformers saves weights, or the index of their shards.
_WEIGHTS = tuple(f"{name}{end}" for name in ("model.safetensors", "pytorch_model.bin") for end in ("", ".index.json"))


@dataclass
class GenerationConfig:
    """Keys of `workload` that every engine understands."""

    model: str | None = key("opt-125m", f"{', '.join(models.OPT)}; null where shape gives the numbers")
    shape: dict[str, int] = key(
        dict, "a model of one's own: layers, hidden, heads; vocabulary (50272), positions (2048)"
    )
    checkpoint: str | None = key(
        None, "folder with weights of that shape as transformers saves them; null: dummy weights"
    )
    batch_size: int = key(1, "sequences generated together")
    prompt_len: int = key(256, "tokens of each prompt")
    gen_len: int = key(32, "tokens generated for each prompt: one by the prefill, the others by decode steps")
    device: str = key("auto", "where the engine computes: cpu, cuda, or auto: cuda on a node that has a GPU")
    python: str | None = key(None, "interpreter of the environment the engine lives in; null: the one of the sweep")


class Generation:
    """The parts of a workload that do not depend on the engine."""

    says_done = True
    metric: ClassVar[str] = "tokens_per_s"

    #: Distributions that must be there, the engine's first.
    _packages: Sequence[str] = ()

    def __init__(self, config: Any) -> None:
        """Take a configuration whose types are right."""
        self._config = config

    @property
    def shape(self) -> Shape:
        """The model's shape."""
        return models.of(self._config.model, self._config.shape)

    def problems(self) -> list[Problem]:
        """Return what is wrong with the configuration beyond its types."""
        c = self._config
        if found := models.problem(c.model, c.shape):
            return [Problem(*found)]
        least = {"batch_size": 1, "prompt_len": 1, "gen_len": 2}
        problems = [
            Problem(name, f"must be {n} or more, not {vars(c)[name]}") for name, n in least.items() if vars(c)[name] < n
        ]
        if c.prompt_len + c.gen_len > self.shape.positions:
            text = f"{c.prompt_len} and {c.gen_len} generated tokens are more than the {self.shape.positions} positions"
            problems.append(Problem("prompt_len", f"{text} of the model"))
        if c.device not in DEVICES:
            problems.append(Problem("device", f"{c.device!r} is not one of {', '.join(DEVICES)}"))
        problems += [
            Problem(name, f"must start with /: nodes share no folder; not {vars(c)[name]!r}")
            for name in ("checkpoint", "python")
            if vars(c)[name] is not None and not vars(c)[name].startswith("/")
        ]
        return problems

    def needs(self) -> dict[str, str]:
        """Return the engine, where it must live in our own environment, and the GPU where it is named."""
        own = {} if self._config.python else {f"engine:{self._packages[0]}": "workload.kind"}
        return own | ({"gpu": "workload.device"} if self._config.device == "cuda" else {})

    def wants_gpu(self) -> bool:
        """Say whether the job uses a GPU where there is one."""
        return bool(self._config.device == "auto")

    def python(self) -> str | None:
        """Return the interpreter of the engine's own environment, or None for ours."""
        found: str | None = self._config.python
        return found

    def packages(self) -> Sequence[str]:
        """Return the engine and what it stands on."""
        return self._packages

    def files(self) -> Sequence[str]:
        """Return what a checkpoint consists of; of its shards, the index."""
        folder, names = self._config.checkpoint, ("config.json", *_WEIGHTS)
        return ("", *(f"{folder}/{name}" for name in names)) if folder else ()

    def doubts(self, spans: Sequence[Span]) -> list[str]:
        """Return a reason where the job generated fewer tokens than asked, whatever it said at its end."""
        steps = 1 + len(finished(spans, "decode")) if finished(spans, "prefill") else 0
        if steps == self._config.gen_len:
            return []
        return [f"the job finished {steps} of the {self._config.gen_len} passes that gen_len asks for"]

    def _command(self, script: Path, description: Path) -> list[str]:
        return [interpreter.command(self._config.python), str(script), str(description)]

    def _describe(self, folder: Path, **more: Any) -> Path:
        """Write what the job's script reads to `folder` and return its path."""
        c = self._config
        shared = {name: vars(c)[name] for name in ("checkpoint", "batch_size", "prompt_len", "gen_len", "device")}
        path = folder / "job.json"
        job = {"shape": self.shape.to_json(), "gpu": bool(machine.gpus()), **shared, **more}
        path.write_text(json.dumps(job, indent=1))
        return path


def finished(spans: Sequence[Span], *names: str) -> list[Span]:
    """Return the spans of these names that came to their end."""
    return [s for s in spans if s.name in names and s.end_ns is not None]
