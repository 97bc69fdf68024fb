"""`deepspeed_model`: what it refuses, what it should read and write; that tokens are right and failures told."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import trial_config
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.models import Shape
from tasks.workloads import Span, deepspeed_model

REFERENCE = Path(__file__).parent / "reference.py"
JOB = Path(deepspeed_model.__file__).parent.parent / "jobs" / "zero_inference.py"
MIB = 1 << 20

#: Layers of 2 MiB and 8 MiB tensors, an embedding of 16 MiB.
WIDE = {"layers": 4, "hidden": 1024, "heads": 16, "vocabulary": 8192, "positions": 512}
TINY = {"layers": 4, "hidden": 256, "heads": 4, "vocabulary": 512, "positions": 128}


def workload(**settings):
    return deepspeed_model.Workload(deepspeed_model.Config(**settings))


def own(**settings):
    """Return a workload of a shape of its own."""
    return workload(**({"model": None, "shape": WIDE, "prompt_len": 32, "gen_len": 6} | settings))


def config(storage=None, **settings):
    """Return a trial's configuration of this workload."""
    section = {"kind": "deepspeed_model", **vars(own(**settings)._config)}
    return trial_config(workload=section, storage=storage or {}, limits={"time_limit_s": 200}, backing="disk")


def passes(decodes, *first):
    """Return the finished spans of one generation."""
    names = [*((name, None) for name in first), ("prefill", 0), *(("decode", 1 + i) for i in range(decodes))]
    return [Span("deepspeed", name, 0, 1, None, step) for name, step in names]


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ({"model": "opt-31b"}, "model", "did you mean opt-30b?"),
        ({"queue_depth": 0}, "queue_depth", "1 or more, not 0"),
        ({"parallelism": 0}, "parallelism", "1 or more, not 0"),
        ({"buffer_count": 1}, "buffer_count", "2 or more, not 1"),
        ({"block_size": "1MB"}, "block_size", "is not a size"),
        ({"block_size": 1 << 20 | 512}, "block_size", "no multiple of 4 KiB, which direct I/O needs"),
        ({"buffer_size": "big"}, "buffer_size", "is not a size"),
        ({"buffer_size": "73MiB"}, "buffer_size", "73 MiB is less than the largest offloaded tensor (73.64 MiB)"),
        ({"dtype": "float32"}, "dtype", "auto, float16, bfloat16"),
        ({"dtype": "float16", "device": "cpu"}, "dtype", "DeepSpeed refuses it on the CPU"),
        ({"kv_offload": True, "device": "cpu"}, "kv_offload", "lies in host memory already"),
        ({"python": "bin/python"}, "python", "must start with /"),
    ],
)
def test_a_configuration_that_cannot_run_is_refused_with_its_key(changes, key, words):
    (problem,) = workload(**changes).problems()
    assert problem.key == key
    assert words in problem.text


def test_a_block_size_that_keeps_the_model_in_memory_is_refused_with_the_numbers():
    (problem,) = workload(block_size="16MiB").problems()
    assert problem.key == "block_size"
    assert problem.text == (
        "of 238.88 MiB of weights only 73.64 MiB (1 of 196 tensors) would be offloaded: "
        "DeepSpeed keeps tensors below block_size, and below 1 MiB, in memory; choose at most 4 MiB"
    )
    assert workload(block_size="4MiB").problems() == []
    assert workload(model="opt-13b", block_size="16MiB").problems() == []


def test_a_model_too_small_for_any_block_size_is_refused():
    (problem,) = own(shape=TINY, block_size="64KiB").problems()
    assert problem.key == "shape"
    assert "of 6.34 MiB of weights only 0 B (0 of 68 tensors) would be offloaded" in problem.text


shapes = st.builds(
    lambda layers, heads, vocabulary: {
        "layers": layers,
        "hidden": 64 * heads,
        "heads": heads,
        "vocabulary": vocabulary,
        "positions": 512,
    },
    st.integers(1, 48),
    st.integers(1, 128),
    st.integers(16, 60000),
)


