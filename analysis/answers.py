"""What the searches of a run found, beside what they found in earlier runs: told, and not judged."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from analysis.figures.search import is_sure, searches, title_of
from analysis.run import Run
from analysis.selection import cell_text

#: What makes two searches the same one.
_SAME = ("cell", "axis", "find", "metric", "at_most", "at_least")


def changed(run: Run, bases: Sequence[Run]) -> list[str]:
    """Return a line for each search of the run that found something else than in the last of `bases` that has it."""
    before = {_key(told): (_found(told), base.path.name) for base in bases for told in searches(base)}
    lines = []
    for told in searches(run):
        found, (was, name) = _found(told), before.get(_key(told), ("", ""))
        if was not in ("", found):
            lines.append(f"search: {title_of(told)}: {found}, was {was} in {name} (told, not judged)")
    return lines


def _key(told: Mapping[str, Any]) -> str:
    return json.dumps([told.get(name) for name in _SAME], sort_keys=True)


def _found(told: Mapping[str, Any]) -> str:
    ends = {"none": "no value", "open": "not found yet"}
    found = ends.get(str(told.get("state"))) or cell_text(told.get("answer"))
    return found if is_sure(told) else f"{found} (uncertain)"
