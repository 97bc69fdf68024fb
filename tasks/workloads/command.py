"""`command`: any program, traced and sampled like the others; how to study an engine without writing code for it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tasks.spec import key
from tasks.units import parse_bytes
from tasks.workloads import Job, Problem, Span

#: What an argument may hold: `{name}` for a value, `{{` and `}}` for braces. Never an expression.
_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
_GIVEN = "offload_dir"


@dataclass
class Config:
    """Keys of `workload` when `kind: command`."""

    argv: list[str] = key(list, "the program and its arguments; {offload_dir} and {name} of values are filled in")
    values: dict[str, Any] = key(dict, "values for the arguments; each can be an axis, as workload.values.batch_size")
    env: dict[str, str] = key(dict, "environment variables, filled in like the arguments")
    space: int | str = key("256MiB", "room the offload files need")
    expect_read: int | str | None = key(None, "bytes the program must at least read from the device; null: unknown")
    expect_write: int | str | None = key(None, "bytes the program must at least write to the device; null: unknown")


_Config = Config


class Workload:
    """Runs one program. It may report phases to the path in OFFLOAD_SWEEP_PHASES (`tasks/jobs/phase_log.py`)."""

    Config: ClassVar[type] = Config
    figures: ClassVar[Sequence[str]] = ("timeline", "sizes", "latency", "depth", "roofline")
    says_done: ClassVar[bool] = False
    metric: ClassVar[str] = "duration_s"

    def __init__(self, config: _Config) -> None:
        """Take a configuration whose types are right."""
        self._config = config

    def problems(self) -> list[Problem]:
        """Return what is wrong with the configuration beyond its types."""
        c = self._config
        found = [] if c.argv and c.argv[0] else [Problem("argv", "must name a program and its arguments")]
        for name, texts in (("argv", c.argv), ("env", list(c.env.values()))):
            found += [Problem(name, problem) for text in texts if (problem := self._unfilled(str(text)))]
        for name in ("space", "expect_read", "expect_write"):
            try:
                value = vars(c)[name]
                _ = value is None or parse_bytes(value)
            except ValueError as e:
                found.append(Problem(name, str(e)))
        used = {m[1] for text in (*c.argv, *c.env.values()) for m in _PLACEHOLDER.finditer(str(text))}
        found += [
            Problem(f"values.{name}", f"no argument uses it: write {{{name}}} where it belongs, or leave it out")
            for name in c.values
            if name not in used
        ]
        for name, value in c.values.items():
            if isinstance(value, (dict, list)) or value is None:
                found.append(Problem(f"values.{name}", f"must be a single value, not {value!r}"))
        return found

    def _unfilled(self, text: str) -> str | None:
        """Return what is wrong with the placeholders of one argument, or None."""
        known = [_GIVEN, *self._config.values]
        for match in _PLACEHOLDER.finditer(text):
            if match[1] is not None and match[1] not in known:
                listed = ", ".join(f"{{{name}}}" for name in known)
                return f"{text!r} asks for {{{match[1]}}}, which is no value; valid: {listed} (a brace: {{{{)"
        return None

    def needs(self) -> dict[str, str]:
        """Return nothing: whether the program is there only the node can say."""
        return {}

    def wants_gpu(self) -> bool:
        """Say that a GPU is given where there is one: nobody knows what the program does."""
        return True

    def space_bytes(self) -> int:
        """Return the room the configuration asks for."""
        return parse_bytes(self._config.space)

    def job(self, folder: Path, offload_dir: Path, seed: int) -> Job:
        """Return the program with its values filled in."""
        values = self._values(str(offload_dir))
        env = {name: _filled(str(text), values) for name, text in self._config.env.items()}
        return Job("command", self._argv(values), env)

    def _values(self, offload_dir: str) -> dict[str, str]:
        return {name: _shown(value) for name, value in self._config.values.items()} | {_GIVEN: offload_dir}

    def _argv(self, values: dict[str, str]) -> list[str]:
        return [_filled(str(text), values) for text in self._config.argv]

    def role(self, path: str) -> str:
        """Return that a file is a file: what the program keeps in it is its own."""
        return "file"

    def expected(self, spans: Sequence[Span]) -> dict[str, int] | None:
        """Return the least bytes the configuration promises, or None where it promises none."""
        promised = {"read": self._config.expect_read, "write": self._config.expect_write}
        found = {op: parse_bytes(value) for op, value in promised.items() if value is not None}
        return found or None

    def shares(self) -> Mapping[str, float]:
        """Return that what was promised must show."""
        return {"read": 1.0, "write": 1.0}

    def doubts(self, spans: Sequence[Span]) -> list[str]:
        """Return nothing: what the program measures is its own."""
        return []

    def python(self) -> None:
        """Return none: the program is found by its own name."""

    def packages(self) -> Sequence[str]:
        """Return nothing: the program's version is not ours to know."""
        return ()

    def files(self) -> Sequence[str]:
        """Return the words of the command line and of its environment, as far as they are known before it runs."""
        values = self._values(f"{{{_GIVEN}}}")
        return (*self._argv(values), *(_filled(str(text), values) for text in self._config.env.values()))


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _filled(text: str, values: dict[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda m: m[0][0] if m[1] is None else values[m[1]], text)
