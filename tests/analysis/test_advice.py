"""Each rule of advice on a made trial: it speaks where its numbers are bad, and is silent where they are not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis import load_run
from analysis.advice import RULES, Advice, advice
from analysis.schema import EXTENTS, SAMPLES, described
from tests.analysis.made_run import (
    MIB,
    made_ceiling,
    phase_row,
    request_row,
    write_phases,
    write_record,
    write_requests,
)

S = 1_000_000_000
KIB, GIB = 1 << 10, 1 << 30
WINDOW = {"name": "ftrace", "begin_ns": 0, "end_ns": 10 * S}
#: Prefill and decode from the first to the ninth second.
STEPS = [phase_row("prefill", S, 2 * S), phase_row("decode", 2 * S, 9 * S)]


def make(
    root: Path,
    phases: Sequence[Mapping[str, Any]] = (),
    requests: Sequence[Mapping[str, Any]] | None = None,
    samples: Sequence[tuple[float, str, str, float]] = (),
    **sections: Any,
) -> Path:
    """Write a run of one trial; `samples` are second, source, name, value. Returns the run's folder."""
    folder = root / "trials" / sections.pop("slug", "one")
    write_record(folder, **{"tracer": WINDOW, **sections})
    write_phases(folder / "phases.parquet", phases)
    if requests is not None:
        write_requests(folder / "requests.parquet", sorted(requests, key=lambda row: row["issue_ns"]))
    rows = [
        {"t_ns": int(t * S), "source": source, "name": name, "value": value, "unit": "1", "process": None}
        for t, source, name, value in samples
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=described(SAMPLES, {})), folder / "samples.parquet")
    (root / "run.json").write_text(json.dumps({"schema_version": 1, "plan": []}))
    return root


def told(run: Path, code: str) -> Advice | None:
    """Return what the rule says of the run; each rule speaks once at most."""
    found = [one for one in advice(load_run(run)) if one.code == code]
    assert len(found) <= 1
    return found[0] if found else None


def series(source: str, name: str, *values: float) -> list[tuple[float, str, str, float]]:
    """Return samples at even times between the first second and the ninth."""
    return [(1.5 + 7 * place / max(len(values) - 1, 1), source, name, value) for place, value in enumerate(values)]


def said(run: Path, code: str) -> str:
    found = told(run, code)
    assert found is not None
    assert "{" not in found.told
    return found.told


def test_codes_are_each_rules_own():
    assert len({rule.code for rule in RULES}) == len(RULES)


def test_a_trial_of_which_nothing_is_known_gets_no_advice_but_to_repeat_it(tmp_path):
    make(tmp_path, tracer={})
    assert [one.code for one in advice(load_run(tmp_path))] == ["single-repeat"]


def test_trials_of_one_rule_come_as_one_advice_with_their_range(tmp_path):
    for place, free in enumerate((10, 40, 500)):
        storage, device = {"free_bytes": free * MIB}, {"size_bytes": 1000 * MIB}
        make(tmp_path, slug=f"t{place}", id=str(place), storage=storage, device=device)
    found = told(tmp_path, "full-filesystem")
    assert found is not None
    assert found.trials == ("t0", "t1")
    assert "10 MiB to 40 MiB" in found.told
    assert "(1.0 % to 4.0 %)" in found.told


# --- the measurement -------------------------------------------------------------------------------------------------


def test_lost_events_of_an_invalid_trial(tmp_path):
    verdict = {"state": "invalid", "reasons": ["lost"]}
    config = {"trace": {"buffer_size": "4MiB"}}
    make(tmp_path / "a", tracer={**WINDOW, "lost": 1742}, verdict=verdict, config=config)
    assert "1,742 events" in said(tmp_path / "a", "lost-events")
    assert "4MiB" in said(tmp_path / "a", "lost-events")
    make(tmp_path / "b", tracer={**WINDOW, "lost": 0}, verdict=verdict)
    assert told(tmp_path / "b", "lost-events") is None


def test_a_single_repeat(tmp_path):
    make(tmp_path, slug="a", id="a", cell={"fs": "xfs"})
    assert "n = 1" in said(tmp_path, "single-repeat")
    make(tmp_path, slug="b", id="b", cell={"fs": "xfs"}, repeat=2)
    assert told(tmp_path, "single-repeat") is None


