"""A sweep's definition: what a file, its bases, interpolation and overrides come to, and the trials they make."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sweep import config
from sweep.config import load
from sweep.definition import SECTIONS, Axis, Definition, Sweep
from sweep.errors import ConfigError
from sweep.plan import Grid, identity_of, slug_of, word
from sweep.values import documented
from tasks.workloads import tensor_io

MINIMAL = {"workload": {"kind": "tensor_io", "sizes": ["1MiB"]}}


@pytest.fixture
def file(tmp_path: Path) -> Any:
    """Writes a sweep file, of the minimal keys and those given, and returns its path."""

    def write(name: str = "sweep.yaml", minimal: bool = True, **keys: Any) -> str:
        path = tmp_path / name
        path.write_text(yaml.safe_dump({**(MINIMAL if minimal else {}), **keys}, sort_keys=False))
        return str(path)

    return write


def only(sweep: Sweep) -> dict[str, Any]:
    """Return the configuration of a sweep's only cell."""
    (trial,) = [t for t in Grid(sweep).trials if t.repeat == 1]
    return dict(trial.config)


def ids(sweep: Sweep) -> list[str]:
    return [t.id for t in Grid(sweep).trials]


# --- loading ---------------------------------------------------------------------------------------------------------


def test_every_key_has_its_default(file: Any) -> None:
    sweep = load(file("small.yaml"))
    assert (sweep.name, sweep.description, sweep.repeats, sweep.axes) == ("small", "", 1, ())
    assert sweep.figures == tuple(tensor_io.Workload.figures)
    found = only(sweep)
    assert found["workload"] == {**vars(tensor_io.Config()), "kind": "tensor_io", "sizes": ["1MiB"]}
    assert found["storage"]["kind"] == "loop"
    assert set(found["storage"]["queue"].values()) == {None}
    assert found["limits"] == {"time_limit_s": 600, "memory": None}
    assert (found["ceiling"]["enabled"], found["ceiling"]["block_size"], found["ceiling"]["depth"]) == (
        None,
        "128KiB",
        32,
    )
    assert ids(sweep) == ["rep=1"]


def test_what_the_file_says_is_kept(file: Any) -> None:
    storage = {"fs": "xfs", "image_size": 1 << 30, "mount_options": ["noatime"], "queue": {"max_sectors_kb": 128}}
    sweep = load(file(name="other.yaml", storage=storage, repeats=3, description="what for", figures=["sizes"]))
    assert (sweep.repeats, sweep.description, sweep.figures) == (3, "what for", ("sizes",))
    found = only(sweep)["storage"]
    assert {key: found[key] for key in ("fs", "image_size", "mount_options")} == {
        key: storage[key] for key in ("fs", "image_size", "mount_options")
    }
    assert found["queue"]["max_sectors_kb"] == 128


def test_null_stands_for_the_default_where_that_is_null(file: Any) -> None:
    sweep = load(file(figures=None, storage={"path": None, "queue": {"read_ahead_kb": None}}))
    assert sweep.figures == tuple(tensor_io.Workload.figures)
    assert only(sweep)["storage"]["path"] is None


def test_configurations_are_plain_json(file: Any) -> None:
    found = only(load(file(storage={"backing": "tmpfs"})))
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("name", ["quickstart", "quickstart.yaml", "conf/quickstart.yaml"])
def test_sweeps_of_the_package_are_found_from_anywhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(Grid(load(name)).trials) == 8


@pytest.mark.parametrize("path", sorted(config.conf_dir().rglob("*.yaml")), ids=str)
def test_every_sweep_of_the_package_is_valid(path: Path) -> None:
    assert Grid(load(str(path))).trials


# --- extends ---------------------------------------------------------------------------------------------------------


def test_a_file_adds_to_the_one_it_extends(file: Any) -> None:
    file("base.yaml", storage={"fs": "xfs", "queue": {"max_sectors_kb": 128}}, repeats=5)
    top = file("top.yaml", minimal=False, extends="base.yaml", storage={"queue": {"read_ahead_kb": 64}}, repeats=2)
    sweep = load(top)
    assert (sweep.name, sweep.repeats) == ("top", 2)
    assert only(sweep)["storage"]["fs"] == "xfs"
    queue = only(sweep)["storage"]["queue"]
    assert (queue["max_sectors_kb"], queue["read_ahead_kb"]) == (128, 64)


