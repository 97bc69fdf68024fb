"""`flexgen`: what it refuses, what it should read and write, that its tokens are right and its failures told."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import trial_config
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.models import Shape
from tasks.workloads import Span, flexgen

REFERENCE = Path(__file__).parent / "reference.py"
MIB = 1 << 20

#: Weights of 12 layers of 12 MiB; the KV cache of the other is six times its weights.
WIDE = {"layers": 12, "hidden": 1024, "heads": 16, "vocabulary": 2048, "positions": 256}
DEEP = {"layers": 96, "hidden": 128, "heads": 2, "vocabulary": 512, "positions": 320}
TINY = {"layers": 4, "hidden": 128, "heads": 4, "vocabulary": 512, "positions": 128}

WEIGHTS_ON_DISK = [0, 0, 100, 0, 100, 0]
CACHE_ON_DISK = [100, 0, 0, 0, 100, 0]


def workload(**settings):
    return flexgen.Workload(flexgen.Config(**settings))


def config(**changes):
    """Return a trial's configuration of this workload."""
    settings = {key: changes.pop(key) for key in list(changes) if key not in ("memory", "storage", "time_limit_s")}
    own = {"kind": "flexgen", **vars(flexgen.Config(**({"model": None} | settings)))}
    limits = {"memory": changes.get("memory"), "time_limit_s": changes.get("time_limit_s", 200)}
    storage = {"image_size": "1GiB"} | changes.get("storage", {})
    return trial_config(workload=own, limits=limits, storage=storage, backing="disk")


def passes(decodes, warmups=1):
    """Return the finished spans of one generation."""
    names = [*[("warmup", None)] * warmups, ("prefill", 0), *(("decode", 1 + i) for i in range(decodes))]
    return [Span("flexgen", name, 0, 1, None, step) for name, step in names]


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "key", "words"),
    [
        ({"model": "opt-31b"}, "model", "did you mean opt-30b?"),
        ({"model": "opt-350m"}, "model", "FlexGen does not implement"),
        ({"model": None}, "model", "there is no shape"),
        ({"model": "opt-30b", "shape": TINY}, "shape", "give one of the two"),
        ({"model": None, "shape": TINY | {"heads": 3}}, "shape", "3 heads cannot share"),
        ({"model": None, "shape": TINY | {"depth": 3}}, "shape", "no number 'depth'"),
        ({"model": None, "shape": {"layers": 3}}, "shape", "lacks hidden, heads"),
        ({"model": None, "shape": TINY | {"positions": 20}, "prompt_len": 4, "gen_len": 4}, "shape", "warms up"),
        ({"percent": [100, 0, 0, 0]}, "percent", "six numbers"),
        ({"percent": [60, 60, 0, 0, 100, 0]}, "percent", "weights: 60 on GPU and 60 on CPU"),
        ({"percent": [0, 0, 0, -1, 100, 0]}, "percent", "cache: 0 on GPU and -1 on CPU"),
        ({"percent": [100, 0, 0, 0, 50, 0]}, "percent", "it fails with some of them on disk; not 50, 0"),
        ({"overlap": False}, "overlap", "computes on garbage"),
        ({"compress_cache": True, "percent": [100, 0, 50, 0, 100, 0]}, "compress_cache", "one place only"),
        ({"prompt_len": 2000, "gen_len": 100}, "prompt_len", "more than the 2048 positions"),
        ({"gen_len": 1}, "gen_len", "2 or more"),
        ({"batch_size": 0}, "batch_size", "1 or more"),
        ({"model": "opt-175b", "batch_size": 400}, "batch_size", "that FlexGen copies at once"),
        ({"device": "gpu"}, "device", "auto, cpu, cuda"),
        ({"python": "bin/python"}, "python", "must start with /"),
    ],
)
def test_a_configuration_that_cannot_run_is_refused_with_its_key(settings, key, words):
    (problem,) = workload(**settings).problems()
    assert problem.key == key
    assert words in problem.text


def test_overlap_may_be_off_where_nothing_is_on_disk():
    assert workload(overlap=False, percent=[50, 50, 100, 0, 100, 0]).problems() == []


def test_the_figures_are_those_of_what_is_on_disk():
    assert workload(percent=WEIGHTS_ON_DISK).figures[0] == "fig4"
    assert workload(percent=CACHE_ON_DISK).figures[:2] == ["fig5", "fig6"]


# --- expected bytes --------------------------------------------------------------------------------------------------


def test_weights_on_disk_are_read_once_in_each_pass():
    job = workload(model="opt-30b", percent=WEIGHTS_ON_DISK, gen_len=32, prompt_len=256)
    weights = 2 * (Shape(48, 7168, 56).parameters + 50272 * 7168)  # the token embedding is there twice
    assert job.expected(passes(31)) == {"read": 33 * weights, "write": weights}


