"""Logs of engines that generate text, FlexGen's and those of DeepSpeed's run_model.py, which tells its numbers alike.

    prefill latency: 5.685 s	prefill throughput: 720.514 token/s
    decode latency: 105.674 s	decode throughput: 4.694 token/s

Sizes are in GB of 1 << 30 bytes (both write with FlexGen's constants). DeepSpeed's also has `token_latency=[...]`,
seconds of each pass, and lines with the wall clock.
"""

from __future__ import annotations

import ast
import math
import re
import shlex
from collections.abc import Sequence
from typing import Any

from analysis.ingest import commands, text
from analysis.ingest.nvidia import wall_ns
from analysis.ingest.part import DURATIONS, WALL, Part, PhaseRow, Source
from analysis.units import GIB, NS_PER_S, duration_text

KIND = "generation_log"
ABOUT = "log of FlexGen or of DeepSpeed's run_model.py (prefill latency: ... s)"

_NUMBER = r"\s*(\d+(?:\.\d+)?(?:e[-+]?\d+)?)"
#: As tasks/jobs/generation_log.py names them: metric, unit, factor.
_METRICS = {
    "prefill latency": ("prefill_latency_s", "s", 1),
    "prefill throughput": ("prefill_tokens_per_s", "1/s", 1),
    "decode latency": ("decode_latency_s", "s", 1),
    "decode throughput": ("decode_tokens_per_s", "1/s", 1),
    "total latency": ("total_latency_s", "s", 1),
    "total throughput": ("tokens_per_s", "1/s", 1),
    "model size": ("model_bytes", "B", GIB),
    "cache size": ("cache_bytes", "B", GIB),
    "peak gpu mem": ("peak_gpu_memory_bytes", "B", GIB),
}
_TOLD = re.compile(rf"({'|'.join(_METRICS)}):{_NUMBER}")
_SIGNS = re.compile(
    rb"prefill latency:|^token_latency=\[|<run_flex(?:llm)?gen>|AsyncPartitionedParameterSwapper|^benchmark - generate",
    re.M,
)
_PASSES = re.compile(r"token_latency=(\[.*)")
_STAMPS = (
    re.compile(r"^\[(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+)\]"),
    re.compile(r"^\[rank\d+\]:\[[A-Z]\d{3,4} (\d\d:\d\d:\d\d\.\d+)"),
)
_SHAPE = re.compile(r"input_ids\.shape = torch\.Size\(\[(\d+), (\d+)\]\)")
_NEEDED = ("prefill_latency_s", "decode_latency_s")


def recognises(head: bytes) -> bool:
    """Say whether a file that has `head` at its beginning or end is such a log."""
    return bool(_SIGNS.search(head))


class _Reader:
    """Goes through a log once."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.passes: list[float] = []
        self.stamp: int | None = None
        self.before: int | None = None
        self.after: int | None = None

    def line(self, number: int, line: str) -> None:
        """Take what one line tells."""
        for name, value in _TOLD.findall(line):
            metric, unit, factor = _METRICS[name]
            self.part.metrics[metric] = (round(float(value) * factor) if unit == "B" else float(value), unit)
        self._clock(line)
        if found := _PASSES.search(line):
            self._latencies(found[1], number)
        if found := _SHAPE.search(line):
            self.part.workload |= {"batch_size": int(found[1]), "prompt_len": int(found[2])}
        if "args.model:" in line or "run_model.py" in line:
            self._engine(line)
        if "projected: True" in line:
            self.part.notes.append("the decode latency is projected by the engine, not measured")

    def _clock(self, line: str) -> None:
        stamp = _stamp(line, self.stamp)
        if stamp is not None:
            self.stamp = stamp
            if self.passes and self.after is None:
                self.after = stamp

    def _latencies(self, told: str, number: int) -> None:
        try:
            values = ast.literal_eval(told)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            values = None
        if not isinstance(values, list) or not values or not all(_is_duration(value) for value in values):
            self.part.skipped.add("token latencies that are cut off or no numbers", self.part.source.name, number)
            return
        self.passes, self.before = [float(value) for value in values], self.stamp

    def _engine(self, line: str) -> None:
        told = self.part.workload
        if "args.model:" in line:
            told |= {"kind": "flexgen", "model": line.split("args.model:")[1].strip().rpartition("/")[2]}
        elif "cmd = " in line:
            command = line.split("cmd = ", 1)[1]
            try:
                words = shlex.split(command)
            except ValueError:
                return
            self.part.workload = commands.workload(words) | told
            self.part.command = self.part.command or words


def read(source: Source) -> Part:
    """Return the engine's numbers, and its passes as phases where the log has their times."""
    part = Part(source, KIND, clock=DURATIONS)
    reader = _Reader(part)
    for number, line in text.lines(part):
        reader.line(number, line)
    missing = [name for name in _NEEDED if name not in part.metrics]
    if missing:
        part.failures.append(f"{source.name} ends without {', '.join(missing)}: the engine did not finish")
    _place(reader)
    return part


def _place(reader: _Reader) -> None:
    """Make the passes phases: on the wall clock where a line after them tells it, else on a clock of their own."""
    part = reader.part
    if not reader.passes:
        part.notes.append("the log has totals, and not the time of each pass: no phases")
        return
    total = round(sum(reader.passes) * NS_PER_S)
    begin = 0
    if reader.after is not None:
        part.clock, begin = WALL, reader.after - total
        part.notes.append(_certainty(reader, begin))
    for step, seconds in enumerate(reader.passes):
        end = begin + round(seconds * NS_PER_S)
        part.phases.append(PhaseRow("decode" if step else "prefill", begin, end, step))
        begin = end


def _certainty(reader: _Reader, begin: int) -> str:
    """Return how well the passes' place on the wall clock is known."""
    if reader.before is None or begin < reader.before:
        return "the passes end at the first time in the log after them; how long after them it was written is unknown"
    early = duration_text((begin - reader.before) / NS_PER_S)
    return f"the passes end at the first time in the log after them, and ran at most {early} earlier"


def _stamp(line: str, day: int | None) -> int | None:
    """Return the wall clock at the beginning of a line; one without a date has that of `day`, the time before it."""
    if found := _STAMPS[0].match(line):
        return wall_ns(found[1])
    if (found := _STAMPS[1].match(line)) and day is not None:
        midnight = day - day % (86_400 * NS_PER_S)
        parts: Sequence[str] = found[1].split(":")
        seconds = int(parts[0]) * 3600 + int(parts[1]) * 60 + float(parts[2])
        stamp = midnight + round(seconds * NS_PER_S)
        return stamp if stamp >= day else stamp + 86_400 * NS_PER_S
    return None


def _is_duration(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and 0 <= value < 1e9
