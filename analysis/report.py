"""`report.html`: one self-contained page of what was run, on what, and what came of it."""

from __future__ import annotations

import base64
import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from analysis import ceiling, provenance, stacks, vega
from analysis.figures.roles import label as role_label
from analysis.figures.theme import ALARM, INK
from analysis.files import write_bytes
from analysis.logs import tails
from analysis.run import STATES, TRIPLE, Run, Trial
from analysis.summary import read_summary
from analysis.units import (
    UNKNOWN,
    bytes_text,
    count_text,
    duration_text,
    exact_bytes_text,
    latency_text,
    number_text,
    share_text,
)

if TYPE_CHECKING:
    from analysis.figures import Drawn

_TEMPLATES = Path(__file__).parent / "templates"
#: The numbers of engines, and of the memory that trials had, as the columns of a table: group, then label by metric.
_ENGINE = {
    "Prefill": {"prefill_latency_s": "latency", "prefill_tokens_per_s": "tokens/s"},
    "Decode": {"decode_latency_s": "latency", "decode_tokens_per_s": "tokens/s"},
    "In all": {"total_latency_s": "latency", "tokens_per_s": "tokens/s", "generated_tokens": "tokens"},
    "Size": {"model_bytes": "model", "cache_bytes": "KV cache"},
    "Peak memory": {"peak_gpu_memory_bytes": "GPU", "peak_host_memory_bytes": "process", "memory_peak_bytes": "cgroup"},
    "Memory limit": {"memory_limit_bytes": "cgroup", "oom_kills": "OOM kills"},
}
_ROLE = re.compile(r"role\.(.+)_(?:read|write)_bytes")
_SIGNS = {"valid": "✓", "invalid": "!", "failed": "✕", "missing": "\u2013"}


@dataclass(frozen=True)
class Figure:
    """A chart as the page holds it: `svg` is a data URL shown at once, `spec` JSON for the interactive one."""

    anchor: str
    title: str
    figure: str
    reason: str | None
    svg: str
    spec: str


def write_report(run: Run, drawn: Sequence[Drawn]) -> Path:
    """Write `report.html` into the run's folder, with the given figures, and return its path."""
    path = run.path / "report.html"
    write_bytes(path, render(run, drawn).encode())
    return path


