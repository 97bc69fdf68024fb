"""A sweep's definition: YAML, overrides and `extends`, checked key by key before anything starts."""

from __future__ import annotations

import difflib
import os
import random
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from enum import Enum
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from omegaconf import OmegaConf, errors

from analysis import figures as drawing
from analysis.errors import AnalysisError
from sweep import repeats as repeating
from sweep import search as searches
from sweep.cells import Cells
from sweep.checks import interpolated, workload_kind
from sweep.definition import (
    REPEAT,
    SCENARIO,
    SECTIONS,
    WARMUP,
    Axis,
    Definition,
    OnImpossible,
    Order,
    Retention,
    Search,
    Sweep,
    Until,
)
from sweep.errors import ConfigError, ImpossibleError, first_line
from sweep.exposure import references, refuse_exposed
from sweep.home import checked_place
from sweep.trees import copied, flattened, merged_over, put, section_at
from sweep.values import check_shape, documented, nearest, shown, typed
from tasks import workloads
from tasks.files import conf_dir
from tasks.spec import Limits, NodeWish, Storage, Trace
from tasks.units import parse_bytes

#: A sweep file of more bytes, or of more values once its aliases are written out, is none.
_MOST_BYTES, _MOST_VALUES = 16 << 20, 1_000_000

#: More repeats or warm-ups than this are a slip of the hand, as is a longer rest than a day.
_MOST_REPEATS, _MOST_COOLDOWN_S = 10_000, 86_400

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

#: An override of an axis: the scale and the scenario whose grid it is in, and its key.
_AXIS = re.compile(r"((?:scales\.[^.]+\.)?(?:scenarios\.[^.]+\.)?)(grid|zip)\.(.+)")

#: Keys of the whole sweep, which one scenario cannot have.
_OF_THE_WHOLE = (
    *("name", "description", "figures", "order", "seed", "data", "retention", "cooldown_s"),
    *("on_impossible", "extends", "scenarios", "scale", "scales"),
)


# --- loading ---------------------------------------------------------------------------------------------------------


def load(path: str, overrides: Sequence[str] = ()) -> Sweep:
    """Read, merge and check a sweep; raise ConfigError with the file, the key and what would be valid."""
    file = find(path)
    raw = _with_bases(file, ())
    if not raw.get("name"):
        raw["name"] = file.stem
    scales, scenarios, others = _parted(overrides)
    for text in scales:
        _refuse_other_scale(raw, text)
        _override(raw, text)
    raw = _scaled(str(path), raw)
    for text in scenarios:
        _refuse_other_scenario(raw, text)
        _override(raw, text)
    sweep = _checked(str(path), raw, others)
    _check_figures(sweep)
    _refuse_lost_overrides(sweep, overrides)
    return sweep


