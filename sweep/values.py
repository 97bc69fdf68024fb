"""Values of YAML against the dataclasses that say what is valid, and the words for what is not."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf, errors

from sweep.errors import ConfigError, first_line


def typed(source: str, cls: type, values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return `values` checked against the dataclass `cls`, defaults filled in, enums by name."""
    check_shape(source, cls, values, prefix)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(cls), values)
        assert isinstance(merged, DictConfig)
        result = OmegaConf.to_container(merged, resolve=False, enum_to_str=True)
    except errors.OmegaConfBaseException as e:
        raise ConfigError(source, f"{prefix}{e.full_key or ''}", _type_problem(e)) from None
    except (TypeError, ValueError) as e:
        raise ConfigError(source, prefix.rstrip(".") or None, first_line(e)) from None
    assert isinstance(result, dict)
    return {str(k): v for k, v in result.items()}


def check_shape(source: str, cls: type, values: Mapping[str, Any], prefix: str) -> None:
    """Refuse unknown keys with the nearest known one, and values where a section or a list belongs."""
    hints = hints_of(cls)
    for name, value in values.items():
        where = f"{prefix}{name}"
        if name not in hints:
            raise ConfigError(source, where, "unknown key", nearest(str(name), list(hints), prefix))
        expected = hints[name]
        if value == "???":
            raise ConfigError(source, where, "has no value yet: ??? stands where one must be given")
        if is_dataclass(expected):
            if not isinstance(value, Mapping):
                raise ConfigError(source, where, f"must hold keys, not {shown(value)}", f"its keys: {_keys(expected)}")
            check_shape(source, expected, value, f"{where}.")  # type: ignore[arg-type]
        elif get_origin(expected) is dict:
            if not isinstance(value, Mapping):
                raise ConfigError(source, where, f"must hold keys, not {shown(value)}")
        elif value is None:
            if type(None) not in get_args(expected):
                raise ConfigError(source, where, "must not be null")
        elif (entries := _entries(expected)) is not None:
            _check_list(source, where, value, entries)
        elif not _fits(value, expected):
            raise ConfigError(source, where, f"must be {type_name(expected)}, not {shown(value)}")


def refuse_references(source: str, value: Any, where: str) -> None:
    """Refuse `${key}` in keys that choose among trials: what is referred to may be of one cell alone."""
    if isinstance(value, Mapping):
        for name, one in value.items():
            refuse_references(source, one, f"{where}.{name}")
    elif isinstance(value, list):
        for one in value:
            refuse_references(source, one, where)
    elif isinstance(value, str) and "${" in value:
        raise ConfigError(source, where, f"cannot refer to another key, as {value!r} does", "write the value itself")


@cache
def hints_of(cls: type) -> dict[str, Any]:
    """Return the types of a dataclass's fields; long axes ask for them again and again."""
    return get_type_hints(cls)


def _entries(expected: Any) -> Any:
    """Return the type of a list's entries, whether or not it may be null; None for what is no list."""
    return next((get_args(k)[0] for k in (expected, *get_args(expected)) if get_origin(k) is list), None)


def _check_list(source: str, where: str, value: Any, expected: Any) -> None:
    if isinstance(value, str) and "${" in value:
        return
    if isinstance(value, Mapping):
        raise ConfigError(source, where, f"must be a list, not {shown(value)}")
    if not isinstance(value, list):
        # what reads like a condition is one entry
        words = value.split() if isinstance(value, str) and not re.search("[<=>]", value) else [value]
        listed = ", ".join(f'"{w}"' if set(str(w)) & set("{}[],:#<=>") else str(w) for w in words)
        raise ConfigError(source, where, f"must be a list, such as [{listed}], not {shown(value)}")
    for item in value:
        if item == "???":
            raise ConfigError(source, where, "holds ???, which stands where a value must be given")
        if item is None or not _fits(item, expected):
            raise ConfigError(source, where, f"holds {shown(item)}; each entry must be {type_name(expected)}")


def _fits(value: Any, expected: Any) -> bool:
    """Say whether a value of YAML may stand for the type; OmegaConf looks closer, but takes yes for 1 and 1 for yes."""
    if isinstance(value, (Mapping, list)):
        return False
    if isinstance(value, float) and expected == int | str:
        return False
    kinds = get_args(expected) or (expected,)
    return (bool in kinds) if isinstance(value, bool) else (isinstance(value, str) or bool not in kinds)


def documented(cls: type, prefix: str = "") -> list[tuple[str, str]]:
    """Return every key of a section, dotted, with type, default and meaning in one text."""
    hints, rows = hints_of(cls), []
    for f in fields(cls):
        expected = hints[f.name]
        if is_dataclass(expected):
            rows += documented(expected, f"{prefix}{f.name}.")  # type: ignore[arg-type]
            continue
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        shown = default.name if isinstance(default, Enum) else "null" if default is None else default
        rows.append((f"{prefix}{f.name}", f"{type_name(expected)}, default {shown!s}: {f.metadata['help']}"))
    return rows


def _keys(cls: Any) -> str:
    return ", ".join(f.name for f in fields(cls))


def nearest(name: str, known: Any, prefix: str = "") -> str:
    near = difflib.get_close_matches(name, list(known), 1, 0.6)
    near = near or [k for k in known if k.endswith(f".{name}")]
    listed = ", ".join(str(k) for k in known)
    return (f"did you mean {prefix}{near[0]}? " if near else "") + f"valid: {listed}"


def type_name(expected: Any) -> str:
    if isinstance(expected, type) and issubclass(expected, Enum):
        return "one of " + ", ".join(m.name for m in expected)
    names: dict[Any, str] = {int: "a whole number", bool: "true or false", str: "text", float: "a number"}
    names |= {int | str: "a size such as 64MiB", int | None: "a whole number or null", str | None: "text or null"}
    names |= {bool | None: "true, false or null", int | str | None: "a size such as 64MiB, or null"}
    names |= {float | None: "a number or null", Any: "any"}
    return names.get(expected) or str(expected).replace("typing.", "")


def shown(value: Any) -> str:
    """Return a value as YAML has it, in one line."""
    return json.dumps(value, ensure_ascii=False, default=str) if not isinstance(value, str) else repr(value)


def _type_problem(error: errors.OmegaConfBaseException) -> str:
    text = first_line(error)
    for kind, words in (("Integer", "a whole number"), ("Boolean", "true or false"), ("Float", "a number")):
        if match := re.fullmatch(rf"Value '(.*)' of type '\w+' could not be converted to {kind}", text):
            return f"must be {words}, not {match[1]!r}"
    if match := re.fullmatch(r"Value '(.*)' is not a valid bool .*", text):
        return f"must be true or false, not {match[1]!r}"
    if match := re.fullmatch(r"Invalid value '(.*)', expected one of \[(.*)\]", text):
        return f"must be one of {match[2]}, not {match[1]!r}"
    if text.startswith("Incompatible value 'None'"):
        return "must not be null"
    return text
