"""The spans of time that a trial is told by: its whole window, generation, and phases of a kind taken together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from analysis import metrics
from analysis.errors import CannotDraw
from analysis.metrics import Phase
from analysis.run import load_trial
from analysis.units import bytes_text

Array = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

GENERATION = "generation"
#: With more kinds of phases than this their attributes no longer tell them apart.
MOST_KINDS = 64
#: Attributes that end so tell what a phase was asked to move; other numbers are its loop or what it measured.
_SIZE = "_bytes"


@dataclass(frozen=True)
class Span:
    """A set of moments: disjoint stretches [begin, end) in monotonic ns, in order; `phases` is of how many phases."""

    name: str
    begin_ns: Array
    end_ns: Array
    phases: int | None

    @property
    def duration_ns(self) -> int:
        """The time in it."""
        return int((self.end_ns - self.begin_ns).sum())


def spans(trial_dir: str | Path) -> list[Span]:
    """Return the spans of a trial: the traced window (without it the span of the requests; without them it is empty),
    generation where there is one, each kind of phase.

    A kind is all phases of one name and one set of telling attributes: words, and sizes (`size_bytes`), not the number
    of a loop or what it measured. A phase that did not end, or of no duration, is in none.
    """
    told = metrics.phases(trial_dir)
    found = [_span(metrics.WHOLE, _window(trial_dir), None)]
    begin, end = metrics.generation_span(told)
    if begin is not None and end is not None and begin < end:
        found.append(_span(GENERATION, [(begin, end)], None))
    kinds: dict[str, list[tuple[int, int]]] = {}
    for name, phase in kinds_of(told):
        if phase.end_ns is not None and phase.begin_ns < phase.end_ns:
            kinds.setdefault(name, []).append((phase.begin_ns, phase.end_ns))
    return found + [_span(name, stretches, len(stretches)) for name, stretches in kinds.items()]


def kinds_of(phases: Sequence[Phase]) -> list[tuple[str, Phase]]:
    """Return each phase with the name of its kind, such as `load aio cpu 64 MiB`.

    The process stands before the name where several have phases of the kind, or where the name means something else.
    """
    for attributes in (True, False):
        kinds = [(phase.process, _kind(phase, attributes)) for phase in phases]
        if len({*kinds}) <= MOST_KINDS:
            break
    homes: dict[str, set[str]] = {metrics.WHOLE: {"", "of another"}, GENERATION: {"", "of another"}}
    for process, kind in kinds:
        homes.setdefault(kind, set()).add(process)
    names = [f"{process}: {kind}" if len(homes[kind]) > 1 else kind for process, kind in kinds]
    return list(zip(names, phases, strict=True))


def _kind(phase: Phase, attributes: bool) -> str:
    words = [phase.name]
    for key, value in phase.attributes.items() if attributes else ():
        if key.endswith(_SIZE) and value.isdigit():
            words.append(bytes_text(int(value)))
        elif value and not _is_number(value):
            words.append(value)
    return " ".join(words)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _window(trial_dir: str | Path) -> list[tuple[int, int]]:
    try:
        begin, end = load_trial(trial_dir).window or metrics.extent(trial_dir)
    except CannotDraw:
        return []
    return [(begin, end)] if begin < end else []


def _span(name: str, stretches: Sequence[tuple[int, int]], phases: int | None) -> Span:
    """Return the union of the stretches."""
    ordered = np.array(sorted(stretches), np.int64).reshape(-1, 2)
    begin, end = joined(ordered[:, 0], np.maximum.accumulate(ordered[:, 1]), 0)
    return Span(name, begin, end, phases)


def joined(begin: Array, end: Array, gap: int) -> tuple[Array, Array]:
    """Return sorted stretches without the gaps between them of at most `gap`."""
    if not begin.size:
        return begin, end
    apart = begin[1:] - end[:-1] > gap
    return begin[np.append(True, apart)], end[np.append(apart, True)]


class Sections:
    """Time cut at every edge of some spans. Moments that lie in the same spans are of one class, a small number."""

    def __init__(self, told: Sequence[Span]) -> None:
        """Cut; there are few spans, which may have many stretches."""
        parts = [edge for span in told for edge in (span.begin_ns, span.end_ns)]
        self.edges: Array = np.unique(np.concatenate(parts)) if parts else np.empty(0, np.int64)
        change = np.zeros((self.edges.size + 1, len(told)), np.int8)
        for place, span in enumerate(told):
            change[np.searchsorted(self.edges, span.begin_ns) + 1, place] += 1
            change[np.searchsorted(self.edges, span.end_ns) + 1, place] -= 1
        inside = np.cumsum(change, axis=0, dtype=np.int8) > 0
        members, self._class = np.unique(inside, axis=0, return_inverse=True)
        self._class = self._class.reshape(-1)
        self._spans: list[frozenset[int]] = [frozenset(np.flatnonzero(row).tolist()) for row in members]
        self._numbers = {held: number for number, held in enumerate(self._spans)}
        self._common: dict[tuple[int, int], int] = {}

    @property
    def count(self) -> int:
        """How many classes there are."""
        return len(self._spans)

    def of(self, t_ns: Array) -> Array:
        """Return the class of each moment; all of one class come as an array of one."""
        if not t_ns.size:
            return np.empty(0, np.int64)
        first, last = np.searchsorted(self.edges, (t_ns.min(), t_ns.max()), side="right")
        if first == last:
            return self._class[first : first + 1]
        return self._class[np.searchsorted(self.edges, t_ns, side="right")]

    def spans_of(self, number: int) -> frozenset[int]:
        """Return the spans that the moments of a class lie in, by their place."""
        return self._spans[number]

    def common(self, one: Array, other: Array) -> Array:
        """Return, for pairs of classes, that of what lies in the spans of both."""
        found = one.copy()
        differ = np.flatnonzero(one != other)
        if differ.size:
            pairs, place = np.unique(np.stack((one[differ], other[differ])), axis=1, return_inverse=True)
            numbers = np.array([self._meeting(a, b) for a, b in pairs.T.tolist()], np.int64)
            found[differ] = numbers[place.reshape(-1)]
        return found

    def _meeting(self, one: int, other: int) -> int:
        if (one, other) not in self._common:
            held = self._spans[one] & self._spans[other]
            number = self._numbers.setdefault(held, len(self._spans))
            if number == len(self._spans):
                self._spans.append(held)
            self._common[one, other] = number
        return self._common[one, other]


def by_class(classes: Array, *columns: Array) -> Iterator[tuple[int, tuple[Array, ...]]]:
    """Yield the rows of each class, in their order; `classes` is as long as the columns, or one for all rows."""
    if not columns[0].size:
        return
    if classes.size == 1 or (classes[0] == classes[-1] and not np.any(classes != classes[0])):
        yield int(classes[0]), columns
        return
    order = np.argsort(classes.astype(np.uint16) if classes.max() < 1 << 16 else classes, kind="stable")
    classes = classes[order]
    columns = tuple(column[order] for column in columns)
    bounds = [0, *(np.flatnonzero(np.diff(classes)) + 1).tolist(), classes.size]
    for first, last in pairwise(bounds):
        yield int(classes[first]), tuple(column[first:last] for column in columns)