def test_later_bases_win_over_earlier_ones_and_the_file_over_all(file: Any) -> None:
    file("a.yaml", minimal=False, repeats=2, description="a", limits={"time_limit_s": 10})
    file("b.yaml", minimal=False, repeats=3, description="b")
    sweep = load(file("top.yaml", extends=["a.yaml", "b.yaml"], repeats=4))
    assert (sweep.repeats, sweep.description, only(sweep)["limits"]["time_limit_s"]) == (4, "b", 10)


def test_bases_have_bases_and_lie_beside_the_file_that_names_them(file: Any, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    file("sub/root.yaml", repeats=7)
    file("sub/middle.yaml", minimal=False, extends="root.yaml")
    assert load(file("top.yaml", minimal=False, extends="sub/middle.yaml")).repeats == 7


def test_one_base_twice_on_different_ways_is_no_cycle(file: Any) -> None:
    file("root.yaml", repeats=7)
    file("a.yaml", minimal=False, extends="root.yaml")
    file("b.yaml", minimal=False, extends="root.yaml")
    assert load(file("top.yaml", minimal=False, extends=["a.yaml", "b.yaml"])).repeats == 7


def test_a_list_replaces_the_list_of_the_base(file: Any) -> None:
    file("base.yaml", workload={"kind": "tensor_io", "sizes": ["1MiB", "2MiB"]})
    top = file("top.yaml", minimal=False, extends="base.yaml", workload={"sizes": ["4MiB"]})
    assert only(load(top))["workload"]["sizes"] == ["4MiB"]


@pytest.mark.parametrize("below", [{"storage.fs": ["ext4"]}, {"storage": {"fs": ["ext4"]}}])
@pytest.mark.parametrize("above", [{"storage.fs": ["xfs"]}, {"storage": {"fs": ["xfs"]}}])
def test_an_axis_replaces_that_of_the_base_however_it_is_written(file: Any, below: Any, above: Any) -> None:
    file("base.yaml", grid={**below, "workload.loops": [1, 2]})
    sweep = load(file("top.yaml", minimal=False, extends="base.yaml", grid=above))
    assert sweep.axes == (Axis("storage.fs", "fs", ("xfs",)), Axis("workload.loops", "loops", (1, 2)))


def test_a_cycle_is_refused_by_the_file_that_closes_it(file: Any) -> None:
    file("b.yaml", minimal=False, extends="c.yaml")
    file("c.yaml", extends="a.yaml")
    top = file("a.yaml", minimal=False, extends="b.yaml")
    with pytest.raises(ConfigError, match=r"a\.yaml: extends: a sweep cannot extend itself"):
        load(top)


# --- interpolation ---------------------------------------------------------------------------------------------------


def test_keys_may_refer_to_others(file: Any) -> None:
    workload = {"kind": "tensor_io", "sizes": ["${workload.block_size}", "4MiB"], "block_size": "2MiB"}
    sweep = load(file(workload=workload, description="blocks of ${workload.block_size}"))
    assert sweep.description == "blocks of 2MiB"
    assert only(sweep)["workload"]["sizes"] == ["2MiB", "4MiB"]


def test_interpolation_sees_the_axes_of_the_cell(file: Any) -> None:
    workload = {"kind": "tensor_io", "sizes": ["${workload.block_size}"]}
    sweep = load(file(workload=workload, grid={"workload.block_size": ["1MiB", "2MiB"]}))
    assert [t.config["workload"]["sizes"] for t in Grid(sweep).trials] == [["1MiB"], ["2MiB"]]


# --- overrides -------------------------------------------------------------------------------------------------------


def test_overrides_are_yaml_and_the_last_one_wins(file: Any) -> None:
    words = ["repeats=2", "repeats=3", "workload.sizes=[1MiB, 2MiB]", "storage.queue.max_sectors_kb=64", "name=x"]
    words += ["workload.fsync=false", "description=a=b"]
    sweep = load(file(), words)
    assert (sweep.name, sweep.repeats, sweep.description) == ("x", 3, "a=b")
    found = only(sweep)
    assert found["workload"]["sizes"] == ["1MiB", "2MiB"]
    assert found["workload"]["fsync"] is False
    assert found["storage"]["queue"]["max_sectors_kb"] == 64


def test_an_override_may_set_a_section_and_then_a_key_of_it(file: Any) -> None:
    sweep = load(file(storage={"fs": "xfs"}), ["storage={image_size: 3GiB}", "storage.fs=ext4"])
    assert only(sweep)["storage"]["image_size"] == "3GiB"
    assert only(sweep)["storage"]["fs"] == "ext4"


@pytest.mark.parametrize("grid", [{"storage.fs": ["ext4"]}, {"storage": {"fs": ["ext4"]}}, {}])
@pytest.mark.parametrize("word", ["grid.storage.fs=[xfs, btrfs]", "grid.storage={fs: [xfs, btrfs]}"])
def test_axes_are_overridden_however_they_are_written(file: Any, grid: Any, word: str) -> None:
    assert ids(load(file(grid=grid), [word])) == ["fs=xfs,rep=1", "fs=btrfs,rep=1"]


def test_the_whole_grid_may_be_replaced(file: Any) -> None:
    sweep = load(file(grid={"workload.loops": [1, 2]}), ["grid={storage: {fs: [xfs]}}"])
    assert ids(sweep) == ["fs=xfs,rep=1"]


# --- the grid --------------------------------------------------------------------------------------------------------


def test_dotted_and_nested_axes_are_the_same(file: Any) -> None:
    dotted = {"storage.fs": ["ext4", "xfs"], "storage.queue.max_sectors_kb": [64, None], "workload.loops": [1, 2]}
    nested = {
        "storage": {"fs": ["ext4", "xfs"], "queue": {"max_sectors_kb": [64, None]}},
        "workload": {"loops": [1, 2]},
    }
    first, second = load(file(grid=dotted)), load(file(grid=nested))
    assert first.axes == second.axes
    assert [(t.id, t.fingerprint) for t in Grid(first).trials] == [(t.id, t.fingerprint) for t in Grid(second).trials]


def test_cells_come_in_the_order_of_the_axes_and_repeats_last(file: Any) -> None:
    sweep = load(file(grid={"storage.fs": ["xfs", "ext4"], "workload.loops": [2, 1]}, repeats=2))
    cells = ["fs=xfs,loops=2", "fs=xfs,loops=1", "fs=ext4,loops=2", "fs=ext4,loops=1"]
    assert ids(sweep) == [f"{cell},rep={n}" for n in (1, 2) for cell in cells]


def test_an_axis_takes_the_place_of_the_key_of_the_file(file: Any) -> None:
    sweep = load(file(storage={"fs": "btrfs"}, grid={"storage.fs": ["ext4", "xfs"], "workload.sizes": [["1MiB"]]}))
    assert [t.config["storage"]["fs"] for t in Grid(sweep).trials] == ["ext4", "xfs"]
    assert Grid(sweep).trials[0].id == 'fs=ext4,sizes=["1MiB"],rep=1'


def test_axes_with_the_same_last_word_keep_their_whole_names(file: Any) -> None:
    grid = {"storage.kind": ["loop"], "storage.path": [None, "/tmp"], "workload.queue_depth": [1]}
    labels = [axis.label for axis in load(file(grid=grid)).axes]
    assert labels == ["kind", "path", "queue_depth"]


def test_the_plan_gives_all_trials_once(file: Any) -> None:
    plan = Grid(load(file(repeats=2)))
    assert plan.next_trials({}) == plan.trials
    assert plan.next_trials({t.id: {} for t in plan.trials}) == ()


def test_fingerprints_follow_the_configuration_and_not_the_name(file: Any) -> None:
    def print_of(*words: str) -> str:
        return str(Grid(load(file(), words)).trials[0].fingerprint["plan"])

    assert print_of() == print_of("name=other", "repeats=3") == print_of("grid.storage.fs=[ext4]")
    assert print_of() != print_of("workload.loops=6")


# --- names -----------------------------------------------------------------------------------------------------------

labels = st.from_regex(r"[a-z][a-z_]{0,12}(\.[a-z_]{1,12})?", fullmatch=True)
tricky = st.sampled_from(
    ["", "1", "true", "null", "a,rep=1", "b=2", '"1"', "[1]", "{}", "1e5", " ", "..", "/", "\n", "-"]
)
scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=12) | tricky
values = scalars | st.lists(scalars, max_size=3)


