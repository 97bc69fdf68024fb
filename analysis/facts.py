"""What changed around a run: facts of node, storage, tools and code that no base had."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from analysis.matching import cell_words
from analysis.selection import cell_text

if TYPE_CHECKING:
    import pandas as pd

#: Facts that seldom explain a measurement come last.
_LAST = ("driver.", "git.", "code")
_MOST_CELLS = 3


@dataclass(frozen=True)
class Difference:
    """A fact that is not as it was in any base: its value in the latest base and now (None: there was none), and the
    cells that it touches; all of them is an empty tuple."""

    name: str
    before: str | None
    now: str | None
    cells: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return it in one line."""
        cells = [cell_words(cell) for cell in self.cells[:_MOST_CELLS]]
        more = f" and {len(self.cells) - _MOST_CELLS} more" if len(self.cells) > _MOST_CELLS else ""
        where = f" ({'; '.join(cells)}{more})" if cells else ""
        return f"{self.name}: {_short(self.before)} -> {_short(self.now)}{where}"


def changes(now: pd.DataFrame, bases: Sequence[pd.DataFrame]) -> list[Difference]:
    """Return the facts and the keys of the configuration that are not as in any base, each with the cells it touches.

    Of trials of the same cell; of one that has none that is valid those that failed, for what changed may be why.
    """
    latest = sorted(bases, key=lambda base: base.run_started.iloc[0])
    touched: dict[tuple[str, str | None, str | None], list[str]] = {}
    shared = [cell for cell in dict.fromkeys(now.cell) if any((base.cell == cell).any() for base in bases)]
    for cell in shared:
        mine = _facts(now[now.cell == cell])
        theirs = [_facts(base[base.cell == cell]) for base in latest if (base.cell == cell).any()]
        for name in dict.fromkeys([*theirs[-1], *mine]):
            if all(mine.get(name) != other.get(name) for other in theirs):
                touched.setdefault((name, theirs[-1].get(name), mine.get(name)), []).append(cell)
    found = [
        Difference(name, before, after, () if len(cells) == len(shared) else tuple(cells))
        for (name, before, after), cells in touched.items()
    ]
    return sorted(found, key=lambda one: (one.name.startswith(_LAST), one.name))


def _facts(rows: pd.DataFrame) -> dict[str, str]:
    """Return the facts of a cell's last valid trial, as texts; one that failed early does not know them all."""
    valid = rows[rows.verdict == "valid"]
    last = (valid if len(valid) else rows).iloc[-1]
    told: dict[str, Any] = {}
    for column, prefix in (("environment", ""), ("configuration", "")):
        held = json.loads(str(last[column]))
        if isinstance(held, Mapping):
            told |= {f"{prefix}{name}": value for name, value in held.items()}
    return {name: cell_text(value) for name, value in told.items() if value is not None}


def _short(text: str | None) -> str:
    if text is None:
        return "(none)"
    return text if len(text) <= 40 else f"{text[:19]}…{text[-20:]}"
