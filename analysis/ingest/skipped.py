"""What an importer could not use: counted by reason, the first of each by file and line."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from analysis.units import count_text


@dataclass
class Skipped:
    """Counts by reason; `first` says where each was met first, as `file:line`."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, file: str, line: int | None = None, count: int = 1) -> None:
        """Count `count` things skipped for `reason`; the first call for a reason says where."""
        self.counts[reason] += count
        self.first.setdefault(reason, file if line is None else f"{file}:{line}")

    def merge(self, other: Skipped) -> None:
        """Take over what `other`, met later, counted."""
        self.counts.update(other.counts)
        self.first = other.first | self.first

    def sentences(self) -> list[str]:
        """Return one phrase for each reason."""
        return [
            f"{count_text(count, 'time')} skipped: {reason} (first: {self.first[reason]})"
            for reason, count in self.counts.items()
        ]
