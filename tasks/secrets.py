"""What must not be stored: the values of variables whose names say that they are secret, wherever they turn up."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tasks.lease import TOKEN_VARIABLE

#: What stands where a secret was.
HIDDEN = "***"

#: Names of secrets, by their words: HF_TOKEN, aws_secret_access_key, PGPASSWORD; but not max_tokens, or TOKENIZERS.
_SURE = (
    r"(?:access|api|private|secret|auth|account)[_-]?(?:key|token)s?(?:[_.-]|$)"
    r"|passw(?:or)?d|passphrase|secret|credential"
)
_NAME = re.compile(
    rf"(?:^|[_.-])(?:token|pat|key|apikey|auth)$|{_SURE}|(?:^|[_.-])token[_.-]",
    re.IGNORECASE,
)
#: Names under which numbers are secret too: PGPASSWORD, MY_TOKEN; but not seconds_per_token.
_OF_NUMBERS = re.compile(rf"(?i:{_SURE})|^[A-Z0-9_]+$")
_NEVER = (TOKEN_VARIABLE,)

#: Shorter values are hidden where their name stands, but not looked for in text: they would be everywhere.
_LEAST_LENGTH = 6

#: A user and a password within a URL.
_IN_URL = re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")
_IN_URL_BYTES = re.compile(_IN_URL.pattern.encode())

_CHUNK_BYTES = 1 << 20
#: What of a chunk is looked at again with the next: the longest URL user and password, beside the longest secret.
_OVERLAP_BYTES = 512


def is_secret(name: str) -> bool:
    """Say whether a variable or key of this name holds a secret."""
    return bool(_NAME.search(name)) and name not in _NEVER


def holds_secret(name: str, value: Any) -> bool:
    """Say whether a key of this name, which holds text or a number, holds a secret; null, truth and "" are none."""
    if isinstance(value, str):
        return bool(value) and is_secret(name)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and is_secret(name) and bool(_OF_NUMBERS.search(name))


def within(name: str, key: str) -> str:
    """Return the name by which the value of `key` is judged, in a mapping that is called `name`."""
    return name if not is_secret(key) and _OF_NUMBERS.search(name) and is_secret(name) else key


class Redactor:
    """Takes secrets out of what is stored: values by their names, and the same values wherever else they stand."""

    def __init__(self, *sources: Mapping[str, Any]) -> None:
        """Know the secrets in these mappings, nested ones too, by the names of their keys."""
        found = {value for source in sources for value in _values(source)}
        # the longest first: one may hold another
        self._values = sorted((value for value in found if len(value) >= _LEAST_LENGTH), key=len, reverse=True)
        self._pattern = re.compile(b"|".join(re.escape(v.encode()) for v in self._values)) if self._values else None

    def text(self, text: str) -> str:
        """Return a text without secrets."""
        for value in self._values:
            text = text.replace(value, HIDDEN)
        return _IN_URL.sub(HIDDEN, text)

    def value(self, value: Any, name: str = "") -> Any:
        """Return a JSON value without secrets; `name` is the key it stands under."""
        if holds_secret(name, value):
            return HIDDEN
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {key: self.value(item, within(name, str(key))) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.value(item, name) for item in value]
        return value

    def file(self, path: Path) -> None:
        """Take the secrets out of a file of any size; it is rewritten only where there are any."""
        if not any(found for _, found in self._parts(path)):
            return
        clean = path.with_name(f".{path.name}.clean")
        with clean.open("wb") as out:
            for part, _ in self._parts(path):
                out.write(part)
        clean.replace(path)

    def _parts(self, path: Path) -> Iterable[tuple[bytes, bool]]:
        """Yield a file in parts without secrets, each with whether any were in it."""
        keep = max([_OVERLAP_BYTES, *(len(value.encode()) for value in self._values)])
        held = b""
        with path.open("rb") as f:
            while chunk := f.read(_CHUNK_BYTES):
                held, found = self._clean(held + chunk)
                # a secret may go on in the next chunk
                yield held[:-keep], found
                held = held[-keep:]
        held, found = self._clean(held)
        yield held, found

    def _clean(self, content: bytes) -> tuple[bytes, bool]:
        clean = self._pattern.sub(HIDDEN.encode(), content) if self._pattern else content
        clean = _IN_URL_BYTES.sub(HIDDEN.encode(), clean)
        return clean, clean != content


def hidden(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a trial's configuration as it is stored, compared and hashed: without the secrets that it names."""
    shown: dict[str, Any] = Redactor(config).value(config)
    return shown


def of_trial(config: Mapping[str, Any]) -> Redactor:
    """Return what hides the secrets of a trial's configuration and of this process's environment."""
    return Redactor(config, os.environ)


def _values(value: Any, name: str = "") -> Iterable[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _values(item, within(name, str(key)))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _values(item, name)
    elif holds_secret(name, value):
        yield str(value)
