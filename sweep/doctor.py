"""`python -m sweep.doctor`: what this machine, or every node of a cluster, offers and lacks, and what would mend it."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import suppress

from sweep import cluster, interrupt, membership
from sweep.checkup import Checkup, examined, shipped
from sweep.errors import EXIT_INTERRUPTED, EXIT_TRIALS, EXIT_USER, EXIT_VALID, UserError
from sweep.placement import SLOT
from tasks import lease, leftovers, machine
from tasks.arguments import Parser
from tasks.errors import TaskError
from tasks.machine import Offer
from tasks.text import printable
from tasks.units import format_bytes

_EPILOG = """\
exit codes
  0  every machine can run at least one of the package's sweeps
  3  some machine cannot run any, or did not answer
  2  none can, or the cluster cannot be reached
"""

#: What is printed is readable at this many columns.
_COLUMNS = 100

_NARROWEST = 11


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    p = Parser(
        prog="python -m sweep.doctor",
        description=(__doc__ or "").partition(": ")[2],
        epilog=_EPILOG,
    )
    p.add_argument("--address", metavar="ADDR", help="look at every node of a cluster, HOST:PORT or auto")
    p.add_argument("--json", action="store_true", help="print everything as JSON")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    interrupt.install()
    try:
        args = parser().parse_args(argv)
        checkups = of_cluster(args.address) if args.address else [of_this_machine()]
    except (UserError, TaskError) as e:
        print(printable(f"sweep.doctor: {e}"), file=sys.stderr)
        return EXIT_USER
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    if args.json:
        print(json.dumps([checkup.to_json() for checkup in checkups], indent=2))
    else:
        with suppress(BrokenPipeError):  # whoever reads is gone, as under `| head`
            print(printable("\n".join(report(checkups))), flush=True)
    fit = sum(checkup.fit for checkup in checkups)
    return EXIT_VALID if fit == len(checkups) else (EXIT_TRIALS if fit else EXIT_USER)


def of_this_machine() -> Checkup:
    """Look at this machine, without Ray; what dead attempts left on it is removed, as every sweep does first."""
    problems = lease.reap()
    return examined(machine.offer(), {"problems": [*problems, *leftovers.troubles()], "leftovers": leftovers.found()})


def of_cluster(address: str) -> list[Checkup]:
    """Look at every node of the cluster at `address`, all at once; one that does not answer is told of as it is."""
    with cluster.connected(address):
        import ray

        alive = [entry for entry in ray.nodes() if entry["Alive"]]
        idle = [e for e in alive if SLOT not in e["Resources"]]
        answers = membership.asked([e for e in alive if SLOT in e["Resources"]])
    found = [examined(a.node.offer, a.told) if a.node else Checkup(a.name, a.refusal) for a in answers]
    text = f"announces no {SLOT}: start its Ray with python -m sweep.node to have trials there"
    return [*found, *(Checkup(f"{e['NodeManagerHostname']} ({e['NodeManagerAddress']})", text) for e in idle)]


def report(checkups: Sequence[Checkup]) -> list[str]:
    """Return the lines of the table, then what there is to say of each machine."""
    rows = [["machine", "kernel", "CPUs", "memory", "GPUs", "drives", "tracers", "can run"], *map(_row, checkups)]
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]) - 1)]
    lines = []
    for row in rows:
        words = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
        lines += textwrap.wrap(f"{words}  {row[-1]}", _COLUMNS, subsequent_indent="    ", drop_whitespace=False)
    for checkup in checkups:
        lines += ["", checkup.name, *_details(checkup)]
    return [line.rstrip() for line in lines]


def _row(checkup: Checkup) -> list[str]:
    offer = checkup.offer
    if offer is None:
        return [checkup.name, *["?"] * 6, "nothing: see below"]
    return [
        checkup.name,
        str(offer.facts["kernel"]).partition("-")[0],
        str(offer.facts["cpus"]),
        format_bytes(offer.memory_bytes or 0).partition(".")[0].removesuffix(" GiB") + " GiB",
        str(len(offer.facts["gpus"])),
        str(len(_drives(offer))),
        " ".join(n.removeprefix("tracer:") for n in offer.capabilities if n in ("tracer:ftrace", "tracer:bpftrace"))
        or "diskstats",
        f"{len(checkup.runs)} of {len(shipped())} sweeps",
    ]


def _drives(offer: Offer) -> dict[str, list[str]]:
    """Return the drives of a machine, each with the folders that lie on it."""
    found: dict[str, list[str]] = {}
    for place in offer.places:
        for drive in place.drives:
            text = f"{place.path} ({place.fs}, {format_bytes(place.free_bytes)} free)"
            found.setdefault(drive, []).append(text)
    return found


def _details(checkup: Checkup) -> Iterator[str]:
    if checkup.problem or checkup.offer is None:
        yield from _item("problem", str(checkup.problem))
        return
    offer = checkup.offer
    for label, prefix in (("filesystems", "fs:"), ("tracers", "tracer:"), ("engines", "engine:"), ("tools", "tool:")):
        have = [name.removeprefix(prefix) for name in offer.capabilities if name.startswith(prefix)]
        yield from _item(label, ", ".join(have) or "none")
    yield from _item("GPUs", ", ".join(offer.facts["gpus"]) or "none")
    for drive, folders in _drives(offer).items():
        yield from _item("drive", f"{drive}: {', '.join(folders)}")
    for fs, folder in offer.storage.items():
        yield from _item("storage", f"{fs}: {folder}")
    for device in offer.scratch:
        yield from _item("scratch", f"{device.path} ({format_bytes(device.size_bytes)})")
    yield from _item("can run", ", ".join(checkup.runs) or "none of the package's sweeps")
    for name, reasons in checkup.cannot.items():
        yield from _item("cannot run", f"{name}: {'; '.join(reasons)}")
    for lack in checkup.lacks:
        yield from _item("missing", f"{lack.name}: {lack.reason}")
        users = ", ".join(lack.needed_by) or "none of the package's sweeps"
        yield from _item("", f"needed by {users}")
        if lack.fix:
            yield from _item("", f"mend it: {lack.fix}")
    for text in checkup.advice:
        yield from _item("advice", text)


def _item(label: str, text: str) -> list[str]:
    begin = f"  {label:<{_NARROWEST}}  "
    return textwrap.wrap(text, _COLUMNS, initial_indent=begin, subsequent_indent=" " * len(begin))


if __name__ == "__main__":
    sys.exit(main())
