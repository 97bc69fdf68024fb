"""A sweep's definition: YAML, overrides and `extends`, checked key by key before anything starts."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf, errors

from analysis import figures as drawing
from analysis.errors import AnalysisError
from sweep.errors import ConfigError, first_line
from tasks import workloads
from tasks.files import conf_dir
from tasks.spec import (
    FILESYSTEMS,
    SMALLEST_IMAGE_BYTES,
    Backing,
    Ceiling,
    Limits,
    QueueLimits,
    Storage,
    StorageKind,
    Trace,
    key,
    storage_of,
)
from tasks.tracers import TRACERS
from tasks.units import format_bytes, parse_bytes

#: Part of an image that filesystems keep for themselves, in bytes, beside 6 % of it: journals, inode tables.
_FILESYSTEM_BYTES = 80 << 20

#: Requests past the page cache are whole logical blocks; those of most drives are this long.
_DIRECT_BYTES = 512

#: More repeats than this are a slip of the hand.
_MOST_REPEATS = 10_000

#: Options of mkfs and mount by which a filesystem takes further devices (mkfs.xfs(8), mke2fs(8), btrfs(5)).
_OTHER_DEVICE = re.compile(r"\b(device|logdev|rtdev|journal_path|journal_dev|name)\s*=")

#: A scheduler as /sys/block/<device>/queue/scheduler lists it.
_SCHEDULER = re.compile(r"[a-z][a-z0-9_-]*")

#: Options by which mkfs makes nothing, or stops asking whether it should.
_NOT_MADE = {"ext4": ("-n", "-S", "-F"), "xfs": ("-N", "-f"), "btrfs": ("-f", "--force")}

#: No program of any use starts in less memory.
_LEAST_MEMORY_BYTES = 4 << 20

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

#: An override of an axis: the scale and the scenario whose grid it is in, and its key.
_AXIS = re.compile(r"((?:scales\.[^.]+\.)?(?:scenarios\.[^.]+\.)?)grid\.(.+)")

#: Keys of the whole sweep, which one scenario cannot have.
_OF_THE_WHOLE = ("name", "description", "figures", "extends", "scenarios", "scale", "scales")

#: Sections of a trial's configuration beside its workload.
_SECTIONS = ("storage", "trace", "ceiling", "limits")

#: Word of a trial's id that names its scenario.
SCENARIO = "scenario"


@dataclass
class Definition:
    """Keys of a sweep file. `workload` holds `kind` and the keys of that workload."""

    name: str = key("", "name of the sweep and of its results folder; default: the file's name")
    description: str = key("", "one sentence for the report")
    workload: dict[str, Any] = key(dict, "kind: which job a trial executes; the other keys are that job's own")
    storage: Storage = key(Storage, "the filesystem under test")
    trace: Trace = key(Trace, "how requests are recorded")
    ceiling: Ceiling = key(Ceiling, "what fio reaches on the same storage")
    limits: Limits = key(Limits, "when a trial is stopped")
    grid: dict[str, Any] = key(dict, "axes: a configuration key and the list of its values; cells are their product")
    scenarios: dict[str, Any] = key(
        dict, "by name, keys laid over the sweep, for cells of its own: another workload, limits, grid, repeats"
    )
    repeats: int = key(1, "trials of each cell")
    figures: list[str] | None = key(None, "figures to draw; default: what suits the workload")
    scale: str | None = key(None, "name of the entry of scales to lay over this sweep: scale=small")
    scales: dict[str, Any] = key(dict, "by name, keys to change together, such as those that fit a small machine")


@dataclass(frozen=True)
class Axis:
    """One axis: the configuration key it sets, a short label for ids, and its values."""

    path: str
    label: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Sweep:
    """A checked definition. `source` names the file in messages; `base` is its YAML before the grid is applied.

    One with scenarios has no cells of its own: they are those of the sweep that each scenario makes of it.
    """

    source: str
    name: str
    description: str
    repeats: int
    figures: tuple[str, ...]
    axes: tuple[Axis, ...]
    base: Mapping[str, Any]
    scenarios: Mapping[str, Sweep] = field(default_factory=dict)

    def resolve(self, cell: Mapping[str, Any]) -> dict[str, Any]:
        """Return the configuration of one cell (values by axis path), every key present, checked."""
        value = _deep_copy(self.base)
        for path, setting in cell.items():
            _set(value, path, setting)
        return _checked_trial(self.source, value)


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
        hint = _nearest(name, known, "scenarios.") if known else "this sweep has none"
        raise ConfigError("command line", path, f"no scenario {name!r}", hint)


def _refuse_other_scale(raw: dict[str, Any], text: str) -> None:
    """Refuse an override within a scale that is not there or not chosen: it would change nothing."""
    path = text.partition("=")[0]
    section, _, below = path.partition(".")
    name, scales = below.partition(".")[0], raw.get("scales") or {}
    if section != "scales" or not name or not isinstance(scales, dict):
        return
    if name not in scales:
        hint = _nearest(name, scales, "scales.") if scales else "this sweep has none"
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
        raise ConfigError(source, "scale", f"must be the name of one entry of scales, not {_shown(wanted)}")
    if wanted not in scales:
        hint = _nearest(str(wanted), scales) if scales else "this sweep has none"
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
        raise ConfigError(source, "scales", f"must map names to keys of a sweep, not {_shown(scales)}")
    known = [f.name for f in fields(Definition) if f.name not in ("scale", "scales")]
    for name, overlay in scales.items():
        if not isinstance(overlay, dict):
            raise ConfigError(source, f"scales.{name}", f"must hold keys of a sweep, not {_shown(overlay)}")
        for key_name in overlay:
            if key_name not in known:
                hint = _nearest(str(key_name), known, f"scales.{name}.")
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
    merged = _merge(raw, overlay)
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
            hint = _nearest(path, known) if known else "there are no axes below"
            raise ConfigError(source, f"grid.{path}", "is null, but there is no such axis to take away", hint)


def _refuse_lost_overrides(sweep: Sweep, overrides: Sequence[str], scenario: str = "") -> None:
    """Refuse an override of a key that is an axis: every cell would set the key again."""
    for name, part in sweep.scenarios.items():
        _refuse_lost_overrides(part, overrides, f"scenarios.{name}.")
    for text in overrides:
        path, _, value = text.partition("=")
        for axis in sweep.axes:
            if re.sub(r"^scales\.[^.]+\.", "", path) in (axis.path, f"{scenario}{axis.path}"):
                hint = f"set its values instead: '{path.removesuffix(axis.path)}grid.{axis.path}=[{value}]'"
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
        raise ConfigError(str(file), "extends", f"must be a file name or a list of them, not {_shown(bases)}")
    merged: dict[str, Any] = {}
    for base in bases:
        base_file = file.parent / base
        if not base_file.is_file():
            raise ConfigError(str(file), "extends", f"no such file: {base}", f"looked for {base_file}")
        base_keys = _with_bases(base_file, (*above, file.resolve()))
        base_keys.pop("name", None)  # a sweep's results have a folder of its own name
        merged = _merge(merged, base_keys)
    return _merge(merged, own)


def _read(file: Path) -> dict[str, Any]:
    try:
        text = file.read_bytes().decode()
    except UnicodeDecodeError:
        raise ConfigError(str(file), None, "is no text file: a sweep is YAML in UTF-8") from None
    except OSError as e:
        raise ConfigError(str(file), None, f"cannot be read: {e.strerror}") from None
    try:
        # OmegaConf would make a mapping of a single word.
        single = isinstance(yaml.compose(text, yaml.SafeLoader), yaml.ScalarNode)
        value = text if single else OmegaConf.to_container(OmegaConf.create(text), resolve=False)
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
    _flatten_grids(str(file), value)
    return {str(name): setting for name, setting in value.items()}


def _flatten_grids(source: str, raw: dict[Any, Any]) -> None:
    """Write the axes of a sweep, of its scenarios and of its scales as dotted keys, which replace each other."""
    if isinstance(raw.get("grid"), dict):
        raw["grid"] = _flat_grid(source, raw["grid"])
    for section in ("scenarios", "scales"):
        parts = raw.get(section)
        for name, part in parts.items() if isinstance(parts, dict) else ():
            if isinstance(part, dict):
                _flatten_grids(f"{source}, {section}.{name}", part)


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return `below` with `above` on top: mappings merge, everything else replaces."""
    merged = dict(below)
    for name, value in above.items():
        old = merged.get(name)
        merged[name] = _merge(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return merged


def _override(raw: dict[str, Any], text: str) -> None:
    """Apply one `key=value` of the command line; values are YAML, and the keys of `grid` are themselves dotted."""
    path, equals, value_text = text.partition("=")
    if not equals or not path or not all(path.split(".")):
        raise ConfigError("command line", text, "is no override; write key=value, such as storage.fs=xfs")
    if path == "extends":
        raise ConfigError("command line", path, "belongs into a sweep file")
    try:
        value = OmegaConf.to_container(OmegaConf.create(f"value: {value_text}"), resolve=False)["value"]  # type: ignore[index, call-overload]
    except (yaml.YAMLError, errors.OmegaConfBaseException, ValueError) as e:
        problem = e.problem if isinstance(e, yaml.MarkedYAMLError) and e.problem else first_line(e)
        raise ConfigError("command line", path, f"{value_text!r} is no YAML value: {problem}") from None
    if match := _AXIS.fullmatch(path):
        section = _section(raw, match[1].split(".")[:-1])
        if isinstance(grid := section.get("grid") or {}, dict):
            section["grid"] = _flat_grid("command line", grid) | dict(_flattened({match[2]: value}, ""))
            return
    _set(raw, path, value)


def _set(raw: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    _section(raw, parents)[last] = value


def _section(raw: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the keys at `names`, made where there are none."""
    for name in names:
        if not isinstance(raw.get(name), dict):
            raw[name] = {}
        raw = raw[name]
    return raw


def _deep_copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _deep_copy(v) for k, v in value.items()}
    return [_deep_copy(v) for v in value] if isinstance(value, (list, tuple)) else value


# --- checking --------------------------------------------------------------------------------------------------------


def _checked(source: str, raw: dict[str, Any], overrides: Sequence[str]) -> Sweep:
    scenarios = raw.pop("scenarios", None) or {}
    if not isinstance(scenarios, dict):
        raise ConfigError(source, "scenarios", f"must map names to keys of a sweep, not {_shown(scenarios)}")
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
            raise ConfigError(source, where, f"must hold keys of a sweep, not {_shown(overlay)}")
        foreign = [key_name for key_name in _OF_THE_WHOLE if key_name in overlay]
        if foreign:
            raise ConfigError(source, f"{where}.{foreign[0]}", "belongs to the whole sweep, not to one scenario")
        raws[str(name)] = _deep_copy(_overlaid(f"{source}, {where}", below, overlay))
    for text in overrides:
        path = text.partition("=")[0].removeprefix("grid.")
        for raw in [raw for raw in raws.values() if _has_key(raw, path)] or raws.values():
            _override(raw, text)
    inherited = _grid_in(below)
    parts = {name: _checked_cells(f"{source}, scenarios.{name}", raw, inherited) for name, raw in raws.items()}
    first = next(iter(parts.values()))
    figures = tuple(dict.fromkeys(figure for part in parts.values() for figure in part.figures))
    most = max(part.repeats for part in parts.values())
    return Sweep(source, first.name, first.description, most, figures, (), {}, parts)


def _has_key(raw: Mapping[str, Any], path: str) -> bool:
    """Say whether a sweep's workload has the key that `path` names; keys of all else every sweep has."""
    section, _, name = path.partition(".")
    workload = raw.get("workload")
    if section != "workload" or name in ("", "kind") or not isinstance(workload, Mapping):
        return True
    kind = str(workload.get("kind"))
    return kind in workloads.WORKLOADS and name.partition(".")[0] in get_type_hints(workloads.load(kind).Config)


def _checked_cells(source: str, raw: dict[str, Any], inherited: Collection[str] = ()) -> Sweep:
    """Return a checked sweep without scenarios; `inherited` are the axes that come from below a scenario."""
    grid = _pop_grid(source, raw)
    _check_shape(source, Definition, raw, "")
    kind = _workload_kind(source, raw)
    axes = _axes(source, grid, kind, inherited)
    first = _deep_copy(raw)
    for axis in axes:
        _set(first, axis.path, axis.values[0])
    typed = _typed(source, Definition, _resolved(source, first), "")
    if not _NAME.fullmatch(typed["name"]):
        raise ConfigError(source, "name", f"{typed['name']!r} cannot name a folder: use letters, digits, . _ and -")
    if not 1 <= typed["repeats"] <= _MOST_REPEATS:
        raise ConfigError(source, "repeats", f"must be 1 to {_MOST_REPEATS}, not {typed['repeats']}")
    figures = typed["figures"]
    if figures is None:
        figures = _figures(_checked_trial(source, first)["workload"], axes)
    return Sweep(source, typed["name"], typed["description"], typed["repeats"], tuple(figures), axes, raw)


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
            cell = {"workload": _deep_copy(workload)}
            _set(cell, axis.path, value)
            with suppress(ConfigError, TypeError, ValueError):  # a bad value, which the plan tells of
                own = {name: value for name, value in cell["workload"].items() if name != "kind"}
                _check_shape("", config, own, "workload.")
                found |= dict.fromkeys(workloads.of_config(cell).figures)
    return tuple(found)


def _pop_grid(source: str, raw: dict[str, Any]) -> dict[str, Any]:
    grid = raw.pop("grid", None) or {}
    if not isinstance(grid, dict):
        raise ConfigError(source, "grid", "must map configuration keys to lists, such as `storage.fs: [ext4, xfs]`")
    return _flat_grid(source, grid)


def _flat_grid(source: str, grid: Mapping[Any, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for path, values in _flattened(grid, ""):
        if path in flat:
            raise ConfigError(source, f"grid.{path}", "is there twice, dotted and nested")
        flat[path] = values
    return flat


def _flattened(grid: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield dotted keys: `{storage: {fs: [..]}}` and `{storage.fs: [..]}` mean the same."""
    for name, value in grid.items():
        if isinstance(value, Mapping) and value:
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _axes(source: str, grid: Mapping[str, Any], kind: str, inherited: Collection[str]) -> tuple[Axis, ...]:
    lasts = [path.rsplit(".", 1)[-1] for path in grid]
    known = _axis_paths(kind)
    axes = []
    for path, values in grid.items():
        where = f"grid.{path}"
        if path not in known and path.rpartition(".")[0] not in _open_mappings(kind):
            hint = "to run without it, set it to null in this scenario's grid" if path in inherited else ""
            raise ConfigError(source, where, "no such key to make an axis of", hint or _nearest(path, known))
        if not isinstance(values, list):
            raise ConfigError(source, where, f"must be a list of values, not {values!r}")
        if not values:
            raise ConfigError(source, where, "has no values: an empty axis makes an empty sweep")
        twice = [v for i, v in enumerate(values) if v in values[:i]]
        if twice:
            raise ConfigError(source, where, f"lists {twice[0]!r} twice; set repeats for more trials of a cell")
        last = path.rsplit(".", 1)[-1]
        axes.append(Axis(path, path if lasts.count(last) > 1 or last == SCENARIO else last, tuple(values)))
    return tuple(axes)


def _axis_paths(kind: str) -> list[str]:
    sections: list[tuple[str, type]] = [("storage", Storage), ("trace", Trace), ("limits", Limits)]
    sections.append(("workload", workloads.load(kind).Config))
    return [path for section, cls in sections for path, _ in documented(cls, f"{section}.")]


def _open_mappings(kind: str) -> list[str]:
    """Return the keys of the workload that hold keys of the user's own, each of which can be an axis."""
    hints = get_type_hints(workloads.load(kind).Config)
    return [f"workload.{name}" for name, expected in hints.items() if str(expected).startswith("dict[")]


def _workload_kind(source: str, raw: Mapping[str, Any]) -> str:
    section = raw.get("workload", {})
    if "kind" not in section:
        raise ConfigError(source, "workload.kind", "is missing", f"one of: {', '.join(workloads.WORKLOADS)}")
    kind = str(section["kind"])
    if kind not in workloads.WORKLOADS:
        raise ConfigError(source, "workload.kind", f"no workload {kind!r}", _nearest(kind, workloads.WORKLOADS))
    return kind


def _checked_trial(source: str, value: dict[str, Any]) -> dict[str, Any]:
    """Return one cell's configuration with every default filled in; raise ConfigError where it makes no sense."""
    kind = _workload_kind(source, value)
    resolved = _resolved(source, value)
    config = {k: v for k, v in _typed(source, Definition, resolved, "").items() if k in _SECTIONS}
    cls = workloads.load(kind)
    own = {k: v for k, v in resolved["workload"].items() if k != "kind"}
    config["workload"] = {"kind": kind, **_typed(source, cls.Config, own, "workload.")}
    for problem in workloads.of_config(config).problems():
        raise ConfigError(source, f"workload.{problem.key}", problem.text)
    _check_storage(source, config)
    _check_trace(source, config["trace"])
    _check_ceiling(source, config["ceiling"])
    _check_limits(source, config["limits"])
    return config


def _resolved(source: str, value: dict[str, Any]) -> dict[str, Any]:
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(value), resolve=True)
    except errors.OmegaConfBaseException as e:
        missing = re.match("Interpolation key '(.*)' not found", first_line(e))
        near = difflib.get_close_matches(missing[1], [path for path, _ in _flattened(value, "")], 1) if missing else ()
        raise ConfigError(source, e.full_key, first_line(e), f"did you mean {near[0]}?" if near else "") from None
    assert isinstance(resolved, dict)
    return {str(k): v for k, v in resolved.items()}


def _check_storage(source: str, config: dict[str, Any]) -> None:
    storage = storage_of(config)
    if storage.path and not Path(storage.path).is_absolute():
        raise ConfigError(source, "storage.path", f"must start with /, for nodes share no folder; not {storage.path!r}")
    _check_queue(source, storage.queue)
    if storage.device and storage.kind is not StorageKind.device:
        text = f"would not be used: storage.kind is {storage.kind.name}"
        raise ConfigError(source, "storage.device", text, "set storage.kind=device to measure that device")
    if storage.kind is StorageKind.directory:
        if storage.mkfs_options:
            text = "nothing is made in an existing directory: its filesystem is used as it is"
            raise ConfigError(source, "storage.mkfs_options", text)
        return
    if storage.fs not in FILESYSTEMS:
        raise ConfigError(source, "storage.fs", f"cannot make {storage.fs!r}", _nearest(storage.fs, FILESYSTEMS))
    for name, options in (("mkfs_options", storage.mkfs_options), ("mount_options", storage.mount_options)):
        for option in options:
            if "/" in option or _OTHER_DEVICE.search(option):
                text = f"{option!r} may name another device or file; a trial touches its own image only"
                raise ConfigError(source, f"storage.{name}", text)
            if name == "mkfs_options" and option in _NOT_MADE[storage.fs]:
                text = f"{option!r} forces mkfs, or keeps it from making a filesystem; leave it out"
                raise ConfigError(source, f"storage.{name}", text)
    if storage.kind is StorageKind.device:
        _check_device(source, storage)
    else:
        _check_image(source, storage, workloads.of_config(config).space_bytes())


def _check_queue(source: str, queue: QueueLimits) -> None:
    # the kernel makes four of fewer requests (BLKDEV_MIN_RQ)
    for name, least in (("max_sectors_kb", 1), ("read_ahead_kb", 0), ("nr_requests", 4)):
        if (limit := vars(queue)[name]) is not None and limit < least:
            raise ConfigError(source, f"storage.queue.{name}", f"must be {least} or more, not {limit}")
    if queue.scheduler is not None and not _SCHEDULER.fullmatch(queue.scheduler):
        text = f"{queue.scheduler!r} is no scheduler; one that the node's queue lists: none, mq-deadline, kyber, bfq"
        raise ConfigError(source, "storage.queue.scheduler", text)


def _check_device(source: str, storage: Storage) -> None:
    if not storage.device or not storage.device.startswith("/dev/") or ".." in storage.device.split("/"):
        text = "must name the drive or partition to format, such as /dev/disk/by-id/nvme-..., "
        raise ConfigError(source, "storage.device", f"{text}not {storage.device!r}")
    if not storage.allow_format:
        text = f"must be true for storage.kind=device: each trial makes a new {storage.fs} on {storage.device}"
        raise ConfigError(source, "storage.allow_format", text)
    if storage.path:
        raise ConfigError(source, "storage.path", "would not be used: storage.device says where the filesystem is made")


def _check_image(source: str, storage: Storage, needed: int) -> None:
    if storage.trim:
        text = "a trial makes a new loop image, with nothing to trim; it is for storage.kind directory and device"
        raise ConfigError(source, "storage.trim", text)
    if storage.backing is Backing.tmpfs and storage.path:
        raise ConfigError(source, "storage.path", "storage.backing=tmpfs has its own place; leave storage.path out")
    try:
        image_bytes = parse_bytes(storage.image_size)
    except ValueError as e:
        raise ConfigError(source, "storage.image_size", str(e)) from None
    if problem := too_small(image_bytes, storage.fs, needed):
        raise ConfigError(source, "storage.image_size", problem)


def too_small(device_bytes: int, fs: str, needed: int) -> str | None:
    """Say why a filesystem of this size on a device cannot hold `needed` bytes of offload files, or None."""
    least = max(SMALLEST_IMAGE_BYTES[fs], int(needed * 1.06) + _FILESYSTEM_BYTES)
    text = f"{format_bytes(device_bytes)} are too small: {fs} and {format_bytes(needed)} of offload files"
    return f"{text} need {format_bytes(least)}" if device_bytes < least else None


def _check_limits(source: str, limits: Mapping[str, Any]) -> None:
    if limits["time_limit_s"] < 1:
        raise ConfigError(source, "limits.time_limit_s", "must be 1 or more seconds")
    try:
        if limits["memory"] is not None and parse_bytes(limits["memory"]) < _LEAST_MEMORY_BYTES:
            raise ValueError(f"must be {format_bytes(_LEAST_MEMORY_BYTES)} or more: nothing starts in less")
    except ValueError as e:
        raise ConfigError(source, "limits.memory", str(e)) from None


def _check_trace(source: str, trace: Mapping[str, Any]) -> None:
    known = ("auto", *TRACERS)
    if trace["tracer"] not in known:
        raise ConfigError(source, "trace.tracer", f"no tracer {trace['tracer']!r}", _nearest(trace["tracer"], known))
    if trace["sample_interval_ms"] < 10:
        raise ConfigError(source, "trace.sample_interval_ms", "must be 10 or more: sampling itself takes time")
    for name, least in (("buffer_size", 4096), ("spool_memory", 1)):
        try:
            if parse_bytes(trace[name]) < least:
                raise ValueError(f"must be {format_bytes(least)} or more")
        except ValueError as e:
            raise ConfigError(source, f"trace.{name}", str(e)) from None


def _check_ceiling(source: str, ceiling: Mapping[str, Any]) -> None:
    for name, least in (("depth", 1), ("jobs", 1), ("seconds", 1), ("max_age_hours", 0)):
        if ceiling[name] < least:
            raise ConfigError(source, f"ceiling.{name}", f"must be {least} or more, not {ceiling[name]}")
    for name in ("block_size", "file_size"):
        try:
            size = parse_bytes(ceiling[name])
            if name == "block_size" and size % _DIRECT_BYTES:
                raise ValueError(f"{format_bytes(size)} is not a multiple of {_DIRECT_BYTES} B, as direct I/O needs it")
        except ValueError as e:
            raise ConfigError(source, f"ceiling.{name}", str(e)) from None


def _typed(source: str, cls: type, values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return `values` checked against the dataclass `cls`, defaults filled in, enums by name."""
    _check_shape(source, cls, values, prefix)
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


def _check_shape(source: str, cls: type, values: Mapping[str, Any], prefix: str) -> None:
    """Refuse unknown keys with the nearest known one, and values where a section or a list belongs."""
    hints = get_type_hints(cls)
    for name, value in values.items():
        where = f"{prefix}{name}"
        if name not in hints:
            raise ConfigError(source, where, "unknown key", _nearest(str(name), list(hints), prefix))
        expected = hints[name]
        if value == "???":
            raise ConfigError(source, where, "has no value yet: ??? stands where one must be given")
        if is_dataclass(expected):
            if not isinstance(value, Mapping):
                raise ConfigError(source, where, f"must hold keys, not {_shown(value)}", f"its keys: {_keys(expected)}")
            _check_shape(source, expected, value, f"{where}.")  # type: ignore[arg-type]
        elif get_origin(expected) is dict:
            if not isinstance(value, Mapping):
                raise ConfigError(source, where, f"must hold keys, not {_shown(value)}")
        elif value is None:
            if type(None) not in get_args(expected):
                raise ConfigError(source, where, "must not be null")
        elif (entries := _entries(expected)) is not None:
            _check_list(source, where, value, entries)
        elif not _fits(value, expected):
            raise ConfigError(source, where, f"must be {_type_name(expected)}, not {_shown(value)}")


def _entries(expected: Any) -> Any:
    """Return the type of a list's entries, whether or not it may be null; None for what is no list."""
    return next((get_args(k)[0] for k in (expected, *get_args(expected)) if get_origin(k) is list), None)


def _check_list(source: str, where: str, value: Any, expected: Any) -> None:
    if isinstance(value, str) and "${" in value:
        return
    if isinstance(value, Mapping):
        raise ConfigError(source, where, f"must be a list, not {_shown(value)}")
    if not isinstance(value, list):
        words = value.split() if isinstance(value, str) else [value]
        listed = ", ".join(f'"{w}"' if set(str(w)) & set("{}[],:#") else str(w) for w in words)
        raise ConfigError(source, where, f"must be a list, such as [{listed}], not {_shown(value)}")
    for item in value:
        if item is None or not _fits(item, expected):
            raise ConfigError(source, where, f"holds {_shown(item)}; each entry must be {_type_name(expected)}")


def _fits(value: Any, expected: Any) -> bool:
    """Say whether a value of YAML may stand for the type; OmegaConf looks closer, but takes yes for 1 and 1 for yes."""
    if isinstance(value, (Mapping, list)):
        return False
    if isinstance(value, float) and expected == int | str:
        return False
    kinds = get_args(expected) or (expected,)
    return (bool in kinds) if isinstance(value, bool) else (isinstance(value, str) or bool not in kinds)


def as_yaml(sweep: Sweep) -> str:
    """Return the sweep as a file that runs it again: overrides and bases applied, every default written out."""
    value: dict[str, Any] = {"name": sweep.name, "description": sweep.description}
    if sweep.scenarios:
        value["scenarios"] = {name: _cells_of(part) for name, part in sweep.scenarios.items()}
    else:
        value |= _cells_of(sweep)
    value["figures"] = list(sweep.figures)
    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
    return text


def _cells_of(sweep: Sweep) -> dict[str, Any]:
    """Return the keys that make a sweep's cells, every default written out."""
    value: dict[str, Any] = {}
    base = dict(sweep.base)
    first = _deep_copy(base)
    for axis in sweep.axes:
        _set(first, axis.path, axis.values[0])
    kind = _workload_kind(sweep.source, first)
    own = {k: v for k, v in base["workload"].items() if k != "kind"}
    value["workload"] = {"kind": kind, **_typed(sweep.source, workloads.load(kind).Config, own, "workload.")}
    sections = _typed(sweep.source, Definition, {k: v for k, v in base.items() if k != "workload"}, "")
    value |= {name: sections[name] for name in _SECTIONS}
    value["grid"] = {axis.path: list(axis.values) for axis in sweep.axes}
    value["repeats"] = sweep.repeats
    return value


# --- words -----------------------------------------------------------------------------------------------------------


def documented(cls: type, prefix: str = "") -> list[tuple[str, str]]:
    """Return every key of a section, dotted, with type, default and meaning in one text."""
    hints, rows = get_type_hints(cls), []
    for f in fields(cls):
        expected = hints[f.name]
        if is_dataclass(expected):
            rows += documented(expected, f"{prefix}{f.name}.")  # type: ignore[arg-type]
            continue
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        shown = default.name if isinstance(default, Enum) else "null" if default is None else default
        rows.append((f"{prefix}{f.name}", f"{_type_name(expected)}, default {shown!s}: {f.metadata['help']}"))
    return rows


def _keys(cls: Any) -> str:
    return ", ".join(f.name for f in fields(cls))


def _nearest(name: str, known: Any, prefix: str = "") -> str:
    near = difflib.get_close_matches(name, list(known), 1, 0.6)
    near = near or [k for k in known if k.endswith(f".{name}")]
    listed = ", ".join(str(k) for k in known)
    return (f"did you mean {prefix}{near[0]}? " if near else "") + f"valid: {listed}"


def _type_name(expected: Any) -> str:
    if isinstance(expected, type) and issubclass(expected, Enum):
        return "one of " + ", ".join(m.name for m in expected)
    names: dict[Any, str] = {int: "a whole number", bool: "true or false", str: "text", float: "a number"}
    names |= {int | str: "a size such as 64MiB", int | None: "a whole number or null", str | None: "text or null"}
    names |= {bool | None: "true, false or null"}
    return names.get(expected) or str(expected).replace("typing.", "")


def _shown(value: Any) -> str:
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
