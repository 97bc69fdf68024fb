"""`python -m sweep.node`: this machine as a node of a cluster, with what it really has, kept alive.

--head starts a cluster here, --join ADDRESS adds this machine to one; both stay until they are told to end. Without
either, print the custom resources of this machine as JSON, for those who start Ray themselves.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sweep import authentication, interrupt, raylet
from sweep.errors import EXIT_USER, EXIT_VALID, ClusterError, UserError
from sweep.placement import resources_of
from tasks import machine, node_config
from tasks.arguments import Parser
from tasks.errors import TaskError
from tasks.machine import Offer
from tasks.mounts import mount_of
from tasks.node_config import IMAGES, NodeConfigError
from tasks.text import printable

#: The port of the head that other machines join at: Ray's default.
_PORT = 6379

_EPILOG = """\
examples
  python -m sweep.node --head                                   start a cluster; says how others join it
  python -m sweep.node --join 10.0.0.1:6379 --storage xfs=/mnt/nvme0
  python -m sweep.doctor --address 10.0.0.1:6379                what every node offers, and lacks

Storage, drives, GPUs and memory may stand in the node's own file instead (docs/cluster.md); a flag replaces its key.
"""


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    p = Parser(
        prog="python -m sweep.node",
        description=(__doc__ or "").partition("\n\n")[2],
        epilog=_EPILOG,
    )
    role = p.add_mutually_exclusive_group()
    role.add_argument("--head", action="store_true", help="start a cluster on this machine")
    role.add_argument("--join", metavar="ADDRESS", help="add this machine to the cluster at HOST:PORT")
    p.add_argument("--port", type=int, help=f"of the head, where others join it (default: {_PORT})")
    p.add_argument("--node-ip", metavar="IP", help="this machine's address in the cluster (default: by its routes)")
    p.add_argument(
        "--ports", type=int, metavar="FIRST", help="use the 1000 ports from FIRST on only, to open in a firewall"
    )
    p.add_argument("--token-file", type=Path, metavar="FILE", help="the cluster's token (default: in the state folder)")
    p.add_argument("--no-auth", action="store_true", help="let anybody in who reaches this machine's ports")
    p.add_argument("--name", help="what to call this machine (default: its host name)")
    group = p.add_argument_group("what this machine offers, instead of what is detected")
    group.add_argument(
        "--storage", metavar="FS=FOLDER", action="append", help="folder for trials on FS without storage.path"
    )
    group.add_argument(
        "--drive", metavar="NAME[=PATH,...]", action="append", help="name of the drive under these, or under --storage"
    )
    group.add_argument(
        "--gpu", metavar="MODEL", action="append", help="model of a GPU, once for each; none: offer none"
    )
    group.add_argument("--memory", metavar="SIZE", help="what jobs may have of the memory")
    group.add_argument(
        "--without", metavar="NAME", action="append", help="do not offer it: tracer:bpftrace, engine:flexgen, ..."
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    interrupt.install()
    try:
        args = parser().parse_args(argv)
        flags = _flags(args)
        os.environ[node_config.FLAGS_VARIABLE] = json.dumps(flags)
        offer = machine.offer()
        if not args.head and not args.join:
            return _print_resources(offer)
        _check_storage(offer)
        raylet.keep(_role(args, offer), say)
    except (UserError, TaskError) as e:
        print(printable(f"sweep.node: {e}"), file=sys.stderr)
        return EXIT_USER
    except KeyboardInterrupt:
        return EXIT_VALID  # being told to end is how a node ends
    return EXIT_VALID


def say(text: str) -> None:
    """Print a line for whoever watches this node."""
    print(printable(f"sweep.node: {text}"), flush=True)


def _flags(args: argparse.Namespace) -> dict[str, Any]:
    """Return the keys of node.yaml that the command line gives; raise NodeConfigError where one makes no sense."""
    told: dict[str, Any] = {}
    if args.storage:
        told["storage"] = dict(_pair("--storage", text, "FS=FOLDER, such as xfs=/mnt/nvme0") for text in args.storage)
    if args.drive:
        named = [text.partition("=") for text in args.drive]
        told["drives"] = {name: [p for p in paths.split(",") if p] for name, _, paths in named}
    if args.gpu:
        told["gpus"] = [] if args.gpu == ["none"] else args.gpu
    told |= {key: value for key in ("name", "memory") if (value := getattr(args, key)) is not None}
    if args.without:
        told["without"] = args.without
    node_config.checked("command line", told)
    return told


def _pair(option: str, text: str, form: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise NodeConfigError(f"command line: {option} {text}: write {form}")
    return name, value


def _check_storage(offer: Offer) -> None:
    """Refuse a folder that is not on the filesystem it is named for: a trial's label would lie."""
    for fs, folder in offer.storage.items():
        if not os.path.isdir(folder):
            raise NodeConfigError(f"storage: {fs}={folder}: no such folder on this machine")
        if fs not in (IMAGES, found := mount_of(folder).fs):
            raise NodeConfigError(f"storage: {fs}={folder}: {folder} is {found}, not {fs}")
        if not os.access(folder, os.W_OK):
            raise NodeConfigError(f"storage: {fs}={folder}: this user cannot write there")


def _role(args: argparse.Namespace, offer: Offer) -> raylet.Role:
    if args.join and args.port:
        raise ClusterError("--port is the head's; --join takes it with the address: --join HOST:PORT")
    head = None if args.head else args.join
    ip = args.node_ip or raylet.own_address(head)
    address = head or f"{ip}:{args.port or _PORT}"
    return raylet.Role(offer, address, bool(args.head), ip, args.ports, _token(args))


def _token(args: argparse.Namespace) -> Path | None:
    """Return the file with the cluster's token, made where this is a head without one; None where there is none."""
    if args.no_auth:
        if args.head:
            say("--no-auth: whoever reaches this machine's ports can run anything on every node of this cluster")
        return None
    file = args.token_file or authentication.token_file()
    return authentication.make_token(file) if args.head else authentication.checked(file)


def _print_resources(offer: Offer) -> int:
    for name, reason in offer.missing.items():
        print(f"{name}: {reason}", file=sys.stderr)
    print(json.dumps(resources_of(offer)))
    return EXIT_VALID


if __name__ == "__main__":
    sys.exit(main())