def render(run: Run, drawn: Sequence[Drawn]) -> str:
    """Return the page. All text from the run is escaped; charts travel as JSON that no parser takes for markup."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters |= {
        "bytes": bytes_text,
        "exact": exact_bytes_text,
        "command": _command,
        "told": _told,
        "share": share_text,
    }
    charts = [_figure(one) for one in drawn]
    roles = _roles(run)
    places = {one.name: chart for one, chart in zip(drawn, charts, strict=True)}
    rows = _summary_rows(run)
    return environment.get_template("report.html.j2").render(
        run=run,
        facts=_facts(run),
        tally=_tally(run),
        states=(*STATES, "missing"),
        signs=_SIGNS,
        trials=[_trial(trial, drawn, places, rows[trial.slug]) for trial in run.published],
        nodes=[_node(node, packages) for node, packages in _nodes(run)],
        settings_rows=[row for node, _ in _nodes(run) if (row := provenance.settings(node))],
        drive_rows=provenance.drive_rows(run),
        device_rows=_device_rows(run, rows),
        roles=roles,
        role_rows=_role_rows(run, rows, roles),
        role_label=role_label,
        engine_columns=_ENGINE,
        engine_rows=_engine_rows(run),
        figures=[places[one.name] for one in drawn if one.trial is None],
        libraries=vega.libraries(vega.version(drawn[0].spec)) if drawn else "",
        embed_options=vega.json_for_script(vega.EMBED_OPTIONS),
        reproduce=run.record.get("reproduce"),
        ink=INK,
        alarm=ALARM,
    )


def _figure(drawn: Drawn) -> Figure:
    picture = base64.b64encode(drawn.svg.encode()).decode()
    return Figure(
        anchor=f"figure-{drawn.name}",
        title=drawn.title,
        figure=drawn.figure,
        reason=drawn.reason,
        svg=f"data:image/svg+xml;base64,{picture}",
        spec=vega.json_for_script(drawn.spec),
    )


def _facts(run: Run) -> list[tuple[str, str, bool]]:
    """Return label, text and whether it is code, for the head of the page."""
    record = run.record
    argv = record.get("argv")
    git = record.get("git")
    dirty = " with uncommitted changes" if isinstance(git, Mapping) and git.get("dirty") else ""
    versions = record.get("versions") or {}
    seconds = _seconds(record.get("started"), record.get("ended"))
    return [
        ("Command", _command(argv) if argv else UNKNOWN, True),
        ("In folder", _told(record.get("cwd")), True),
        ("By", f"{_told(record.get('user'))} on {_told(record.get('host'))}", False),
        ("Started", _moment(record.get("started")), False),
        ("Took", duration_text(seconds) if record.get("ended") else "not ended", False),
        ("State", _told(record.get("state")), False),
        ("Code", f"commit {_told(git.get('commit'))[:12]}{dirty}" if isinstance(git, Mapping) else "not in git", False),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items()) or UNKNOWN, False),
    ]


def _tally(run: Run) -> dict[str, int]:
    states = [trial.state for trial in run.published]
    return {state: states.count(state) for state in STATES} | {"missing": len(run.missing)}


def _trial(
    trial: Trial, drawn: Sequence[Drawn], places: Mapping[str, Figure], rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    tracer = trial.section("tracer")
    mine = [one for one in drawn if one.trial == trial.slug]
    held = {name for one in mine for name in one.holds}
    return {
        "trial": trial,
        "anchor": f"trial-{trial.slug}",
        "duration": duration_text(_seconds(trial.record.get("started"), trial.record.get("ended"))),
        "bytes": {operation: _triple(trial, operation) for operation in ("read", "write")},
        "lost": tracer.get("lost"),
        "unmatched": tracer.get("unmatched"),
        "tracer": " ".join(str(tracer[key]) for key in ("name", "version") if tracer.get(key)) or UNKNOWN,
        "node": trial.section("node").get("hostname"),
        "device": _device(trial),
        "storage": _flat(trial.section("storage")),
        "provenance": provenance.health_facts(trial),
        "metrics": _flat(trial.section("metrics")),
        "stacks": _stacks(trial),
        "trouble": trial.record.get("trouble"),
        "command": trial.record.get("command"),
        "notes": [*ceiling.described(trial, rows[1:]), *ceiling.cost_described(trial)],
        "logs": [] if trial.state == "valid" else tails(trial.path),
        "figures": [places[one.name] for one in mine if one.figure not in held],
    }


def _stacks(trial: Trial) -> str | None:
    """Return what recording stacks means for a trial that was asked for them."""
    if not stacks.recorded(trial):
        return None
    done = trial.section("stacks").get("state") == "recorded"
    return f"with stacks{'' if done else ' (none recorded)'}: bandwidth and latency are disturbed"


def _triple(trial: Trial, operation: str) -> dict[str, Any]:
    """Return the expected, traced and counted bytes of an operation, and whether the last two agree."""
    counts = {kind: trial.byte_count(kind, operation) for kind in TRIPLE}
    traced, counted = counts["traced"], counts["counted"]
    if traced is None or counted is None:
        return {"counts": counts, "agree": None, "difference": "traced and counted cannot be compared"}
    gap = traced - counted
    words = "traced equals counted" if not gap else f"traced is {gap:+,} bytes against counted"
    return {"counts": counts, "agree": not gap, "difference": words}


def _device(trial: Trial) -> str:
    device = trial.section("device")
    if not device.get("name"):
        return UNKNOWN
    drive = device.get("drive")
    beneath = f" on {drive}" if drive and drive != device["name"] else ""
    return f"{device['name']}{beneath}{' (RAM-backed)' if device.get('ram_backed') else ''}"


def _summary_rows(run: Run) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of the summary by trial: that of the whole window, then those of the measured phases."""
    rows: dict[str, list[dict[str, Any]]] = {trial.slug: [] for trial in run.published}
    for row in read_summary(run).to_dicts() if rows else ():
        rows[row["slug"]].append(row)
    return rows


