"""Which node can run a trial, on which drive, and in words why the others cannot."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweep.checks import too_small
from sweep.definition import OnImpossible, Sweep
from sweep.errors import PlacementError
from sweep.plan import Grid, Trial
from tasks import workloads
from tasks.identity import ROOT
from tasks.machine import NEEDS_ROOT, Offer, Place
from tasks.mounts import options_not_in_force
from tasks.node_config import NodeConfigError
from tasks.scratch import unlisted
from tasks.spec import ANY_FILESYSTEM, Backing, Storage, StorageKind, node_of, storage_of
from tasks.storage import SPARE_BYTES, TMPFS_DIR
from tasks.tracers import OF_REQUESTS
from tasks.units import format_bytes, parse_bytes

#: Ray resource that lets one trial at a time run on a node.
SLOT = "trial_slot"

#: How much of a capability a trial takes: it needs it to be there, and shares it.
_SHARE = 0.001


@dataclass(frozen=True)
class Node:
    """One machine: what it offers, and the id Ray knows it by (None without Ray)."""

    offer: Offer
    ray_id: str | None = None

    @property
    def name(self) -> str:
        """The machine's host name."""
        return self.offer.hostname

    def record(self) -> dict[str, Any]:
        """Return what `run.json` tells of it."""
        offer = self.offer
        drives = [
            {"name": drive, "path": place.path, "free_bytes": place.free_bytes, "ram_backed": place.ram_backed}
            for place in offer.places
            for drive in place.drives
        ]
        return {**offer.facts, "drives": drives, "capabilities": offer.capabilities, "missing": offer.missing}


