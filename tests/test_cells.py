"""The configurations of a grid's cells are those that each cell has by itself, made faster."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sweep.cells import Cells
from sweep.checks import checked_trial
from sweep.config import load
from sweep.definition import Sweep
from sweep.errors import ConfigError
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
