"""What differs between two fingerprints: every field that does, and no other."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sweep.comparison import code_changes, node_changes, plan_changes
from tasks.identity import WRITTEN

names = st.text("abcdef_", min_size=1, max_size=6)
leaves = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(0, 2) | st.text(max_size=4)
trees = st.recursive(
    leaves | st.lists(leaves, max_size=3), lambda inner: st.dictionaries(names, inner, max_size=4), max_leaves=12
)
configs = st.dictionaries(names, trees, min_size=1, max_size=5)


def paths(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if isinstance(value, dict) and value:
        return [found for name, inner in value.items() for found in paths(inner, (*path, name))]
    return [path]


@given(configs)
def test_the_same_has_no_changes(config: dict[str, Any]) -> None:
    assert plan_changes(config, copy.deepcopy(config)) == node_changes(config, copy.deepcopy(config)) == []


@given(configs, st.data())
def test_one_changed_field_is_one_change_and_names_it(config: dict[str, Any], data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(paths(config)))
    other = copy.deepcopy(config)
    section = other
    for name in path[:-1]:
        section = section[name]
    section[path[-1]] = "something else"
    (change,) = plan_changes(config, other)
    assert change.startswith(f"{'.'.join(path)}: ")
    assert change.endswith(" -> something else")


@given(configs, configs)
def test_changes_are_the_same_number_both_ways_and_none_only_for_equals(a: dict[str, Any], b: dict[str, Any]) -> None:
    there, back = plan_changes(a, b), plan_changes(b, a)
    assert len(there) == len(back)
    if a != b:
        assert there


def test_in_words() -> None:
    old = {"workload": {"block_size": "1MiB", "direct": True, "sizes": [1, 2], "gone": None}, "note": "x" * 100}
    new = {"workload": {"block_size": "4MiB", "direct": 1, "sizes": [1, 3], "": ""}, "note": "x" * 99 + "y"}
    told = plan_changes(old, new)
    assert told[:4] == [
        "workload.block_size: 1MiB -> 4MiB",
        "workload.direct: true -> 1",
        "workload.sizes: [1, 2] -> [1, 3]",
        "workload.gone: null -> (none)",
    ]
    assert len(told[-1]) < 140
    assert plan_changes({"a": "b\nc"}, {"a": ""}) == ['a: b c -> ""']


def test_a_file_of_code_is_named() -> None:
    old = {"tasks/a.py": "1a2b3c4d", "tasks/b.py": "0", "tasks/gone.py": "7"}
    new = {"tasks/a.py": "5e6f7a8b", "tasks/b.py": "0", "tasks/new.py": "8"}
    assert code_changes(old, new) == [
        "code of tasks/a.py: 1a2b3c4d -> 5e6f7a8b",
        "code of tasks/gone.py: 7 -> (none)",
        "code of tasks/new.py: (none) -> 8",
    ]


def test_a_field_of_a_drive_is_named() -> None:
    def node(kb: str) -> dict[str, Any]:
        return {"kernel": "6.1", "storage": {"drives": [{"model": "m", "queue": {"max_sectors_kb": kb}}]}}

    assert node_changes(node("128"), node("512")) == ["node: storage.drives.0.queue.max_sectors_kb: 128 -> 512"]


def test_what_the_job_wrote_itself_does_not_count() -> None:
    old = {"files": {"/log.txt": WRITTEN, "/data": "1"}}
    assert node_changes(old, {"files": {"/log.txt": "17", "/data": "1"}}) == []
    assert node_changes(old, {"files": {"/log.txt": "17", "/data": "2"}}) == ["node: files./data: 1 -> 2"]


def test_a_tool_that_is_not_used_any_more_does_not_matter() -> None:
    old = {"tools": {"mkfs.xfs": "6.1.0", "bpftrace": "0.17.0"}}
    assert node_changes(old, {"tools": {"mkfs.xfs": "6.1.0"}}) == []
    assert node_changes(old, {"tools": {"mkfs.xfs": "6.2.0"}}) == ["node: tools.mkfs.xfs: 6.1.0 -> 6.2.0"]
    assert node_changes({"tools": {}}, old) != []