def test_a_device_in_memory(tmp_path):
    make(tmp_path / "a", device={"name": "loop3", "ram_backed": True})
    assert "loop3" in said(tmp_path / "a", "ram-backed")
    make(tmp_path / "b", device={"name": "loop3", "ram_backed": False})
    assert told(tmp_path / "b", "ram-backed") is None


def test_a_loop_image_without_direct_io(tmp_path):
    make(tmp_path / "a", storage={"kind": "loop", "direct_io": False}, device={"drive": "vda"})
    assert "vda" in said(tmp_path / "a", "loop-without-direct-io")
    make(tmp_path / "b", storage={"kind": "loop", "direct_io": True}, device={"drive": "vda"})
    assert told(tmp_path / "b", "loop-without-direct-io") is None
    make(tmp_path / "c", storage={"kind": "loop"}, device={"drive": "vda"})
    assert told(tmp_path / "c", "loop-without-direct-io") is None


def test_others_on_the_drive_beneath(tmp_path):
    counted = {"counted": {"read": 100 * MIB, "write": 100 * MIB}}
    device = {"drive": "vda", "drive_moved_bytes": {"read": 150 * MIB, "write": 100 * MIB}}
    make(tmp_path / "a", device=device, bytes=counted)
    assert "50 MiB were moved on vda in its window, 25.0 %" in said(tmp_path / "a", "others-on-drive")
    make(tmp_path / "b", device={"drive_moved_bytes": {"read": 101 * MIB, "write": 99 * MIB}}, bytes=counted)
    assert told(tmp_path / "b", "others-on-drive") is None
    make(tmp_path / "c", device={"drive_moved_bytes": "unknown"}, bytes=counted)
    assert told(tmp_path / "c", "others-on-drive") is None


