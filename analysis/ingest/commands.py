"""The study's `*-log.txt`: the command lines of one experiment, each with the file it was redirected to."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from analysis.ingest import text
from analysis.ingest.part import Part, Source

KIND = "commands"
ABOUT = "command lines of an experiment, redirected to files (... run_model.py ... > FILE 2>&1)"

_REDIRECTED = re.compile(rb"^[^\n\[]*\b(?:nvidia-smi|bpftrace|run_model\.py|flex_opt|deepspeed)\b[^\n]*>>?\s*\S+", re.M)
_ENGINES = {"run_model.py": "deepspeed_model", "flexllmgen.flex_opt": "flexgen", "flexgen.flex_opt": "flexgen"}
_KEYS = {
    "--prompt-len": "prompt_len",
    "--gen-len": "gen_len",
    "--batch-size": "batch_size",
    "--gpu-batch-size": "batch_size",
    "--num-gpu-batches": "num_batches",
}
_LIMIT = re.compile(r"Memory(?:Limit|Max)=(\d+)([KMGT]?)")
_UNREAD = "a line that is no command"


def recognises(head: bytes) -> bool:
    """Say whether a file that begins with `head` is such a log."""
    return bool(_REDIRECTED.search(head))


def read(source: Source) -> Part:
    """Return command, workload and limits of the engine's line."""
    part = Part(source, KIND)
    for number, line in text.lines(part):
        try:
            words = shlex.split(line)
        except ValueError:
            part.skipped.add(_UNREAD, source.name, number)
            continue
        told = workload(words)
        if told:
            part.workload, part.command = told, without_redirection(words)
            part.limits = limits(words)
    if part.lines and not part.workload:
        part.skipped.add("a command log without the line of an engine", source.name, 1)
    return part


def outputs(path: Source) -> set[str]:
    """Return the names of the files that the commands were redirected to."""
    content = path.path.read_bytes()[: 1 << 20].decode("utf-8", errors="replace")
    return {PurePath(name).name for name in re.findall(r">>?\s*([^\s&>]+)", content)}


def workload(words: Sequence[str]) -> dict[str, Any]:
    """Return the `workload` section of an engine's command; empty where it is none of an engine."""
    kind = next((_ENGINES[name] for word in words if (name := PurePath(word).name) in _ENGINES), None)
    if kind is None:
        return {}
    told: dict[str, Any] = {"kind": kind}
    for place, word in enumerate(words[:-1]):
        following = words[place + 1]
        if word == "--model":
            told["model"] = following.rpartition("/")[2]
        elif word in _KEYS and following.isdecimal():
            told[_KEYS[word]] = int(following)
        elif word == "--percent" and (shares := _shares(words[place + 1 : place + 7])):
            told["percent"] = shares
    return told


def limits(words: Sequence[str]) -> dict[str, Any]:
    """Return the `limits` section: the memory that systemd-run allows, in binary units (systemd.resource-control)."""
    found = next((found for word in words if (found := _LIMIT.search(word))), None)
    return {"memory": f"{found[1]}{found[2]}iB" if found[2] else f"{found[1]}B"} if found else {}


def without_redirection(words: Sequence[str]) -> list[str]:
    """Return the words before the first redirection."""
    end = next((place for place, word in enumerate(words) if re.match(r"\d?>", word)), len(words))
    return list(words[:end])


def _shares(words: Sequence[str]) -> list[int]:
    return [int(word) for word in words] if len(words) == 6 and all(word.isdecimal() for word in words) else []
