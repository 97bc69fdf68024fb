"""`python -m analysis.ingest`: the study's published results, trees with broken files, and the command itself."""

from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analysis import load_run
from analysis.figures import figure
from analysis.figures.fig2 import bandwidth_per_repeat
from analysis.ingest import commands, deepnvme, generation, kinds, nvidia
from analysis.ingest.__main__ import main
from analysis.ingest.part import Source
from analysis.ingest.text import CUT
from analysis.run import Run, Trial

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT.parent / "shared" / "published" / "results"
ENGINE = """\
<run_flexgen>: args.model: facebook/opt-6.7b
model size: 12.386 GB\tcache size: 4.000 GB\thidden size (p): 0.004 GB
peak gpu mem: 2.519 GB\tprojected: False
prefill latency: 2.500 s\tprefill throughput: 102.400 token/s
decode latency: 10.000 s\tdecode throughput: 3.100 token/s
total latency: 12.500 s\ttotal throughput: 2.560 token/s
"""
COMMANDS = """\
sudo systemd-run --scope --property=MemoryLimit=10G python3 -m flexgen.flex_opt --model facebook/opt-6.7b \
--percent 100 0 0 0 100 0 --prompt-len 256 --gen-len 32 --gpu-batch-size 4 --num-gpu-batches 1 > kv/opt.txt 2>&1
nvidia-smi --query-gpu=timestamp,utilization.gpu --format=csv -lms 200 > kv/opt-gpu.txt 2>&1
sudo bpftrace bio-bite-size.bt > kv/opt-bpftrace-block.txt 2>&1
"""
GPU = "timestamp, utilization.gpu [%]\n2025/01/16 13:25:54.949, 0 %\n2025/01/16 13:25:55.149, 50 %\n"
TRACE = (
    "Attaching 1 probe...\n45502109053447, W, 4096, 170104688, 8\n"
    "45502109053000, R, 131072, 64, 256\n45503109053000, R, 131072, 320, 256\n"
)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Run:
    if not PUBLISHED.is_dir():
        pytest.skip(f"{PUBLISHED} is absent")
    results = tmp_path_factory.mktemp("results")
    assert main([str(PUBLISHED), "--results", str(results), "--name", "published", "--no-draw"]) == 0
    return load_run(results / "published")


def imported(source: Path, results: Path, *options: str) -> Run:
    code = main([str(source), "--results", str(results), "--name", "made", "--no-draw", *options])
    run = load_run(results / "made")
    assert code == (0 if {trial.state for trial in run.published} == {"valid"} else 3)
    return run


def kv_tree(root: Path, trace: str = TRACE) -> Path:
    folder = root / "tree" / "kv-xfs"
    folder.mkdir(parents=True)
    (folder / "opt.txt").write_text(ENGINE)
    (folder / "opt-gpu.txt").write_text(GPU)
    (folder / "opt-bpftrace-block.txt").write_text(trace)
    (folder / "opt-log.txt").write_text(COMMANDS)
    return root / "tree"


def of_job(run: Run, job: str) -> list[Trial]:
    return [trial for trial in run.published if trial.cell.get("job") == job]


def test_fig2_of_ext4_equals_every_published_file(published: Run) -> None:
    files = sorted((PUBLISHED / "figure2-tensor-offloading" / "deepnvme-results-ext4").rglob("*.txt"))
    told = {}
    for path in files:
        last = path.read_text().strip().splitlines()[-1]
        _, api, _, name, device, size, _ = path.stem.split("-")
        told[name, {"py": "POSIX", "aio": "aio"}[api], device, int(size) << 20] = last.split()[-2]
    assert len(told) == 13 * 8
    found = bandwidth_per_repeat(published)
    assert found["row"].unique().to_list() == ["ext4"]
    assert found["loops"].unique().to_list() == [5]
    ours = {
        (
            row["phase"].split()[0].lower(),
            row["api"],
            {"CPU tensor": "cpu", "GPU tensor": "gpu"}[row["device"]],
            row["size"],
        ): (f"{row['gib_s']:.2f}")
        for row in found.to_dicts()
    }
    assert ours == told
    assert [panel.reason for panel in figure("fig2").charts(published)] == [None]