def reads(count: int, size: int, begin_s: float = 2, rwbs: str = "RS", **changes: Any) -> list[dict[str, Any]]:
    """Return reads of a microsecond each, evenly over five seconds."""
    step = 5 * S // count
    begin = int(begin_s * S)
    rows = [request_row(begin + n * step, begin + n * step + 1000, "read", size, n * size // 512) for n in range(count)]
    return [row | {"rwbs": rwbs} | changes for row in rows]


@pytest.mark.parametrize(("ceiling_gib_s", "fires"), [(0.1, True), (1.0, False)])
def test_a_job_above_the_ceiling(tmp_path, ceiling_gib_s, fires):
    make(tmp_path, STEPS, reads(100, 16 * MIB), ceiling=made_ceiling(ceiling_gib_s, 1.0))
    assert (told(tmp_path, "low-ceiling") is not None) is fires
    if fires:
        assert "223 % of the ceiling (reads; fio: 0.100 GiB/s at 128 KiB, depth 32)" in said(tmp_path, "low-ceiling")


@pytest.mark.parametrize(
    ("ratio", "block", "fires"), [(0.8, 128 * KIB, True), (0.99, 128 * KIB, False), (0.8, 4 * KIB, False)]
)
def test_a_tracer_that_slows_requests_of_the_size_of_engines(tmp_path, ratio, block, fires):
    cost = {"state": "measured", "loads": [{"ratio": ratio, "block_bytes": block}]}
    make(tmp_path, tracer={**WINDOW, "cost": cost})
    found = told(tmp_path, "costly-tracer")
    assert (found is not None) is fires
    assert found is None or "80.0 %" in found.told


@pytest.mark.parametrize(("traced", "fires"), [(20, True), (100, False)])
def test_a_page_cache_that_answers_for_the_drive(tmp_path, traced, fires):
    load = phase_row("load", 2 * S, 8 * S, 100 * MIB, api="posix", tensor_device="cpu", size_bytes=str(100 * MIB))
    make(tmp_path, [load], reads(traced, MIB))
    found = told(tmp_path, "page-cache")
    assert (found is not None) is fires
    assert found is None or "20.0 % of the bytes of load posix" in found.told


def test_a_page_cache_that_kept_what_passes_should_have_read(tmp_path):
    make(tmp_path, bytes={"traced": {"read": 50}, "expected": {"read": 100}})
    assert "50.0 % of the bytes of all reads" in said(tmp_path, "page-cache")


# --- the job ---------------------------------------------------------------------------------------------------------


def utilisation(gpu: Sequence[float], drive: Sequence[float]) -> list[tuple[float, str, str, float]]:
    return series("gpu0", "utilisation", *gpu) + series("device", "utilisation", *drive)


def test_drive_and_gpu_idle_at_once(tmp_path):
    make(tmp_path / "a", STEPS, samples=utilisation([0, 0, 90, 90], [0, 5, 0, 0]))
    assert "In 50.0 % of the time" in said(tmp_path / "a", "both-idle")
    make(tmp_path / "b", STEPS, samples=utilisation([90, 90, 90, 90], [0, 5, 0, 0]))
    assert told(tmp_path / "b", "both-idle") is None
    make(tmp_path / "c", STEPS, samples=series("device", "utilisation", 0, 0))
    assert told(tmp_path / "c", "both-idle") is None


def test_a_gpu_that_waits_for_the_drive(tmp_path):
    make(tmp_path / "a", STEPS, samples=utilisation([0, 0, 90, 0], [99, 99, 0, 99]))
    assert "In 75.0 % of the time" in said(tmp_path / "a", "storage-bound")
    make(tmp_path / "b", STEPS, samples=utilisation([80, 80, 90, 80], [99, 99, 0, 99]))
    assert told(tmp_path / "b", "storage-bound") is None


@pytest.mark.parametrize(("gpu", "drive", "fires"), [(3.0, (), True), (80.0, (), False), (3.0, (50.0,), False)])
def test_a_gpu_that_waits_beside_a_drive_that_was_not_sampled(tmp_path, gpu, drive, fires):
    samples = series("gpu0", "utilisation", gpu, gpu) + series("device", "utilisation", *drive)
    make(tmp_path, samples=samples, tracer={})
    found = told(tmp_path, "idle-gpu")
    assert (found is not None) is fires
    assert found is None or "busy 3 % of the time in the whole trace" in found.told


def test_samples_outside_generation_count_for_nothing(tmp_path):
    before = [(0.1, "gpu0", "utilisation", 0.0), (0.1, "device", "utilisation", 0.0)]
    make(tmp_path, STEPS, samples=before + utilisation([90, 90], [50, 50]))
    assert told(tmp_path, "both-idle") is None


@pytest.mark.parametrize(("seconds", "fires"), [(4.0, True), (0.5, False)])
def test_tasks_that_stalled_for_io(tmp_path, seconds, fires):
    samples = series("pressure", "io_full_stalled", 10.0, 10.0 + seconds)
    make(tmp_path, STEPS, samples=samples)
    found = told(tmp_path, "stalled-on-io")
    assert (found is not None) is fires
    assert found is None or "For 50.0 % of the time while generating" in found.told


@pytest.mark.parametrize(
    ("cpu_s", "ceiling_gib_s", "took_s", "fires"),
    [(15.8, 2.0, 0.05, True), (4, 2.0, 0.05, False), (15.8, 0.2, 0.05, False), (15.8, 2.0, 0.01, False)],
)
def test_processors_that_are_the_limit(tmp_path, cpu_s, ceiling_gib_s, took_s, fires):
    samples = [(1.0, "cgroup", "cpu_time", 1.0), (9.0, "cgroup", "cpu_time", 1.0 + cpu_s)]
    requests = [
        request_row(int((1 + place * 0.08) * S), int((1 + place * 0.08 + took_s) * S), "read", 16 * MIB)
        for place in range(100)
    ]
    node = {"hostname": "h", "cpus": 2}
    make(tmp_path, STEPS, requests, samples, ceiling=made_ceiling(ceiling_gib_s, 1.0), node=node)
    found = told(tmp_path, "busy-processors")
    assert (found is not None) is fires
    wanted = "In generation, the job's own work took 98.8 % of all processors, and while reads were in flight they"
    assert found is None or f"{wanted} reached 15.6 %" in found.told


def test_what_others_do_on_the_processors_is_no_advice(tmp_path):
    requests = [request_row(place * S // 10, (place + 1) * S // 10, "read", MIB) for place in range(100)]
    make(tmp_path, STEPS, requests, series("cpu", "busy", 99, 99), ceiling=made_ceiling(2.0, 1.0))
    assert told(tmp_path, "busy-processors") is None


def bytes_metric(count: float) -> dict[str, Any]:
    return {"value": count, "unit": "B"}


@pytest.mark.parametrize(("offloaded", "fires"), [(400 * MIB, True), (990 * MIB, False)])
def test_tensors_below_the_block_size(tmp_path, offloaded, fires):
    config = {"workload": {"kind": "deepspeed_model", "block_size": "16MiB"}}
    metrics = {"offloaded_bytes": bytes_metric(offloaded), "model_bytes": bytes_metric(1000 * MIB)}
    make(tmp_path, config=config, metrics=metrics)
    found = told(tmp_path, "tensors-below-block")
    assert (found is not None) is fires
    assert found is None or "400 MiB of a model of 1,000 MiB (40.0 %)" in found.told
    assert found is None or "(16MiB)" in found.told


@pytest.mark.parametrize(("read", "stalled", "fires"), [(150, 0.0, True), (100, 2.0, True), (100, 0.0, False)])
def test_a_memory_limit_that_thrashes(tmp_path, read, stalled, fires):
    samples = series("pressure", "memory_full_stalled", 0.0, stalled)
    moved = {"traced": {"read": read}, "expected": {"read": 100}}
    make(tmp_path, STEPS, samples=samples, bytes=moved, metrics={"memory_limit_bytes": bytes_metric(GIB)})
    found = told(tmp_path, "memory-thrash")
    assert (found is not None) is fires
    assert found is None or "limits.memory (1 GiB)" in found.told


@pytest.mark.parametrize(("anonymous", "kills", "fires"), [(95, 0, True), (50, 1, True), (50, 0, False)])
def test_a_job_close_to_its_memory_limit(tmp_path, anonymous, kills, fires):
    metrics = {"memory_limit_bytes": bytes_metric(100 * MIB), "oom_kills": {"value": kills, "unit": "1"}}
    make(tmp_path, STEPS, samples=series("cgroup", "anonymous", 10 * MIB, anonymous * MIB), metrics=metrics)
    found = told(tmp_path, "near-memory-limit")
    assert (found is not None) is fires
    assert (
        found is None or f"{anonymous} MiB, {anonymous}.0 % of the limit of 100 MiB ({kills} OOM kills)" in found.told
    )


# --- the drive -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("slowest_us", "fires"), [(5000, True), (1500, False)])
def test_a_long_tail_of_latency(tmp_path, slowest_us, fires):
    rows = reads(20_000, 4 * KIB)
    for n, row in enumerate(rows):
        row["complete_ns"] = row["issue_ns"] + (slowest_us if n % 200 == 0 else 200) * 1000
    make(tmp_path, STEPS, rows)
    found = told(tmp_path, "tail-latency")
    assert (found is not None) is fires
    assert found is None or "p99.9 of read latency is 25" in found.told
    assert found is None or "in generation, worst in decode (5" in found.told


def test_a_tail_of_requests_that_are_not_alike_is_told_by_phase(tmp_path):
    fast, slow = (
        [row | {"complete_ns": row["issue_ns"] + us * 1000} for row in reads(n, 4 * KIB, begin)]
        for n, begin, us in ((30_000, 1, 100), (1_000, 6.5, 9000))
    )
    phases = [
        phase_row(name, begin * S, end * S, MIB, api=name) for name, begin, end in (("fast", 1, 6), ("slow", 6, 12))
    ]
    make(tmp_path / "a", phases, fast + slow)
    assert told(tmp_path / "a", "tail-latency") is None
    make(tmp_path / "b", (), fast + slow)
    assert "in the whole trace" in said(tmp_path / "b", "tail-latency")


def test_a_tail_of_few_requests_is_none(tmp_path):
    rows = reads(100, 4 * KIB)
    rows[50]["complete_ns"] += S
    make(tmp_path, STEPS, rows)
    assert told(tmp_path, "tail-latency") is None


@pytest.mark.parametrize(("together", "ceiling_gib_s", "fires"), [(1, 2.0, True), (16, 2.0, False), (1, 0.2, False)])
def test_a_queue_that_is_too_shallow(tmp_path, together, ceiling_gib_s, fires):
    rows = []
    for n in range(800):
        begin = S + n // together * together * 10_000_000
        rows += [request_row(begin, begin + together * 9_900_000, "read", 2 * MIB, n * 4096)]
    make(tmp_path, STEPS, rows, ceiling=made_ceiling(ceiling_gib_s, 1.0))
    found = told(tmp_path, "shallow-queue")
    assert (found is not None) is fires
    assert found is None or "it had 1 reads at once on average, and reached 9.8 %" in found.told


@pytest.mark.parametrize(
    ("rwbs", "window_kib", "fires"), [("RA", 2560, True), ("RS", 2560, False), ("RA", 128, False), ("RA", None, False)]
)
def test_buffered_reads_that_are_split(tmp_path, rwbs, window_kib, fires):
    rows = reads(300, 128 * KIB, rwbs=rwbs) + reads(100, 16 * KIB, 2.001, rwbs=rwbs)
    queue = {"max_sectors_kb": "128"} | ({} if window_kib is None else {"read_ahead_kb": str(window_kib)})
    make(tmp_path, STEPS, rows, storage={"queue": queue})
    found = told(tmp_path, "split-readahead")
    assert (found is not None) is fires
    assert found is None or "100 % of the bytes read while generating came through readahead" in found.told
    assert found is None or "splits into up to 20 requests; 25.0 % of these reads are smaller" in found.told


def writes(count: int, size: int, begin_s: float = 2) -> list[dict[str, Any]]:
    return [row | {"op": "write", "rwbs": "WS"} for row in reads(count, size, begin_s)]


@pytest.mark.parametrize(("small", "large", "fires"), [(300, 100, True), (100, 300, False), (30, 10, False)])
def test_small_requests_among_the_writes(tmp_path, small, large, fires):
    make(tmp_path, STEPS, writes(small, 4 * KIB) + writes(large, 128 * KIB, 2.001))
    found = told(tmp_path, "small-writes")
    assert (found is not None) is fires
    assert found is None or "75.0 % of the writes while generating are of 16 KiB or less" in found.told


@pytest.mark.parametrize(("journal", "fires"), [(100, True), (1, False)])
def test_a_filesystem_that_writes_for_itself(tmp_path, journal, fires):
    data = [row | {"sector": row["sector"] + (1 << 20)} for row in writes(100, 16 * KIB)]
    kept = [row | {"sector": 8} for row in writes(journal, 4 * KIB, 2.001)]
    make(tmp_path, STEPS, data + kept, storage={"fs": "ext4"})
    rows = [("journal", 0, 1 << 10), ("kv", 1 << 20, 1 << 20)]
    extents = [
        {"role": role, "file": None, "dev": "7:0", "sector": begin, "sectors": size, "logical_bytes": 0}
        | {"seen_from_ns": 0, "seen_to_ns": 10 * S}
        for role, begin, size in rows
    ]
    table = pa.Table.from_pylist(extents, schema=described(EXTENTS, {}))
    pq.write_table(table, tmp_path / "trials" / "one" / "extents.parquet")
    found = told(tmp_path, "bookkeeping-writes")
    assert (found is not None) is fires
    assert found is None or "20.0 % of the bytes written (400 KiB, ext4)" in found.told


@pytest.mark.parametrize(
    ("name", "transport", "fires"), [("bfq", "nvme", True), ("none", "nvme", False), ("mq-deadline", "sata", False)]
)
def test_a_scheduler_before_an_nvme_drive(tmp_path, name, transport, fires):
    device = {"name": "nvme0n1", "drives": [{"name": "nvme0n1", "transport": transport}]}
    make(tmp_path, device=device, storage={"queue": {"scheduler": name}})
    found = told(tmp_path, "scheduler")
    assert (found is not None) is fires
    assert found is None or "nvme0n1 has the scheduler bfq" in found.told


@pytest.mark.parametrize(("celsius", "fires"), [(78, True), (45, False), ("unknown", False)])
def test_a_hot_drive(tmp_path, celsius, fires):
    health = {"begin": {"temperature_c": 40}, "end": {"temperature_c": celsius}}
    make(tmp_path, device={"drives": [{"name": "nvme0n1", "health": health}]})
    found = told(tmp_path, "hot-drive")
    assert (found is not None) is fires
    assert found is None or "nvme0n1 was at 78 °C" in found.told


def test_a_filesystem_that_is_nearly_full(tmp_path):
    make(tmp_path / "a", storage={"free_bytes": 5 * GIB}, device={"size_bytes": 100 * GIB})
    assert "5 GiB of 100 GiB were free (5.0 %)" in said(tmp_path / "a", "full-filesystem")
    make(tmp_path / "b", storage={"free_bytes": 50 * GIB}, device={"size_bytes": 100 * GIB})
    assert told(tmp_path / "b", "full-filesystem") is None