@given(shapes, st.integers(1, 1 << 16))
def test_what_a_refusal_proposes_is_accepted(shape, pages):
    refused = [p for p in own(shape=shape, block_size=4096 * pages).problems() if p.key == "block_size"]
    for problem in refused:
        assert own(shape=shape, block_size=problem.text.partition("choose at most ")[2]).problems() == []


def test_what_a_node_must_have():
    assert workload().needs() == {"engine:deepspeed": "workload.kind", "engine:async_io": "workload.kind"}
    assert workload(python="/opt/bin/python").needs() == {}
    assert workload(python="/opt/bin/python", kv_offload=True).needs() == {"gpu": "workload.kv_offload"}
    assert workload(python="/opt/bin/python", dtype="float16").needs() == {"gpu": "workload.dtype"}
    assert workload(python="/opt/bin/python", dtype="float16", device="cuda").needs() == {"gpu": "workload.device"}
    assert workload().wants_gpu()
    assert not workload(device="cpu").wants_gpu()


# --- expected bytes --------------------------------------------------------------------------------------------------

EMBEDDING = 50272 * 768 * 2
POSITIONS = 2050 * 768 * 2
LAYERS = 12 * (4 * 768 * 768 + 2 * 768 * 4 * 768) * 2


def test_every_large_tensor_is_read_once_in_each_pass_and_written_twice_at_the_start():
    once = EMBEDDING + POSITIONS + LAYERS
    assert once == 250235904  # 238.6 MiB
    # the order is learnt in the first pass, which reads the token embedding again for the output layer
    assert workload().expected(passes(7, "init", "warmup")) == {
        "read": once + once + EMBEDDING + 8 * once,
        "write": once + EMBEDDING + once,
    }


def test_tensors_below_the_block_size_do_not_count():
    large = EMBEDDING + 12 * 2 * 768 * 4 * 768 * 2
    assert workload(block_size="4MiB").expected(passes(0)) == {"read": large, "write": 0}


def test_a_large_model_drops_its_embedding_between_first_and_last_use():
    hidden = 5120
    embedding = 50272 * hidden * 2
    once = embedding + 2050 * hidden * 2 + 40 * 12 * hidden * hidden * 2
    found = workload(model="opt-13b", block_size="16MiB").expected(passes(31, "init", "warmup"))
    assert found == {"read": once + 33 * (once + embedding), "write": 2 * once + embedding}


def test_every_thread_moves_whole_units():
    positions = 385 * 8192  # of 384.375
    assert workload(parallelism=8).expected(passes(0))["read"] == EMBEDDING + positions + LAYERS


def test_a_job_that_died_is_expected_to_have_done_what_it_finished():
    unfinished = Span("deepspeed", "decode", 0, None, None, 3)
    assert own().expected([*passes(2), unfinished]) == own().expected(passes(2))
    assert own().expected([Span("deepspeed", "init", 0, None)]) == {"read": 0, "write": 0}
    assert own().doubts(passes(5)) == []
    assert own().doubts([*passes(2), unfinished]) == ["the job finished 3 of the 6 passes that gen_len asks for"]


@settings(max_examples=50, deadline=None)
@given(shapes, st.integers(1, 2048), st.integers(1, 16))
def test_tensors_are_swapped_as_deepspeed_swaps_them(shape, pages, parallelism):
    swapper = pytest.importorskip("deepspeed.runtime.swap_tensor.partitioned_param_swapper")
    # as its _configure_aio has them
    theirs = object.__new__(swapper.AsyncPartitionedParameterSwapper)
    theirs.swap_element_size = 2
    theirs.min_aio_bytes = max(swapper.MIN_AIO_BYTES, 4096 * pages)
    theirs.numel_alignment = swapper.AIO_ALIGNED_BYTES * parallelism // 2
    counts = [rows * (columns[0] if columns else 1) for _, (rows, *columns) in Shape(**shape).tensors()]
    swapped = [theirs._io_aligned_numel(n) * 2 for n in counts if theirs.swappable_tensor(numel=n)]
    assert own(shape=shape, block_size=4096 * pages, parallelism=parallelism)._offloaded() == swapped


