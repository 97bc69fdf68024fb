"""The study's figures: each has a sweep with the study's parameters, and one that this machine runs whole."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from analysis import load_run
from analysis.figures import figure
from sweep.config import load
from sweep.plan import Grid
from tasks import workloads

ROOT = Path(__file__).parent.parent
FIGURES = ("fig2", "fig3", "fig4", "fig5", "fig6")
PUBLISHED = ROOT.parent / "shared" / "published" / "results"


def conf(name):
    return str(ROOT / "conf" / f"{name}.yaml")


def cells(name, *overrides):
    return [trial.config for trial in Grid(load(conf(name), overrides)).trials]


@pytest.mark.parametrize("name", [p.stem for p in sorted((ROOT / "conf").glob("*.yaml"))])
def test_every_sweep_of_the_package_says_what_it_is_needs_and_takes(name):
    head = Path(conf(name)).read_text().split("\nname: ")[0]
    assert f"python -m sweep conf/{name}.yaml" in head
    assert "Needs" in head
    assert re.search(r"[Tt]akes", head)
    assert cells(name)


def test_fig2_is_the_studys():
    tensor = cells("fig2")[0]["workload"]
    assert (tensor["sizes"][0], tensor["sizes"][-1], len(tensor["sizes"]), tensor["loops"]) == ("1MiB", "4GiB", 13, 5)
    assert {config["storage"]["fs"] for config in cells("fig2")} == {"ext4", "xfs"}
    if not PUBLISHED.is_dir():
        pytest.skip(f"{PUBLISHED} is absent")
    files = (PUBLISHED / "figure2-tensor-offloading" / "deepnvme-results-ext4" / "aio-load-cpu").glob("*.txt")
    assert {int(re.findall(r"(\d+)-mb", file.name)[0]) for file in files} == {1 << i for i in range(13)}


@pytest.mark.parametrize(
    ("name", "folder", "flag", "key"),
    [
        ("fig3", "figure3-model-offloading-deepspeed", "--batch-size", "batch_size"),
        ("fig3", "figure3-model-offloading-deepspeed", "--prompt-len", "prompt_len"),
        ("fig3", "figure3-model-offloading-deepspeed", "--gen-len", "gen_len"),
        ("fig4", "figure4-model-offloading-flexgen", "--gpu-batch-size", "batch_size"),
        ("fig4", "figure4-model-offloading-flexgen", "--prompt-len", "prompt_len"),
        ("fig4", "figure4-model-offloading-flexgen", "--gen-len", "gen_len"),
    ],
)
def test_what_the_study_ran_is_what_the_sweep_asks_for(name, folder, flag, key):
    if not PUBLISHED.is_dir():
        pytest.skip(f"{PUBLISHED} is absent")
    commands = "\n".join(path.read_text() for path in (PUBLISHED / folder).rglob("*-log.txt"))
    published = {int(value) for value in re.findall(rf"{flag} (\d+)", commands)}
    assert {config["workload"][key] for config in cells(name)} == published
    (model,) = set(re.findall(r"--model facebook/(\S+)", commands))
    assert {config["workload"]["model"] for config in cells(name)} == {model}


def test_fig4_to_fig6_place_and_limit_as_the_study_did():
    for config in cells("fig4"):
        assert config["workload"]["percent"] == [0, 0, 100, 0, 100, 0]
        assert config["limits"]["memory"] == "10GiB"
    for config in cells("fig5"):
        job = config["workload"]
        assert (job["model"], job["percent"]) == ("opt-6.7b", [100, 0, 0, 0, 100, 0])
        assert (job["prompt_len"], job["gen_len"], config["limits"]["memory"]) == (256, 256, "10GiB")
    assert 64 in {config["workload"]["batch_size"] for config in cells("fig5")}
    assert cells("fig6") == cells("fig5")


@pytest.mark.parametrize("name", FIGURES)
def test_the_small_scale_keeps_the_structure(name):
    whole, small = cells(name), cells(name, "scale=small")
    for config in small:
        assert config["workload"]["kind"] == whole[0]["workload"]["kind"]
        assert config["workload"].get("percent") == whole[0]["workload"].get("percent")
        assert workloads.of_config(config).space_bytes() < 1 << 30
    assert {config["storage"]["fs"] for config in small} == {config["storage"]["fs"] for config in whole}
    assert len({config["workload"].get("batch_size") for config in small}) == len(small) or name == "fig2"


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.ray
@pytest.mark.parametrize("drawn", [["fig2"], ["fig3"], ["fig4"], ["fig5", "fig6"]], ids="+".join)  # of one run's trials
def test_the_small_scale_runs_and_draws_every_panel(drawn, state, tmp_path):
    name = drawn[0]
    command = [sys.executable, "-m", "sweep", conf(name), "scale=small", "--results", str(tmp_path)]
    if len(drawn) > 1:
        command += [f"figures=[{','.join(drawn)},tokens,roofline]"]
    if name != "fig2":  # once is enough: both take their time
        command += ["ceiling.enabled=false", "trace.tracer=ftrace"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ.copy(), timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    run = load_run(tmp_path / f"{name}-small")
    assert [trial.state for trial in run.published] == ["valid"] * len(cells(name, "scale=small"))
    panels = [panel for one in drawn for panel in figure(one).charts(run)]
    assert [panel.reason for panel in panels] == [None] * len(panels)
    for trial in run.published:
        for op in ("read", "write"):
            expected, counted = trial.byte_count("expected", op), trial.byte_count("counted", op)
            assert trial.byte_count("traced", op) == counted
            if name in ("fig3", "fig4") and op == "read":
                assert counted == pytest.approx(expected, rel=0.05)
    files = {path.name for path in (run.path / "figures").iterdir()}
    assert {f"{panel.name}.{kind}" for panel in panels for kind in ("svg", "png", "pdf", "html")} <= files
    assert (run.path / "report.html").stat().st_size > 100_000
    states = {"measured"} if name == "fig2" else {"off"}
    assert {trial.section("ceiling")["state"] for trial in run.published} == states
