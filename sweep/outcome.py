"""How trials are chosen, and what came of it, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sweep.definition import Sweep
from sweep.plan import word
from sweep.progress import counted

#: Of cells that are not known well enough no more are named at the end.
_MOST_NAMED = 5


def rules(scenario: str | None, part: Sweep) -> list[str]:
    """Return in words how the trials of a sweep, or of one scenario, are chosen."""
    where = f"scenario {scenario}: " if scenario else ""
    if rule := part.until:
        known = f"the {rule.confidence * 100:g} % confidence interval of {rule.metric} is within {rule.rel * 100:g} %"
        return [f"{where}{rule.min} to {counted(rule.max, 'repeat')} of each cell, until {known} of its mean"]
    if (wanted := part.search) and part.searched:
        values = counted(len(part.searched.values), "value")
        along = f"{wanted.find.name} of {values} of {part.searched.label} with {target_text(vars(wanted))}"
        return [f"{where}searches the {along}, confirmed by {counted(wanted.confirm, 'trial')} on both sides"]
    return []


def target_text(told: Mapping[str, Any]) -> str:
    """Return a target as one reads it: `read.d2c_p99_us <= 200`."""
    sign, limit = ("<=", told["at_most"]) if told["at_most"] is not None else (">=", told["at_least"])
    return f"{told['metric']} {sign} {limit:.15g}"


def search_lines(told: Mapping[str, Any]) -> list[str]:
    """Return what came of a search, in lines."""
    where = "".join(f"{word(name, value)}: " for name, value in told["cell"].items())
    what = f"{where}{told['find']} {told['axis']} with {target_text(told)}"
    spent = f"({counted(told['trials'], 'trial')}; the grid has {told['grid']})"
    ends = {
        "open": "not found yet",
        "none": f"none, {told['beyond']} does not meet it either",
        "all": f"{told['answer']}, the last that there is: the border was not found",
        "found": f"{told['answer']}",
    }
    lines = [f"{what}: {ends[told['state']]} {spent}"]
    for row in told["tried"]:
        if row["value"] in (told["answer"], told["beyond"]):
            lines += [f"  {row['value']} {text}" for text in _beside_the_border(row)]
    lines += [f"  not monotone: {b} meets it although {a} does not" for a, b in told["contradictions"]]
    return lines


def _beside_the_border(row: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is to be known of a value beside the border: how sure it is, and what was wrong with its trials."""
    bad, valid = row["bad"], len(row["values"])
    if not row["sure"]:
        by = f"decided by the median of {counted(valid, 'valid trial')}" if valid else "it has no valid trial"
        yield f"is uncertain: {by}"
    if bad and not valid and all(text.startswith("failed") for text in bad):
        yield f"did not run: {bad[0]}"
    elif bad:
        were = "was" if len(bad) == 1 else "were"
        yield f"had {counted(row['trials'], 'trial')}, of which {len(bad)} {were} not valid: {bad[0]}"


def repeats_lines(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what came of repeats until a mean is known, in lines."""
    if not cells:
        return []
    counts = [cell["trials"] for cell in cells]
    span = f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else f"{max(counts)}"
    known = sum(cell["known"] for cell in cells)
    lines = [f"repeats: {span} of {counted(len(cells), 'cell')}; {known} known as well as asked for"]
    for cell in [cell for cell in cells if not cell["known"]][:_MOST_NAMED]:
        name = ",".join(word(label, value) for label, value in cell["cell"].items()) or "the cell"
        reached = "unknown" if cell["within"] is None else f"±{cell['within'] * 100:.1f} %"
        lines.append(f"  {name}: {cell['metric']} {reached} after {counted(cell['trials'], 'trial')}")
    return lines
