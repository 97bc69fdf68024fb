"""What engines that generate text share: where they compute, their prompts, the checkpoint that must fit."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import tasks

sys.path.insert(0, str(Path(tasks.__file__).parent / "jobs"))
import generation_log

from tasks.workloads import flexgen

TINY = {"layers": 2, "hidden": 64, "heads": 2, "vocabulary": 128, "positions": 64}


def torch(cuda):
    return SimpleNamespace(__version__="2.0", cuda=SimpleNamespace(is_available=lambda: cuda))


@pytest.mark.parametrize(
    ("asked", "gpu", "cuda", "chosen"),
    [
        ("auto", False, False, "cpu"),
        ("auto", True, True, "cuda"),
        ("cpu", True, True, "cpu"),
        ("cpu", True, False, "cpu"),
        ("cuda", True, True, "cuda"),
    ],
)
def test_the_device_is_the_one_asked_for(asked, gpu, cuda, chosen):
    assert generation_log.device({"device": asked, "gpu": gpu}, torch(cuda)) == chosen


@pytest.mark.parametrize(("asked", "gpu"), [("auto", True), ("cuda", False)])
def test_a_gpu_that_torch_cannot_see_is_not_passed_over(asked, gpu):
    with pytest.raises(
        ValueError, match=r"workload.device: .* torch 2.0 finds none: install a torch with CUDA, or say"
    ):
        generation_log.device({"device": asked, "gpu": gpu}, torch(cuda=False))


class OutOfMemoryError(RuntimeError):
    """torch's, by its name."""


def test_a_full_gpu_is_told_with_what_to_do_about_it(tmp_path):
    said = (
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 139.81 GiB of which 1.40 GiB is "
        "free. Process 7 has 138.41 GiB memory in use. If reserved but unallocated memory is large try setting this."
    )
    told = generation_log._in_words(OutOfMemoryError(said), tmp_path)
    assert told.startswith("CUDA out of memory. Tried to allocate 2.00 GiB.")
    assert told.endswith(
        "138.41 GiB memory in use: make workload.batch_size or the model smaller, or leave less of it on the GPU"
    )


def test_prompts_are_words_of_the_vocabulary_by_the_seed():
    job = {"shape": TINY, "prompt_len": 40, "seed": 1}
    ids = generation_log.prompts(job)
    assert len(ids) == 40
    assert all(4 <= token < 128 for token in ids[1:])
    assert ids == generation_log.prompts(job) != generation_log.prompts(job | {"seed": 2})


def test_a_checkpoint_of_another_shape_is_named_with_both_numbers(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 3}))
    with pytest.raises(ValueError, match=r"layers 3 .*, the sweep asks for 2"):
        generation_log.check_shape({"checkpoint": str(tmp_path), "shape": TINY})


def test_weights_saved_anew_are_converted_anew(tmp_path, state):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "model.safetensors").write_text("one")
    job = flexgen.Workload(flexgen.Config(model=None, shape=TINY, checkpoint=str(folder)))
    before = job._converted()
    assert job._converted() == before
    (folder / "model.safetensors").write_text("another")
    assert job._converted() != before