def test_gpu_utilisation_equals_the_mean_of_every_published_csv(published: Run) -> None:
    files = sorted(PUBLISHED.rglob("*-gpu.txt"))
    trials = {entry["name"]: trial for trial in published.published for entry in trial.section("import")["files"]}
    assert files
    for path in files:
        with path.open() as lines:
            values = [int(row[1].split()[0]) for row in list(csv.reader(lines))[1:]]
        trial = trials[str(path.relative_to(PUBLISHED))]
        rows = published.samples(trial).filter(pl.col("name") == "utilisation").collect()
        assert rows["value"].to_list() == values
        assert trial.measured["gpu0_utilisation_mean"] == (sum(values) / len(values), "%")


def test_prefill_and_decode_equal_the_published_logs(published: Run) -> None:
    trials = of_job(published, "deepspeed_model") + of_job(published, "flexgen")
    assert len(trials) == 4
    names = {"prefill": "prefill", "decode": "decode", "total": ""}
    for trial in trials:
        (entry,) = (one for one in trial.section("import")["files"] if one["kind"] == generation.KIND)
        log = (PUBLISHED / entry["name"]).read_text()
        for theirs, ours in names.items():
            latency = re.findall(rf"{theirs} latency: ([\d.]+) s", log)[-1]
            rate = re.findall(rf"{theirs} throughput: ([\d.]+) token/s", log)[-1]
            assert trial.measured[f"{theirs}_latency_s"] == (float(latency), "s")
            assert trial.measured[f"{ours}_tokens_per_s".lstrip("_")] == (float(rate), "1/s")
        assert trial.tracer == "none"
        assert "bpftrace-block.txt is not among the files" in trial.record["trouble"]
        assert trial.record["command"][-1] == str(trial.cell["batch_size"])


def test_deepspeeds_passes_are_phases_on_the_clock_of_the_gpu(published: Run) -> None:
    for trial in of_job(published, "deepspeed_model"):
        phases = published.phases(trial).collect().to_dicts()
        assert [(row["name"], row["step"]) for row in phases] == [
            ("prefill", 0),
            *(("decode", n) for n in range(1, 32)),
        ]
        assert phases[0]["end_ns"] - phases[0]["begin_ns"] == pytest.approx(
            trial.measured["prefill_latency_s"][0] * 1e9, abs=2e6
        )
        # the GPU rests when generating ends, as another file by the same machine's clock tells
        samples = published.samples(trial).filter(pl.col("name") == "utilisation").collect()
        generating = samples.filter(pl.col("t_ns").is_between(phases[0]["begin_ns"], phases[-1]["end_ns"]))
        assert generating["value"].mean() == pytest.approx(66, abs=1)
        end = phases[-1]["end_ns"]
        after = samples.filter(pl.col("t_ns").is_between(end + 10**9, end + 6 * 10**9))
        assert after["value"].max() < 10
    assert all(trial.table("phases") is None for trial in of_job(published, "flexgen"))


def test_a_tree_with_a_trace_is_one_trial_with_everything(tmp_path: Path) -> None:
    run = imported(kv_tree(tmp_path), tmp_path / "results")
    (trial,) = run.published
    assert (trial.state, trial.reasons) == ("valid", ())
    assert trial.cell == {"job": "flexgen", "model": "opt-6.7b", "batch_size": 4, "fs": "xfs"}
    assert run.record["figures"] == ["fig5", "fig6"]
    assert trial.record["config"]["limits"] == {"memory": "10GiB"}
    assert trial.record["config"]["workload"]["percent"] == [100, 0, 0, 0, 100, 0]
    assert trial.measured["cache_bytes"] == (4 << 30, "B")
    assert trial.measured["generated_tokens"] == (128, "tokens")
    assert trial.byte_count("traced", "read") == 262144
    assert run.requests(trial).collect()["issue_ns"].to_list() == [45502109053000, 45502109053447, 45503109053000]
    samples = run.samples(trial).collect()
    assert samples["t_ns"].to_list() == [45502109053000, 45502309053000]
    assert "assumed" in trial.record["clock"]["alignment"]["samples"]
    assert "assumed" in trial.record["trouble"]
    assert not [path for path in (run.path.parent).iterdir() if path.name.startswith(".")]


