"""The `command` workload: placeholders, and a real fio whose own counts the trace must match."""

import json

import polars as pl
import pytest

from sweep import config
from sweep.errors import ConfigError
from sweep.plan import Grid
from tasks.workloads.command import Config, Workload
from tests.conftest import trial_config

MIB = 1 << 20


def argv(*texts, **values):
    return Workload(Config(argv=list(texts), values=values)).job(None, "/mnt/x", 1).argv


def problems(**fields):
    return [(p.key, p.text) for p in Workload(Config(**fields)).problems()]


def test_values_are_filled_in_and_never_evaluated():
    assert argv("a", "{offload_dir}/f", "{n}{n}", "{{n}}", n=3) == ["a", "/mnt/x/f", "33", "{n}"]
    assert argv("{a}", a="{b} $(id) `id`", b=1) == ["{b} $(id) `id`"]
    assert argv("{flag}", flag=True) == ["true"]


@pytest.mark.parametrize("text", ["{depht}", "{}", "{0}", "{offload_dir.__class__}", "{depth!r}", "{depth:>9}"])
def test_what_is_no_value_is_refused_with_those_there_are(text):
    ((key, words),) = problems(argv=["fio", "{depth}", text], values={"depth": 1})
    assert key == "argv"
    assert "valid: {offload_dir}, {depth}" in words


def test_other_mistakes_are_refused():
    assert problems() == [("argv", "must name a program and its arguments")]
    assert [key for key, _ in problems(argv=["x"], space="lots", expect_read="-1")] == ["space", "expect_read"]
    assert [key for key, _ in problems(argv=["x", "{a}"], values={"a": [1]})] == ["values.a"]
    ((key, words),) = problems(argv=["dd", "bs={bs}"], values={"bs": 1, "bz": 2})
    assert (key, words.split(":")[0]) == ("values.bz", "no argument uses it")


def test_a_value_is_an_axis(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(
        "workload: {kind: command, argv: [fio, '--iodepth={depth}'], values: {depth: 1}}\n"
        "grid: {workload.values.depth: [1, 32]}\n"
    )
    trials = Grid(config.load(str(file))).trials
    assert [t.id for t in trials] == ["depth=1,rep=1", "depth=32,rep=1"]
    assert trials[1].config["workload"]["values"] == {"depth": 32}
    with pytest.raises(ConfigError, match="no such key to make an axis of"):
        config.load(str(file), ["grid.workload.valves.depth=[1]"])


@pytest.mark.root
@pytest.mark.parametrize(("rw", "op"), [("write", "write"), ("randread", "read")])
def test_the_trace_agrees_with_fio_exactly(run_here, rw, op):
    program = ["fio", "--name=x", "--directory={offload_dir}", f"--rw={rw}", "--bs=128k", "--size=64m", "--direct=1"]
    program += ["--ioengine=libaio", "--iodepth={depth}", "--output-format=json"]
    workload = {"kind": "command", "argv": program, "values": {"depth": 8}, f"expect_{op}": "64MiB"}
    record, folder = run_here(trial_config(backing="disk", workload=workload))
    assert record["verdict"] == {"state": "valid", "reasons": []}
    output = (folder / "logs" / "command.log").read_text()
    own = json.loads(output[output.index("{") :])["jobs"][0][op]
    rows = pl.read_parquet(folder / "requests.parquet").with_columns(pl.col("op", "rwbs").cast(pl.String))
    data = rows.filter((pl.col("op") == op) & ~pl.col("rwbs").str.contains("M"))
    assert (data.height, data["bytes"].sum()) == (own["total_ios"], own["io_bytes"])
    assert own["io_bytes"] == 64 * MIB


@pytest.mark.root
def test_a_command_that_touches_nothing_is_no_measurement(run_here):
    record, _ = run_here(trial_config(workload={"kind": "command", "argv": ["true"]}))
    assert record["verdict"] == {"state": "invalid", "reasons": ["the job caused no I/O on the device"]}


@pytest.mark.root
def test_a_tracer_that_dies_costs_the_trace_and_not_what_the_job_measured(run_here):
    script = (
        'dd if=/dev/zero of="$DIR/f" bs=1M count=4 oflag=direct; for p in $(pgrep -x bpftrace); do '
        'grep -qz "OFFLOAD_SWEEP_ATTEMPT=$OFFLOAD_SWEEP_ATTEMPT" /proc/$p/environ && kill -9 $p; done'
    )
    workload = {"kind": "command", "argv": ["sh", "-c", script], "env": {"DIR": "{offload_dir}"}}
    record, folder = run_here(trial_config("bpftrace", workload=workload))
    assert record["verdict"]["state"] == "failed"
    assert "bpftrace stopped before the trial ended" in record["verdict"]["reasons"][0]
    assert record["bytes"]["counted"]["write"] >= 4 * MIB
    assert "job" in pl.read_parquet(folder / "phases.parquet")["name"].to_list()
    assert (folder / "samples.parquet").exists()


@pytest.mark.root
def test_a_command_may_report_phases(run_here):
    script = (
        'printf \'{"event":"begin","id":1,"name":"copy","t_ns":%s}\\n\' 5 >> "$OFFLOAD_SWEEP_PHASES";'
        'dd if=/dev/zero of="$DIR/f" bs=1M count=4 oflag=direct;'
        'printf \'{"event":"end","id":1,"t_ns":%s}\\n\' 9 >> "$OFFLOAD_SWEEP_PHASES";'
        'printf \'{"event":"error","reason":"%s"}\\n\' "$WHY" >> "$OFFLOAD_SWEEP_PHASES"'
    )
    workload = {"kind": "command", "argv": ["sh", "-c", script.replace("{", "{{").replace("}", "}}")]}
    workload |= {"env": {"DIR": "{offload_dir}", "WHY": "{why}"}, "values": {"why": "out of luck"}}
    record, folder = run_here(trial_config(workload=workload))
    assert record["verdict"] == {"state": "failed", "reasons": ["out of luck"]}
    phases = pl.read_parquet(folder / "phases.parquet")
    assert phases.filter(pl.col("name") == "copy").select("begin_ns", "end_ns").row(0) == (5, 9)
    assert record["bytes"]["counted"]["write"] >= 4 * MIB
