"""What a sweep is: the keys of its file, and what they become once they are checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from tasks.spec import Ceiling, Limits, NodeWish, Storage, Trace, key

#: Sections of a trial's configuration beside its workload.
SECTIONS = ("storage", "trace", "ceiling", "limits", "node")

#: Words of a trial's id beside those of its axes: its scenario, and which repeat or warm-up of its cell it is.
SCENARIO, REPEAT, WARMUP = "scenario", "rep", "warmup"


class Order(Enum):
    """In which order trials run."""

    interleaved = "interleaved"
    listed = "listed"
    random = "random"


class OnImpossible(Enum):
    """What becomes of a cell that no node could run."""

    error = "error"
    skip = "skip"


class Stop(Enum):
    """When a cell has repeats enough."""

    ci = "ci"


class Find(Enum):
    """Which of the values that meet a target a search is for."""

    largest = "largest"
    smallest = "smallest"


@dataclass
class Until:
    """Keys of `repeats` where they go on until a cell's mean is known well enough."""

    until: Stop = key(Stop.ci, "ci: until the confidence interval of the metric's mean is within rel of the mean")
    metric: str | None = key(None, "what is to be known, such as decode/read.d2c_p99_us; default: by workload")
    rel: float = key(0.05, "half the interval's width over the mean")
    confidence: float = key(0.95, "of the interval")
    min: int = key(3, "trials of a cell before its interval is looked at")
    max: int = key(10, "trials of a cell at most, failed and invalid ones among them")


@dataclass
class Search:
    """Keys of `search`."""

    axis: str | None = key(None, "the configuration key that is searched over; it is an axis like those of grid")
    values: Any = key(list, "its values in ascending order, or {from: 1, to: 128, factor: 2}, or with step")
    find: Find = key(Find.largest, "which of the values that meet the target; values before, or after it meet it too")
    metric: str | None = key(None, "what has the target, such as read.d2c_p99_us or load aio cpu 1 MiB/read.d2c_p99_us")
    at_most: float | None = key(None, "the target: a value meets it whose metric is this or less")
    at_least: float | None = key(None, "the target: a value meets it whose metric is this or more")
    confirm: int = key(3, "trials of each of the two values beside the border")
    max: int = key(6, "trials of one value at most, where its confidence interval holds the target")


@dataclass
class Data:
    """Where nodes put what they measured."""

    shared: str | None = key(
        None,
        "a folder that head and nodes mount at the same path, or a URL for fsspec, such as s3://BUCKET/PREFIX: nodes "
        "write there instead of sending through Ray; null: they send to the head's results folder",
    )


@dataclass
class Retention:
    """Which runs of the sweep are kept when one has ended; what is removed stays in the ledger."""

    runs: int | None = key(None, "so many, the newest; null: any number")
    size: int | str | None = key(None, "the newest that together take no more, such as 50GiB; null: any size")


@dataclass
class Definition:
    """Keys of a sweep file. `workload` holds `kind` and the keys of that workload."""

    extends: Any = key(None, "file, or list of files, whose keys apply where this file has none")
    name: str = key("", "name of the sweep and of its results folder; default: the file's name")
    description: str = key("", "one sentence for the report")
    workload: dict[str, Any] = key(dict, "kind: which job a trial executes; the other keys are that job's own")
    storage: Storage = key(Storage, "the filesystem under test")
    trace: Trace = key(Trace, "how requests are recorded")
    ceiling: Ceiling = key(Ceiling, "what fio reaches on the same storage")
    limits: Limits = key(Limits, "when a trial is stopped")
    node: NodeWish = key(NodeWish, "which nodes may run a trial")
    grid: dict[str, Any] = key(dict, "axes: a configuration key and the list of its values; cells are their product")
    zip: Any = key(
        None, "axes that turn together: a mapping like grid's whose lists are equally long, or a list of such mappings"
    )
    exclude: list[str] = key(
        list, "conditions on axes, such as `fs == btrfs and batch_size > 16`: those cells are left out"
    )
    only: list[str] = key(list, "conditions on axes: cells that meet none of them are left out")
    order: Order = key(
        Order.interleaved, "of the trials; interleaved: repeats spread over time; listed: cell by cell; random: by seed"
    )
    seed: int | None = key(None, "of order=random; null: a new one, which the run records")
    scenarios: dict[str, Any] = key(
        dict, "by name, keys laid over the sweep, for cells of its own: another workload, limits, grid, repeats"
    )
    repeats: int = key(1, "trials of each cell; or keys, of which until is one: as many as it takes")
    search: Search = key(Search, "instead of all values of one axis, only those that show which one meets a target")
    warmups: int = key(0, "trials of each cell that are run first and not counted")
    data: Data = key(Data, "where nodes put what they measured")
    retention: Retention = key(Retention, "which runs of this sweep are kept when one has ended")
    cooldown_s: float = key(0.0, "rest of a drive between two trials on it, in seconds")
    on_impossible: OnImpossible = key(
        OnImpossible.error, "a cell that no node could run is an error, or left out with its reason told (skip)"
    )
    figures: list[str] | None = key(None, "figures to draw; default: what suits the workload")
    scale: str | None = key(None, "name of the entry of scales to lay over this sweep: scale=small")
    scales: dict[str, Any] = key(dict, "by name, keys to change together, such as those that fit a small machine")


@dataclass(frozen=True)
class Axis:
    """One axis: the configuration key it sets, a short label for ids, and its values."""

    path: str
    label: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Sweep:
    """A checked definition. `source` names the file in messages; `base` is its YAML before the grid is applied.

    `together` lists the axes that turn as one, by place; `exclude` and `only` are conditions, on the axes `known`,
    each with its values.
    One with scenarios has no cells of its own: they are those of the sweep that each scenario makes of it.
    `repeats` are the trials that a cell has at most: fewer where `until` or `search` say when they are enough.
    """

    source: str
    name: str
    description: str
    repeats: int
    figures: tuple[str, ...]
    axes: tuple[Axis, ...]
    base: Mapping[str, Any]
    together: tuple[tuple[int, ...], ...] = ()
    exclude: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    known: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    order: Order = Order.interleaved
    seed: int | None = None
    warmups: int = 0
    shared: str | None = None
    retention: Retention = field(default_factory=Retention)
    cooldown_s: float = 0.0
    on_impossible: OnImpossible = OnImpossible.error
    scenarios: Mapping[str, Sweep] = field(default_factory=dict)
    until: Until | None = None
    search: Search | None = None

    @property
    def searched(self) -> Axis | None:
        """The axis that a search goes along, None where there is no search."""
        return next((axis for axis in self.axes if self.search and axis.path == self.search.axis), None)
