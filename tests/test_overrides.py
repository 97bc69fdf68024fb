"""Every documented key can be set on the command line, as a value and as an axis, and lands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analysis.figures import FIGURES
from sweep.config import as_yaml, load
from sweep.definition import Definition, Search
from sweep.errors import ConfigError
from sweep.plan import Grid
from sweep.trees import at
from sweep.values import documented, hints_of
from tasks import workloads

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="$"), max_size=12).filter(lambda text: text != "???")
SIMPLE: dict[Any, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    int: st.integers(-(10**12), 10**12),
    float: st.floats(-1e12, 1e12),
    str: TEXT,
    Any: st.integers() | TEXT | st.booleans(),
}
SIZES = st.sampled_from(["4KiB", "64MiB", "1GiB", 1 << 20])

#: Keys of which not every value of their type will do, or that stand elsewhere in what is written out.
CHOSEN: dict[str, st.SearchStrategy[Any]] = {
    "name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
    "figures": st.none() | st.lists(st.sampled_from(sorted({*FIGURES} - {"metric"})), unique=True),
    "repeats": st.integers(1, 10_000),
    "warmups": st.integers(0, 10_000),
    "cooldown_s": st.floats(0, 86_400),
    "retention.runs": st.none() | st.integers(1, 10_000),
    "retention.size": st.none() | st.integers(1, 1 << 50),  # written out in bytes
    "data.shared": st.none() | st.sampled_from(["/mnt/results", "/srv/other"]),
}
ELSEWHERE = ("extends", "grid", "zip", "scenarios", "scale", "scales", "seed", "workload")
ELSEWHERE += tuple(f"search.{one.name}" for one in fields(Search))  # together they make sense, tests/test_search.py


def typed_keys(cls: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, kind in hints_of(cls).items():
        if is_dataclass(kind):
            yield from typed_keys(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", kind


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Return values that a key of this type takes."""
    if isinstance(kind, type) and issubclass(kind, Enum):
        return st.sampled_from([member.name for member in kind])
    if get_origin(kind) is list:
        return st.lists(values(get_args(kind)[0]), max_size=3)
    if get_origin(kind) is dict:
        return st.dictionaries(st.sampled_from("abc"), values(get_args(kind)[1]), max_size=2)
    if {int, str} <= {*get_args(kind)}:
        return SIZES | (st.none() if type(None) in get_args(kind) else st.nothing())
    if get_args(kind):
        return st.one_of(*(st.none() if one is type(None) else values(one) for one in get_args(kind)))
    return SIMPLE[kind]


KEYS = [
    (kind, path, expected) for kind in workloads.WORKLOADS for path, expected in typed_keys(workloads.load(kind).Config)
]
KEYS = [(kind, f"workload.{path}", expected) for kind, path, expected in KEYS]
KEYS += [("tensor_io", path, expected) for path, expected in typed_keys(Definition) if path not in ELSEWHERE]
AXES = [key for key in KEYS if key[1].partition(".")[0] in ("workload", "storage", "trace", "limits")]


def loaded(folder: Path, kind: str, *overrides: str, **keys: Any) -> Any:
    base = {"workload": {"kind": kind}, "description": "d", "figures": []} | keys
    (folder / "s.yaml").write_text(yaml.safe_dump(base))
    return load(str(folder / "s.yaml"), overrides)


def as_text(value: Any) -> str:
    """Return a value as one types it: YAML in one line."""
    return str(yaml.safe_dump({"v": value}, default_flow_style=True, width=float("inf")))[len("{v: ") : -len("}\n")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("overrides")


def test_these_are_the_documented_keys() -> None:
    named = {path for path, _ in documented(Definition)} - {*ELSEWHERE}
    for kind in workloads.WORKLOADS:
        named |= {path for path, _ in documented(workloads.load(kind).Config, "workload.")}
    assert {path for _, path, _ in KEYS} == named


@pytest.mark.parametrize(("kind", "path", "expected"), KEYS, ids=[f"{kind}-{path}" for kind, path, _ in KEYS])
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_key_is_set(folder: Path, kind: str, path: str, expected: Any, data: st.DataObject) -> None:
    value = data.draw(CHOSEN.get(path, values(expected)))
    sweep = loaded(folder, kind, f"{path}={as_text(value)}")
    written = at(yaml.safe_load(as_yaml(sweep)), path)
    assert written == (list(sweep.figures) if path == "figures" else value)


@pytest.mark.parametrize(("kind", "path", "expected"), AXES, ids=[f"{kind}-{path}" for kind, path, _ in AXES])
@settings(max_examples=2, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_an_axis_is_set(folder: Path, kind: str, path: str, expected: Any, data: st.DataObject) -> None:
    own = data.draw(st.lists(values(expected), min_size=1, max_size=3, unique_by=lambda value: json.dumps(value)))
    own = [value for place, value in enumerate(own) if value not in own[:place]]
    grid = {path: [1]}  # which the command line replaces
    section = data.draw(st.sampled_from(["grid", "zip"]))
    sweep = loaded(folder, kind, f"{section}.{path}={as_text(own)}", **{section: grid})
    assert [(axis.path, axis.values) for axis in sweep.axes] == [(path, tuple(own))]
    assert yaml.safe_load(as_yaml(sweep))["grid"] == {path: own}


def test_the_keys_that_make_cells(folder: Path) -> None:
    scenarios = ["scenarios={a: {repeats: 2}, b: {}}", "scenarios.b.repeats=3"]
    ids = [trial.id for trial in Grid(loaded(folder, "tensor_io", *scenarios)).trials]
    assert ids == ["scenario=a,rep=1", "scenario=b,rep=1", "scenario=a,rep=2", "scenario=b,rep=2", "scenario=b,rep=3"]
    scaled = loaded(folder, "tensor_io", "scales={small: {repeats: 4}}", "scale=small", "scales.small.warmups=1")
    assert (scaled.repeats, scaled.warmups, scaled.name) == (4, 1, "s-small")
    assert loaded(folder, "tensor_io", "order=random", "seed=7").seed == 7
    assert loaded(folder, "tensor_io", "workload.kind=command", "workload.argv=[ls]").base["workload"]["argv"] == ["ls"]
    assert loaded(folder, "flexgen", "workload={kind: command, argv: [ls]}").base["workload"]["kind"] == "command"
    with pytest.raises(ConfigError, match=r"command line: extends.x: belongs into a sweep file"):
        loaded(folder, "tensor_io", "extends.x=1")
