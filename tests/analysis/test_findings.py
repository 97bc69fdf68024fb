"""The study's statements on made runs: reproduced, different, or not testable, with the numbers and what is missing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from analysis import load_run
from analysis.advice import RULES, advice
from analysis.findings import DIFFERS, NOT_TESTABLE, REPRODUCED, STATEMENTS, Finding, findings
from analysis.run import Run
from analysis.schema import EXTENTS, REQUESTS, described
from tests.analysis.made_engines import KV_ON_DISK, WEIGHTS_ON_DISK, Shape, make_engine_run
from tests.analysis.made_run import (
    BEGIN_NS,
    GIB_PER_NS,
    MIB,
    make_run,
    phase_row,
    request_row,
    write_phases,
    write_record,
    write_requests,
)

SIZES = (MIB, 4 * MIB, 16 * MIB, 64 * MIB)


def told(run: Run | Path, code: str) -> Finding:
    (found,) = [one for one in findings(run if isinstance(run, Run) else load_run(run)) if one.code == code]
    return found


def make_tensors(root: Path, speeds: Mapping[str, Sequence[Sequence[float]]], name: str = "load") -> Run:
    """Write a run of `name` phases: `speeds` are GiB/s by api, a row for each repeat, a column for each of SIZES."""
    for repeat in range(len(speeds["aio"])):
        folder = root / "trials" / f"rep-{repeat}"
        write_record(folder, id=f"rep={repeat}", cell={"fs": "ext4"}, repeat=repeat + 1)
        rows, now = [], BEGIN_NS
        for api, table in speeds.items():
            for size, speed in zip(SIZES, table[repeat], strict=True):
                end = now + int(size / (speed * GIB_PER_NS))
                attributes = {"api": api, "tensor_device": "cpu", "size_bytes": str(size), "loop": "0"}
                rows.append(phase_row(name, now, end, size, **attributes))
                now = end + 1000
        write_phases(folder / "phases.parquet", rows)
    (root / "run.json").write_text(json.dumps({"schema_version": 1, "plan": []}))
    return load_run(root)


def change(run: Path, **sections: Any) -> Run:
    """Replace sections of every trial's record; a callable is given the old one."""
    for trial in load_run(run).published:
        new = {key: value(trial.record.get(key)) if callable(value) else value for key, value in sections.items()}
        (trial.path / "trial.json").write_text(json.dumps({**trial.record, **new}))
    return load_run(run)


def engines(root: Path, *repeats: Shape) -> Path:
    return make_engine_run(root, {"batch_size=4": repeats}, ["fig5"])


MODEL = Shape(percent=WEIGHTS_ON_DISK, kind="flexgen")
CACHE = Shape(percent=KV_ON_DISK)


# --- aio against POSIX -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["aio-loads", "aio-stores"])
def test_aio_that_is_faster_at_every_size_in_every_repeat_reproduces_the_study(tmp_path, code):
    found = told(make_run(tmp_path, SIZES[:3], broken=False), code)
    assert found.state == REPRODUCED
    assert "ext4, CPU tensor: ahead at every size" in found.told
    assert "xfs, CPU tensor: ahead at every size" in found.told
    assert "n = 2 repeats" in found.told
    assert found.numbers["ext4, CPU tensor: aio ahead from (bytes)"] == MIB
    assert len(found.trials) == 4


def test_the_size_from_which_aio_is_ahead_is_the_first_of_those_after_the_last_that_is_not(tmp_path):
    speeds = {"aio": [[1.0, 2.0, 2.2, 2.4]] * 2, "posix": [[1.5, 1.0, 1.1, 1.2]] * 2}
    found = told(make_tensors(tmp_path, speeds), "aio-loads")
    assert found.state == REPRODUCED
    assert "ahead from 4 MiB on, 2.00 times POSIX" in found.told
    assert "behind at 1 MiB (means: 0.667 times POSIX)" in found.told


def test_aio_that_is_behind_at_most_sizes_differs(tmp_path):
    speeds = {"aio": [[1.0, 1.0, 1.0, 2.0]] * 2, "posix": [[1.5, 1.5, 1.5, 1.5]] * 2}
    found = told(make_tensors(tmp_path, speeds, "store"), "aio-stores")
    assert found.state == DIFFERS
    assert "behind at 1 MiB, 4 MiB, 16 MiB" in found.told


