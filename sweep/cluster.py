"""Ray: connected to, or started on this machine; its nodes and what each offers."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sweep import authentication, interrupt, membership, session, settings
from sweep.errors import ClusterError, first_line
from sweep.placement import SLOT, Node, resources_of
from tasks import machine
from tasks.state import state_dir
from tasks.text import printable

_CONNECT_LIMIT_S = 5.0
_AUTO = "auto"
_HEAD_HINT = "start one with: python -m sweep.node --head"


def here() -> Node:
    """Return this machine as a node, without Ray."""
    return Node(machine.offer())


@contextmanager
def local(node: Node) -> Iterator[list[Node]]:
    """Run Ray on this machine, on loopback and with a token, and provide its one node; end all of Ray afterwards."""
    # Ray's own default is a file in the home folder that every user of the machine may read.
    token = authentication.make_token(state_dir() / "local-token")
    with (
        _environment(settings.LOOPBACK | authentication.with_token(token)),
        session.folder() as folder,
        _ray(
            "Ray does not start on this machine",
            address="local",
            num_gpus=len(node.offer.facts["gpus"]),
            resources=resources_of(node.offer),
            include_dashboard=False,
            object_store_memory=settings.STORE_BYTES,
            _temp_dir=str(folder),
        ) as ray,
    ):
        yield [Node(node.offer, ray.nodes()[0]["NodeID"])]


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables while the body runs: a Ray that this process starts later is another one."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ |= variables
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def joined(address: str) -> Iterator[list[Node]]:
    """Connect to the cluster at `address` and provide its nodes that can run trials."""
    with connected(address):
        yield _nodes()


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Hold a connection to the cluster at `address`; raise ClusterError where it cannot be reached or refuses."""
    check_reachable(address)
    token = authentication.known_token()
    if address == _AUTO:
        os.environ |= _agreed_with_found(address := _found(), token)
    else:
        os.environ |= authentication.agreed(address, token)
    with _ray(f"--address {address}: no Ray cluster answers", address=address):
        yield


def _found() -> str:
    """Return the address of a cluster of this machine: RAY_ADDRESS, that of the last `ray start`, or of any head."""
    from ray._private import services

    try:
        return str(services.get_ray_address_from_environment(_AUTO, None))
    except ConnectionError:
        raise ClusterError(f"--address auto: no Ray cluster runs on this machine\n  {_HEAD_HINT}") from None


def _agreed_with_found(address: str, token: Path | None) -> dict[str, str]:
    try:
        check_reachable(address)
        return authentication.agreed(address, token)
    except ClusterError as e:
        hint = "if another cluster is meant, name its head: --address HOST:PORT"
        raise ClusterError(f"--address auto: found {address}, but {e}\n  {hint}") from None


def head_address() -> str:
    """Return HOST:PORT of the head of the cluster that this process is connected to."""
    import ray

    return str(ray.get_runtime_context().gcs_address)


@contextmanager
def _ray(trouble: str, **options: Any) -> Iterator[Any]:
    """Hold a connection to Ray; raise ClusterError, `trouble` first, where there is none to be had."""
    os.environ |= settings.ENVIRONMENT
    import ray
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    # What was imported earlier has read its settings earlier.
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
    # By which Ray prints what it hears of nodes, log_to_driver or not, into the progress of a sweep that tells it too.
    ray._private.worker.print_to_stdstream = lambda *args, **options: None
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


def check_reachable(address: str) -> None:
    """Refuse within seconds an address that nothing listens on: Ray would try it for minutes."""
    if address == _AUTO:
        return
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or "/" in host:
        raise ClusterError(f"--address {address}: write HOST:PORT, as `sweep.node --head` printed it, or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_LIMIT_S).close()
    except (OSError, OverflowError, UnicodeError) as e:
        raise ClusterError(f"--address {address}: no Ray cluster answers ({e})\n  {_HEAD_HINT}") from None


def _nodes() -> list[Node]:
    """Return the nodes that announced a trial slot and can take part; tell of the others, which are left out."""
    answers = membership.asked(membership.candidates())
    refusals = [a.refusal for a in answers if a.refusal]
    found = [a.node for a in answers if a.node]
    if not found and refusals:
        raise ClusterError("\n  ".join(["no node of the cluster can take part", *refusals]))
    if not found:
        hint = "start nodes with: python -m sweep.node --join HEAD:PORT"
        raise ClusterError(f"no node of the cluster offers a {SLOT}\n  {hint}")
    for refusal in refusals:
        print(printable(f"sweep: left out: {refusal}"), file=sys.stderr)
    return found
