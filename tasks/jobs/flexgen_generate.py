"""Generate text with FlexGen's own benchmark (`flexgen.flex_opt.run_flexgen`), telling its passes as phases.

Stands alone, started as `python flexgen_generate.py JOB.json` under the engine's interpreter. FlexGen's clock of each
pass, its timer "generate", is the one we listen to: the engine runs as it does by hand.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from generation_log import Phases, check_shape, device, prompts, report, run, write_tokens
from phase_log import PhaseLog

#: FlexGen takes a path with this word for weights that it makes up.
_DUMMY = "_DUMMY_"


def main(job_path: str) -> None:
    """Run the job described in the file `job_path`."""
    job = json.loads(Path(job_path).read_text())
    os.environ["HF_HUB_OFFLINE"] = "1"  # what FlexGen would fetch we bring
    log = PhaseLog()
    phases = Phases(log)
    phases.enter("init")
    _report_dead_threads(log)
    check_shape(job)
    import torch

    on_cuda = device(job, torch) == "cuda"
    engine = Engine(job, phases, on_cuda)
    engine.run()
    phases.leave()
    shape = engine.config
    tokens = job["prompt_len"] + job["gen_len"]
    sizes = {"model_bytes": job["model_bytes"], "cache_bytes": shape.cache_bytes(engine.sequences, tokens)}
    if on_cuda:
        sizes["peak_gpu_memory_bytes"] = torch.cuda.max_memory_allocated()
    report(log, job, engine.sequences, engine.seconds, sizes)
    if engine.tokens is None or engine.tokens.shape != (engine.sequences, tokens):
        raise RuntimeError("FlexGen came to its end without the tokens it was asked for")
    write_tokens(job, engine.tokens)
    log.done()


class Engine:
    """FlexGen with our model, our prompt and an ear on its timer."""

    def __init__(self, job: dict[str, Any], phases: Phases, on_cuda: bool) -> None:
        if not on_cuda:
            import flexgen_without_cuda

            flexgen_without_cuda.install()
        from flexgen import flex_opt, opt_config, pytorch_backend, timer

        self._job, self._flex_opt = job, flex_opt
        self.sequences = job["batch_size"] * job["num_batches"]
        self.config = _config(job["shape"], opt_config.OptConfig)
        self.tokens: Any = None
        self._timer = timer.timers.timers["generate"] = _listening(timer._Timer, phases)
        if "OFFLOAD_SWEEP_KEEP" in os.environ:
            _leave_files(pytorch_backend.TorchDisk, self._timer)
        flex_opt.get_opt_config = lambda name: self.config
        flex_opt.AutoTokenizer = Tokenizer(prompts(job))
        names = Names(pytorch_backend.TorchTensor)
        flex_opt.OptLM = self._keeping_tokens(_telling_files(flex_opt.OptLM, names))

    def run(self) -> None:
        """Run the benchmark as its own command line does."""
        parser = argparse.ArgumentParser()
        self._flex_opt.add_parser_arguments(parser)
        arguments = parser.parse_args(self._job["arguments"])
        arguments.path = self._weights()
        self._flex_opt.run_flexgen(arguments)

    @property
    def seconds(self) -> list[float]:
        """Seconds of each pass of the measured generation, as FlexGen's timer has them."""
        return list(self._timer.costs)

    def _weights(self) -> str:
        return _DUMMY if self._job["checkpoint"] is None else _as_numpy(self._job, self.config.name)

    def _keeping_tokens(self, model: Any) -> Any:
        engine = self

        class Model(model):  # type: ignore[misc]
            def generate(self, *args: Any, **options: Any) -> Any:
                engine.tokens = super().generate(*args, **options)
                return engine.tokens

        return Model


class Names:
    """FlexGen's names of tensors, which are those of their files, with what the tensor holds in front."""

    def __init__(self, tensor: Any) -> None:
        """Name the tensors of the class `tensor`; what is put on disk begins as weights."""
        self.role = "weights"
        numbered = tensor.next_name
        tensor.next_name = lambda: f"{self.role}_{numbered()}"


def _leave_files(disk: Any, timer: Any) -> None:
    """Let what the measured generation put on disk stay; the warm-up's cache goes, for there is room for one."""
    delete = disk.delete
    disk.delete = lambda self, tensor: None if timer.measured else delete(self, tensor)


def _telling_files(model: Any, names: Names) -> Any:
    """Return the model, the files of its KV cache named as such."""

    class Model(model):  # type: ignore[misc]
        def init_cache(self, *args: Any) -> None:
            names.role = "kv"
            super().init_cache(*args)

    return Model


def _config(shape: dict[str, int], config: Any) -> Any:
    return config(
        name="opt-sweep",
        max_seq_len=shape["positions"],
        num_hidden_layers=shape["layers"],
        n_head=shape["heads"],
        hidden_size=shape["hidden"],
        input_dim=shape["hidden"],
        ffn_embed_dim=4 * shape["hidden"],
        vocab_size=shape["vocabulary"],
    )


def _listening(timer: Any, phases: Phases) -> Any:
    """Return FlexGen's timer of passes, telling each as a phase; its reset parts the warm-up from what is measured."""

    class Listening(timer):  # type: ignore[misc]
        measured = False

        def start(self, *args: Any) -> None:
            step = len(self.costs)
            if self.measured:
                phases.enter("decode" if step else "prefill", step)
            else:
                phases.enter("warmup")
            super().start(*args)

        def stop(self, *args: Any) -> None:
            super().stop(*args)
            phases.leave()

        def reset(self) -> None:
            super().reset()
            self.measured = True

    return Listening("generate")


class Tokenizer:
    """Stands in for the one FlexGen would download: every prompt is the same list of token ids."""

    def __init__(self, ids: list[int]) -> None:
        self._ids = ids

    def from_pretrained(self, *args: object, **options: object) -> Tokenizer:
        """Return itself."""
        return self

    def __call__(self, texts: list[str], max_length: int, **options: object) -> Any:
        """Return `max_length` ids for each text."""
        repeated = self._ids * (max_length // len(self._ids) + 1)
        return argparse.Namespace(input_ids=[repeated[:max_length] for _ in texts])

    def batch_decode(self, tokens: Any, **options: object) -> list[str]:
        """Return the ids as text: there are no words to show."""
        return [str(list(row)) for row in tokens]


def _as_numpy(job: dict[str, Any], name: str) -> str:
    """Return a folder with the checkpoint's weights as FlexGen reads them: one numpy file per tensor."""
    import numpy as np
    import torch
    from transformers import OPTForCausalLM

    folder = Path(job["weights_dir"]) / f"{name}-np"
    if (folder / "complete").exists():
        return str(folder.parent)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = OPTForCausalLM.from_pretrained(job["checkpoint"], dtype=torch.float16)
    for full, parameter in model.model.named_parameters():
        tensor = full.replace("decoder.final_layer_norm", "decoder.layer_norm")
        np.save(folder / "part.npy", parameter.detach().numpy())
        (folder / "part.npy").rename(folder / tensor)
    (folder / "complete").touch()
    return str(folder.parent)


def _report_dead_threads(log: PhaseLog) -> None:
    """End the job when a copy thread dies: FlexGen would wait for it for ever."""

    def died(args: Any) -> None:
        traceback.print_exception(args.exc_type, args.exc_value, args.exc_traceback)
        log.error(f"a copy thread of FlexGen died: {args.exc_type.__name__}: {args.exc_value}")
        os._exit(1)

    threading.excepthook = died


if __name__ == "__main__":
    run(main, sys.argv[1])