def _device_rows(run: Run, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Return what the device did in each trial's traced window, a row for reads and one for writes."""
    found = []
    for trial in run.published:
        row, *phases = rows[trial.slug]
        for op in ("read", "write"):
            requests, moved = row.get(f"{op}_requests"), row.get(f"traced_{op}_bytes")
            found.append(
                {
                    "trial": trial,
                    "op": op,
                    "requests": None if requests is None else f"{requests:,}",
                    "bytes": moved,
                    "mean": bytes_text(moved / requests) if requests and moved is not None else None,
                    "latency": [latency_text(row.get(f"{op}_d2c_{name}_us")) for name in ("p50", "p99", "max")],
                    "ceiling": _against_ceiling(trial, op, row, phases),
                }
            )
    return found


def _against_ceiling(trial: Trial, op: str, row: Mapping[str, Any], phases: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the ceiling of an operation, the share of it that the whole window reached, and the busiest phase's."""
    top = ceiling.ceiling_of(trial)
    if top is None:
        return [UNKNOWN] * 3
    best = ceiling.busiest(phases, op, top)
    return [
        f"{number_text(top.gib_s[op])} GiB/s",
        ceiling.percent(row.get(f"{op}_ceiling_share")),
        UNKNOWN if best is None else f"{ceiling.percent(best[1])} ({best[0]})",
    ]


def _roles(run: Run) -> list[str]:
    """Return the roles that requests of the run have, in the order of its trials' tables."""
    names = read_summary(run).columns if run.published else []
    return list(dict.fromkeys(found[1] for name in names if (found := _ROLE.fullmatch(name))))


def _role_rows(run: Run, rows: Mapping[str, Sequence[Mapping[str, Any]]], roles: Sequence[str]) -> list[dict[str, Any]]:
    """Return the bytes by role of each trial that knows them, a row for reads and one for writes."""
    found = []
    for trial in run.published:
        for op in ("read", "write"):
            moved = {role: rows[trial.slug][0].get(f"role.{role}_{op}_bytes") for role in roles}
            known = [count for count in moved.values() if count is not None]
            if known:
                found.append({"trial": trial, "op": op, "bytes": moved, "total": sum(known)})
    return found


def _engine_rows(run: Run) -> list[dict[str, Any]]:
    """Return what engines reported, a text by metric, of every trial of which one did."""
    names = [name for columns in _ENGINE.values() for name in columns]
    reported = [trial for trial in run.published if any(name in trial.measured for name in names)]
    return [{"trial": trial, "texts": [_measured(trial, name) for name in names]} for trial in reported]


def _measured(trial: Trial, name: str) -> str | None:
    if name not in trial.measured:
        return None
    value, unit = trial.measured[name]
    if unit == "B":
        return bytes_text(value)
    return duration_text(value) if unit == "s" else number_text(value)


def _nodes(run: Run) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return the nodes, each with its packages; a run that lists none is told by its trials."""
    nodes = [node for node in run.record.get("nodes") or [] if isinstance(node, dict)]
    packages: dict[str, dict[str, Any]] = {}
    found: dict[str, dict[str, Any]] = {}
    for trial in run.published:
        node = trial.section("node")
        found[str(node.get("hostname"))] = node
        # Trials of several workloads used several engines
        packages.setdefault(str(node.get("hostname")), {}).update(node.get("packages") or {})
        if node and not run.record.get("nodes") and node.get("hostname") not in [n.get("hostname") for n in nodes]:
            nodes.append(node)
    # A trial knows more of its node than the cluster does
    hosts = [(node, str(node.get("hostname"))) for node in nodes]
    return [(found.get(host, {}) | node, packages.get(host, {})) for node, host in hosts]


def _node(node: Mapping[str, Any], packages: Mapping[str, Any]) -> dict[str, str]:
    gpus, drives = node.get("gpus"), node.get("drives")
    cpus = f", {count_text(node['cpus'], 'CPU')}" if isinstance(node.get("cpus"), int) else ""
    has = UNKNOWN if gpus is None else "; ".join(_named(gpu) for gpu in gpus) or "none"
    missing, tools = node.get("missing"), node.get("tools")
    versions = {**packages, **(tools if isinstance(tools, Mapping) else {})}
    return {
        "Host": _told(node.get("hostname")),
        "Kernel": _told(node.get("kernel")),
        "CPU": _told(node.get("cpu")) + cpus,
        "Memory": bytes_text(node.get("memory_bytes")),
        "GPU": "; ".join(filter(None, [has, provenance.gpu_places(node)])),
        "Drives": UNKNOWN if drives is None else "; ".join(_drive(drive) for drive in drives) or "none",
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items()) or UNKNOWN,
        "Lacks": "; ".join(f"{what}: {why}" for what, why in missing.items()) if isinstance(missing, dict) else "",
    }


def _named(thing: Any) -> str:
    if not isinstance(thing, Mapping):
        return str(thing)
    size = thing.get("memory_bytes")
    return _told(thing.get("name")) + (f" ({bytes_text(size)})" if isinstance(size, int) else "")


def _drive(drive: Any) -> str:
    if not isinstance(drive, Mapping):
        return str(drive)
    free = drive.get("free_bytes")
    parts = [_told(drive.get("name")), str(drive.get("path") or "")]
    parts.append(f"({bytes_text(free)} free)" if isinstance(free, int) else "")
    parts.append("RAM-backed" if drive.get("ram_backed") else "")
    return " ".join(part for part in parts if part)


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return a nested mapping as dotted keys and texts."""
    rows: list[tuple[str, str]] = []
    for key, value in mapping.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and set(value) == {"value", "unit"}:
            rows.append((name, _quantity(value["value"], value["unit"])))
        elif isinstance(value, Mapping) and value:
            rows += _flat(value, f"{name}.")
        elif key.endswith("bytes") and isinstance(value, int) and not isinstance(value, bool):
            rows.append((name, _quantity(value, "B")))
        else:
            rows.append((name, value if isinstance(value, str) else json.dumps(value)))
    return rows


def _quantity(value: Any, unit: Any) -> str:
    """Return a measured value with its unit; bytes for people, and to the byte."""
    if unit == "B" and isinstance(value, int) and value >= 1024:
        return f"{bytes_text(value)} ({exact_bytes_text(value)})"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if unit in (None, "", "1") else f"{text} {unit}"


def _seconds(started: Any, ended: Any) -> float | None:
    try:
        return (datetime.fromisoformat(ended) - datetime.fromisoformat(started)).total_seconds()
    except (TypeError, ValueError):
        return None


def _moment(text: Any) -> str:
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return _told(text)
    return moment.strftime("%Y-%m-%d %H:%M:%S ") + (moment.tzname() or "(no time zone)")


def _command(arguments: Any) -> str:
    if isinstance(arguments, str) or not isinstance(arguments, Iterable):
        return _told(arguments)
    return shlex.join(str(argument) for argument in arguments)


def _told(value: Any) -> str:
    return UNKNOWN if value is None or value == "" else str(value)
