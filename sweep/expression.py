"""Conditions on the axes of a cell, as `exclude` and `only` have them: `fs == btrfs and batch_size > 16`.

    condition  = all ("or" all)*
    all        = one ("and" one)*
    one        = "not" one | "(" condition ")" | axis operator value | axis ["not"] "in" list
    operator   = "==" | "!=" | "<" | "<=" | ">" | ">="
    value      = number | size such as 64MiB | true | false | null | word | "quoted text" | list
    list       = "[" value ("," value)* "]"

Read by this module alone: nothing of it is ever executed.
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from sweep.errors import ExpressionError
from tasks.units import parse_bytes

#: A condition, read: takes the values of a cell by axis.
Test = Callable[[Mapping[str, Any]], bool]

_TOKEN = re.compile(
    r"""\s*(?:(?P<quoted>"[^"]*"|'[^']*')|(?P<sign>==|!=|<=|>=|[<>()\[\],])|(?P<word>[^\s()\[\],<>=!"']+))"""
)
_COMPARED: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_WORDS: dict[str, Any] = {"true": True, "false": False, "null": None}
#: How often conditions and lists may stand within each other.
_DEEPEST = 50

_RESERVED = ("and", "or", "not", "in")


def parse(text: str, axes: Mapping[str, Sequence[Any]]) -> Test:
    """Return the condition that `text` states on cells with these axes, each with its values.

    An axis that a cell does not have is null there. Raises ExpressionError, which says where in the text; also for a
    value that is misspelt, and for an order that there cannot be.
    """
    return _Parser(text, axes).whole()


class _Parser:
    def __init__(self, text: str, axes: Mapping[str, Sequence[Any]]) -> None:
        self._text, self._axes = text, axes
        self._tokens = list(_tokens(text))
        self._next = self._depth = 0

    def whole(self) -> Test:
        test = self._any()
        if self._kind() is not None:
            self._fail("and, or or the end")
        return test

    def _any(self) -> Test:
        tests = [self._all()]
        while self._took("or"):
            tests.append(self._all())
        return lambda cell: any(test(cell) for test in tests)

    def _all(self) -> Test:
        tests = [self._one()]
        while self._took("and"):
            tests.append(self._one())
        return lambda cell: all(test(cell) for test in tests)

    def _one(self) -> Test:
        if self._took("not"):
            with self._deeper():
                inner = self._one()
            return lambda cell: not inner(cell)
        if self._took("("):
            with self._deeper():
                inner = self._any()
            self._expect(")")
            return inner
        return self._comparison(self._axis())

    def _comparison(self, axis: str) -> Test:
        refused = self._took("not")
        if self._took("in"):
            values = self._list()
            for value in values:
                self._check_value(axis, value)
            return lambda cell: any(_compare("==", cell.get(axis), value) for value in values) is not refused
        kind = self._kind()
        if refused or kind is None or kind not in _COMPARED:
            self._fail("in" if refused else "one of == != < <= > >= in, not in")
        self._next += 1
        value = self._value()
        if kind in ("==", "!="):
            self._check_value(axis, value)
        else:
            self._check_order(axis, value)
        return lambda cell: _compare(kind, cell.get(axis), value)

    def _check_value(self, axis: str, stated: Any) -> None:
        """Refuse a value that is none of the axis, but much like one."""
        held = [str(value) for value in self._axes[axis]]
        if stated is None or any(_compare("==", value, stated) for value in self._axes[axis]):
            return
        lower = {value.lower(): value for value in held}
        near = difflib.get_close_matches(str(stated).lower(), lower, 1)
        if near:
            listed = ", ".join(held)
            raise ExpressionError(
                f"{self._text!r}: {axis} is never {stated!r}; did you mean {lower[near[0]]}? its values: {listed}"
            )

    def _check_order(self, axis: str, stated: Any) -> None:
        """Refuse an order between what has none."""
        if any((_number(value) is None) == (_number(stated) is None) for value in self._axes[axis]):
            return
        listed = ", ".join(str(value) for value in self._axes[axis])
        raise ExpressionError(f"{self._text!r}: {stated!r} is neither less nor more than {axis}, which is {listed}")

    def _axis(self) -> str:
        kind = self._kind()
        if kind != "word":
            self._fail("the name of an axis")
        name = str(self._tokens[self._next][1])
        if name not in self._axes:
            near = difflib.get_close_matches(name, list(self._axes), 1, 0.5)
            hint = f"did you mean {near[0]}? " if near else ""
            place = self._tokens[self._next][2]
            listed = ", ".join(self._axes) or "none"
            raise ExpressionError(f"{self._text!r}: no axis {name!r} (character {place + 1}); {hint}axes: {listed}")
        self._next += 1
        return name

    def _value(self) -> Any:
        if self._kind() == "[":
            return self._list()
        kind = self._kind()
        if kind not in ("word", "quoted"):
            self._fail("a value")
        text = self._tokens[self._next][1]
        self._next += 1
        return text[1:-1] if kind == "quoted" else _plain(text)

    def _list(self) -> list[Any]:
        self._expect("[")
        with self._deeper():
            values = [self._value()]
            while self._took(","):
                values.append(self._value())
        self._expect("]")
        return values

    @contextmanager
    def _deeper(self) -> Iterator[None]:
        """Read what stands within something else; raise ExpressionError where that is too deep to be tried later."""
        self._depth += 1
        if self._depth > _DEEPEST:
            raise ExpressionError(f"{self._text[:40]!r}...: is nested too deeply, more than {_DEEPEST} times")
        yield
        self._depth -= 1

    def _kind(self) -> str | None:
        """Return what comes next: a sign, a reserved word, `word`, `quoted`, or None at the end."""
        return self._tokens[self._next][0] if self._next < len(self._tokens) else None

    def _took(self, kind: str) -> bool:
        found = self._kind() == kind
        self._next += found
        return found

    def _expect(self, kind: str) -> None:
        if not self._took(kind):
            self._fail(kind)

    def _fail(self, wanted: str) -> NoReturn:
        if self._kind() is None:
            raise ExpressionError(f"{self._text!r} ends where {wanted} should stand")
        _, text, place = self._tokens[self._next]
        raise ExpressionError(f"{self._text!r}: {text!r} at character {place + 1} stands where {wanted} should")