def test_the_cache_on_disk_is_read_by_every_decode_step_as_far_as_it_goes():
    job = workload(model="opt-6.7b", percent=CACHE_ON_DISK, batch_size=64, prompt_len=256, gen_len=256)
    a_token = 2 * 32 * 64 * 4096 * 2  # keys and values, layers, sequences, hidden, bytes
    assert job.expected(passes(255)) == {
        "read": a_token * sum(256 + i for i in range(1, 256)),
        "write": a_token * (256 + 254),
    }


def test_a_job_that_died_is_expected_to_have_done_what_it_finished():
    job = workload(model=None, shape=TINY, percent=[0, 0, 0, 0, 100, 0], prompt_len=8, gen_len=8)
    whole, part = job.expected(passes(7)), job.expected([*passes(2), Span("flexgen", "decode", 0, None, None, 3)])
    assert part["read"] < whole["read"]
    assert job.doubts(passes(7)) == []
    assert job.doubts(passes(2)) == ["the job finished 3 of the 8 passes that gen_len asks for"]


def test_four_bits_and_their_scales():
    plain = workload(model=None, shape=DEEP, percent=CACHE_ON_DISK, prompt_len=8, gen_len=8)
    small = workload(model=None, shape=DEEP, percent=CACHE_ON_DISK, prompt_len=8, gen_len=8, compress_cache=True)
    share = (64 // 2 + 2 * 2) / (2 * 64)  # a group of 64 elements and the two numbers it shares
    assert small.expected(passes(7))["read"] == share * plain.expected(passes(7))["read"]


class Home:
    """A place for weights that notes what it is given."""

    def __init__(self):
        self.tensors = []

    @property
    def compressed_device(self):
        return self

    def allocate(self, shape, *args, **options):
        self.tensors.append(tuple(shape))
        return self

    def load_from_np(self, data):
        pass


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 100), st.integers(0, 100), st.integers(1, 3), st.integers(1, 4))
def test_tensors_are_placed_as_flexgen_places_them(gpu, cpu, layers, width):
    flex_opt = pytest.importorskip("flexgen.flex_opt")
    cpu = min(cpu, 100 - gpu)
    shape = {"layers": layers, "hidden": 4 * width, "heads": 1, "vocabulary": 50, "positions": 40}
    job = workload(model=None, shape=shape, percent=[gpu, cpu, 100, 0, 100, 0], prompt_len=8, gen_len=8)
    policy = type("Policy", (), {"w_disk_percent": 100 - gpu - cpu, "w_cpu_percent": cpu, "w_gpu_percent": gpu})
    policy.pin_weight, policy.compress_weight = True, False
    env = type("Env", (), {"disk": Home(), "cpu": Home(), "gpu": Home()})
    for tensors in flexgen._layers(Shape(**shape)):
        flex_opt.init_weight_list([(t, "float16", "_DUMMY_") for t in tensors], policy, env)
    assert list(job._tensors_on_disk()) == env.disk.tensors


# --- the engine ------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Converted weights go to a cache of the test's own."""
    monkeypatch.setenv("OFFLOAD_SWEEP_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    subprocess.run([sys.executable, REFERENCE, "make", folder, json.dumps(TINY), "float16"], check=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "placement",
    [
        {"percent": [0, 0, 0, 0, 100, 0], "batch_size": 2},
        {"percent": [30, 40, 25, 25, 0, 100], "batch_size": 4, "num_batches": 2},
        {"percent": CACHE_ON_DISK, "cpu_cache_compute": True, "sep_layer": False},
    ],
    ids=["disk", "everywhere", "attention on the CPU"],
)
def test_tokens_equal_those_of_transformers(checkpoint, tmp_path, state, placement):
    pytest.importorskip("flexgen")
    shape = {"model": None, "shape": TINY, "checkpoint": str(checkpoint), "prompt_len": 24, "gen_len": 16}
    job = workload(**shape, **placement).job(tmp_path, tmp_path / "offload", 3)
    subprocess.run(job.argv, check=True, env=os.environ | {"OFFLOAD_SWEEP_PHASES": str(tmp_path / "phases")})
    tokens = json.loads((tmp_path / "tokens.json").read_text())
    assert len(tokens) == placement.get("batch_size", 1) * placement.get("num_batches", 1)
    assert tokens == by_transformers(checkpoint, tokens)


def by_transformers(checkpoint, tokens):
    """Return what transformers generates from the prompts in `tokens`."""
    command = [sys.executable, REFERENCE, checkpoint, json.dumps(tokens[0][:24]), str(len(tokens)), "16", "float32"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["compress_weight", "compress_cache"])
