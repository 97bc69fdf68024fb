"""The command lines of all our programs: one parser, and one message for a mistake."""

from __future__ import annotations

import argparse
import difflib
from typing import Any, NoReturn

from tasks.errors import TaskError


class UsageError(TaskError):
    """A command line that cannot be read."""


class Parser(argparse.ArgumentParser):
    """Takes options by their whole names only, and keeps the lines of its description and epilog as they are."""

    def __init__(self, **options: Any) -> None:
        """Take what argparse takes."""
        defaults = {"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter}
        super().__init__(**{**defaults, **options})

    def error(self, message: str) -> NoReturn:
        """Say it as every other mistake of the user is said: raises UsageError, with the nearest right word."""
        known = [option for action in self._actions for option in (*action.option_strings, *(action.choices or ()))]
        words = [word.strip("'").partition("=")[0] for word in message.split() if not word.endswith(":")]
        near = [n for word in words for n in difflib.get_close_matches(word, known, 1)]
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(f"command line: {message}\n  {hint}More: {self.prog} --help")