def key_of(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


@given(st.lists(labels, unique=True, min_size=1, max_size=3), st.data())
def test_ids_and_slugs_are_unique_safe_and_always_the_same(names: list[str], data: st.DataObject) -> None:
    cell = st.fixed_dictionaries(dict.fromkeys(names, values))
    cells = data.draw(st.lists(cell, min_size=1, max_size=20, unique_by=key_of))
    ids = [identity(dict(sorted(c.items())), repeat) for c in cells for repeat in (1, 11)]
    slugs = [slug_of(one) for one in ids]
    assert len(set(ids)) == len(set(slugs)) == len(ids)
    for one, slug in zip(ids, slugs, strict=True):
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}", slug)
        assert not set(one) & set("\n\r\0")
        assert slug_of(one) == slug


def identity(cell: Mapping[str, Any], repeat: int) -> str:
    return identity_of([word(label, value) for label, value in cell.items()], repeat)


def test_names_as_people_read_them() -> None:
    cell = {"fs": "xfs", "size": "64 MiB", "path": "/mnt/nvme0", "depth": 32, "fsync": True, "limit": None}
    found = identity(cell, 2)
    assert found == "fs=xfs,size=64 MiB,path=/mnt/nvme0,depth=32,fsync=true,limit=null,rep=2"
    slug = r"fs-xfs_size-64-MiB_path-mnt-nvme0_depth-32_fsync-true_limit-null_rep-2-[0-9a-f]+"
    assert re.fullmatch(slug, slug_of(found))
    assert identity({"depth": 1}, 1) != identity({"depth": "1"}, 1)