def test_lost_events_make_the_trial_invalid_in_words(tmp_path: Path) -> None:
    broken = TRACE.replace("131072, 320", "13Lost 1234 events\n1072, 320")
    run = imported(kv_tree(tmp_path, broken), tmp_path / "results")
    (trial,) = run.published
    assert (trial.state, trial.reasons) == ("invalid", ("1,234 events lost by the tracer",))
    assert trial.section("tracer")["lost"] == 1234
    assert pq.read_metadata(trial.path / "requests.parquet").num_rows == 3


def test_broken_empty_and_foreign_files_are_counted_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = kv_tree(tmp_path, TRACE + "nonsense\n4550310")
    folder = tree / "kv-xfs"
    (folder / "opt-gpu.txt").write_text(GPU + "2025/01/16 13:25:5\n2025/01/16 13:25:56.000, [N/A]\n")
    (folder / "empty.txt").touch()
    (tree / "readme.md").write_text("# not a result\n")
    (tree / "loop").symlink_to(tree)
    run = imported(tree, tmp_path / "results")
    (trial,) = run.published
    told = trial.section("import")
    assert sum(told["skipped"].values()) == 4
    assert told["first"][nvidia._BAD_LINE] == "kv-xfs/opt-gpu.txt:4"
    assert told["first"][nvidia._BAD_VALUE] == "kv-xfs/opt-gpu.txt:5"
    assert all(f"first: {where}" in trial.record["trouble"] for where in told["first"].values())
    left = {entry["file"]: entry["reason"] for entry in run.record["import"]["left"]}
    assert left == {"kv-xfs/empty.txt": "empty", "readme.md": "of no known kind"} | (
        {"loop": "not a regular file"} if "loop" in left else {}
    )
    assert "not used: readme.md (of no known kind)" in capsys.readouterr().err


def test_a_figure_says_which_readings_nobody_kept(tmp_path: Path) -> None:
    tree = kv_tree(tmp_path)
    (tree / "kv-xfs" / "opt-gpu.txt").unlink()
    run = imported(tree, tmp_path / "results")
    (panel,) = figure("fig5").charts(run)
    assert "No readings of a GPU are among the imported files" in json.dumps(panel.chart.to_dict())
    assert "what the commands wrote to opt-gpu.txt is not among the files" in run.published[0].record["trouble"]


def test_an_engine_that_did_not_finish_failed(tmp_path: Path) -> None:
    tree = kv_tree(tmp_path)
    (tree / "kv-xfs" / "opt.txt").write_text("".join(ENGINE.splitlines(keepends=True)[:2]))
    (trial,) = imported(tree, tmp_path / "results").published
    assert trial.state == "failed"
    assert "did not finish" in trial.reasons[0]


@pytest.mark.parametrize("cut", ["latency: 12", "throughput: 2.560 token/s", "projected"])
def test_an_engines_log_that_is_cut_off_failed(tmp_path: Path, cut: str) -> None:
    path = tmp_path / "log.txt"
    path.write_text(ENGINE[: ENGINE.rindex(cut)] + cut[:2])
    part = generation.read(Source(path, "log.txt"))
    assert "did not finish" in part.failures[0]
    assert part.skipped.counts[CUT] == 1
    assert "total_latency_s" not in part.metrics


def test_a_whole_log_without_its_last_line_end_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text(ENGINE.rstrip())
    part = generation.read(Source(path, "log.txt"))
    assert (part.failures, dict(part.skipped.counts)) == ([], {})
    assert part.metrics["tokens_per_s"] == (2.56, "1/s")