def test_four_bits_run_on_disk(checkpoint, tmp_path, state, what):
    pytest.importorskip("flexgen")
    shape = {"model": None, "shape": TINY, "checkpoint": str(checkpoint), "prompt_len": 24, "gen_len": 16}
    job = workload(**shape, percent=[0, 0, 0, 0, 100, 0], **{what: True}).job(tmp_path, tmp_path / "offload", 3)
    subprocess.run(job.argv, check=True, env=os.environ | {"OFFLOAD_SWEEP_PHASES": str(tmp_path / "phases")})
    tokens = json.loads((tmp_path / "tokens.json").read_text())
    assert [len(row) for row in tokens] == [24 + 16]  # which ones is for four bits to say


@pytest.mark.parametrize("size", [(256, 64), (100, 32), (12, 4, 130)])
def test_compressed_tensors_take_what_flexgen_allocates(size):
    compression = pytest.importorskip("flexgen.compression")
    numpy = pytest.importorskip("numpy")

    class Base:
        def allocate(self, shape, dtype, pin_memory=None):
            return numpy.empty(shape, dtype)

    grouped = compression.CompressionConfig(num_bits=4, group_size=64, group_dim=len(size) - 1, symmetric=False)
    device = compression.TorchCompressedDevice(Base())
    data, scale, _ = device.allocate(size, numpy.float16, grouped).data
    rows = int(numpy.prod(size[:-1]))
    assert flexgen._compressed_bytes(rows, size[-1]) == data.nbytes + scale.nbytes


@pytest.mark.slow
@pytest.mark.root
def test_weights_on_disk_are_traced_as_expected(run_here):
    # At 512 MiB the page cache answers 3 to 10 % of the reads, at 336 MiB the kernel kills the engine.
    record, spool = run_here(
        config(shape=WIDE, percent=WEIGHTS_ON_DISK, batch_size=2, prompt_len=64, gen_len=16, memory="416MiB")
    )
    assert record["verdict"] == {"state": "valid", "reasons": []}
    moved = record["bytes"]
    assert moved["traced"] == moved["counted"]
    assert moved["traced"]["read"] == pytest.approx(moved["expected"]["read"], rel=0.05)
    assert moved["traced"]["write"] == pytest.approx(moved["expected"]["write"], rel=0.05)
    spans = pq.read_table(spool / "phases.parquet").to_pylist()
    names = [(s["name"], s["step"]) for s in spans if s["process"] == "flexgen" and s["name"] != "job"]
    assert names == [("init", None), ("warmup", None), ("prefill", 0), *(("decode", i) for i in range(1, 16))]
    value = {name: metric["value"] for name, metric in record["metrics"].items()}
    assert value["generated_tokens"] == 32
    assert value["tokens_per_s"] == pytest.approx(32 / value["total_latency_s"])
    assert value["model_bytes"] == 2 * Shape(**WIDE).parameters
    assert value["memory_peak_bytes"] <= 512 * MIB
    assert (spool / "logs" / "flexgen-benchmark.log").read_text().startswith("model size")


@pytest.mark.slow
@pytest.mark.root
def test_the_cache_on_disk_is_read_far_more_than_written(run_here):
    record, _ = run_here(
        config(shape=DEEP, percent=CACHE_ON_DISK, batch_size=32, prompt_len=192, gen_len=16, memory="448MiB")
    )
    assert record["verdict"] == {"state": "valid", "reasons": []}
    traced = record["bytes"]["traced"]
    assert traced["read"] > 10 * traced["write"] > 0
    assert traced["read"] <= 1.05 * record["bytes"]["expected"]["read"]


@pytest.mark.slow
@pytest.mark.root
def test_a_cache_that_stays_in_memory_has_failed(run_here):
    record, _ = run_here(config(shape=TINY, percent=CACHE_ON_DISK, prompt_len=32, gen_len=8))
    assert record["verdict"]["state"] == "failed"
    (reason,) = record["verdict"]["reasons"]
    assert "the page cache answered; set limits.memory below what is offloaded" in reason


# --- what goes wrong -------------------------------------------------------------------------------------------------

LONG = {"shape": DEEP, "percent": CACHE_ON_DISK, "batch_size": 16, "prompt_len": 64, "gen_len": 250}