def test_repeats_that_overlap_decide_nothing_whatever_their_means_are(tmp_path):
    aio = [[2.0, 2.0, 2.0, 2.0], [1.0, 1.0, 1.0, 1.0], [2.0, 2.0, 2.0, 2.0]]
    found = told(make_tensors(tmp_path, {"aio": aio, "posix": [[1.1] * 4, [1.2] * 4, [1.15] * 4]}), "aio-loads")
    assert found.state == NOT_TESTABLE
    assert "repeats overlap at 1 MiB, 4 MiB, 16 MiB, 64 MiB (means: 1.45 times POSIX)" in found.told
    assert "repeats=5" in found.told


def test_two_repeats_are_apart_by_a_tenth_or_not_at_all(tmp_path):
    aio, posix = [[0.5, 1.002, 1.002, 1.002], [0.5, 1.0015, 1.0015, 1.0015]], [[1.0] * 4, [1.001] * 4]
    found = told(make_tensors(tmp_path, {"aio": aio, "posix": posix}), "aio-loads")
    assert found.state == DIFFERS
    assert "behind at 1 MiB" in found.told
    assert "nearest repeats less than 10 % apart at 4 MiB, 16 MiB, 64 MiB (means: " in found.told


def test_ahead_at_half_of_the_sizes_and_behind_at_the_other_half_differs(tmp_path):
    aio = [[0.5, 0.5, 2.0, 2.0]] * 3
    assert told(make_tensors(tmp_path, {"aio": aio, "posix": [[1.0] * 4] * 3}), "aio-loads").state == DIFFERS


def test_one_or_two_sizes_are_no_line(tmp_path):
    found = told(make_run(tmp_path, SIZES[:2], broken=False), "aio-loads")
    assert found.state == NOT_TESTABLE
    assert "Fewer than 3 tensor sizes make no line to judge: run conf/fig2.yaml" in found.told
    assert "At too many sizes" not in found.told


def test_bandwidths_that_recording_stacks_disturbed_are_judged_by_nobody(tmp_path):
    run = make_tensors(tmp_path, {"aio": [[2.0] * 4], "posix": [[1.0] * 4]})
    assert told(run, "aio-loads").state == REPRODUCED
    write_record(run.published[0].path, id="rep=0", cell={"fs": "ext4"}, stacks={"state": "recorded"})
    assert told(run.path, "aio-loads").state == NOT_TESTABLE


def test_single_repeats_within_a_tenth_decide_nothing_and_n_is_told(tmp_path):
    close = told(make_tensors(tmp_path / "close", {"aio": [[1.05] * 4], "posix": [[1.0] * 4]}), "aio-loads")
    apart = told(make_tensors(tmp_path / "apart", {"aio": [[1.15] * 4], "posix": [[1.0] * 4]}), "aio-loads")
    assert (close.state, apart.state) == (NOT_TESTABLE, REPRODUCED)
    assert "less than 10 % apart at 1 MiB, 4 MiB, 16 MiB, 64 MiB (1.05 times POSIX)" in close.told
    assert "of one repeat nobody knows how far apart repeats are" in close.told
    assert "nearest" not in close.told
    assert "n = 1" in apart.told


def test_what_was_moved_through_one_api_only_is_compared_with_nothing(tmp_path):
    found = told(make_tensors(tmp_path, {"aio": [[1.0] * 4]}), "aio-loads")
    assert found.state == NOT_TESTABLE
    assert "workload.apis=[posix,aio]" in found.told
    assert not found.numbers


def test_a_cache_whose_extents_show_that_nothing_moved_is_not_read(tmp_path):
    folder = tmp_path / "trials" / "t"
    counts = {"expected": {"read": 8192, "write": 8192}, "traced": {"read": 8192, "write": 8192}}
    config = {"workload": {"kind": "flexgen", "percent": [100, 0, 0, 0, 100, 0]}}
    tracer = {"name": "made", "begin_ns": BEGIN_NS, "end_ns": BEGIN_NS + 10**9}
    write_record(folder, config=config, tracer=tracer, bytes=counts)
    moved = [request_row(BEGIN_NS + n, BEGIN_NS + n + 9, op, 8192, 90_000) for n, op in enumerate(("read", "write"))]
    write_requests(folder / "requests.parquet", moved)
    lies = {"dev": "7:0", "seen_from_ns": BEGIN_NS, "seen_to_ns": BEGIN_NS + 10**9, "logical_bytes": 0}
    rows = [lies | {"role": "kv", "file": "kv0", "sector": 0, "sectors": 1000}]
    pq.write_table(pa.Table.from_pylist(rows, schema=EXTENTS), folder / "extents.parquet")
    (tmp_path / "run.json").write_text(json.dumps({"schema_version": 1, "plan": []}))
    assert told(tmp_path, "kv-reads-and-writes").state == DIFFERS
    assert told(tmp_path, "kv-whole-step").state == DIFFERS
    (folder / "extents.parquet").unlink()
    (tmp_path / "summary.parquet").unlink(missing_ok=True)
    assert told(tmp_path, "kv-reads-and-writes").state == REPRODUCED