def _tokens(text: str) -> Iterator[tuple[str, str, int]]:
    """Yield kind, text and place of every token."""
    place = 0
    while text[place:].strip():
        found = _TOKEN.match(text, place)
        if found is None:
            rest = text[place:].lstrip()
            hint = "; did you mean ==?" if rest[0] == "=" else ""
            raise ExpressionError(
                f"{text!r}: {rest[0]!r} at character {text.index(rest, place) + 1} cannot be read{hint}"
            )
        name = str(found.lastgroup)
        token = found[name]
        kind = token if name == "sign" or token in _RESERVED else name
        yield kind, token, found.start(name)
        place = found.end()


def _plain(word: str) -> Any:
    if word in _WORDS:
        return _WORDS[word]
    for kind in (int, float):
        with suppress(ValueError):
            return kind(word)
    return word


def _compare(sign: str, held: Any, stated: Any) -> bool:
    """Compare the value of an axis with a stated one: sizes by their bytes, numbers by value, all else as it is.

    What has no order is neither less nor more.
    """
    left, right = _number(held), _number(stated)
    if left is not None and right is not None:
        return _COMPARED[sign](left, right)
    if sign in ("==", "!="):
        same = held == stated and isinstance(held, bool) == isinstance(stated, bool)
        return same is (sign == "==")
    return isinstance(held, str) and isinstance(stated, str) and _COMPARED[sign](held, stated)


def _number(value: Any) -> float | None:
    """Return a number, or the bytes of a size such as `64MiB`; None for all else."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        with suppress(ValueError):
            return parse_bytes(value)
    return None
