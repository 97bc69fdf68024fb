"""What the person at the terminal sees while a sweep runs: live on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from tasks.text import printable

if TYPE_CHECKING:
    from rich.table import Table

_MARKS = {"valid": "✓", "invalid": "!", "failed": "✗"}


class Progress(Protocol):
    """Told what happens; every method returns at once."""

    def started(self, identity: str, where: str, attempt: int) -> None:
        """A trial was handed to a node."""

    def phase(self, identity: str, text: str) -> None:
        """A running trial does something else now."""

    def finished(self, identity: str, state: str, reasons: Sequence[str], log_tail: str, again: bool) -> None:
        """A trial ended; `again` when it will be tried once more."""

    def planned(self, total: int, more: bool) -> None:
        """There are so many trials by now; there may be `more`."""

    def say(self, text: str) -> None:
        """What the sweep itself does now."""

    def tell(self, text: str) -> None:
        """Something that happened and should stay to be read."""


def counted(number: int, noun: str) -> str:
    """Return `1 trial` or `6 trials`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _part(number: int, total: int, more: bool) -> str:
    """Return which part of all something is: `3/8`, `3 of at least 8`."""
    return f"{number} of at least {total}" if more else f"{number}/{total}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _result_lines(identity: str, state: str, reasons: Sequence[str], log_tail: str, again: bool) -> list[str]:
    if state == "valid":
        return [f"{_MARKS[state]} {identity}"]
    lines = [f"{_MARKS[state]} {identity} {state}" + (", trying again" if again else "")]
    lines += [f"    {reason}" for reason in reasons]
    if state == "failed" and log_tail:
        lines += [f"    | {line}" for line in log_tail.splitlines()]
    return lines


class Lines:
    """Plain lines, for logs and pipes."""

    def __init__(self, total: int, out: TextIO) -> None:
        """Count up to `total` trials on `out`."""
        self._total, self._more, self._out = total, False, out
        self._begun, self._started = time.monotonic(), 0
        self._told: set[str] = set()

    def _print(self, text: str) -> None:
        with suppress(OSError):  # whoever read it is gone; the sweep is not
            print(f"[{_clock(time.monotonic() - self._begun)}] {printable(text)}", file=self._out, flush=True)

    def started(self, identity: str, where: str, attempt: int) -> None:
        """Print which trial runs where."""
        self._started += attempt == 1
        part = _part(self._started, self._total, self._more)
        count = f"{part}{':' if self._more else ''} " if attempt == 1 else ""
        again = f", attempt {attempt}" if attempt > 1 else ""
        self._print(f"{count}{identity} on {where}{again}")

    def planned(self, total: int, more: bool) -> None:
        """Count up to `total` trials from now on, or further."""
        self._total, self._more = total, more

    def phase(self, identity: str, text: str) -> None:
        """Print what holds a trial up, once; a log wants results, not steps."""
        if text.startswith("waiting") and identity not in self._told:
            self._told.add(identity)
            self._print(f"{identity}: {text}")

    def finished(self, identity: str, state: str, reasons: Sequence[str], log_tail: str, again: bool) -> None:
        """Print the verdict."""
        for line in _result_lines(identity, state, reasons, log_tail, again):
            self._print(line)

    def say(self, text: str) -> None:
        """Print `text`."""
        self._print(text)

    tell = say


class Live:
    """A few lines at the bottom of the terminal that follow the running trials; results scroll above them."""

    def __init__(self, total: int, console: Any) -> None:
        """Count up to `total` trials on a rich console."""
        from rich.live import Live as RichLive

        self._total, self._more, self._console = total, False, console
        self._begun = time.monotonic()
        self._ended: dict[str, str] = {}
        self._running: dict[str, tuple[str, str, float]] = {}
        self._note = ""
        self.display = RichLive(console=console, get_renderable=self._render, refresh_per_second=4, transient=True)

    def _render(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        now = time.monotonic()
        states = list(self._ended.values())
        counts = ", ".join(f"{states.count(s)} {s}" for s in _MARKS if s in states or s == "valid")
        table = Table.grid(padding=(0, 2))
        part = _part(len(states), self._total, self._more)
        head = f"{part} trials: {counts}, {len(self._running)} running"
        table.add_row(Text(head, "bold"), Text(_clock(now - self._begun)), Text(printable(self._note)))
        for identity, (where, phase, since) in self._running.items():
            trial, doing = printable(f"  {identity} on {where}"), printable(phase)
            table.add_row(Text(trial), Text(_clock(now - since)), Text(doing, "cyan"))
        return table

    def started(self, identity: str, where: str, attempt: int) -> None:
        """Show the trial among the running ones."""
        self._note = ""
        self._ended.pop(identity, None)  # on a node that was not to be trusted
        self._running[identity] = (where, "starting", time.monotonic())

    def planned(self, total: int, more: bool) -> None:
        """Count up to `total` trials from now on, or further."""
        self._total, self._more = total, more

    def phase(self, identity: str, text: str) -> None:
        """Show what a running trial does now."""
        if identity in self._running:
            where, _, since = self._running[identity]
            self._running[identity] = (where, text, since)

    def finished(self, identity: str, state: str, reasons: Sequence[str], log_tail: str, again: bool) -> None:
        """Move the trial from the running ones to the results above."""
        from rich.text import Text

        _, _, since = self._running.pop(identity, ("", "", time.monotonic()))
        if not again:
            self._ended[identity] = state
        style = {"valid": "green", "invalid": "yellow", "failed": "red"}[state]
        first, *rest = _result_lines(identity, state, reasons, log_tail, again)
        self._console.print(Text(f"{printable(first)}  {_clock(time.monotonic() - since)}", style))
        for line in rest:
            self._console.print(Text(printable(line)))

    def say(self, text: str) -> None:
        """Show `text` beside the counts."""
        self._note = text

    def tell(self, text: str) -> None:
        """Print `text` above the running trials."""
        from rich.text import Text

        self._console.print(Text(printable(text)))


@contextmanager
def shown(total: int, out: TextIO = sys.stdout) -> Iterator[Progress]:
    """Provide the progress that suits `out`: live on a terminal, plain lines elsewhere."""
    if not out.isatty():
        yield Lines(total, out)
        return
    from rich.console import Console

    live = Live(total, Console(file=out, highlight=False))
    with live.display:
        yield live