def test_a_cut_reading_and_a_cut_command_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    for module, text in (
        (nvidia, GPU + "2025/01/16 13:25:55.349, 9"),
        (commands, COMMANDS[: COMMANDS.index(" --gpu")]),
    ):
        path.write_text(text)
        part = module.read(Source(path, "file.txt"))
        assert part.skipped.counts[CUT] == 1
        assert part.workload == {}
    path.write_text(GPU + "2025/01/16 13:25:55.349, 98 %")
    assert nvidia.read(Source(path, "file.txt")).metrics["gpu0_utilisation_mean"] == (148 / 3, "%")


def test_two_experiments_in_one_folder_are_told_apart_by_name(tmp_path: Path) -> None:
    folder = kv_tree(tmp_path) / "kv-xfs"
    (folder / "other.txt").write_text(ENGINE.replace("6.7b", "30b"))
    (folder / "other-gpu.txt").write_text(GPU)
    run = imported(tmp_path / "tree", tmp_path / "results")
    files = [sorted(one["name"] for one in trial.section("import")["files"]) for trial in run.published]
    assert sorted(map(len, files)) == [2, 4]
    assert ["kv-xfs/other-gpu.txt", "kv-xfs/other.txt"] in files


def test_tensors_measured_twice_are_two_repeats(tmp_path: Path) -> None:
    result = "aio load_cpu: 0.0009765625 GB, 0.0005 secs,  1.95 GB/sec\n"
    line = "args = Namespace(mb_size=1, loop=5, validate=False)\n" + result
    for name in ("first", "second"):
        (tmp_path / "tensors" / name).mkdir(parents=True)
        (tmp_path / "tensors" / name / "aio-ext4.txt").write_text(line)
    (tmp_path / "tensors" / "cut-ext4.txt").write_text(line.splitlines()[0])
    (tmp_path / "tensors" / "odd-ext4.txt").write_text(line.replace("1.95", "9.99"))
    run = imported(tmp_path / "tensors", tmp_path / "results")
    assert [trial.repeat for trial in run.published] == [1, 2]
    assert bandwidth_per_repeat(run)["loops"].to_list() == [5, 5]
    assert len(run.published[0].section("import")["skipped"]) == 2


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80)
@given(st.binary(max_size=2000) | st.text(max_size=600).map(lambda text: (GPU + ENGINE + text + COMMANDS).encode()))
def test_no_importer_raises_on_garbage(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.txt"
    path.write_bytes(content)
    kinds.kind_of(path)
    for module in (nvidia, deepnvme, generation, commands):
        part = module.read(Source(path, "file.txt"))
        assert part.lines == content.count(b"\n") + (not content.endswith(b"\n") and bool(content))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 100)), min_size=1, max_size=50))
