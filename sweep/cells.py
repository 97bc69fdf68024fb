"""The configurations of a grid's cells: what cells share is checked once."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

from omegaconf import OmegaConf, errors

from sweep.checks import CHECKS, check_storage, check_workload, checked_trial, typed_trial, workload_kind
from sweep.definition import SECTIONS, Axis, Definition, Sweep
from sweep.errors import ConfigError, ExpressionError
from sweep.expression import Test, parse
from sweep.trees import at, copied, put
from sweep.values import check_shape
from tasks import workloads

#: Which value each axis of a cell has, by place.
Places = tuple[int, ...]


class Cells:
    """The configurations of a sweep without scenarios.

    A section is a function of the axes that lie in it, and a value's type of that value alone; so a section is made
    and checked once for all cells that share it. Where an interpolation or an axis within another axis ties sections
    together, every cell is checked by itself.
    """

    def __init__(self, sweep: Sweep, named: Mapping[str, Any] | None = None) -> None:
        """Take the cells of `sweep`; `named` are values beside its axes that conditions may ask for."""
        self._sweep, self._named = sweep, named or {}
        self._conditions = {section: _conditions(sweep, section) for section in ("exclude", "only")}
        #: How many cells met each condition, by section.
        self.met: dict[str, Counter[str]] = {section: Counter() for section in self._conditions}
        self._axes = {
            name: [place for place, axis in enumerate(sweep.axes) if axis.path.partition(".")[0] == name]
            for name in (*SECTIONS, "workload")
        }
        self._leaves: dict[tuple[int, int], Any] = {}
        self._holders: dict[int, Any] = {}
        self._made: dict[tuple[str, Places], dict[str, Any]] = {}
        self._space: dict[Places, int] = {}
        self._checked: set[tuple[str, Places, int]] = set()
        self._first = None if _tied(sweep) else self._typed_first()

    def places(self) -> Iterator[Places]:
        """Yield every cell that is not left out, the last axis turning fastest."""
        return (places for places in self._product() if self._kept(places))

    def _product(self) -> Iterator[Places]:
        together = self._sweep.together or tuple((place,) for place in range(len(self._sweep.axes)))
        order = [place for group in together for place in group]
        back = [order.index(place) for place in range(len(order))]
        for turns in itertools.product(*(range(len(self._sweep.axes[group[0]].values)) for group in together)):
            flat = [turn for group, turn in zip(together, turns, strict=True) for _ in group]
            yield tuple(flat[place] for place in back)

    def _kept(self, places: Places) -> bool:
        if not any(self._conditions.values()):
            return True
        cell = dict(self._named)
        for axis, place in zip(self._sweep.axes, places, strict=True):
            cell[axis.path] = cell[axis.path.rpartition(".")[2]] = axis.values[place]
        meets = {section: [text for text, test in tests if test(cell)] for section, tests in self._conditions.items()}
        for section, texts in meets.items():
            self.met[section].update(texts)
        return not meets["exclude"] and (not self._conditions["only"] or bool(meets["only"]))

    def config(self, places: Places) -> dict[str, Any]:
        """Return the configuration of one cell, every key present; raise ConfigError where a value of it is wrong.

        Values that may each be right but make no sense together are an ImpossibleError.
        Cells share sections: nothing of it may be changed.
        """
        if self._first is None:
            return self._alone(places)
        own = {name: tuple(places[axis] for axis in axes) for name, axes in self._axes.items()}
        try:
            config = {name: self._section(name, own[name]) for name in self._axes}
        except (ConfigError, errors.OmegaConfBaseException):
            return self._alone(places)  # which says what is wrong
        self._check(config, own)
        return config

    def _alone(self, places: Places) -> dict[str, Any]:
        return checked_trial(self._sweep.source, self._stated(places))

    def _stated(self, places: Places) -> dict[str, Any]:
        value: dict[str, Any] = copied(self._sweep.base)
        for axis, place in zip(self._sweep.axes, places, strict=True):
            put(value, axis.path, axis.values[place])
        return value

    def _typed_first(self) -> dict[str, Any] | None:
        """Return the first cell, which the others are made from; None where a value of it has the wrong type."""
        try:
            return typed_trial(self._sweep.source, self._stated((0,) * len(self._sweep.axes)))
        except ConfigError:
            return None

    def _section(self, name: str, places: Places) -> dict[str, Any]:
        if (name, places) not in self._made:
            assert self._first is not None
            section = copied({name: self._first[name]})
            for axis, place in zip(self._axes[name], places, strict=True):
                put(section, self._sweep.axes[axis].path, self._leaf(axis, place))
            self._made[name, places] = section[name]
        return self._made[name, places]

    def _leaf(self, place: int, value: int) -> Any:
        """Return a value of an axis as its type has it: an enum by name, a number that is one."""
        if (place, value) not in self._leaves:
            if place not in self._holders:
                self._holders[place] = _Holder(self._sweep, self._sweep.axes[place])
            self._leaves[place, value] = self._holders[place].converted(self._sweep.axes[place].values[value])
        return self._leaves[place, value]

    def _check(self, config: Mapping[str, Any], own: Mapping[str, Places]) -> None:
        source = self._sweep.source
        workload = own["workload"]
        if workload not in self._space:
            self._space[workload] = check_workload(source, config["workload"])
        for name in ("storage", *CHECKS):
            key = (name, own[name], self._space[workload] if name == "storage" else 0)
            if key in self._checked:
                continue
            if name == "storage":
                check_storage(source, config[name], self._space[workload])
            else:
                CHECKS[name](source, config[name])
            self._checked.add(key)


def _conditions(sweep: Sweep, section: str) -> list[tuple[str, Test]]:
    """Return the conditions of `exclude` or `only`, each with its text."""
    found = []
    for place, text in enumerate(getattr(sweep, section)):
        try:
            found.append((text, parse(text, sweep.known)))
        except ExpressionError as error:
            raise ConfigError(sweep.source, f"{section}[{place}]", str(error)) from None
    return found


def _tied(sweep: Sweep) -> bool:
    """Say whether one section may depend on another, or one axis on another."""
    paths = [axis.path for axis in sweep.axes]
    nested = any(a != b and b.startswith(f"{a}.") for a in paths for b in paths)
    return nested or _interpolates(sweep.base) or any(_interpolates(axis.values) for axis in sweep.axes)


def _interpolates(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_interpolates(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return any(_interpolates(item) for item in value)
    return isinstance(value, str) and "${" in value


class _Holder:
    """Gives the values of an axis the type that its key has."""

    def __init__(self, sweep: Sweep, axis: Axis) -> None:
        section, _, below = axis.path.partition(".")
        self._source = sweep.source
        if section == "workload":
            self._cls = workloads.load(workload_kind(sweep.source, sweep.base)).Config
            self._path, self._prefix = below, "workload."
        else:
            self._cls, self._path, self._prefix = Definition, axis.path, ""
        self._holder = OmegaConf.structured(self._cls)
        self._simple = all(name.isidentifier() for name in self._path.split("."))

    def converted(self, value: Any) -> Any:
        """Return an enum by name, a number that is one; raise ConfigError or OmegaConf's error for what is neither."""
        nested: dict[str, Any] = {}
        put(nested, self._path, value)
        check_shape(self._source, self._cls, nested, self._prefix)
        if not isinstance(value, (Mapping, list)) and self._simple:
            # In place: an axis may have very many single values, and merging takes a millisecond.
            OmegaConf.update(self._holder, self._path, value)
            found = OmegaConf.select(self._holder, self._path)
            return found.name if isinstance(found, Enum) else found
        holder = OmegaConf.merge(OmegaConf.structured(self._cls), nested)
        return at(OmegaConf.to_container(holder, resolve=False, enum_to_str=True), self._path)  # type: ignore[arg-type]