@pytest.fixture
def disturbed(run_here, state):
    """Return a function that runs a long trial and calls `disturb(pid, offload_dir)` once it decodes."""

    def run(disturb, **changes):
        seen = threading.Event()

        def watch():
            seen.wait()
            (command,) = [p for p in Path("/proc").glob("[0-9]*/cmdline") if is_job(p)]
            arguments = json.loads(Path(command.read_text().split("\0")[2]).read_text())["arguments"]
            disturb(int(command.parent.name), Path(arguments[1]))

        def is_job(path):
            try:
                words = path.read_text().split("\0")
            except OSError:
                return False
            return len(words) > 2 and words[1].endswith("flexgen_generate.py") and str(state) in words[2]

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        begun = time.monotonic()
        record, _ = run_here(config(**LONG, **changes), lambda text: seen.set() if text.startswith("decode") else None)
        assert seen.is_set()
        return record["verdict"], time.monotonic() - begun

    return run


@pytest.mark.slow
@pytest.mark.root
def test_a_killed_engine_is_told(disturbed, left_behind):
    verdict, _ = disturbed(lambda pid, folder: os.kill(pid, signal.SIGKILL))
    assert verdict == {"state": "failed", "reasons": ["flexgen ended with killed by SIGKILL"]}


@pytest.mark.slow
@pytest.mark.root
def test_a_copy_thread_that_dies_ends_the_trial_at_once(disturbed):
    verdict, seconds = disturbed(lambda pid, folder: [file.unlink() for file in folder.iterdir()])
    assert verdict["state"] == "failed"
    assert verdict["reasons"][0].startswith("a copy thread of FlexGen died: FileNotFoundError")
    assert seconds < 60  # of the 200 it may take


@pytest.mark.slow
@pytest.mark.root
def test_an_engine_that_hangs_is_stopped_at_its_time_limit(disturbed):
    verdict, seconds = disturbed(lambda pid, folder: os.kill(pid, signal.SIGSTOP), time_limit_s=15)
    assert verdict == {
        "state": "failed",
        "reasons": ["flexgen ran longer than limits.time_limit_s (15 s) and was stopped"],
    }
    assert seconds < 45


@pytest.mark.slow
@pytest.mark.root
def test_a_memory_limit_too_tight_is_told(run_here):
    record, _ = run_here(config(**LONG, memory="128MiB"))
    assert record["verdict"]["state"] == "failed"
    assert "the kernel killed the job: out of memory at limits.memory (128 MiB)" in record["verdict"]["reasons"]


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.parametrize("fs", ["ext4", "xfs", "btrfs"])
def test_a_full_disk_is_told(run_here, fs):
    # 1 GiB of weights on 384 MiB; python -m sweep would refuse this image
    shape = WIDE | {"layers": 40}
    storage = {"image_size": "384MiB", "fs": fs}
    record, _ = run_here(config(shape=shape, percent=WEIGHTS_ON_DISK, prompt_len=32, gen_len=4, storage=storage))
    assert record["verdict"]["state"] == "failed"
    assert any("the filesystem under test was full" in reason for reason in record["verdict"]["reasons"])


@pytest.mark.root
@pytest.mark.parametrize(
    ("python", "words"),
    [
        ("/no/such/python", "/no/such/python cannot be started: No such file or directory"),
        ("/bin/false", "/bin/false is no Python 3.9 or newer: exit code 1"),
        (None, "has no flexgen, torch, transformers, numpy; to install: "),
    ],
    ids=["absent", "no interpreter", "without the engine"],
)
def test_a_wrong_interpreter_is_told_before_anything_is_traced(run_here, tmp_path, python, words):
    if python is None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
        python = str(tmp_path / "bare" / "bin" / "python")
    record, _ = run_here(config(shape=TINY, percent=CACHE_ON_DISK, prompt_len=32, gen_len=8, python=python))
    assert record["verdict"]["state"] == "failed"
    (reason,) = record["verdict"]["reasons"]
    assert reason.startswith("workload.python: ")
    assert words in reason


@pytest.mark.slow
@pytest.mark.root
def test_an_interpreter_of_its_own_runs_the_job(run_here, tmp_path):
    """A second environment that sees the packages of ours stands for one that the engine lives in."""
    pytest.importorskip("flexgen")
    import flexgen as installed

    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "own"], check=True)
    (packages,) = (tmp_path / "own" / "lib").glob("python*/site-packages")
    (packages / "engine.pth").write_text(str(Path(installed.__file__).parent.parent))
    python = str(tmp_path / "own" / "bin" / "python")
    record, _ = run_here(
        config(
            shape=DEEP, percent=CACHE_ON_DISK, batch_size=32, prompt_len=192, gen_len=4, python=python, memory="448MiB"
        )
    )
    assert record["verdict"] == {"state": "valid", "reasons": []}
    assert record["command"][0] == python
    assert record["node"]["packages"]["python"].startswith("3.")
    assert record["metrics"]["generated_tokens"]["value"] == 32 * 4