def _parted(overrides: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Return the overrides that choose or change a scale, those of a scenario, and the others, which come last."""
    parts: tuple[list[str], list[str], list[str]] = ([], [], [])
    for text in overrides:
        first = text.partition("=")[0].partition(".")[0]
        parts[{"scale": 0, "scales": 0, "scenarios": 1}.get(first, 2)].append(text)
    parts[0].sort(key=lambda text: text.startswith("scales."))  # chosen first
    return parts


def _refuse_other_scenario(raw: dict[str, Any], text: str) -> None:
    """Refuse an override within a scenario that is not there: it would make one of that key alone."""
    path = text.partition("=")[0]
    name, dot, _ = path.removeprefix("scenarios.").partition(".")
    known = raw.get("scenarios") or {}
    if dot and isinstance(known, dict) and name not in known:
        hint = nearest(name, known, "scenarios.") if known else "this sweep has none"
        raise ConfigError("command line", path, f"no scenario {name!r}", hint)


def _refuse_other_scale(raw: dict[str, Any], text: str) -> None:
    """Refuse an override within a scale that is not there or not chosen: it would change nothing."""
    path = text.partition("=")[0]
    section, _, below = path.partition(".")
    name, scales = below.partition(".")[0], raw.get("scales") or {}
    if section != "scales" or not name or not isinstance(scales, dict):
        return
    if name not in scales:
        hint = nearest(name, scales, "scales.") if scales else "this sweep has none"
        raise ConfigError("command line", path, f"no scale {name!r}", hint)
    if name != raw.get("scale"):
        raise ConfigError("command line", path, f"the scale {name!r} is not chosen", f"choose it: scale={name}")


def _scaled(source: str, raw: dict[str, Any]) -> dict[str, Any]:
    """Return the sweep with the entry of `scales` that `scale` names on top, and without either key."""
    scales, wanted = raw.pop("scales", None) or {}, raw.pop("scale", None)
    _check_scales(source, scales)
    if wanted is None:
        return raw
    if isinstance(wanted, (dict, list)):
        raise ConfigError(source, "scale", f"must be the name of one entry of scales, not {shown(wanted)}")
    if wanted not in scales:
        hint = nearest(str(wanted), scales) if scales else "this sweep has none"
        raise ConfigError(source, "scale", f"no scale {wanted!r}", hint)
    where, overlay = f"{source}, scales.{wanted}", {"name": f"{raw['name']}-{wanted}"} | scales[wanted]
    parts, above = raw.pop("scenarios", None) or {}, overlay.pop("scenarios", None) or {}
    scaled = _overlaid(where, raw, overlay)
    if not isinstance(parts, dict) or not isinstance(above, dict):
        return scaled | {"scenarios": above or parts}
    for name, part in parts.items():
        if isinstance(part, dict):
            _refuse_idle_nulls(f"{source}, scenarios.{name}", part, [raw, scaled])
    return scaled | {"scenarios": _scaled_scenarios(where, scaled, parts, above)}


def _scaled_scenarios(
    where: str, scaled: dict[str, Any], parts: Mapping[str, Any], above: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the scenarios of a sweep, `parts`, with those of its scale on top, one by one."""
    found = {**parts, **above}
    for name in found:
        part, overlay = parts.get(name, {}), above.get(name, {})
        if isinstance(part, dict) and isinstance(overlay, dict):
            found[name] = _overlaid(f"{where}.scenarios.{name}", part, overlay, scaled)
    return found


def _check_scales(source: str, scales: Any) -> None:
    """Refuse scales whose keys are none of a sweep, be they chosen or not."""
    if not isinstance(scales, dict):
        raise ConfigError(source, "scales", f"must map names to keys of a sweep, not {shown(scales)}")
    known = [f.name for f in fields(Definition) if f.name not in ("extends", "scale", "scales")]
    for name, overlay in scales.items():
        if not isinstance(overlay, dict):
            raise ConfigError(source, f"scales.{name}", f"must hold keys of a sweep, not {shown(overlay)}")
        for key_name in overlay:
            if key_name not in known:
                hint = nearest(str(key_name), known, f"scales.{name}.")
                raise ConfigError(source, f"scales.{name}.{key_name}", "unknown key", hint)


def _overlaid(
    source: str, raw: dict[str, Any], overlay: dict[str, Any], lowest: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return `raw` with `overlay` on top, both to be laid over `lowest` in turn where that is given.

    A workload of another kind replaces the one below it as a whole. Axes are replaced one by one; null takes one away.
    """
    raw, overlay, lowest = dict(raw), dict(overlay), lowest or {}
    for part in (raw, overlay):
        if isinstance(part.get("grid"), dict):
            part["grid"] = _flat_grid(source, part["grid"])
    _refuse_idle_nulls(source, overlay, [raw, lowest])
    if _kind_in(overlay) not in (None, _kind_in(raw) or _kind_in(lowest)) and "workload" in raw:
        del raw["workload"]
    merged = merged_over(raw, overlay)
    if isinstance(merged.get("grid"), dict):
        kept = _grid_in(lowest)
        merged["grid"] = {path: axis for path, axis in merged["grid"].items() if axis is not None or path in kept}
    return merged


def _grid_in(raw: Mapping[str, Any]) -> dict[str, Any]:
    grid = raw.get("grid")
    return grid if isinstance(grid, dict) else {}


def _kind_in(raw: Mapping[str, Any]) -> Any:
    workload = raw.get("workload")
    return workload.get("kind") if isinstance(workload, dict) else None


def _refuse_idle_nulls(source: str, overlay: Mapping[str, Any], below: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a null in a grid for an axis that no grid below has: it would take nothing away."""
    known = [path for raw in below for path in _grid_in(raw)]
    for path, values in _grid_in(overlay).items():
        if values is None and path not in known:
            hint = nearest(path, known) if known else "there are no axes below"
            raise ConfigError(source, f"grid.{path}", "is null, but there is no such axis to take away", hint)


def _refuse_lost_overrides(sweep: Sweep, overrides: Sequence[str], scenario: str = "") -> None:
    """Refuse an override of a key that is an axis: every cell would set the key again."""
    for name, part in sweep.scenarios.items():
        _refuse_lost_overrides(part, overrides, f"scenarios.{name}.")
    for text in overrides:
        path, _, value = text.partition("=")
        for place, axis in enumerate(sweep.axes):
            if re.sub(r"^scales\.[^.]+\.", "", path) in (axis.path, f"{scenario}{axis.path}"):
                section = "grid" if (place,) in sweep.together else "zip"
                own = "search.values" if axis is sweep.searched else f"{section}.{axis.path}"
                hint = f"set its values instead: '{path.removesuffix(axis.path)}{own}=[{value}]'"
                raise ConfigError("command line", path, "is an axis of this sweep", hint)


def find(path: str) -> Path:
    """Return the sweep file `path` names: a file, or the name of one that comes with the package."""
    file = Path(path)
    try:
        if file.is_dir():
            raise ConfigError(path, None, "is a folder, not a sweep file", f"sweeps in it: {_listed(file) or 'none'}")
        if file.exists():
            return file
    except OSError as e:
        raise ConfigError(path, None, f"cannot be read: {e.strerror}") from None
    ours = conf_dir() / (file.name if file.suffix else f"{file.name}.yaml")
    if ours.exists() and file.parent in (Path(), Path("conf")):
        return ours
    near = difflib.get_close_matches(file.name, [p.name for p in conf_dir().glob("*.yaml")], 1)
    hint = f"did you mean conf/{near[0]}?" if near else f"sweeps that come with the package: {shipped()}"
    raise ConfigError(path, None, "no such file", hint)


def shipped() -> str:
    """Return the names of the sweeps that come with the package."""
    return _listed(conf_dir())


def _listed(folder: Path) -> str:
    return ", ".join(sorted(p.name for p in folder.glob("*.yaml")))


def _with_bases(file: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """Return the file's content, merged over those it `extends`."""
    if file.resolve() in above:
        raise ConfigError(str(file), "extends", "a sweep cannot extend itself, not even through others")
    own = _read(file)
    bases = own.pop("extends", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(str(file), "extends", f"must be a file name or a list of them, not {shown(bases)}")
    merged: dict[str, Any] = {}
    for base in bases:
        base_file = file.parent / base
        if not os.path.isfile(base_file):
            raise ConfigError(str(file), "extends", f"no such file: {base}", f"looked for {base_file}")
        base_keys = _with_bases(base_file, (*above, file.resolve()))
        base_keys.pop("name", None)  # a sweep's results have a folder of its own name
        merged = merged_over(merged, base_keys)
    return merged_over(merged, own)


def _read(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as f:
            content = f.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise ConfigError(str(file), None, f"is longer than the {_MOST_BYTES >> 20} MiB a sweep file may have")
        text = content.decode()
    except UnicodeDecodeError:
        raise ConfigError(str(file), None, "is no text file: a sweep is YAML in UTF-8") from None
    except OSError as e:
        raise ConfigError(str(file), None, f"cannot be read: {e.strerror}") from None
    try:
        # OmegaConf would make a mapping of a single word.
        single = isinstance(yaml.compose(text, yaml.SafeLoader), yaml.ScalarNode)
        value = text if single else _contained(text)
    except yaml.MarkedYAMLError as e:
        at = f":{e.problem_mark.line + 1}" if e.problem_mark else ""
        raise ConfigError(f"{file}{at}", None, f"is no valid YAML: {e.problem or e.context}") from None
    except (yaml.YAMLError, errors.OmegaConfBaseException, TypeError, ValueError, RecursionError) as e:
        raise ConfigError(str(file), None, f"is no valid YAML: {first_line(e)}") from None
    if not value:
        raise ConfigError(str(file), None, "is empty", "a sweep needs at least: workload: {kind: tensor_io}")
    if not isinstance(value, dict):
        raise ConfigError(str(file), None, "must be a mapping of keys, such as `workload: {kind: tensor_io}`")
    for name in value:
        if not isinstance(name, str):
            raise ConfigError(str(file), str(name), "keys must be text")
    _refuse_odd_values(str(file), value, "")
    _flatten_grids(str(file), value)
    return {str(name): setting for name, setting in value.items()}


def _contained(text: str) -> Any:
    """Return what YAML text holds, references left as they are; a key that is there twice is an error."""
    return OmegaConf.to_container(OmegaConf.create(text, max_yaml_expanded_nodes=_MOST_VALUES), resolve=False)


def _refuse_odd_values(source: str, value: Any, path: str) -> None:
    """Refuse what YAML can hold and JSON cannot, such as binary data: no record could tell of it."""
    if isinstance(value, (dict, list)):
        parts = value.items() if isinstance(value, dict) else ((f"[{place}]", one) for place, one in enumerate(value))
        for name, part in parts:
            dot = "." if path and not str(name).startswith("[") else ""
            _refuse_odd_values(source, part, f"{path}{dot}{name}")
    elif not isinstance(value, (str, int, float, bool, type(None))):
        text = f"holds {type(value).__name__}; a value is text, a number, true, false, null, a list or keys"
        raise ConfigError(source, path, text)


def _flatten_grids(source: str, raw: dict[Any, Any]) -> None:
    """Write the axes of a sweep, of its scenarios and of its scales as dotted keys, which replace each other."""
    if isinstance(raw.get("grid"), dict):
        raw["grid"] = _flat_grid(source, raw["grid"])
    for section in ("scenarios", "scales"):
        parts = raw.get(section)
        for name, part in parts.items() if isinstance(parts, dict) else ():
            if isinstance(part, dict):
                _flatten_grids(f"{source}, {section}.{name}", part)


def _override(raw: dict[str, Any], text: str) -> None:
    """Apply one `key=value` of the command line; values are YAML, and the keys of `grid` are themselves dotted."""
    path, equals, value_text = text.partition("=")
    if not equals or not path or not all(path.split(".")):
        raise ConfigError("command line", text, "is no override; write key=value, such as storage.fs=xfs")
    if path.partition(".")[0] == "extends":
        raise ConfigError("command line", path, "belongs into a sweep file")
    try:
        value = _contained(f"value: {value_text}")["value"]
    except (yaml.YAMLError, errors.OmegaConfBaseException, ValueError) as e:
        problem = e.problem if isinstance(e, yaml.MarkedYAMLError) and e.problem else first_line(e)
        raise ConfigError("command line", path, f"{value_text!r} is no YAML value: {problem}") from None
    _refuse_odd_values("command line", value, path)
    if match := _AXIS.fullmatch(path):
        section = section_at(raw, match[1].split(".")[:-1])
        if isinstance(axes := section.get(match[2]) or {}, dict):
            section[match[2]] = _flat_grid("command line", axes) | dict(flattened({match[3]: value}, ""))
            return
    put(raw, path, value)


# --- checking --------------------------------------------------------------------------------------------------------


def _checked(source: str, raw: dict[str, Any], overrides: Sequence[str]) -> Sweep:
    scenarios = raw.pop("scenarios", None) or {}
    if not isinstance(scenarios, dict):
        raise ConfigError(source, "scenarios", f"must map names to keys of a sweep, not {shown(scenarios)}")
    if scenarios:
        return _checked_scenarios(source, raw, scenarios, overrides)
    for text in overrides:
        _override(raw, text)
    return _checked_cells(source, raw)


def _checked_scenarios(
    source: str, below: dict[str, Any], scenarios: dict[str, Any], overrides: Sequence[str]
) -> Sweep:
    """Return the sweep of several scenarios. An override of a workload's key goes to those that have such a key."""
    raws: dict[str, dict[str, Any]] = {}
    for name, overlay in scenarios.items():
        where = f"scenarios.{name}"
        if not _NAME.fullmatch(str(name)):
            raise ConfigError(source, where, "cannot name a scenario: use letters, digits, . _ and -")
        if not isinstance(overlay, dict):
            raise ConfigError(source, where, f"must hold keys of a sweep, not {shown(overlay)}")
        foreign = [key_name for key_name in _OF_THE_WHOLE if key_name in overlay]
        if foreign:
            raise ConfigError(source, f"{where}.{foreign[0]}", "belongs to the whole sweep, not to one scenario")
        raws[str(name)] = copied(_overlaid(f"{source}, {where}", below, overlay))
    for text in overrides:
        path = re.sub(r"^(grid|zip)\.", "", text.partition("=")[0])
        for raw in [raw for raw in raws.values() if _has_key(raw, path)] or raws.values():
            _override(raw, text)
    inherited = _grid_in(below)
    known = {SCENARIO: tuple(raws)} | _axis_values(raws.values())
    parts = {name: _checked_cells(f"{source}, scenarios.{name}", raw, inherited, known) for name, raw in raws.items()}
    first = next(iter(parts.values()))
    figures = tuple(dict.fromkeys(figure for part in parts.values() for figure in part.figures))
    most = {name: max(vars(part)[name] for part in parts.values()) for name in ("repeats", "warmups")}
    whole = replace(
        first, source=source, figures=figures, axes=(), base={}, together=(), exclude=(), only=(), known=known, **most
    )
    return replace(whole, scenarios=parts)


def _axis_values(raws: Iterable[Mapping[str, Any]]) -> dict[str, tuple[Any, ...]]:
    """Return what conditions may call the axes of sweeps that are not checked yet, keys and their last words, each with
    its values."""
    found: dict[str, tuple[Any, ...]] = {}
    for raw in raws:
        groups = raw.get("zip")
        for section in [raw.get("grid"), searches.axis_in(raw), *(groups if isinstance(groups, list) else [groups])]:
            for path, values in flattened(section, "") if isinstance(section, Mapping) else ():
                for name in (path.rpartition(".")[2], path):
                    found[name] = (*found.get(name, ()), *(values if isinstance(values, list) else ()))
    return found


def _has_key(raw: Mapping[str, Any], path: str) -> bool:
    """Say whether a sweep's workload has the key that `path` names; keys of all else every sweep has."""
    section, _, name = path.partition(".")
    workload = raw.get("workload")
    if section != "workload" or name in ("", "kind") or not isinstance(workload, Mapping):
        return True
    kind = str(workload.get("kind"))
    return kind in workloads.WORKLOADS and name.partition(".")[0] in get_type_hints(workloads.load(kind).Config)


def _checked_cells(
    source: str,
    raw: dict[str, Any],
    inherited: Collection[str] = (),
    known: Mapping[str, tuple[Any, ...]] | None = None,
) -> Sweep:
    """Return a checked sweep without scenarios.

    `inherited` are the axes that come from below a scenario, `known` what conditions may name in any scenario.
    """
    refuse_exposed(source, raw)
    names = known or _axis_values([raw])
    search = searches.checked(source, raw.pop("search", None), raw.get("repeats", 1))
    rule = raw.pop("repeats") if isinstance(raw.get("repeats"), Mapping) else None
    grid, groups = _pop_grid(source, raw), _pop_zip(source, raw)
    check_shape(source, Definition, raw, "")
    kind = workload_kind(source, raw)
    axes, together = _all_axes(source, grid, groups, kind, inherited, search)
    first = copied(raw)
    for axis in axes:
        put(first, axis.path, axis.values[0])
    told = typed(source, Definition, interpolated(source, first), "")
    if not _NAME.fullmatch(told["name"]):
        raise ConfigError(source, "name", f"{told['name']!r} cannot name a folder: use letters, digits, . _ and -")
    for name, least, most in (("repeats", 1, _MOST_REPEATS), ("warmups", 0, _MOST_REPEATS)):
        if not least <= told[name] <= most:
            raise ConfigError(source, name, f"must be {least} to {most}, not {told[name]}")
    until = repeating.checked(source, rule, kind, _MOST_REPEATS) if rule is not None else None
    if not 0 <= told["cooldown_s"] <= _MOST_COOLDOWN_S:
        text = f"must be 0 to {_MOST_COOLDOWN_S} seconds, not {told['cooldown_s']}"
        raise ConfigError(source, "cooldown_s", text)
    most = search.max if search else until.max if until else told["repeats"]
    sweep = Sweep(source, told["name"], told["description"], most, (), axes, raw, together, until=until, search=search)
    sweep = replace(sweep, exclude=tuple(told["exclude"]), only=tuple(told["only"]), known=names)
    sweep = replace(sweep, order=Order[told["order"]], seed=_seed(source, told), warmups=told["warmups"])
    sweep = replace(sweep, shared=checked_place(source, told["data"]["shared"]))
    sweep = replace(sweep, retention=_retention(source, told["retention"]))
    sweep = replace(sweep, cooldown_s=told["cooldown_s"], on_impossible=OnImpossible[told["on_impossible"]])
    _cells_of(sweep)  # a value beneath an axis too must be one that sweep.yaml can hold
    return replace(sweep, figures=_chosen_figures(sweep, told["figures"]))


def _seed(source: str, told: Mapping[str, Any]) -> int | None:
    """Return the seed of a random order, a new one where none is stated."""
    wanted = told["order"] == Order.random.name
    if told["seed"] is not None and not wanted:
        raise ConfigError(source, "seed", "would not be used", "set order: random")
    return random.randrange(1 << 32) if wanted and told["seed"] is None else told["seed"]


def _retention(source: str, told: Mapping[str, Any]) -> Retention:
    """Return which runs are kept, the size in bytes."""
    runs, size = told["runs"], told["size"]
    if runs is not None and runs < 1:
        raise ConfigError(source, "retention.runs", f"must be 1 or more, or null for any number, not {runs}")
    try:
        return Retention(runs, None if size is None else parse_bytes(size))
    except ValueError as e:
        raise ConfigError(source, "retention.size", str(e)) from None


#: The figure that is of ceilings alone.
_ROOFLINE = "roofline"


def _chosen_figures(sweep: Sweep, figures: Sequence[str] | None) -> tuple[str, ...]:
    """Return the figures that the sweep states, or those that suit its first cell; not what draws a ceiling where
    none is to be measured."""
    config = None if figures is not None and _ROOFLINE not in figures else _first_config(sweep)
    if config is None:
        return tuple(figures or ())
    found = _figures(config["workload"], sweep.axes) if figures is None else figures
    unmeasured = config["ceiling"]["enabled"] is False  # of all cells: it is no axis
    return tuple(name for name in found if not (unmeasured and name == _ROOFLINE))


def _first_config(sweep: Sweep) -> dict[str, Any] | None:
    """Return the configuration of the first cell that is possible, None where none is."""
    cells = Cells(sweep)
    for places in cells.places():
        with suppress(*([ImpossibleError] if sweep.on_impossible is OnImpossible.skip else [])):
            return cells.config(places)
    return None


def _check_figures(sweep: Sweep) -> None:
    """Refuse a figure that there is none of, or one against an axis that no cell has."""
    parts = [sweep, *sweep.scenarios.values()]
    axes = [*([SCENARIO] if sweep.scenarios else []), *(axis.path for part in parts for axis in part.axes)]
    for name in sweep.figures:
        try:
            drawing.check(name, list(dict.fromkeys(axes)))
        except AnalysisError as error:
            raise ConfigError(sweep.source, "figures", str(error)) from None


def _figures(workload: dict[str, Any], axes: Sequence[Axis]) -> tuple[str, ...]:
    """Return what suits a workload that is checked, and those that differ from it in one axis."""
    config = workloads.load(workload["kind"]).Config
    found = dict.fromkeys(workloads.of_config({"workload": workload}).figures)
    for axis in [axis for axis in axes if axis.path.startswith("workload.")]:
        for value in axis.values[1:]:
            cell = {"workload": copied(workload)}
            put(cell, axis.path, value)
            with suppress(ConfigError, TypeError, ValueError):  # a bad value, which the plan tells of
                own = {name: value for name, value in cell["workload"].items() if name != "kind"}
                check_shape("", config, own, "workload.")
                found |= dict.fromkeys(workloads.of_config(cell).figures)
    return tuple(found)


def _pop_grid(source: str, raw: dict[str, Any]) -> dict[str, Any]:
    grid = raw.pop("grid", None) or {}
    if not isinstance(grid, dict):
        raise ConfigError(source, "grid", "must map configuration keys to lists, such as `storage.fs: [ext4, xfs]`")
    return _flat_grid(source, grid)


def _pop_zip(source: str, raw: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the groups of axes that turn together, each with its lists by key."""
    stated = raw.pop("zip", None) or []
    groups = [stated] if isinstance(stated, dict) else stated
    if not isinstance(groups, list) or not all(isinstance(group, dict) and group for group in groups):
        text = "must map configuration keys to lists that are equally long, or be a list of such mappings"
        raise ConfigError(source, "zip", text)
    return [_flat_grid(source, group) for group in groups]


def _all_axes(
    source: str,
    grid: Mapping[str, Any],
    groups: Sequence[Mapping[str, Any]],
    kind: str,
    inherited: Collection[str],
    search: Search | None = None,
) -> tuple[tuple[Axis, ...], tuple[tuple[int, ...], ...]]:
    """Return the axes of grid, search and zip, and which of them turn together, by place."""
    sections = {"grid": dict(grid)}
    if search and search.axis:
        _check_searched(source, search.axis, sections["grid"], groups, kind)
        sections["grid"][search.axis] = search.values  # the last of the grid: its trials are called as they are there
    sections |= {f"zip[{n}]" if len(groups) > 1 else "zip": dict(g) for n, g in enumerate(groups)}
    paths = [path for section in sections.values() for path in section]
    if twice := next((path for path in paths if paths.count(path) > 1), None):
        raise ConfigError(source, f"zip.{twice}", "is an axis twice")
    axes: list[Axis] = []
    together: list[tuple[int, ...]] = []
    for name, section in sections.items():
        own = _axes(source, section, kind, inherited, paths, name)
        lengths = {axis.path: len(axis.values) for axis in own}
        if name != "grid" and len(set(lengths.values())) > 1:
            listed = ", ".join(f"{path} has {length}" for path, length in lengths.items())
            raise ConfigError(source, name, f"its lists must be equally long: {listed}")
        places = range(len(axes), len(axes) + len(own))
        together += [(place,) for place in places] if name == "grid" else [tuple(places)]
        axes += own
    return tuple(axes), tuple(together)


def _check_searched(
    source: str, axis: str, grid: Mapping[str, Any], groups: Sequence[Mapping[str, Any]], kind: str
) -> None:
    """Refuse to search over what is no key, or an axis already."""
    for name, section in [("grid", grid), *(("zip", group) for group in groups)]:
        if axis in section:
            hint = f"leave {name}.{axis} out: search.values are its values"
            raise ConfigError(source, "search.axis", f"{axis} is an axis of {name} already", hint)
    known = _axis_paths(kind)
    if axis not in known and axis.rpartition(".")[0] not in _open_mappings(kind):
        raise ConfigError(source, "search.axis", f"no such key to make an axis of: {axis}", nearest(axis, known))


def _flat_grid(source: str, grid: Mapping[Any, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for path, values in flattened(grid, ""):
        if path in flat:
            raise ConfigError(source, f"grid.{path}", "is there twice, dotted and nested")
        flat[path] = values
    return flat


def _axes(
    source: str, grid: Mapping[str, Any], kind: str, inherited: Collection[str], paths: Sequence[str], section: str
) -> tuple[Axis, ...]:
    """Return the axes that one section states; `paths` are those of all sections, for labels that tell them apart."""
    lasts = [path.rsplit(".", 1)[-1] for path in paths]
    known = _axis_paths(kind)
    axes = []
    for path, values in grid.items():
        where = f"{section}.{path}"
        if path not in known and path.rpartition(".")[0] not in _open_mappings(kind):
            hint = "to run without it, set it to null in this scenario's grid" if path in inherited else ""
            raise ConfigError(source, where, "no such key to make an axis of", hint or nearest(path, known))
        if not isinstance(values, list):
            raise ConfigError(source, where, f"must be a list of values, not {values!r}")
        if not values:
            raise ConfigError(source, where, "has no values: an empty axis makes an empty sweep")
        if section == "grid" and (twice := _twice(values)):
            raise ConfigError(source, where, f"lists {twice[0]!r} twice; set repeats for more trials of a cell")
        last = path.rsplit(".", 1)[-1]
        axes.append(
            Axis(path, path if lasts.count(last) > 1 or last in (SCENARIO, REPEAT, WARMUP) else last, tuple(values))
        )
    return tuple(axes)


def _twice(values: Sequence[Any]) -> list[Any]:
    """Return those of the values that stood there before."""
    with suppress(TypeError):  # lists and keys cannot be in a set
        if len(set(values)) == len(values):
            return []
    return [value for place, value in enumerate(values) if value in values[:place]]


def _axis_paths(kind: str) -> list[str]:
    sections: list[tuple[str, type]] = [
        ("storage", Storage),
        ("trace", Trace),
        ("limits", Limits),
        ("node", NodeWish),
    ]
    sections.append(("workload", workloads.load(kind).Config))
    return [path for section, cls in sections for path, _ in documented(cls, f"{section}.")]


def _open_mappings(kind: str) -> list[str]:
    """Return the keys of the workload that hold keys of the user's own, each of which can be an axis."""
    hints = get_type_hints(workloads.load(kind).Config)
    return [f"workload.{name}" for name, expected in hints.items() if str(expected).startswith("dict[")]


def as_yaml(sweep: Sweep) -> str:
    """Return the sweep as a file that runs it again: overrides and bases applied, every default written out."""
    value: dict[str, Any] = {"name": sweep.name, "description": sweep.description}
    if sweep.scenarios:
        value["scenarios"] = {name: _cells_of(part) for name, part in sweep.scenarios.items()}
    else:
        value |= _cells_of(sweep)
    value |= {"figures": list(sweep.figures), "order": sweep.order.name, "seed": sweep.seed}
    value["data"] = {"shared": sweep.shared}
    value["retention"] = {"runs": sweep.retention.runs, "size": sweep.retention.size}
    value |= {"cooldown_s": sweep.cooldown_s, "on_impossible": sweep.on_impossible.name}
    value = references(value)
    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
    # PyYAML writes these as they are, and reads them as the ends of lines.
    return yaml.safe_dump(value, sort_keys=False) if re.search("[\x85\u2028\u2029\ufeff]", text) else text


def _cells_of(sweep: Sweep) -> dict[str, Any]:
    """Return the keys that make a sweep's cells, every default written out."""
    value: dict[str, Any] = {}
    base = dict(sweep.base)
    first = copied(base)
    for axis in sweep.axes:
        put(first, axis.path, axis.values[0])
    kind = workload_kind(sweep.source, first)
    own = {k: v for k, v in base["workload"].items() if k != "kind"}
    value["workload"] = {"kind": kind, **typed(sweep.source, workloads.load(kind).Config, own, "workload.")}
    sections = typed(sweep.source, Definition, {k: v for k, v in base.items() if k != "workload"}, "")
    value |= {name: sections[name] for name in SECTIONS}
    axes = [[sweep.axes[place] for place in one if sweep.axes[place] is not sweep.searched] for one in sweep.together]
    groups = [{axis.path: list(axis.values) for axis in group} for group in axes]
    value["grid"] = {path: values for group in groups if len(group) == 1 for path, values in group.items()}
    value["zip"] = [group for group in groups if len(group) > 1]
    value |= {"exclude": list(sweep.exclude), "only": list(sweep.only)}
    value |= {"repeats": _stated(sweep.until) or (1 if sweep.search else sweep.repeats)}
    return value | {"search": _stated(sweep.search) or {"axis": None}, "warmups": sweep.warmups}


def _stated(keys: Until | Search | None) -> dict[str, Any]:
    """Return the keys of a section with enums by name; nothing where there is none."""
    told = vars(keys) if keys else {}
    return {name: value.name if isinstance(value, Enum) else value for name, value in told.items()}
