"""What advice is, and how a rule that looks at one trial speaks of all those it applies to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from analysis.evidence import Evidence


@dataclass(frozen=True)
class Advice:
    """One thing worth knowing: `told` says what was seen, with its numbers, and what to do; `trials` are slugs."""

    code: str
    title: str
    told: str
    trials: tuple[str, ...]


@dataclass(frozen=True)
class Number:
    """A number that was seen, and how it is told; of several trials the least and the greatest are."""

    value: float
    text: Callable[[float], str]


#: What a rule saw in one trial, by the names in its text; None where it does not apply or a number is not known.
Seen = Mapping[str, Number | str] | None


@dataclass(frozen=True)
class Rule:
    """A rule with its text: `told` has a field for each name that `sees` returns. Applies to trials of one state."""

    code: str
    title: str
    told: str
    sees: Callable[[Evidence], Seen]
    state: str = "valid"

    def advice(self, told: Sequence[Evidence]) -> list[Advice]:
        """Return the advice for all trials that the rule applies to, one for all of them, or none."""
        seen = {one.trial.slug: found for one in told if one.trial.state == self.state and (found := self.sees(one))}
        if not seen:
            return []
        names = dict.fromkeys(name for found in seen.values() for name in found)
        fields = {name: _together([found[name] for found in seen.values()]) for name in names}
        return [Advice(self.code, self.title, self.told.format(**fields), tuple(seen))]


def rule(code: str, title: str, told: str, state: str = "valid") -> Callable[[Callable[[Evidence], Seen]], Rule]:
    """Make a rule of the function below it."""
    return lambda sees: Rule(code, title, told, sees, state)


def _together(values: Sequence[Number | str]) -> str:
    """Return numbers as their range, words as the different ones."""
    numbers = sorted((one for one in values if isinstance(one, Number)), key=lambda one: one.value)
    words = [one for one in values if isinstance(one, str)]
    if numbers:
        words.append(" to ".join(dict.fromkeys(one.text(one.value) for one in (numbers[0], numbers[-1]))))
    return " or ".join(dict.fromkeys(words))
