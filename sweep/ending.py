"""What is said when a run ends, and with which exit code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sweep.errors import EXIT_TRIALS, EXIT_VALID
from sweep.options import Options
from sweep.progress import counted
from sweep.record import shown
from tasks.text import printable


def tell_what_is_kept(why: str, records: Mapping[str, Any], size: str, folder: Path, options: Options) -> None:
    """Say why a run ended early, where what it has is, and how to go on."""
    print(printable(f"{why}; {len(records)} of {size} are kept in {shown(folder)}"))
    if records:
        print(f"draw them with: python -m analysis {shown(folder)}")
    print(f"go on with: {options.again(folder)}", flush=True)


def conclude(records: Mapping[str, Mapping[str, Any]], drawn: Mapping[str, Any], chosen: Iterable[str] = ()) -> int:
    """Say how a run went, given its records by trial, what was drawn and what came of choosing trials; return the exit
    code."""
    states = [r["verdict"]["state"] for r in records.values() if not r["warmup"]]
    warm = [r["verdict"]["state"] for r in records.values() if r["warmup"]]
    if states or not warm:
        print(f"{counted(len(states), 'trial')}: {_counts(states) or 'none was run, and none was kept'}")
    if warm:
        print(f"{counted(len(warm), 'warm-up')}, not counted: {_counts(warm)}")
    for line in chosen:
        print(printable(line))
    for reason, names in by_reason(drawn["ruled_out"].items()).items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        print(printable(f"not drawn: {names[0]}{more}: {reason}"))
    print(f"figures: {shown(Path(drawn['run']) / 'figures')}")
    if drawn["report"]:
        print(f"report:  {shown(Path(drawn['report']))}")
    return EXIT_VALID if set(states or warm) == {"valid"} else EXIT_TRIALS


def by_reason(told: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Return, for each reason, the names it was given for."""
    found: dict[str, list[str]] = {}
    for name, reason in told:
        found.setdefault(reason, []).append(name)
    return found


def _counts(states: Sequence[str]) -> str:
    return ", ".join(f"{states.count(state)} {state}" for state in ("valid", "invalid", "failed") if state in states)
