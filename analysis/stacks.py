"""Folded stacks as a flame graph's boxes.

A folded stack is a line `frame;frame;frame count`, root first: Brendan Gregg's format, https://github.com/brendangregg/
FlameGraph. The node writes two files of them, by requests and by bytes; `_[k]` ends the name of a kernel function.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from analysis.errors import CannotDraw
from analysis.run import Trial

REQUESTS, BYTES = "stacks.folded", "stacks-bytes.folded"
_KERNEL = "_[k]"


@dataclass
class Frame:
    """A function, its callees, and the requests and bytes submitted in either."""

    name: str
    op: str
    kind: str
    requests: int = 0
    bytes: int = 0
    callees: dict[str, Frame] = field(default_factory=dict)


@dataclass(frozen=True)
class Box:
    """A frame's place in a flame graph: from `begin` to `end` in requests, `depth` frames above the root."""

    frame: Frame
    begin: int
    end: int
    depth: int


def recorded(trial: Trial) -> bool:
    """Say whether the trial was asked for stacks, whatever came of it."""
    return bool(trial.section("stacks"))


def tree(trial: Trial) -> Frame:
    """Return the root of a trial's stacks; raise CannotDraw where there are none."""
    path = trial.path / REQUESTS
    if not path.is_file():
        reason = trial.section("stacks").get("reason")
        raise CannotDraw(str(reason or "no stacks were recorded (trace.stacks: true records them)"))
    root = Frame("all requests", "", "")
    for stack, count in read(path):
        _add(root, stack, requests=count)
    if not root.requests:
        raise CannotDraw(f"{REQUESTS} holds no requests")
    if (weighed := trial.path / BYTES).is_file():
        for stack, count in read(weighed):
            _add(root, stack, size=count)
    return root


def read(path: Path) -> Iterator[tuple[list[str], int]]:
    """Yield the frames of each folded stack, root first, with its count. Lines that are none are left out."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            stack, _, count = line.rstrip("\n").rpartition(" ")
            if stack and count.isdecimal():
                yield stack.split(";"), int(count)


def _add(root: Frame, stack: list[str], requests: int = 0, size: int = 0) -> None:
    frame = root
    frame.requests, frame.bytes = frame.requests + requests, frame.bytes + size
    for depth, name in enumerate(stack):
        kind = "kernel" if name.endswith(_KERNEL) else "operation" if not depth else "user"
        if name not in frame.callees:
            frame.callees[name] = Frame(name.removesuffix(_KERNEL), stack[0], kind)
        frame = frame.callees[name]
        frame.requests, frame.bytes = frame.requests + requests, frame.bytes + size


def boxes(root: Frame, least: int = 1) -> list[Box]:
    """Return the boxes of all frames with at least `least` requests, the callee with most of them to the left."""
    found = []
    waiting = [Box(root, 0, root.requests, 0)]
    while waiting:
        box = waiting.pop()
        found.append(box)
        begin = box.begin
        for frame in sorted(box.frame.callees.values(), key=lambda f: (-f.requests, f.name)):
            if frame.requests >= max(least, 1):
                waiting.append(Box(frame, begin, begin + frame.requests, box.depth + 1))
            begin += frame.requests
    return found
