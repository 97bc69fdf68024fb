"""Real trials on a real GPU: its samples on the requests' clock, its memory when full or when others hold it."""

import subprocess
import sys

import polars as pl
import pytest
from conftest import trial_config

from tasks.models import Shape
from tasks.workloads import flexgen

pytestmark = [pytest.mark.gpu, pytest.mark.root, pytest.mark.slow]

GIB = 1 << 30

#: A token's keys and values are 128 KiB here. (FlexGen's four copy threads lock 2 GiB of host memory each.)
DEEP = {"layers": 32, "hidden": 1024, "heads": 16, "vocabulary": 2048, "positions": 512}

#: Takes all but so many bytes of the GPU's memory until its input ends.
HOLD = """
import sys, torch
free, _ = torch.cuda.mem_get_info()
held = torch.empty(free - int(sys.argv[1]), dtype=torch.uint8, device="cuda")
print("held", flush=True)
sys.stdin.read()
"""


def test_a_cache_on_the_drive_and_the_gpu_that_computes_with_it(run_here):
    settings = {"percent": [100, 0, 0, 0, 100, 0], "batch_size": 128, "prompt_len": 256, "gen_len": 6, "device": "cuda"}
    config = trial_config(
        workload={"kind": "flexgen", **vars(flexgen.Config(model=None, shape=DEEP, **settings))},
        limits={"memory": "10GiB", "time_limit_s": 300},
        storage={"image_size": "6GiB"},
        backing="disk",
    )
    record, folder = run_here(config)
    assert record["verdict"] == {"state": "valid", "reasons": []}
    assert record["bytes"]["traced"] == record["bytes"]["counted"]
    assert record["metrics"]["peak_gpu_memory_bytes"]["value"] > 2 * Shape(**DEEP).parameters
    assert "gpu" not in (record.get("trouble") or "")
    phases = pl.read_parquet(folder / "phases.parquet").filter(process="flexgen")
    job, prefill = (phases.filter(name=name).row(0, named=True) for name in ("job", "prefill"))
    last = phases.filter(name="decode").sort("step").row(-1, named=True)
    samples = pl.read_parquet(folder / "samples.parquet").filter(source="gpu0")
    assert (
        samples.filter(name="utilisation")
        .filter(pl.col("t_ns").is_between(prefill["begin_ns"], last["end_ns"]), pl.col("value") > 0)
        .height
    )
    # one clock: the model is in the GPU's memory only while the job runs, and while the cache is read and written
    memory = samples.filter(name="memory_used")
    loaded = memory.filter(pl.col("value") > memory["value"][0] + 2 * Shape(**DEEP).parameters)["t_ns"]
    assert job["begin_ns"] < loaded.min() < prefill["begin_ns"]
    assert last["end_ns"] - 10**9 < loaded.max() < job["end_ns"] + 10**9
    issued = pl.read_parquet(folder / "requests.parquet").filter(
        pl.col("issue_ns").is_between(prefill["begin_ns"], last["end_ns"])
    )
    assert issued["bytes"].sum() > 4 * GIB


@pytest.fixture
def crowded():
    """Another process holds all but a GiB of the GPU's memory."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(GIB)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"held\n"
        yield
        other.stdin.close()


def tensors(size):
    return trial_config(workload={"kind": "tensor_io", "sizes": [size], "loops": 1, "tensor_devices": ["cuda"]})


def test_a_gpu_without_room_is_told_with_who_has_it(run_here, crowded):
    record, _ = run_here(tensors("2GiB"))
    assert record["verdict"]["state"] == "failed"
    reason = record["verdict"]["reasons"][0]
    assert "CUDA out of memory. Tried to allocate 2.00 GiB" in reason
    assert reason.endswith(": leave the larger workload.sizes out, or cuda out of workload.tensor_devices")
    assert "of the memory of gpu0" in record["trouble"]


def test_a_trial_beside_another_process_of_the_gpu_says_so(run_here, crowded):
    record, _ = run_here(tensors("16MiB"))
    assert record["verdict"] == {"state": "valid", "reasons": []}
    assert "when the job began: they may have computed beside it" in record["trouble"]


def test_two_trials_for_one_gpu_take_turns(at_once):
    records, told = at_once(tensors("64MiB"), tensors("32MiB"))
    assert [record["verdict"]["state"] for record in records] == ["valid", "valid"]
    first, second = sorted((record["tracer"]["begin_ns"], record["tracer"]["end_ns"]) for record in records)
    assert first[1] <= second[0]
    assert not [record for record in records if "gpu" in (record.get("trouble") or "")]
    assert "waiting for another sweep's trial on this machine" in told