# --- writing it out --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"repeats": 2, "description": "ünï: [x]", "figures": ["sizes"], "name": "other"},
        {"grid": {"storage": {"fs": ["ext4", "xfs"]}, "workload.sizes": [["1MiB"], [4096]]}, "repeats": 2},
        {"storage": {"backing": "tmpfs", "mount_options": ["noatime"], "queue": {"max_sectors_kb": 128}}},
        {
            "workload": {"kind": "tensor_io", "sizes": ["${workload.block_size}"]},
            "grid": {"workload.block_size": [4096]},
        },
        {"description": "${name} of ${workload.kind}", "name": "x"},
        {"grid": {"storage.queue.max_sectors_kb": [None, 64]}},
    ],
)
def test_written_out_it_makes_the_same_trials(file: Any, keys: dict[str, Any], tmp_path: Path) -> None:
    sweep = load(file(**keys), ["limits.time_limit_s=77"])
    (tmp_path / "again.yaml").write_text(config.as_yaml(sweep))
    again = load(str(tmp_path / "again.yaml"))
    assert (again.name, again.description, again.figures) == (sweep.name, sweep.description, sweep.figures)
    assert Grid(again).trials == Grid(sweep).trials
    assert [t.fingerprint for t in Grid(again).trials] == [t.fingerprint for t in Grid(sweep).trials]
    assert config.as_yaml(again) == config.as_yaml(sweep)


def test_written_out_every_default_is_there(file: Any) -> None:
    written = yaml.safe_load(config.as_yaml(load(file())))
    assert set(written) == {f.name for f in fields(Definition)} - {"extends", "scale", "scales", "scenarios"}
    assert set(written["workload"]) == {"kind", *(f.name for f in fields(tensor_io.Config))}


# --- scales and scenarios --------------------------------------------------------------------------------------------


SCALES = {
    "small": {"workload": {"sizes": ["2MiB"]}, "grid": {"storage.fs": ["xfs"], "workload.loops": None}, "repeats": 1}
}


def test_a_scale_is_laid_over_the_sweep_and_named_in_it(file: Any) -> None:
    path = file(grid={"storage.fs": ["ext4", "xfs"], "workload.loops": [1, 2]}, repeats=3, scales=SCALES)
    assert len(ids(load(path))) == 12
    small = load(path, ["scale=small", "workload.queue_depth=7"])
    assert ids(small) == ["fs=xfs,rep=1"]
    assert small.name == "sweep-small"
    assert (only(small)["workload"]["sizes"], only(small)["workload"]["queue_depth"]) == (["2MiB"], 7)
    assert only(load(path, ["workload.sizes=[4MiB]", "scale=small", "repeats=1"]))["workload"]["sizes"] == ["4MiB"]


