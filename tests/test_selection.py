"""`--only` and `--trial`: exactly the trials that are asked for, or one message that says why there are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sweep import cli, config
from sweep.definition import Sweep
from sweep.errors import ConfigError
from sweep.options import Options
from sweep.plan import Grid
from sweep.selection import Selection

KEYS: dict[str, Any] = {
    "name": "s",
    "workload": {"kind": "tensor_io", "sizes": ["1MiB"]},
    "storage": {"image_size": "1GiB"},
    "repeats": 2,
    "warmups": 1,
    "figures": [],
    "scenarios": {
        "tensors": {"grid": {"storage.fs": ["ext4", "xfs"]}, "zip": {"workload.queue_depth": [1, 8]}},
        "other": {
            "workload": {"kind": "command", "argv": ["x", "{depth}"], "values": {"depth": 0}},
            "grid": {"workload.values.depth": [1, 2]},
        },
    },
}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    file = tmp_path_factory.mktemp("selection") / "s.yaml"
    file.write_text(yaml.safe_dump(KEYS))
    return config.load(str(file))


@pytest.fixture(scope="module")
def trials(sweep: Sweep) -> tuple[Any, ...]:
    return Grid(sweep).trials


def ids(sweep: Sweep, trials: Any, *only: str, trial: tuple[str, ...] = ()) -> list[str]:
    return [one.id for one in Selection(only, trial).of(trials, sweep)]


def test_nothing_stated_is_all(sweep: Sweep, trials: Any) -> None:
    assert Selection().of(trials, sweep) == trials
    assert Selection().to_json() is None
    assert Selection().argv() == []


@pytest.mark.parametrize(
    ("only", "test"),
    [
        ("scenario == other", lambda t: t.cell["scenario"] == "other"),
        ("depth > 1", lambda t: t.cell.get("depth") == 2),
        ("workload.values.depth > 1", lambda t: t.cell.get("depth") == 2),
        ("fs == xfs and queue_depth in [8, 9]", lambda t: (t.cell.get("fs"), t.cell.get("queue_depth")) == ("xfs", 8)),
        ("rep == 1", lambda t: t.repeat == 1 and not t.warmup),
        ("warmup == 1", lambda t: t.warmup),
        ("warmup == null and fs != null", lambda t: not t.warmup and "fs" in t.cell),
    ],
)
def test_a_condition_chooses(sweep: Sweep, trials: Any, only: str, test: Any) -> None:
    expected = [trial.id for trial in trials if test(trial)]
    assert expected
    assert ids(sweep, trials, only) == expected


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_each_trial_can_be_named(sweep: Sweep, trials: Any, data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.sampled_from(trials), min_size=1, unique_by=lambda trial: trial.id))
    names = [data.draw(st.sampled_from([trial.id, trial.slug])) for trial in chosen]
    places = sorted(trials.index(trial) for trial in chosen)
    assert ids(sweep, trials, trial=tuple(names)) == [trials[place].id for place in places]


def test_what_any_option_names_is_run(sweep: Sweep, trials: Any) -> None:
    one = "scenario=other,depth=1,rep=2"
    both = ids(sweep, trials, "fs == xfs", "depth == 2", trial=(one,))
    expected = [t.id for t in trials if t.cell.get("fs") == "xfs" or t.cell.get("depth") == 2 or t.id == one]
    assert both == expected


@pytest.mark.parametrize(
    ("selection", "said"),
    [
        (Selection(("rep == 7",)), "--only: none of the 18 trials meets 'rep == 7'"),
        (Selection(("fs == xfs", "rep == 7")), "meets 'rep == 7'"),
        (Selection(("fs = xfs",)), "--only: 'fs = xfs': '='"),
        (Selection(("fs == xsf",)), "fs is never 'xsf'; did you mean xfs?"),
        (Selection(("fz == xfs",)), "no axis 'fz' (character 1); did you mean fs?"),
        (Selection(("",)), "'' ends where the name of an axis should stand"),
        (
            Selection((), ("scenario=tensors,fs=xf,queue_depth=8,rep=2",)),
            "did you mean 'scenario=tensors,fs=xfs,queue_depth=8,rep=2'?",
        ),
        (Selection((), ("",)), "--trial: none of the 18 trials is ''\n  --dry-run lists them"),
    ],
)
def test_what_names_nothing_is_refused(sweep: Sweep, trials: Any, selection: Selection, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        selection.of(trials, sweep)
    assert said in str(caught.value)


def test_a_trial_that_the_sweep_leaves_out_is_told_so(tmp_path: Path) -> None:
    keys = {"grid": {"storage.image_size": ["1GiB", "1MiB"]}, "scenarios": {}, "on_impossible": "skip"}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(KEYS | keys))
    sweep = config.load(str(tmp_path / "s.yaml"))
    grid = Grid(sweep)
    with pytest.raises(
        ConfigError, match=r"'image_size=1MiB,rep=2' is left out as impossible: storage.image_size: 1 M"
    ):
        Selection((), ("image_size=1MiB,rep=2",)).of(grid.trials, sweep, grid.skipped)


def test_two_scenarios_with_axes_of_one_name(tmp_path: Path) -> None:
    scenarios = {
        "a": {"grid": {"workload.queue_depth": [1]}},
        "b": {
            "workload": {"kind": "command", "argv": ["x", "{queue_depth}"], "values": {"queue_depth": 0}},
            "grid": {"workload.values.queue_depth": [1]},
        },
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(KEYS | {"scenarios": scenarios, "warmups": 0, "repeats": 1}))
    sweep = config.load(str(tmp_path / "s.yaml"))
    trials = Grid(sweep).trials
    assert len(ids(sweep, trials, "queue_depth == 1")) == 2
    assert ids(sweep, trials, "workload.queue_depth == 1") == ["scenario=a,queue_depth=1,rep=1"]


def test_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OFFLOAD_SWEEP_STATE", str(tmp_path / "state"))
    keys = {"workload": {"kind": "tensor_io", "sizes": ["1MiB"], "apis": ["posix"]}, "repeats": 3, "warmups": 1}
    storage = {"storage": {"kind": "directory", "fs": "auto"}, "trace": {"tracer": "none"}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(keys | storage))
    line = [str(tmp_path / "s.yaml"), "--dry-run", "--trial", "warmup=1", "--only", "rep > 2"]
    assert cli.main(line) == 0
    out = capsys.readouterr().out
    assert "s: 2 of 4 trials selected, 1 warm-up among them, 1 cell x 1 repeat" in out
    assert "--keep" not in out
    assert [line.split()[0] for line in out.splitlines() if " on " in line] == ["warmup=1", "rep=3"]
    assert cli.main([*line[:2], "--only", "rep > 3"]) == 2
    assert capsys.readouterr().err.startswith("sweep: command line: --only: none of the 4 trials meets 'rep > 3'")


def test_what_would_be_kept_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OFFLOAD_SWEEP_STATE", str(tmp_path / "state"))
    keys = {"workload": {"kind": "command", "argv": ["true"], "space": "3MiB"}, "repeats": 3, "warmups": 1}
    storage = {"storage": {"kind": "directory", "fs": "auto"}, "trace": {"tracer": "none"}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(keys | storage))
    assert cli.main([str(tmp_path / "s.yaml"), "--dry-run", "--keep", "--only", "rep > 1"]) == 0
    out = capsys.readouterr().out
    assert "s: 2 of 4 trials selected, 1 cell x 2 repeats" in out
    assert "--keep leaves the offload files of 2 trials, 6 MiB at most; python -m tasks.kept" in out


def test_the_options_that_select_the_same_again() -> None:
    selection = Selection(("a == 1", "b == 2"), ("rep=1",))
    args = cli.parser().parse_intermixed_args(["x.yaml", *selection.argv()])
    assert Selection(tuple(args.only), tuple(args.trial)) == selection
    assert json.loads(json.dumps(selection.to_json())) == {"only": ["a == 1", "b == 2"], "trials": ["rep=1"]}


@pytest.mark.parametrize(
    ("given_", "again"),
    [
        ("workload.env.HF_TOKEN=hf_x", "'workload.env.HF_TOKEN=${oc.env:HF_TOKEN}' --resume"),
        ("workload.env.HF_TOKEN=${oc.env:MINE}", "'workload.env.HF_TOKEN=${oc.env:MINE}' --resume"),
        ("workload.env.A=1", "workload.env.A=1 --resume"),
        ("workload.env.my-token=x", "'workload.env.my-token=***' --resume  # *** is a secret: write it again"),
        (
            "workload.env={HF_TOKEN: hf_x}",
            """'workload.env={"HF_TOKEN": "***"}' --resume  # *** is a secret: write it again""",
        ),
        ("workload.env.MODE=***", "'workload.env.MODE=***' --resume"),
    ],
)
def test_the_command_that_goes_on_sets_no_secret_to_stars(tmp_path: Path, given_: str, again: str) -> None:
    options = Options(Path("results"), argv=("x.yaml", given_))
    assert options.again(tmp_path / "latest") == f"python -m sweep x.yaml {again}"