def test_more_read_than_all_passes_need_tells_nothing_of_them(tmp_path):
    run = make_engine_run(tmp_path, {"batch_size=1": [CACHE]}, ["fig5"])
    (folder,) = (trial.path for trial in load_run(run).published)
    record = json.loads((folder / "trial.json").read_text())
    record["bytes"] = record["bytes"] | {"expected": {"read": record["bytes"]["traced"]["read"] // 2, "write": 1}}
    (folder / "trial.json").write_text(json.dumps(record))
    found = told(run, "kv-whole-step")
    assert found.state == NOT_TESTABLE
    assert "something else was read too" in found.told


# --- model offloading ------------------------------------------------------------------------------------------------


def test_reads_of_128_kib_that_are_most_of_all_dominate(tmp_path):
    found = told(engines(tmp_path, MODEL, MODEL), "model-128k-reads")
    assert found.state == REPRODUCED
    assert found.numbers["all trials: share of requests"] > 0.5
    assert found.numbers["all trials: most frequent size (bytes)"] == 128 * 1024
    assert "while generating" in found.told
    assert "The device splits at 128 KiB, as it was set to" in found.told


def test_reads_of_another_size_differ_and_the_devices_limit_is_told(tmp_path):
    run = engines(tmp_path, Shape(percent=WEIGHTS_ON_DISK, request_kib=256))
    found = told(change(run, storage={"queue": {"max_sectors_kb": "1280"}}), "model-128k-reads")
    assert found.state == DIFFERS
    assert "most frequent size is 256 KiB" in found.told
    assert "splits at 1280 KiB, the study's at 128 KiB: set storage.queue.max_sectors_kb=128" in found.told


def test_a_device_that_takes_no_128_kib_cannot_tell(tmp_path):
    run = engines(tmp_path, Shape(percent=WEIGHTS_ON_DISK, request_kib=64))
    found = told(change(run, storage={"queue": {"max_sectors_kb": "64"}}), "model-128k-reads")
    assert found.state == NOT_TESTABLE
    assert "conf/fig3.yaml or conf/fig4.yaml" in found.told


def test_a_limit_that_nobody_recorded_is_said_to_be_unknown(tmp_path):
    found = told(change(engines(tmp_path, MODEL), storage=None), "model-128k-reads")
    assert found.state == REPRODUCED
    assert "At which size the device splits requests is not recorded." in found.told


def ceiling(gib_s: float, spread: float = 0.05) -> dict[str, Any]:
    rounds = {"least_gib_s": gib_s * (1 - spread), "greatest_gib_s": gib_s * (1 + spread)}
    speeds = {"sequential_read_gib_s": gib_s, "sequential_write_gib_s": gib_s}
    settings = {"block_bytes": 131072, "depth": 32}
    return {"state": "measured", **speeds, "measurements": {"sequential_read": rounds}, "settings": settings}


@pytest.mark.parametrize(
    ("share", "spread", "state", "words"),
    [
        (0.5, 0.05, REPRODUCED, "50.0 % of what fio reads (128 KiB, depth 32"),
        (0.98, 0.05, DIFFERS, "98.0 % of what fio reads"),
        (0.9, 0.1, NOT_TESTABLE, "within the spread of the ceiling"),
        (1.3, 0.05, NOT_TESTABLE, "the ceiling is too low to tell: raise ceiling.depth"),
    ],
)
def test_the_drive_has_bandwidth_to_spare_or_not_beyond_the_spread_of_its_ceiling(
    tmp_path, share, spread, state, words
):
    run = engines(tmp_path, MODEL)
    read = told(change(run, ceiling=ceiling(10.0)), "model-not-saturating").numbers["all trials: read (GiB/s)"]
    found = told(change(run, ceiling=ceiling(read / share, spread)), "model-not-saturating")
    assert found.state == state
    assert words in found.told
    assert found.numbers["all trials: share of ceiling"] == pytest.approx(share)


def test_without_a_ceiling_nothing_is_saturated_nor_spared(tmp_path):
    found = told(change(engines(tmp_path, MODEL), ceiling=None), "model-not-saturating")
    assert found.state == NOT_TESTABLE
    assert "ceiling.enabled=true" in found.told


def moved(traced: int, expected: int | None) -> dict[str, Any]:
    told = {"traced": {"read": traced, "write": 0}, "counted": {"read": traced, "write": 0}}
    return told | {"expected": None if expected is None else {"read": expected, "write": 0}}


@pytest.mark.parametrize(("code", "shape"), [("model-whole-pass", MODEL), ("kv-whole-step", CACHE)])
def test_passes_read_all_of_it_or_memory_kept_a_part(tmp_path, code, shape):
    run = engines(tmp_path, shape)
    assert told(change(run, bytes=moved(96, 100)), code).state == REPRODUCED
    kept = told(change(run, bytes=moved(60, 100)), code)
    assert kept.state == DIFFERS
    assert "delivered 60.0 % of the 100 B" in kept.told
    assert "lower limits.memory" in kept.told
    assert told(change(run, bytes=moved(60, None)), code).state == NOT_TESTABLE


# --- KV cache offloading ---------------------------------------------------------------------------------------------


def test_a_cache_that_is_read_and_written_is_both(tmp_path):
    found = told(engines(tmp_path, CACHE), "kv-reads-and-writes")
    assert found.state == REPRODUCED
    assert found.numbers["all trials: written (bytes)"] > 0
    assert "nobody looked where the cache's lie" in found.told


def test_a_cache_that_is_only_read_while_generating_differs(tmp_path):
    run = engines(tmp_path, CACHE)
    (trial,) = load_run(run).published
    path = trial.path / "requests.parquet"
    table = pq.read_table(path)
    pq.write_table(table.filter(pc.not_equal(table["op"].cast("string"), "write")), path)
    found = told(run, "kv-reads-and-writes")
    assert found.state == DIFFERS
    assert "0 B written" in found.told
    assert told(run, "kv-reads-above-writes").state == NOT_TESTABLE


def test_requests_of_128_kib_dominate_or_not(tmp_path):
    assert told(engines(tmp_path / "large", CACHE), "kv-128k").state == REPRODUCED
    small = told(engines(tmp_path / "small", Shape(request_kib=16)), "kv-128k")
    assert small.state == DIFFERS
    assert "0 % of the reads" in small.told


def test_reads_are_far_above_writes_beside_what_was_published(tmp_path):
    found = told(engines(tmp_path, Shape(data_mib=64, written_mib=0.25)), "kv-reads-above-writes")
    assert found.state == REPRODUCED
    assert "Published: 2.0 GiB/s read and 11.0 MiB/s written, 186 times as much." in found.told
    assert found.numbers["published read (GiB/s)"] == 2.0
    ratio = found.numbers["all trials: reads over writes"]
    read, written = (found.numbers[f"all trials: {name}"] for name in ("read (GiB/s)", "written (MiB/s)"))
    assert ratio == pytest.approx(read * 1024 / written)
    assert found.numbers["all trials: reads over writes in decode steps"] > ratio


def test_decode_steps_of_several_processes_are_told_alone_too(tmp_path):
    run = engines(tmp_path, CACHE)
    code, name = "kv-reads-above-writes", "all trials: reads over writes in decode steps"
    alone = told(run, code).numbers[name]
    (run / "metrics.parquet").unlink()
    (trial,) = load_run(run).published
    path = trial.path / "phases.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    pq.write_table(pa.Table.from_pylist(rows + [row | {"process": "other"} for row in rows], table.schema), path)
    assert told(run, code).numbers[name] == pytest.approx(alone)


def test_as_many_writes_as_reads_differ(tmp_path):
    assert told(engines(tmp_path, Shape(data_mib=8, written_mib=8)), "kv-reads-above-writes").state == DIFFERS


def test_repeats_that_disagree_decide_nothing(tmp_path):
    repeats = (Shape(data_mib=64, written_mib=0.25), Shape(data_mib=8, written_mib=8))
    found = told(engines(tmp_path, *repeats), "kv-reads-above-writes")
    assert found.state == NOT_TESTABLE
    assert "repeats=5" in found.told
    assert "n = 2 repeats" in found.told


def test_a_trace_without_phases_is_told_as_a_whole(tmp_path):
    run = engines(tmp_path, CACHE)
    (trial,) = load_run(run).published
    (trial.path / "phases.parquet").unlink()
    found = told(run, "kv-128k")
    assert found.state == REPRODUCED
    assert "in the whole trace" in found.told


def test_issues_alone_tell_sizes_and_bandwidth_as_the_study_took_them(tmp_path):
    run = engines(tmp_path, CACHE)
    (trial,) = load_run(run).published
    path = trial.path / "requests.parquet"
    table = pq.read_table(path)
    columns = table.schema.get_field_index("complete_ns")
    issued = table.set_column(columns, table.schema.field(columns), pa.nulls(table.num_rows, pa.int64()))
    pq.write_table(issued.replace_schema_metadata(described(REQUESTS, {}, ("issue",)).metadata), path)
    (trial.path / "phases.parquet").unlink()
    (trial.path / "samples.parquet").unlink()
    record = {**trial.record, "ceiling": None, "storage": None, "bytes": None}
    (trial.path / "trial.json").write_text(json.dumps(record))
    states = {one.code: one.state for one in findings(load_run(run))}
    reproduced = {code for code, state in states.items() if state == REPRODUCED}
    assert reproduced == {"kv-reads-and-writes", "kv-128k", "kv-reads-above-writes"}
    assert states["kv-whole-step"] == NOT_TESTABLE
    assert [one.code for one in advice(load_run(run))] == ["single-repeat"]


def test_deepspeed_offloads_a_model_whatever_else_it_is_told(tmp_path):
    found = told(engines(tmp_path, Shape(kind="deepspeed_model")), "model-128k-reads")
    assert found.state == REPRODUCED


# --- runs ------------------------------------------------------------------------------------------------------------


def test_only_valid_trials_count_and_those_left_out_are_counted(tmp_path):
    run = engines(tmp_path, CACHE, Shape(request_kib=16))
    second = load_run(run).published[1]
    verdict = {"state": "invalid", "reasons": ["events were lost"]}
    (second.path / "trial.json").write_text(json.dumps({**second.record, "verdict": verdict}))
    found = told(run, "kv-128k")
    assert found.state == REPRODUCED
    assert len(found.trials) == 1
    assert "1 trial not valid, left out." in found.told


def test_valid_trials_that_lack_what_it_takes_are_counted(tmp_path):
    run = engines(tmp_path, MODEL, MODEL)
    second = load_run(run).published[1]
    (second.path / "trial.json").write_text(json.dumps({**second.record, "ceiling": {"state": "off"}}))
    found = told(run, "model-not-saturating")
    assert "1 valid trial of the kind could not be judged." in found.told
    assert len(found.trials) == 1


def test_broken_trials_stand_in_no_finding_nor_advice_but_their_own(tmp_path):
    run = make_run(tmp_path, SIZES[:3])
    found = told(run, "aio-loads")
    assert found.state == REPRODUCED
    assert "2 trials not valid, left out." in found.told
    assert len(found.trials) == 4
    spoken = {one.code: one.trials for one in advice(load_run(run))}
    assert list(spoken) == ["lost-events"]
    assert {trial.slug for trial in load_run(run).published if trial.state == "invalid"} == {*spoken["lost-events"]}


def test_cells_are_told_apart_and_one_that_differs_decides(tmp_path):
    run = make_engine_run(tmp_path, {"batch_size=1": [CACHE], "batch_size=4": [Shape(request_kib=16)]}, ["fig5"])
    found = told(run, "kv-128k")
    assert found.state == DIFFERS
    assert "batch_size 1: requests of 128 KiB" in found.told
    assert "batch_size 4: most frequent size (bytes)" in found.numbers


def test_a_run_without_trials_tests_nothing(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"schema_version": 1, "plan": []}))
    found = findings(load_run(tmp_path))
    assert len(found) == len(STATEMENTS)
    assert {one.state for one in found} == {NOT_TESTABLE}
    assert all("conf/fig" in one.told for one in found)


def test_the_docs_list_every_statement_and_every_rule(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"schema_version": 1, "plan": []}))
    page = (Path(__file__).parents[2] / "docs" / "findings.md").read_text()
    rows = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| `")]
    codes = [one.code for one in findings(load_run(tmp_path))] + [rule.code for rule in RULES]
    assert [code for code in codes if f"`{code}`" not in rows] == []
    assert all(one.claim in page for one in findings(load_run(tmp_path)))


def test_codes_and_claims_are_each_statements_own(tmp_path):
    found = findings(load_run(make_run(tmp_path, SIZES[:1], broken=False)))
    assert len({one.code for one in found}) == len({one.claim for one in found}) == len(STATEMENTS)