def test_a_scale_that_is_not_there_is_refused(file: Any) -> None:
    with pytest.raises(ConfigError, match=r"scale: no scale 'smal'\n.*did you mean small"):
        load(file(scales=SCALES), ["scale=smal"])
    with pytest.raises(ConfigError, match="this sweep has none"):
        load(file(), ["scale=small"])
    with pytest.raises(ConfigError, match=r"scales\.small: must hold keys"):
        load(file(scales={"small": 3}), ["scale=small"])


SCENARIOS = {
    "tensors": {"workload": {"loops": 2}, "grid": {"storage.fs": ["ext4", "xfs"]}},
    "program": {
        "workload": {"kind": "command", "argv": ["true"]},
        "limits": {"memory": "64MiB"},
        "repeats": 1,
    },
}


def test_scenarios_are_cells_of_different_kinds_in_one_sweep(file: Any) -> None:
    sweep = load(file(scenarios=SCENARIOS, repeats=2))
    assert ids(sweep) == [
        "scenario=tensors,fs=ext4,rep=1",
        "scenario=tensors,fs=xfs,rep=1",
        "scenario=program,rep=1",
        "scenario=tensors,fs=ext4,rep=2",
        "scenario=tensors,fs=xfs,rep=2",
    ]
    configs = {t.id: t.config for t in Grid(sweep).trials}
    assert configs["scenario=tensors,fs=xfs,rep=1"]["workload"]["sizes"] == ["1MiB"]
    assert configs["scenario=program,rep=1"]["workload"]["kind"] == "command"
    assert configs["scenario=program,rep=1"]["limits"]["memory"] == "64MiB"
    assert "fig2" in sweep.figures
    assert sweep.figures.count("sizes") == 1