# --- the job's description -------------------------------------------------------------------------------------------


def described(tmp_path, **settings):
    """Return the job and what it is told; its offload directory is made."""
    (tmp_path / "offload").mkdir()
    job = own(**settings).job(tmp_path, tmp_path / "offload", 3)
    return job, json.loads((tmp_path / "job.json").read_text())


def test_buffers_are_as_large_as_the_largest_tensor_unless_told(tmp_path):
    _, told = described(tmp_path, buffer_count=3)
    assert told["deepspeed"]["zero_optimization"]["offload_param"]["buffer_size"] == 8192 * 1024  # elements
    assert told["locked_bytes"] == 3 * 16 * MIB
    own(buffer_size="64MiB").job(tmp_path, tmp_path / "offload", 3)
    told = json.loads((tmp_path / "job.json").read_text())
    assert told["deepspeed"]["zero_optimization"]["offload_param"]["buffer_size"] == 32 * MIB
    assert told["locked_bytes"] == 5 * 64 * MIB


def test_every_aio_setting_reaches_deepspeed(tmp_path):
    aio = {"queue_depth": 7, "single_submit": True, "overlap_events": False}
    _, told = described(tmp_path, block_size="512KiB", parallelism=4, **aio)
    assert told["deepspeed"]["aio"] == {"block_size": 512 << 10, "intra_op_parallelism": 4, **aio}


def test_an_environment_of_its_own_builds_its_own_operator(tmp_path):
    job, told = described(tmp_path, python="/opt/engine/bin/python")
    assert told["async_io"] is None
    assert job.argv[0] == "/opt/engine/bin/python"


# --- the engine ------------------------------------------------------------------------------------------------------


