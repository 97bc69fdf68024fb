"""How a sweep ends, and what a user did that cannot be done: one message, exit code 2, never a traceback."""

from __future__ import annotations

EXIT_VALID, EXIT_USER, EXIT_TRIALS, EXIT_REGRESSION, EXIT_INTERRUPTED = 0, 2, 3, 4, 130


#: More of one part of a message than this is cut; a hint may be longer, for it can be a list of keys.
_LONGEST, _LONGEST_HINT = 600, 3000


class UserError(Exception):
    """Bad input. Its text says what, where, what would be valid, what to do.

    UserError
    ├── ConfigError      a sweep file or an override is wrong
    │   └── ImpossibleError  values of one cell make no sense together
    ├── ExpressionError  a condition on axes cannot be read
    ├── PlacementError   no node can run a trial of the sweep
    └── ClusterError     the Ray cluster cannot be reached
    """


class ConfigError(UserError):
    """A sweep file or an override is wrong."""

    def __init__(self, where: str, key: str | None, problem: str, help_text: str = "") -> None:
        """Say that `key` in the file `where` has `problem`, and what to do."""
        where, key, problem = (_one_line(text, _LONGEST) for text in (where, key or "", problem))
        help_text = _one_line(help_text, _LONGEST_HINT)
        place = f"{where}: {key}" if key else where
        #: The key and what is wrong with it, in one line, for where many are listed.
        self.problem = f"{key}: {problem}" if key else problem
        super().__init__(f"{place}: {problem}" + (f"\n  {help_text}" if help_text else ""))


class ImpossibleError(ConfigError):
    """Values of a cell that may each be right make no sense together: no node could ever run it."""


class ExpressionError(UserError):
    """A condition on the axes of a cell that cannot be read, or names no axis."""


class PlacementError(UserError):
    """No node can run a trial of the sweep."""


class ClusterError(UserError):
    """The Ray cluster cannot be reached."""


def _one_line(text: str, longest: int) -> str:
    """Return a part of a message in one line: what is not printable written out, what nobody would read cut out."""
    plain = "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
    return plain if len(plain) <= longest else f"{plain[: longest // 2]} ... {plain[-longest // 4 :]}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its kind where it has none: what a message quotes of it."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