@dataclass(frozen=True)
class Placement:
    """A node that can run a trial, with the drives it will be alone on and the tracer that it will use there."""

    node: Node
    drives: tuple[str, ...]
    tracer: str
    resources: Mapping[str, float]
    gpus: int

    def where(self) -> str:
        """Return the placement in words."""
        return f"{self.node.name} ({', '.join(self.drives) or 'memory'})"

    def definite(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the trial's configuration as it holds on this node."""
        return {**config, "trace": {**config["trace"], "tracer": self.tracer}}


def needs(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the capabilities a trial asks of a node, each with the configuration key that asks for it."""
    storage = storage_of(dict(config))
    found = dict(workloads.of_config(config).needs())
    if storage.kind is StorageKind.loop:
        found |= {"loop": "storage.kind", f"fs:{storage.fs}": "storage.fs"}
    if storage.kind is StorageKind.device:
        found |= {"root": "storage.kind", "scratch": "storage.device", f"fs:{storage.fs}": "storage.fs"}
    if storage.trim:
        found["root"] = "storage.trim"
    if storage.backing is Backing.tmpfs and storage.kind is StorageKind.loop:
        found["tmpfs"] = "storage.backing"
    if any(limit is not None for limit in vars(storage.queue).values()):
        found["root"] = "storage.queue"
    if node_of(dict(config)).gpu is not None:
        found["gpu"] = "node.gpu"
    if config["limits"]["memory"] is not None:
        found["memory_limit"] = "limits.memory"
    if config["trace"]["measure_cost"]:
        found["tool:fio"] = "trace.measure_cost"
    if config["ceiling"]["enabled"]:
        found["tool:fio"] = "ceiling.enabled"
    if config["trace"]["tracer"] != "auto":
        found[f"tracer:{config['trace']['tracer']}"] = "trace.tracer"
    if config["trace"]["stacks"]:
        found["tracer:bpftrace"] = "trace.stacks"
    return found


class Demand:
    """What a configuration asks of a node. Two with the same `key` can run on the same nodes."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Read it from a trial's configuration."""
        workload = workloads.of_config(config)
        self.needs = needs(config)
        self.storage = storage_of(dict(config))
        self.space_bytes = workload.space_bytes()
        self.wants_gpu = workload.wants_gpu()
        self.program = workload.python() or next(iter(workload.files()), "")
        self.program_key = "workload.python" if workload.python() else "workload.argv"
        self.path = (config["workload"].get("env") or {}).get("PATH")
        self.tracer = str(config["trace"]["tracer"])
        self.wish = node_of(dict(config))
        memory = config["limits"]["memory"]
        self.memory_bytes = None if memory is None else parse_bytes(memory)
        asked = [config["storage"], vars(self.wish), self.space_bytes, self.memory_bytes]
        parts = [self.needs, *asked, self.wants_gpu, self.tracer, self.program, self.path]
        self.key = json.dumps(parts, sort_keys=True)

    def tracer_on(self, node: Node) -> str:
        """Return the tracer of a trial on this node: `auto` only where it has one of single requests to choose."""
        of_requests = any(f"tracer:{name}" in node.offer.capabilities for name in OF_REQUESTS)
        return self.tracer if self.tracer != "auto" or of_requests else "diskstats"


def place(config: Mapping[str, Any], node: Node) -> Placement | list[str]:
    """Return where `config` would run on `node`, or the reasons why it cannot."""
    return _place(Demand(config), node)


def _place(demand: Demand, node: Node) -> Placement | list[str]:
    wanted, have = demand.needs, set(node.offer.capabilities)
    obstacles = [
        f"{key}: {node.offer.missing.get(name, f'the node does not offer {name}')}"
        for name, key in wanted.items()
        if name not in have
    ]
    on_device = demand.storage.kind is StorageKind.device
    drives, in_the_way = (_device_drives if on_device else _folder_drives)(demand, node.offer)
    obstacles += [*_program_obstacles(demand, node.offer), *_wish_obstacles(demand, node.offer), *in_the_way]
    if obstacles:
        return sorted(set(obstacles), key=obstacles.index)
    wants_gpu = "gpu" in wanted or (demand.wants_gpu and "gpu" in have)
    resources = {name: _SHARE for name in wanted if name != "gpu"}
    resources |= {SLOT: 1.0, **{f"drive:{drive}": 1.0 for drive in drives}}
    return Placement(node, drives, demand.tracer_on(node), resources, int(wants_gpu))


def _wish_obstacles(demand: Demand, offer: Offer) -> list[str]:
    """Return what a trial asks of the node itself, or of its memory, that this one is not or has not."""
    wish, memory_bytes, wrong = demand.wish, demand.memory_bytes, []
    if wish.name is not None and wish.name != offer.hostname:
        wrong.append(f"node.name: this node is {offer.hostname}, not {wish.name}")
    models = offer.facts.get("gpus", [])
    # All of them: Ray gives a trial any of the node's GPUs.
    if wish.gpu is not None and not (models and all(wish.gpu.lower() in model.lower() for model in models)):
        wrong.append(f"node.gpu: this node has {', '.join(dict.fromkeys(models)) or 'no GPU'}, not {wish.gpu}")
    if memory_bytes is not None and offer.memory_bytes is not None and memory_bytes > offer.memory_bytes:
        has = format_bytes(offer.memory_bytes)
        wrong.append(f"limits.memory: {format_bytes(memory_bytes)} are more than the {has} that this node has")
    return wrong


def _is_here(offer: Offer) -> bool:
    """Say whether that machine is this one: of another one's files nothing is known, and there the trial says so."""
    return offer.hostname == socket.gethostname()


def _program_obstacles(demand: Demand, offer: Offer) -> list[str]:
    """Return what is wrong with the program that a trial starts; one in the offload directory is still to be made."""
    name = demand.program
    if not name or "{" in name or not _is_here(offer):
        return []
    if shutil.which(str(ROOT / name) if "/" in name else name, path=demand.path):
        return []
    if "/" in name:
        return [f"{demand.program_key}: {name} is no program on this node"]
    return [f"{demand.program_key}: {name} is in no folder of PATH on this node: install it, or write where it is"]


def _folder_drives(demand: Demand, offer: Offer) -> tuple[tuple[str, ...], list[str]]:
    """Return the drives under a trial's image, or its directory, and what stands in its way there."""
    storage = demand.storage
    try:
        ground = _ground(storage, offer)
    except NodeConfigError as e:
        return (), [str(e)]
    if storage.path and _is_here(offer) and not os.path.isdir(storage.path):
        return (), [f"storage.path: {storage.path} is no folder on this node"]
    if ground is None:
        return (), [f"storage.path: no filesystem of a drive holds {storage.path or offer.image_dir}"]
    return () if ground.ram_backed else ground.drives, _space_obstacles(demand, ground)


def _device_drives(demand: Demand, offer: Offer) -> tuple[tuple[str, ...], list[str]]:
    """Return the drives under a scratch device, and what stands in the way of formatting it."""
    storage = demand.storage
    if "scratch" not in offer.capabilities:
        return (), []  # told as a missing capability
    path = str(storage.device)
    found = next((s for s in offer.scratch if path in s.names), None)
    if found is None:
        return (), [unlisted(path, [s.path for s in offer.scratch])]
    if found.obstacle:
        return (), [f"storage.device: {found.obstacle}"]
    wrong = []
    if storage.trim and not found.discards:
        wrong.append(f"storage.trim: {path} takes no discards; set storage.trim=false")
    if problem := too_small(found.size_bytes, storage.fs, demand.space_bytes):
        wrong.append(f"storage.device: {problem}")
    return found.drives, wrong


def _ground(storage: Storage, offer: Offer) -> Place | None:
    """Return the filesystem that a trial's image, or its directory, lies on."""
    if storage.path:
        return offer.place_of(storage.path)
    if storage.kind is StorageKind.directory:
        return offer.place_of(offer.folder_for(storage.fs))
    return offer.place_of(str(TMPFS_DIR) if storage.backing is Backing.tmpfs else offer.image_dir)


def _space_obstacles(demand: Demand, ground: Place) -> list[str]:
    storage = demand.storage
    if ground.ram_backed and storage.path and storage.kind is StorageKind.loop:
        return [f"storage.path: {ground.path} is in memory; leave it out and set storage.backing=tmpfs"]
    if storage.kind is StorageKind.directory and not ground.drives:
        return [f"storage.path: {ground.path} is {ground.fs}, on no block device: nothing there to count or trace"]
    if storage.kind is StorageKind.directory:
        needed, key = demand.space_bytes, "storage.path"
        wrong = _directory_obstacles(storage, ground)
    else:
        needed, key, wrong = parse_bytes(storage.image_size), "storage.image_size", []
    if needed + SPARE_BYTES > ground.free_bytes:
        text = f"{format_bytes(needed)} and {format_bytes(SPARE_BYTES)} to spare do not fit into the"
        left = (
            f"; --keep left {format_bytes(ground.kept_bytes)} there: python -m tasks.kept" if ground.kept_bytes else ""
        )
        wrong.append(f"{key}: {text} {format_bytes(ground.free_bytes)} free on {ground.path}{left}")
    return wrong


def _directory_obstacles(storage: Storage, ground: Place) -> list[str]:
    wrong = []
    if storage.fs not in (ground.fs, ANY_FILESYSTEM):
        place = storage.path or ground.path
        wrong.append(f"storage.fs: {place} is {ground.fs}, not {storage.fs}; storage.fs=auto takes it as it is")
    if lacking := options_not_in_force(storage.mount_options, ground.options):
        text = f"{ground.path} is mounted without {', '.join(lacking)} ({ground.options})"
        wrong.append(f"storage.mount_options: {text}; mount it with them, or leave out what is a default")
    if storage.trim and not ground.discards:
        wrong.append(f"storage.trim: the device under {ground.path} takes no discards; set storage.trim=false")
    return wrong


class Placements:
    """Where trials can run: every node asked once for every kind of demand, however many trials and cells there are.

    A node is asked by itself: what two nodes have together runs nothing.
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        """Ask these nodes, and those that `join` later."""
        self.nodes: list[Node] = []
        self._demands: dict[int, tuple[Mapping[str, Any], Demand]] = {}
        #: What each node answered, by what was asked and the id Ray knows it by; in the order of `nodes`.
        self._answers: dict[str, dict[str | None, Placement | list[str]]] = {}
        for node in nodes:
            self.join(node)

    def join(self, node: Node) -> None:
        """Ask one more node from now on."""
        self.nodes.append(node)

    def leave(self, ray_id: str | None) -> None:
        """Ask a node no more."""
        self.nodes = [node for node in self.nodes if node.ray_id != ray_id]
        for answers in self._answers.values():
            answers.pop(ray_id, None)

    def demand(self, trial: Trial) -> Demand:
        """Return what a trial asks of a node."""
        known = self._demands.get(id(trial.config))
        if known is None:
            # The configuration is kept with it: the identity of one that is gone could be another's.
            known = self._demands[id(trial.config)] = (trial.config, Demand(trial.config))
        return known[1]

    def of(self, trial: Trial) -> list[Placement]:
        """Return the nodes that can run a trial, with what it takes there."""
        return [answer for answer in self._asked(trial).values() if isinstance(answer, Placement)]

    def at(self, trial: Trial, node: Node) -> Placement | None:
        """Return what a trial takes on this node, or None where it cannot run there."""
        answer = self._asked(trial).get(node.ray_id)
        return answer if isinstance(answer, Placement) else None

    def obstacles(self, trial: Trial) -> tuple[str, ...]:
        """Return why no node, or not every node, can run a trial: each reason with the names of the nodes."""
        names = {node.ray_id: node.name for node in self.nodes}
        told: dict[str, list[str]] = {}
        for ray_id, answer in self._asked(trial).items():
            for why in answer if isinstance(answer, list) else ():
                told.setdefault(why, []).append(names[ray_id])
        return tuple(f"{few(which)}: {why}" for why, which in told.items())

    def _asked(self, trial: Trial) -> dict[str | None, Placement | list[str]]:
        demand = self.demand(trial)
        answers = self._answers.setdefault(demand.key, {})
        for node in self.nodes[len(answers) :]:
            answers[node.ray_id] = _place(demand, node)
        return answers

    def impossible(self, trials: Iterable[Trial]) -> dict[tuple[str, ...], list[Trial]]:
        """Return the trials that no node can run, by the reasons why."""
        refused: dict[tuple[str, ...], list[Trial]] = {}
        for trial in trials:
            if not self.of(trial):
                refused.setdefault(self.obstacles(trial), []).append(trial)
        return refused


def fit(sweep: Sweep, plan: Grid, placements: Placements) -> None:
    """Leave out of `plan` what no node can run where the sweep says so; else, or where that is all, refuse it.

    Raises PlacementError with the reason of each node.
    """
    refused = placements.impossible(plan.trials)
    count = sum(map(len, refused.values()))
    if refused and (sweep.on_impossible is OnImpossible.error or count == len(plan.trials)):
        raise PlacementError(_refusal(refused, sweep.source, len(plan.trials)))
    plan.leave_out({trial.id: "; ".join(reasons) for reasons, trials in refused.items() for trial in trials})


def few(names: Sequence[str], most: int = 3) -> str:
    """Return the first of `names`, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _refusal(refused: Mapping[tuple[str, ...], Sequence[Trial]], source: str, total: int) -> str:
    count = sum(map(len, refused.values()))
    lines = [f"{source}: no node can run {count} of {total} trials"]
    for reasons, trials in refused.items():
        lines += [f"  {few([t.id for t in trials])}", *(f"    {reason}" for reason in reasons or ("no node is alive",))]
    if any(NEEDS_ROOT in reason for reasons in refused for reason in reasons):
        lines.append(
            "  without root: storage.kind=directory and trace.tracer=diskstats, as in conf/quickstart-noroot.yaml"
        )
    return "\n".join(lines)


def resources_of(offer: Offer) -> dict[str, float]:
    """Return the custom resources that a node with this offer announces to Ray."""
    drives = {d for p in offer.places for d in p.drives} | {d for s in offer.scratch for d in s.drives}
    return {
        SLOT: 1.0,
        **{name: 1.0 for name in offer.capabilities if name != "gpu"},
        **{f"drive:{d}": 1.0 for d in sorted(drives)},
    }
