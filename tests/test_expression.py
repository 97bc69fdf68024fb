"""Conditions on axes: what they mean, and what is said of one that cannot be read."""

from __future__ import annotations

import operator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweep.errors import ExpressionError
from sweep.expression import parse

AXES = {
    "fs": ("ext4", "xfs", "btrfs"),
    "batch_size": (1, 2, 16),
    "workload.batch_size": (1, 2, 16),
    "size": ("64MiB", "1GiB"),
}
CELL = {"fs": "xfs", "batch_size": 16, "workload.batch_size": 16, "size": "64MiB"}


@pytest.mark.parametrize(
    ("text", "true"),
    [
        ("fs == xfs", True),
        ("fs == 'xfs'", True),
        ("fs != xfs", False),
        ("batch_size > 8", True),
        ("workload.batch_size<=15", False),
        ("size >= 1GiB", False),
        ("size == 65536KiB", True),
        ("size < 0.5GiB and not batch_size in [1, 2]", True),
        ("fs in [ext4, btrfs] or batch_size == 16", True),
        ("fs not in [ext4, xfs]", False),
        ("not (fs == xfs and batch_size == 1)", True),
        ("fs == ext4 or fs == xfs and batch_size == 1", False),
        ("(fs == ext4 or fs == xfs) and batch_size == 16", True),
        ("batch_size == null", False),
    ],
)
def test_what_a_condition_means(text: str, true: bool) -> None:
    assert parse(text, AXES)(CELL) is true


def test_an_axis_that_a_cell_does_not_have_is_null() -> None:
    assert parse("fs == null and not fs == xfs and not size < 3", AXES)({}) is True


def test_values_of_every_kind_compare_by_what_they_are() -> None:
    held: dict[str, Any] = {"fs": None, "fsync": True, "apis": [1, "a"]}
    axes = {name: (value,) for name, value in held.items()}
    assert parse("fs == null and fsync == true and apis == [1, a]", axes)(held)
    assert not parse("fsync == 1", axes)(held)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "ends where the name of an axis should stand"),
        ("fs", "ends where one of =="),
        ("fs = xfs", "'=' at character 4 cannot be read; did you mean ==?"),
        ("fs == ", "ends where a value should stand"),
        ("fz == xfs", "no axis 'fz' (character 1); did you mean fs? axes: fs, batch_size"),
        ("fs == xf", "fs is never 'xf'; did you mean xfs? its values: ext4, xfs, btrfs"),
        ("fs != EXT4", "did you mean ext4?"),
        ("fs in [xfs, btrsf]", "fs is never 'btrsf'; did you mean btrfs?"),
        ("fs > 3", "3 is neither less nor more than fs, which is ext4, xfs, btrfs"),
        ("batch_size > many", "'many' is neither less nor more than batch_size, which is 1, 2, 16"),
        ("(" * 3000 + "fs == xfs", "is nested too deeply"),
        ("not " * 9000 + "fs == xfs", "is nested too deeply"),
        ("(" * 200 + "fs == xfs" + ")" * 200, "is nested too deeply"),
        ("fs in " + "[" * 200 + "1" + "]" * 200, "is nested too deeply"),
        ("fs == xfs batch_size == 1", "'batch_size' at character 11 stands where and, or or the end should"),
        ("(fs == xfs", "ends where ) should stand"),
        ("fs in xfs", "'xfs' at character 7 stands where [ should"),
        ("fs not == xfs", "'==' at character 8 stands where in should"),
        ("__import__('os') == 1", "no axis '__import__' (character 1); axes: fs"),
        ("fs == 'xfs", "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_place(text: str, said: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        parse(text, AXES)
    assert said in str(caught.value)


COMPARED = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
comparisons = st.tuples(st.sampled_from("abc"), st.sampled_from(sorted(COMPARED)), st.integers(-3, 3))
trees = st.recursive(
    comparisons,
    lambda inner: st.one_of(
        st.tuples(st.just("not"), inner), st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(lambda t: [*t])
    ),
    max_leaves=8,
)


def text_of(tree: Any) -> str:
    if isinstance(tree, list):
        left, word, right = tree
        return f"({text_of(left)}) {word} ({text_of(right)})"
    return f"not ({text_of(tree[1])})" if tree[0] == "not" else f"{tree[0]} {tree[1]} {tree[2]}"


def truth(tree: Any, cell: dict[str, int]) -> bool:
    if isinstance(tree, list):
        left, word, right = tree
        return (truth(left, cell) and truth(right, cell)) if word == "and" else truth(left, cell) or truth(right, cell)
    if tree[0] == "not":
        return not truth(tree[1], cell)
    return bool(COMPARED[tree[1]](cell[tree[0]], tree[2]))


@given(tree=trees, cell=st.fixed_dictionaries(dict.fromkeys("abc", st.integers(-3, 3))))
def test_a_condition_is_true_where_its_tree_is(tree: Any, cell: dict[str, int]) -> None:
    assert parse(text_of(tree), dict.fromkeys("abc", tuple(range(-3, 4))))(cell) is truth(tree, cell)


@given(st.text(alphabet="abfs =!<>()[],'\"1.x\\_\n", max_size=25))
def test_any_text_is_read_or_refused_in_words(text: str) -> None:
    with suppress(ExpressionError):
        assert parse(text, {"a": (1,), "b": (), "fs": ("x",)})({"a": 1, "fs": "x"}) in (True, False)


def test_a_condition_as_deep_as_may_be_can_be_tried_from_deep_within() -> None:
    test = parse("not (" * 24 + "(fs == xfs" + ")" * 25, AXES)

    def within(depth: int) -> bool:
        return within(depth - 1) if depth else test({"fs": "xfs"})

    assert within(500)
