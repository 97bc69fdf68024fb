"""The configurations of a grid's cells are those that each cell has by itself, made faster."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sweep.cells import Cells
from sweep.checks import checked_trial
from sweep.config import as_yaml, load
from sweep.definition import Sweep
from sweep.errors import ConfigError, ImpossibleError
from sweep.plan import Grid
from sweep.trees import copied, put

BASE = {"workload": {"kind": "tensor_io", "sizes": ["1MiB"]}, "storage": {"image_size": "1GiB"}}
#: Values by axis, right and wrong ones, some of which are wrong only beside another axis.
VALUES: dict[str, list[Any]] = {
    "storage.fs": ["ext4", "xfs", "btrfs", "zfs", 3],
    "storage.image_size": ["1GiB", "400MiB", 1 << 30, "many", "${limits.memory}"],
    "storage.kind": ["loop", "directory", "device", "cloud"],
    "storage.backing": ["auto", "tmpfs", None],
    "storage.queue.max_sectors_kb": [128, 0, None, "128"],
    "storage.queue": [{"max_sectors_kb": 64}, {"scheduler": "none"}, {"depth": 1}],
    "storage.path": [None, "/mnt", "mnt"],
    "workload.sizes": [["1MiB"], [4096, "2MiB"], ["300MiB"], "1MiB", []],
    "workload.apis": [["aio"], ["posix", "aio"], ["ftp"]],
    "workload.queue_depth": [1, 32, 0, "8", 2.5],
    "workload.fsync": [True, False, "yes", 1],
    "trace.tracer": ["ftrace", "auto", "strace"],
    "trace.buffer_size": ["1MiB", "1B"],
    "limits.memory": [None, "1GiB", "1KiB"],
    "limits.time_limit_s": [10, 0],
}


@st.composite
def grids(draw: st.DrawFn) -> dict[str, list[Any]]:
    paths = draw(st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=4, unique=True))
    return {
        path: draw(st.lists(st.sampled_from(VALUES[path]), min_size=1, max_size=3, unique_by=repr)) for path in paths
    }


def loaded(tmp_path_factory: pytest.TempPathFactory, grid: dict[str, list[Any]]) -> Sweep:
    file = tmp_path_factory.mktemp("cells") / "sweep.yaml"
    file.write_text(yaml.safe_dump(BASE | {"grid": grid, "figures": []}))
    return load(str(file))


def ids(tmp_path_factory: pytest.TempPathFactory, **keys: Any) -> list[str]:
    """Return the ids of the trials in plan order."""
    file = tmp_path_factory.mktemp("cells") / "sweep.yaml"
    file.write_text(yaml.safe_dump(BASE | {"figures": []} | keys))
    return [trial.id for trial in Grid(load(str(file))).trials]


def alone(sweep: Sweep, places: tuple[int, ...]) -> Any:
    value = copied(sweep.base)
    for axis, place in zip(sweep.axes, places, strict=True):
        put(value, axis.path, axis.values[place])
    return told(lambda: checked_trial(sweep.source, value))


def told(make: Any) -> Any:
    try:
        return make()
    except ConfigError as error:
        return str(error)


@settings(max_examples=60, deadline=None)
@given(grid=grids())
def test_a_cell_is_what_it_would_be_by_itself(tmp_path_factory: pytest.TempPathFactory, grid: Any) -> None:
    try:
        sweep = loaded(tmp_path_factory, grid)
    except ConfigError:
        return  # the first cell is checked at load
    cells = Cells(sweep)
    for places in list(cells.places()):
        assert told(lambda places=places: cells.config(places)) == alone(sweep, places)


def test_sections_are_checked_once_for_all_cells_that_share_them(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sweep import cells, checks

    asked: list[str] = []
    monkeypatch.setattr(cells, "check_workload", lambda *a: asked.append("workload") or checks.check_workload(*a))
    monkeypatch.setattr(cells, "check_storage", lambda *a: asked.append("storage") or checks.check_storage(*a))
    grid = {"storage.fs": ["ext4", "xfs"], "workload.queue_depth": list(range(1, 51)), "limits.time_limit_s": [60, 90]}
    trials = Grid(loaded(tmp_path_factory, grid)).trials
    assert len(trials) == 200
    assert (asked.count("workload"), asked.count("storage")) == (50, 2)
    assert len({trial.id for trial in trials}) == 200


def test_axes_that_turn_together(tmp_path_factory: pytest.TempPathFactory) -> None:
    grid = {"limits.time_limit_s": [60, 90]}
    found = ids(
        tmp_path_factory, grid=grid, zip={"storage.fs": ["ext4", "xfs"], "workload.queue_depth": [8, 32]}, only=[]
    )
    assert found == [
        "time_limit_s=60,fs=ext4,queue_depth=8,rep=1",
        "time_limit_s=60,fs=xfs,queue_depth=32,rep=1",
        "time_limit_s=90,fs=ext4,queue_depth=8,rep=1",
        "time_limit_s=90,fs=xfs,queue_depth=32,rep=1",
    ]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"zip": {"storage.fs": ["ext4", "xfs"], "workload.loops": [1]}}, "storage.fs has 2, workload.loops has 1"),
        ({"zip": {"storage.fs": ["xfs"]}, "grid": {"storage.fs": ["xfs"]}}, "zip.storage.fs: is an axis twice"),
        ({"zip": 3}, "zip: must map configuration keys"),
        ({"zip": {"storage.fz": ["xfs"]}}, "zip.storage.fz: no such key"),
        ({"exclude": ["fs == xfs"]}, "exclude[0]: 'fs == xfs': no axis 'fs' (character 1); axes: none"),
        (
            {"grid": {"storage.fs": ["xfs"]}, "only": ["fs == ext4"]},
            "has no cells left: exclude and only state fs == ext4",
        ),
        ({"grid": {"storage.fs": ["xfs"]}, "exclude": ["fs == xsf"]}, "exclude[0]: 'fs == xsf': fs is never 'xsf'"),
        ({"grid": {"storage.fs": ["xfs"]}, "exclude": "fs == xfs"}, 'must be a list, such as ["fs == xfs"], not'),
        ({"order": "shuffled"}, "order: must be one of interleaved, listed, random"),
        ({"seed": 4}, "seed: would not be used"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path_factory: pytest.TempPathFactory, keys: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ids(tmp_path_factory, **keys)
    assert said in str(caught.value)


def test_a_cell_that_is_left_out_may_be_impossible(tmp_path_factory: pytest.TempPathFactory) -> None:
    grid = {"storage.image_size": ["64MiB", "1GiB"], "storage.fs": ["xfs", "ext4"]}
    found = ids(
        tmp_path_factory, grid=grid, exclude=["image_size < 300MiB and fs == xfs", "storage.image_size < 70MiB"]
    )
    assert found == ["fs=xfs,image_size=1GiB,rep=1", "fs=ext4,image_size=1GiB,rep=1"]


def test_a_condition_may_name_axes_of_another_scenario(tmp_path_factory: pytest.TempPathFactory) -> None:
    scenarios = {"a": {"grid": {"storage.fs": ["ext4", "xfs"]}}, "b": {"grid": {"workload.loops": [1, 2, 3]}}}
    found = ids(tmp_path_factory, scenarios=scenarios, exclude=["fs == xfs", "scenario == b and loops > 1"])
    assert found == ["scenario=a,fs=ext4,rep=1", "scenario=b,loops=1,rep=1"]


def test_a_scenario_can_be_left_out_whole(tmp_path_factory: pytest.TempPathFactory) -> None:
    scenarios = {"a": {"grid": {"storage.fs": ["ext4", "xfs"]}}, "b": {"grid": {"workload.loops": [1, 2]}}}
    found = ids(tmp_path_factory, scenarios=scenarios, only=["scenario == b"])
    assert found == ["scenario=b,loops=1,rep=1", "scenario=b,loops=2,rep=1"]


def test_a_condition_that_no_cell_meets_is_noted(tmp_path_factory: pytest.TempPathFactory) -> None:
    exclude = ["fs == zfs", "loops > 1", "loops == 9"]
    scenarios = {"a": {"grid": {"storage.fs": ["ext4"]}}, "b": {"grid": {"workload.loops": [1, 2]}}}
    file = tmp_path_factory.mktemp("cells") / "sweep.yaml"
    file.write_text(yaml.safe_dump(BASE | {"figures": [], "scenarios": scenarios, "exclude": exclude}))
    assert Grid(load(str(file))).idle == ["exclude: fs == zfs", "exclude: loops == 9"]


def test_the_orders_of_trials(tmp_path_factory: pytest.TempPathFactory) -> None:
    keys = {"grid": {"workload.loops": [1, 2, 3]}, "repeats": 2}
    spread = ids(tmp_path_factory, **keys)
    assert spread == [f"loops={loops},rep={repeat}" for repeat in (1, 2) for loops in (1, 2, 3)]
    listed = ids(tmp_path_factory, **keys, order="listed")
    assert listed == [f"loops={loops},rep={repeat}" for loops in (1, 2, 3) for repeat in (1, 2)]
    shuffled = ids(tmp_path_factory, **keys, order="random", seed=1)
    assert shuffled not in (spread, listed)
    assert sorted(shuffled) == sorted(spread)
    assert shuffled == ids(tmp_path_factory, **keys, order="random", seed=1)


def test_a_new_seed_is_written_down(tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("cells") / "sweep.yaml"
    keys = {"order": "random", "grid": {"workload.loops": [1, 2, 3, 4, 5]}, "figures": [], "repeats": 3}
    file.write_text(
        yaml.safe_dump(BASE | keys | {"zip": {"storage.fs": ["xfs", "ext4"], "trace.stacks": [False, True]}})
    )
    sweep = load(str(file), ["exclude=[fs == xfs and loops > 3]"])
    again = file.with_name("again.yaml")
    again.write_text(as_yaml(sweep))
    assert [trial.id for trial in Grid(load(str(again))).trials] == [trial.id for trial in Grid(sweep).trials]
    assert as_yaml(load(str(again))) == as_yaml(sweep)


# --- cells that make no sense ----------------------------------------------------------------------------------------

MIXED = {"storage.fs": ["xfs", "ext4"], "storage.image_size": ["64MiB", "1GiB"]}


def made(tmp_path_factory: pytest.TempPathFactory, **keys: Any) -> Grid:
    file = tmp_path_factory.mktemp("cells") / "sweep.yaml"
    file.write_text(yaml.safe_dump(BASE | {"on_impossible": "skip"} | keys))
    return Grid(load(str(file)))


def test_impossible_cells_are_left_out_and_told(tmp_path_factory: pytest.TempPathFactory) -> None:
    grid = made(tmp_path_factory, grid=MIXED, repeats=2)
    assert [trial.id for trial in grid.trials] == [
        f"fs={fs},image_size=1GiB,rep={n}" for n in (1, 2) for fs in ("xfs", "ext4")
    ]
    assert [words for words, _ in grid.skipped] == ["fs=xfs,image_size=64MiB", "fs=ext4,image_size=64MiB"]
    assert "storage.image_size: 64 MiB are too small: xfs" in grid.skipped[0][1]


def test_impossible_cells_are_an_error_unless_stated(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(ImpossibleError):
        made(tmp_path_factory, grid=MIXED, on_impossible="error")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"grid": MIXED | {"storage.image_size": ["1MiB", "2MiB"]}}, "1 MiB are too small"),
        ({"grid": {"storage.fs": ["xfs", "zfs"]}}, "storage.fs: cannot make 'zfs'"),
        ({"grid": {"workload.loops": [1, "x"]}}, "workload.loops: must be a whole number"),
        ({"grid": {"trace.tracer": ["none", "ftrac"]}}, "trace.tracer: no tracer 'ftrac'"),
        ({"scenarios": {"a": {}, "b": {"storage": {"image_size": "1MiB"}}}}, "scenarios.b: storage.image_size: 1 MiB"),
    ],
)
def test_what_no_other_value_would_mend_stays_an_error(
    tmp_path_factory: pytest.TempPathFactory, keys: Any, said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        made(tmp_path_factory, **keys)
    assert said in str(caught.value)