def by_hand(job, tmp_path, **options):
    """Run the job's own command and return its exit code and what it told."""
    pytest.importorskip("deepspeed")
    environment = os.environ | {"OFFLOAD_SWEEP_PHASES": str(tmp_path / "phases.jsonl")}
    code = subprocess.run([*options.pop("before", []), *job.argv], env=environment).returncode
    return code, [json.loads(line) for line in (tmp_path / "phases.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    subprocess.run([sys.executable, REFERENCE, "make", folder, json.dumps(WIDE), "bfloat16"], check=True)
    return folder


@pytest.mark.slow
def test_tokens_equal_those_of_transformers(checkpoint, tmp_path):
    job, told = described(tmp_path, checkpoint=str(checkpoint), batch_size=2, gen_len=12, device="cpu", parallelism=2)
    code, _ = by_hand(job, tmp_path)
    assert code == 0
    tokens = json.loads(Path(told["tokens"]).read_text())
    command = [sys.executable, REFERENCE, checkpoint, json.dumps(tokens[0][:32]), "2", "12", "bfloat16"]
    wanted = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert tokens == json.loads(wanted)
    assert len(set(tokens[0][32:])) > 3


@pytest.mark.slow
@pytest.mark.root
def test_weights_on_the_drive_are_traced_as_expected(run_here):
    record, spool = run_here(config(batch_size=2))
    assert record["verdict"] == {"state": "valid", "reasons": []}
    moved = record["bytes"]
    assert moved["traced"] == moved["counted"]
    assert moved["traced"]["read"] == pytest.approx(moved["expected"]["read"], rel=0.05)
    assert moved["traced"]["write"] == pytest.approx(moved["expected"]["write"], rel=0.05)
    spans = pq.read_table(spool / "phases.parquet").to_pylist()
    names = [(s["name"], s["step"]) for s in spans if s["process"] == "deepspeed" and s["name"] != "job"]
    assert names == [("init", None), ("warmup", None), ("prefill", 0), *(("decode", i) for i in range(1, 6))]
    value = {name: metric["value"] for name, metric in record["metrics"].items()}
    assert value["generated_tokens"] == 12
    assert value["total_latency_s"] == pytest.approx(value["prefill_latency_s"] + value["decode_latency_s"])
    assert value["model_bytes"] == 2 * Shape(**WIDE).parameters
    assert 0.98 * value["model_bytes"] < value["offloaded_bytes"] < value["model_bytes"]
    assert value["peak_host_memory_bytes"] > 0
    assert "peak_gpu_memory_bytes" not in value


@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.parametrize("kv_offload", [False, True], ids=["cache on the GPU", "cache in host memory"])
def test_a_gpu_computes_in_float16(tmp_path, kv_offload):
    job, told = described(tmp_path, device="cuda", kv_offload=kv_offload, batch_size=2)
    code, events = by_hand(job, tmp_path)
    assert code == 0
    assert events[-1] == {"event": "done"}
    assert len(json.loads(Path(told["tokens"]).read_text())[1]) == 32 + 6
    assert next(e["value"] for e in events if e.get("name") == "peak_gpu_memory_bytes") > 0


# --- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_model_that_stays_in_memory_is_told_before_it_generates(tmp_path):
    job, told = described(tmp_path, device="cpu")
    told["deepspeed"]["aio"]["block_size"] = 4 * MIB  # not what the workload counts on
    (tmp_path / "job.json").write_text(json.dumps(told))
    code, events = by_hand(job, tmp_path)
    assert code == 1
    (reason,) = [event["reason"] for event in events if event["event"] == "error"]
    assert reason == (
        f"RuntimeError: DeepSpeed put {(16 + 4 * 2 * 8 + 16) * MIB} bytes into {tmp_path}/offload/zero_stage_3, "
        f"not {told['offloaded_bytes']} to {told['file_bytes_at_most']} as the shape says"
    )
    assert [event["name"] for event in events if event["event"] == "begin"] == ["init"]


@pytest.mark.root
def test_memory_that_may_not_be_locked_is_told(tmp_path):
    job, _ = described(tmp_path)
    before = ["prlimit", "--memlock=8388608", "setpriv", "--bounding-set", "-ipc_lock"]
    code, events = by_hand(job, tmp_path, before=before)
    assert code == 1
    assert f"buffers of {5 * 16 * MIB} bytes cannot be locked into memory" in events[-1]["reason"]


@pytest.mark.root
def test_a_checkpoint_of_another_shape_is_told(run_here, checkpoint):
    record, _ = run_here(config(checkpoint=str(checkpoint), shape=WIDE | {"layers": 6}))
    assert record["verdict"]["state"] == "failed"
    assert f"{checkpoint} has layers 4 (num_hidden_layers of its config.json)" in record["verdict"]["reasons"][0]


@pytest.mark.slow
@pytest.mark.root
def test_a_full_disk_is_told(run_here):
    # 850 MiB of weights on 384 MiB; python -m sweep would refuse this image
    record, _ = run_here(config({"image_size": "384MiB"}, shape=WIDE | {"layers": 32}))
    assert record["verdict"]["state"] == "failed"
    assert "the filesystem under test was full: AssertionError: assert (swap_" in record["verdict"]["reasons"][0]


@pytest.mark.root
def test_an_interpreter_without_deepspeed_is_told_with_the_command_that_installs_it(run_here, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    python = str(tmp_path / "bare" / "bin" / "python")
    record, _ = run_here(config(python=python))
    assert record["verdict"]["state"] == "failed"
    (reason,) = record["verdict"]["reasons"]
    assert reason.endswith(f"to install: {python} -m pip install deepspeed torch transformers accelerate")