def test_samples_come_back_as_they_were(tmp_path: Path, made: list[tuple[int, int]]) -> None:
    stamps = [
        f"2025/01/21 {ms // 3_600_000 % 24:02d}:{ms // 60_000 % 60:02d}:{ms // 1000 % 60:02d}.{ms % 1000:03d}"
        for ms, _ in made
    ]
    path = tmp_path / "gpu.csv"
    path.write_text(
        "timestamp, index, utilization.gpu [%]\n"
        + "".join(f"{t}, 0, {v} %\n" for t, (_, v) in zip(stamps, made, strict=True))
    )
    part = nvidia.read(Source(path, "gpu.csv"))
    midnight = nvidia.wall_ns("2025/01/21 00:00:00.000")
    assert midnight is not None
    assert sorted(((row.t_ns - midnight) // 10**6, row.value) for row in part.samples) == sorted(made)


@pytest.mark.parametrize(
    ("column", "names"), [("uuid", ("GPU-5f", "GPU-1a")), ("pci.bus_id", ("00:3B", "00:AF")), ("index", ("1", "0"))]
)
def test_gpus_are_told_apart_by_any_column_that_does(tmp_path: Path, column: str, names: tuple[str, str]) -> None:
    path = tmp_path / "gpu.csv"
    path.write_text(
        f"timestamp, {column}, utilization.gpu [%]\n"
        + "".join(
            f"2025/01/21 01:31:{second}.{n}00, {name}, {100 - 100 * n} %\n"
            for second in range(10, 50)
            for n, name in enumerate(names)
        )
    )
    part = nvidia.read(Source(path, "gpu.csv"))
    busy, idle = ("gpu1", "gpu0") if column == "index" else ("gpu0", "gpu1")
    assert part.metrics == {f"{busy}_utilisation_mean": (100, "%"), f"{idle}_utilisation_mean": (0, "%")}
    assert part.notes == ([] if column == "index" else [f"gpu0 is {names[0]}", f"gpu1 is {names[1]}"])


@pytest.mark.parametrize(("readings", "apart_ms"), [(1, 0), (40, 0), (40, 7)])
@pytest.mark.parametrize("gpus", [2, 8])
def test_gpus_that_nothing_tells_apart_are_named_so(tmp_path: Path, readings: int, apart_ms: int, gpus: int) -> None:
    path = tmp_path / "gpu.csv"
    path.write_text(
        "timestamp, name, utilization.gpu [%]\n"
        + "".join(
            f"2025/01/21 01:31:{10 + second}.{n * apart_ms:03d}, NVIDIA A100, {100 * (n % 2)} %\n"
            for second in range(readings)
            for n in range(gpus)
        )
    )
    part = nvidia.read(Source(path, "gpu.csv"))
    assert part.metrics == {"gpus_utilisation_mean": (50, "%")}
    assert [(row.source, row.value) for row in part.samples] == [("gpu0", 50)] * readings
    (note,) = part.notes
    assert "several lines a reading" in note
    assert note.endswith("gpu0 stands for the mean of all of them")


def test_a_column_that_was_read_once_is_kept_beside_readings_that_are_merged(tmp_path: Path) -> None:
    path = tmp_path / "gpu.csv"
    lines = [f"2025/01/21 01:31:1{n // 2}.000, {100 * (n % 2)} %, {'7 MiB' if n == 0 else '[N/A]'}\n" for n in range(8)]
    path.write_text("timestamp, utilization.gpu [%], memory.used [MiB]\n" + "".join(lines))
    part = nvidia.read(Source(path, "gpu.csv"))
    assert [row.value for row in part.samples if row.unit == "B"] == [7 << 20]


def test_one_gpu_that_is_read_unevenly_stays_one(tmp_path: Path) -> None:
    path = tmp_path / "gpu.csv"
    times = [200 * n + 37 * (n % 3) + 5000 * (n > 20) for n in range(40)]
    path.write_text(
        "timestamp, utilization.gpu [%]\n"
        + "".join(f"2025/01/21 01:31:{10 + t // 1000}.{t % 1000:03d}, 5 %\n" for t in times)
    )
    part = nvidia.read(Source(path, "gpu.csv"))
    assert (part.notes, part.metrics) == ([], {"gpu0_utilisation_mean": (5, "%")})


def test_fios_report_is_numbers(tmp_path: Path) -> None:
    job: dict[str, Any] = {"jobname": "load", "write": {"io_bytes": 0}}
    job["read"] = {
        "io_bytes": 1 << 20,
        "bw": 2048,
        "iops": 8.0,
        "clat_ns": {"mean": 1500.0, "percentile": {"99.000000": 9000}},
    }
    (tmp_path / "fio.json").write_text("fio: note\n" + json.dumps({"fio version": "fio-3.33", "jobs": [job]}))
    (trial,) = imported(tmp_path / "fio.json", tmp_path / "results").published
    assert trial.measured["load.read_bytes"] == (1 << 20, "B")
    assert trial.measured["load.read_clat_p99_us"] == (9.0, "µs")
    assert trial.tracer == "none"


def test_fios_jobs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    def job(name: str, kib: int) -> dict[str, Any]:
        return {"jobname": name, "read": {"io_bytes": kib, "bw": kib, "iops": 1.0}, "write": {"io_bytes": 0}}

    jobs = [job("seq", 1 << 20), job("seq", 1 << 19), job("seq.1", 1 << 18), job("other", 1 << 18)]
    (tmp_path / "fio.json").write_text(json.dumps({"fio version": "fio-3.33", "jobs": jobs}))
    (trial,) = imported(tmp_path / "fio.json", tmp_path / "results").published
    found = {name: value for name, (value, unit) in trial.measured.items() if unit == "GiB/s"}
    assert found == {
        "seq.2.read_bandwidth_gib_s": 1.0,
        "seq.3.read_bandwidth_gib_s": 0.5,
        "seq.1.read_bandwidth_gib_s": 0.25,
        "other.read_bandwidth_gib_s": 0.25,
    }
    assert "2 jobs are called seq: " in trial.record["trouble"]


def test_fios_logs_without_latencies_are_left_with_the_reason(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    for name in ("a_lat.1.log", "a_clat.1.log", "a_bw.1.log", "b_clat.2.log"):
        (folder / name).write_text("1, 500000, 0, 4096, 8192, 0\n")
    run = imported(folder, tmp_path / "results")
    assert [trial.section("import")["files"][0]["name"] for trial in run.published] == ["a_lat.1.log", "b_clat.2.log"]
    left = {entry["file"]: entry["reason"] for entry in run.record["import"]["left"]}
    assert left["a_clat.1.log"] == "a_lat.1.log has the same I/Os"
    assert left["a_bw.1.log"].startswith("fio's bw log has no latencies")


def test_a_source_with_nothing_in_it_is_one_message_and_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "notes.txt").write_text("hello\n")
    results = tmp_path / "results"
    assert main([str(tmp_path / "source"), "--results", str(results)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path / 'source'}: nothing that can be imported; looked for\n")
    assert all(kind in said for kind in kinds.KINDS)
    assert "not used: notes.txt (of no known kind)" in said
    assert not results.exists()
    for wrong in ([str(tmp_path / "absent")], [str(tmp_path / "source"), "--name", "../x"]):
        assert main([*wrong, "--results", str(results)]) == 2
        assert "Traceback" not in capsys.readouterr().err


def test_a_kind_can_be_forced_and_another_import_never_touches_the_first(tmp_path: Path) -> None:
    (tmp_path / "cut.txt").write_text("12, no request\n" * 300 + TRACE)
    first = imported(tmp_path / "cut.txt", tmp_path / "results", "--kind", "bite_size")
    before = (first.path / "run.json").read_bytes()
    second = imported(tmp_path / "cut.txt", tmp_path / "results", "--kind", "bite_size")
    assert first.path != second.path
    assert (first.path / "run.json").read_bytes() == before
    assert first.published[0].state == "invalid"


def test_it_draws_what_it_imports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(kv_tree(tmp_path)), "--results", str(tmp_path / "results"), "--name", "kv"]) == 0
    run, report = capsys.readouterr().out.splitlines()
    assert Path(report) == Path(run) / "report.html"
    assert {"fig5", "fig6"} <= {path.name.split("-")[0] for path in (Path(run) / "figures").glob("*.svg")}
    assert "nothing ties them" in Path(report).read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_import_leaves_no_half_run(tmp_path: Path, number: int) -> None:
    path = tmp_path / "trace.txt"
    with path.open("w") as out:
        out.write(TRACE)
        for block in range(40):
            out.write(
                "".join(f"{45503109053000 + block * 10**7 + n}, R, 131072, {n * 8}, 256\n" for n in range(50_000))
            )
    results = tmp_path / "results"
    command = [
        sys.executable,
        "-m",
        "analysis.ingest",
        str(path),
        "--results",
        str(results),
        "--name",
        "made",
        "--no-draw",
    ]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while child.poll() is None and not list(results.glob("made/.import-*/incoming-0/.sort-*")):
        time.sleep(0.005)
    child.send_signal(number)
    _, said = child.communicate(timeout=60)
    assert child.returncode != 0
    assert b"Traceback" not in said
    assert not [entry for entry in (results / "made").iterdir() if not entry.name.startswith(".")]
    if number != signal.SIGKILL:
        assert list((results / "made").iterdir()) == []
        assert b"interrupted" in said
    run = imported(path, results)
    assert run.published[0].section("tracer")["requests"] == 2_000_003
    assert [entry.name for entry in run.path.parent.iterdir() if entry.name.startswith(".")] == []