def test_scenarios_written_out_make_the_same_trials(file: Any, tmp_path: Path) -> None:
    sweep = load(file(scenarios=SCENARIOS, repeats=2))
    (tmp_path / "again.yaml").write_text(config.as_yaml(sweep))
    again = load(str(tmp_path / "again.yaml"))
    assert [(t.id, t.config) for t in Grid(again).trials] == [(t.id, t.config) for t in Grid(sweep).trials]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("workload.no_such_key=1", "unknown key"),
        ("scenarios.tensor.repeats=3", "no scenario 'tensor'\n.*did you mean scenarios.tensors"),
        ("storage.fs=xfs", "is an axis"),
        (
            "scenarios.tensors.storage.fs=xfs",
            r"is an axis of this sweep\n.*'scenarios\.tensors\.grid\.storage\.fs=\[xfs\]'",
        ),
        ("scenarios.tensors.name=x", "belongs to the whole sweep"),
        ("scenarios.tensors.scale=small", r"tensors\.scale: belongs to the whole sweep"),
        ("scenarios.tensors.description=x", r"tensors\.description: belongs to the whole sweep"),
        ("scenarios.tensors.grid.workload.lops=null", r"grid\.workload\.lops: is null, but there is no such axis"),
        ("scenarios.program.workload.argvs=[x]", "did you mean workload.argv"),
        ("scenarios=[1]", "must map names"),
        ("scenarios.tensors=3", "must hold keys of a sweep"),
    ],
)
def test_what_a_scenario_cannot_take_is_refused(file: Any, override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load(file(scenarios=SCENARIOS), [override])


def test_an_override_reaches_every_scenario(file: Any) -> None:
    sweep = load(file(scenarios=SCENARIOS), ["limits.time_limit_s=7", "scenarios.program.limits.memory=32MiB"])
    assert {t.config["limits"]["time_limit_s"] for t in Grid(sweep).trials} == {7}
    assert {t.config["limits"]["memory"] for t in Grid(sweep).trials} == {None, "32MiB"}


def test_the_command_line_has_the_last_word_in_every_scenario(file: Any) -> None:
    sweep = load(file(scenarios=SCENARIOS, repeats=2), ["limits.memory=1GiB", "repeats=3"])
    assert {t.config["limits"]["memory"] for t in Grid(sweep).trials} == {"1GiB"}
    assert len(Grid(sweep).trials) == 9


def test_a_key_of_one_workload_goes_to_the_scenarios_that_run_it(file: Any) -> None:
    trials = Grid(load(file(scenarios=SCENARIOS), ["workload.loops=9", "workload.space=2MiB"])).trials
    assert {t.config["workload"].get("loops") for t in trials} == {9, None}
    assert {t.config["workload"].get("space") for t in trials} == {"2MiB", None}
    grid = Grid(load(file(scenarios=SCENARIOS), ["grid.workload.queue_depth=[1,2]"])).trials
    assert len(grid) == 2 * 2 + 1


def test_overrides_within_a_scale_reach_the_sweep_it_is_laid_over() -> None:
    sweep = load("conf/fig5.yaml", ["scales.small.limits.memory=1GiB", "scale=small", "scales.small.repeats=1"])
    assert {t.config["limits"]["memory"] for t in Grid(sweep).trials} == {"1GiB"}
    sweep = load("conf/fig5.yaml", ["scale=small", "scales.small.grid.workload.batch_size=[8]"])
    assert ids(sweep) == ["batch_size=8,rep=1"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (
            ["scales.smal.repeats=2"],
            r"command line: scales\.smal\.repeats: no scale 'smal'\n.*did you mean scales\.small",
        ),
        (["scales.small.repeats=2"], r"the scale 'small' is not chosen\n.*scale=small"),
        (["scale=small", "scales.small.storage.fs=xfs"], r"is an axis.*\n.*'scales\.small\.grid\.storage\.fs=\[xfs\]'"),
        (
            ["scale=small", "scales.small.grid.workload.lops=null"],
            r"workload\.lops: is null.*\n.*mean workload\.loops\?",
        ),
        (["scale=[small]"], r"scale: must be the name of one entry of scales, not \[\"small\"\]"),
        (["scale.foo=1"], "scale: must be the name of one entry of scales"),
    ],
)
def test_what_a_scale_cannot_take_is_refused(file: Any, words: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        load(file(grid={"storage.fs": ["ext4"], "workload.loops": [1, 2]}, scales=SCALES), words)


@pytest.mark.parametrize("grid", [{"storage.fs": ["ext4", "xfs"]}, {"storage": {"fs": ["ext4", "xfs"]}}])
def test_an_axis_of_a_scenario_is_replaced_however_it_is_written(file: Any, grid: Any) -> None:
    path = file(
        scenarios={"a": {"grid": grid}}, scales={"s": {"scenarios": {"a": {"grid": {"storage": {"fs": ["xfs"]}}}}}}
    )
    assert ids(load(path, ["scenarios.a.grid.storage.fs=[btrfs]"])) == ["scenario=a,fs=btrfs,rep=1"]
    assert ids(load(path, ["scale=s"])) == ["scenario=a,fs=xfs,rep=1"]
    again = file("top.yaml", minimal=False, extends="sweep.yaml", scenarios={"a": {"grid": {"storage.fs": ["btrfs"]}}})
    assert ids(load(again)) == ["scenario=a,fs=btrfs,rep=1"]


def test_a_scale_may_give_a_scenario_another_kind_of_workload(file: Any) -> None:
    other = {"workload": {"kind": "command", "argv": ["true"]}}
    for own in ({"loops": 2}, {"kind": "tensor_io", "loops": 2}):
        sweep = load(file(scenarios={"a": {"workload": own}}, scales={"s": {"scenarios": {"a": other}}}), ["scale=s"])
        assert only(sweep)["workload"]["argv"] == ["true"]


def test_null_takes_an_axis_away_from_whatever_is_below(file: Any) -> None:
    taken = {"grid": {"workload.loops": None}}
    top = {"grid": {"workload.loops": [1, 2]}}
    # the scenario takes the axis away that the scale takes away too
    assert ids(load(file(**top, scenarios={"a": taken}, scales={"s": taken}), ["scale=s"])) == ["scenario=a,rep=1"]
    # a scale takes an axis away that is the scenario's own, one that it inherits, and one that is both
    for below, own in (({}, top), (top, {}), (top, {"grid": {"workload.loops": [3]}})):
        path = file(**below, scenarios={"a": own}, scales={"s": {"scenarios": {"a": taken}}})
        assert len(ids(load(path))) in (1, 2)
        assert ids(load(path, ["scale=s"])) == ["scenario=a,rep=1"]
    # one of a scenario that is not there
    for words in ([], ["scale=s"]):
        with pytest.raises(ConfigError, match=r"scenarios\.a: grid\.workload\.loops: is null"):
            load(file(scenarios={"a": taken}, scales={"s": {"repeats": 2}}), words)


def test_a_value_called_scenario_keeps_its_whole_name(file: Any) -> None:
    workload = {"kind": "command", "argv": ["echo", "{scenario}"]}
    grid = {"workload.values.scenario": ["a", "b"]}
    sweep = load(file(workload=workload, grid=grid, scenarios={"x": {}, "y": {}}))
    assert ids(sweep)[0] == "scenario=x,workload.values.scenario=a,rep=1"
    assert len(set(ids(sweep))) == 4


def test_figures_suit_all_cells(file: Any) -> None:
    workload = {"kind": "flexgen", "model": None, "prompt_len": 192, "gen_len": 12}
    workload["shape"] = {"layers": 4, "hidden": 128, "heads": 2, "vocabulary": 512, "positions": 512}
    on_disk = [[0, 0, 100, 0, 100, 0], [100, 0, 0, 0, 100, 0]]
    sweep = load(file(workload=workload, grid={"workload.batch_size": [1, 2], "workload.percent": on_disk}))
    assert set(sweep.figures) == {"fig4", "fig5", "fig6", "tokens", "roofline"}
    bad = load(file(workload=workload, grid={"workload.percent": [on_disk[0], ["x", 0, 0, 0, 0, 0], 7]}))
    with pytest.raises(ConfigError, match=r"workload\.percent"):
        Grid(bad)


@pytest.mark.parametrize("stated", [{}, {"figures": ["fig2", "roofline"]}])
def test_no_roofline_where_no_ceiling_is_measured(file: Any, stated: dict[str, Any]) -> None:
    assert "roofline" in load(file(**stated)).figures
    without = load(file(ceiling={"enabled": False}, **stated)).figures
    assert without == ("fig2",)


def test_every_key_is_documented() -> None:
    rows = {**dict(documented(Definition)), **dict(documented(tensor_io.Config, "workload."))}
    sections = {*SECTIONS, "data", "retention", "search"}
    tops = {f.name for f in fields(Definition)} - sections
    assert tops <= set(rows)
    for section in sections:
        assert [path for path in rows if path.startswith(f"{section}.")]
    assert {f"workload.{f.name}" for f in fields(tensor_io.Config)} <= set(rows)
    assert {"storage.queue.max_sectors_kb", "storage.queue.read_ahead_kb"} <= set(rows)
    for text in rows.values():
        assert re.fullmatch(r".+, default .*: .{10,}", text)
        assert "<" not in text
        assert "typing" not in text


def test_an_axis_of_the_command_line_joins_an_empty_grid(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("workload: {kind: tensor_io}\ngrid:\n")
    sweep = config.load(str(file), ["grid.storage.fs=[xfs, ext4]"])
    assert [axis.values for axis in sweep.axes] == [("xfs", "ext4")]


def test_a_sweep_has_its_own_name_not_that_of_what_it_extends(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("name: base\ndescription: d\nworkload: {kind: tensor_io}\n")
    (tmp_path / "own.yaml").write_text("extends: base.yaml\n")
    sweep = config.load(str(tmp_path / "own.yaml"))
    assert (sweep.name, sweep.description) == ("own", "d")


# --- the pages about it ----------------------------------------------------------------------------------------------

DOCS = Path(__file__).parent.parent / "docs"
PAGES = ("sweeps.md", "search.md")
EXAMPLES = [text for page in PAGES for text in re.findall(r"```yaml\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)]


@pytest.mark.parametrize("text", EXAMPLES)
def test_its_examples_are_sweeps(text: str, tmp_path: Path) -> None:
    (tmp_path / "example.yaml").write_text(text)
    grid = Grid(load(str(tmp_path / "example.yaml")))
    assert grid.trials
    assert grid.idle == []
