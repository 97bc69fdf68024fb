"""What a user did that cannot be done: always one message, exit code 2, never a traceback."""

from __future__ import annotations


class UserError(Exception):
    """Bad input. Its text says what, where, what would be valid, what to do.

    UserError
    ├── ConfigError      a sweep file or an override is wrong
    ├── PlacementError   no node can run a trial of the sweep
    └── ClusterError     the Ray cluster cannot be reached
    """


class ConfigError(UserError):
    """A sweep file or an override is wrong."""

    def __init__(self, where: str, key: str | None, problem: str, help_text: str = "") -> None:
        """Say that `key` in the file `where` has `problem`, and what to do."""
        place = f"{where}: {key}" if key else where
        super().__init__(f"{place}: {problem}" + (f"\n  {help_text}" if help_text else ""))


class PlacementError(UserError):
    """No node can run a trial of the sweep."""


class ClusterError(UserError):
    """The Ray cluster cannot be reached."""
