"""Ray: connected to, or started on this machine; its nodes and what each offers."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sweep import interrupt, session
from sweep.code import code_hash
from sweep.errors import ClusterError, first_line
from sweep.placement import SLOT, Node, resources_of
from tasks import machine
from tasks.machine import Offer

#: Settings of Ray that must be in the environment before it starts. Its memory monitor would kill offload jobs, which
#: fill memory on purpose; a lost node should be noticed within a minute, not seven.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_grpc_client_keepalive_time_ms": "10000",
    "RAY_grpc_client_keepalive_timeout_ms": "20000",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
}

#: Object store of a local Ray, in bytes: traces pass through it in pieces of a few MiB.
_STORE_BYTES = 256 << 20

_PROBE_LIMIT_S = 60.0
_CONNECT_LIMIT_S = 5.0
_HEAD_HINT = 'start one with: ray start --head --resources="$(python -m sweep.node)"'


def here() -> Node:
    """Return this machine as a node, without Ray."""
    return Node(machine.offer())


@contextmanager
def local(node: Node) -> Iterator[list[Node]]:
    """Run Ray on this machine, on loopback only, and provide its one node; end all of Ray afterwards."""
    with (
        session.folder() as folder,
        _ray(
            "Ray does not start on this machine",
            address="local",
            num_gpus=len(node.offer.facts["gpus"]),
            resources=resources_of(node.offer),
            include_dashboard=False,
            object_store_memory=_STORE_BYTES,
            _node_ip_address="127.0.0.1",
            _temp_dir=str(folder),
        ) as ray,
    ):
        yield [Node(node.offer, ray.nodes()[0]["NodeID"])]


@contextmanager
def joined(address: str) -> Iterator[list[Node]]:
    """Connect to the cluster at `address` and provide its nodes that can run trials."""
    _check_reachable(address)
    if _has_token():
        # A head that finds a token demands it; a driver sends it only when told to.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    with _ray(f"--address {address}: no Ray cluster answers", address=address):
        yield _nodes()


@contextmanager
def _ray(trouble: str, **options: Any) -> Iterator[Any]:
    """Hold a connection to Ray; raise ClusterError, `trouble` first, where there is none to be had."""
    os.environ |= _ENVIRONMENT
    import ray

    try:
        with interrupt.deferred():
            try:
                ray.init(log_to_driver=False, logging_level="ERROR", **options)
            except (ConnectionError, RuntimeError, ValueError) as e:
                raise ClusterError(f"{trouble}: {first_line(e)}") from None
        yield ray
    finally:
        with interrupt.deferred():
            ray.shutdown()


def _check_reachable(address: str) -> None:
    """Refuse within seconds an address that nothing listens on: Ray would try it for minutes."""
    if address == "auto":
        return
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or "/" in host:
        raise ClusterError(f"--address {address}: write HOST:PORT, as `ray start --head` printed it, or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_LIMIT_S).close()
    except (OSError, OverflowError) as e:
        raise ClusterError(f"--address {address}: no Ray cluster answers ({e})\n  {_HEAD_HINT}") from None


def _has_token() -> bool:
    """Say whether this user has a token of Ray's (docs.ray.io, token authentication)."""
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return "RAY_AUTH_TOKEN" in os.environ or Path(named or Path.home() / ".ray" / "auth_token").exists()


def _nodes() -> list[Node]:
    """Return the alive nodes that announced a trial slot, each asked what it offers."""
    import ray

    from sweep.remote import probe

    found = []
    for entry in ray.nodes():
        if not entry["Alive"] or SLOT not in entry["Resources"]:
            continue
        task = ray.remote(probe).options(num_cpus=0, max_retries=0, scheduling_strategy=pinned(entry["NodeID"]))
        try:
            answer = ray.get(task.remote(), timeout=_PROBE_LIMIT_S)
        except ray.exceptions.RayError as e:
            name = entry["NodeManagerHostname"]
            raise ClusterError(f"node {name} does not answer: {first_line(e)}; is offload-sweep installed?") from None
        if answer["code"] != code_hash():
            name = answer["offer"]["hostname"]
            raise ClusterError(f"node {name} has other code than this machine: install the same version on both")
        offer = Offer.from_json(answer["offer"])
        _drop_unannounced(offer, entry["Resources"])
        found.append(Node(offer, entry["NodeID"]))
    if not found:
        hint = 'start nodes with: ray start --address=HEAD --resources="$(python -m sweep.node)"'
        raise ClusterError(f"no node of the cluster offers a {SLOT}\n  {hint}")
    return found


def _drop_unannounced(offer: Offer, announced: Mapping[str, float]) -> None:
    """Take from an offer what the node's Ray was not told of when it started: a task that asks for it would wait."""
    late = 'its Ray does not know of it: restart that with --resources="$(python -m sweep.node)"'
    for name in list(offer.capabilities):
        if ("GPU" if name == "gpu" else name) not in announced:
            offer.capabilities.remove(name)
            offer.missing[name] = late
    offer.places = [p for p in offer.places if all(f"drive:{d}" in announced for d in p.drives)]
    offer.scratch = [s for s in offer.scratch if all(f"drive:{d}" in announced for d in s.drives)]


def pinned(node_id: str) -> Any:
    """Return the Ray scheduling strategy that runs a task on this node or not at all."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node_id=node_id, soft=False)
