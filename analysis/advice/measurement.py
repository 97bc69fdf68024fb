"""Rules on the measurement: whether the numbers mean what they seem to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from analysis.advice.rule import Number, Seen, rule
from analysis.attribution import DATA
from analysis.ceiling import busiest, ceiling_of
from analysis.evidence import Evidence
from analysis.units import MIB, UNKNOWN, bytes_text, count_text, number_text, share_text

#: Others' share of a trial's own bytes that can no longer be called noise, and bytes below which nobody cares.
OTHERS_SHARE, OTHERS_BYTES = 0.05, 16 * MIB
#: Rounds of a ceiling differ by about a tenth.
ABOVE_CEILING = 1.1
#: A tracer that takes more than this of fio's IOPS, at requests as large as engines', shows in the results.
TRACER_COST = 0.05
ENGINE_BYTES = 64 * 1024
#: The device moved less than this share of the bytes: memory answered for the rest.
CACHED = 0.9


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


@rule(
    "lost-events",
    "Events were lost",
    "The tracer lost {lost} of what it should have recorded, with a buffer of {buffer}; the trials are invalid. "
    "Raise trace.buffer_size, or trace with less in the way (trace.tracer=ftrace).",
    state="invalid",
)
def lost_events(evidence: Evidence) -> Seen:
    lost = _count(evidence.trial.section("tracer").get("lost"))
    buffer = _mapping(evidence.trial.section("config").get("trace")).get("buffer_size")
    return {"lost": Number(lost, _events), "buffer": str(buffer or UNKNOWN)} if lost else None


def _events(count: float) -> str:
    return count_text(int(count), "event")


@rule(
    "single-repeat",
    "One repeat",
    "Cells have a single valid repeat (n = {n}): how far two runs of the same are apart is unknown, and no difference "
    "between cells can be told from noise. Run with repeats=3 or more.",
)
def single_repeat(evidence: Evidence) -> Seen:
    return {"n": Number(1, number_text)} if evidence.repeats == 1 else None


@rule(
    "ram-backed",
    "The device is memory",
    "{device} lies in memory: bandwidth and latency are of memory and the loop driver, not of a drive. Request sizes "
    "and places still hold. Use storage.backing=disk, or a directory or device on a drive, for numbers of a drive.",
)
def ram_backed(evidence: Evidence) -> Seen:
    device = evidence.trial.section("device")
    return {"device": str(device.get("name") or UNKNOWN)} if device.get("ram_backed") is True else None


@rule(
    "loop-without-direct-io",
    "The host's page cache is below the image",
    "The loop image on {drive} was attached without direct I/O: the host's page cache answers for the drive below, and "
    "writes count as done in memory. Put the image on a filesystem that takes direct I/O, or use a device.",
)
def buffered_loop(evidence: Evidence) -> Seen:
    storage, device = evidence.trial.section("storage"), evidence.trial.section("device")
    if storage.get("kind") != "loop" or storage.get("direct_io") is not False or device.get("ram_backed"):
        return None
    return {"drive": str(device.get("drive") or UNKNOWN)}


@rule(
    "others-on-drive",
    "Others used the drive",
    "Besides the trial's own, {others} were moved on {drive} in its window, {share} of what it moved itself: bandwidth "
    "and latency are of both together. Keep other jobs, and other images on that drive, away while it runs.",
)
def others_on_drive(evidence: Evidence) -> Seen:
    device = evidence.trial.section("device")
    beneath = _mapping(device.get("drive_moved_bytes"))
    pairs = [(_count(beneath.get(op)), evidence.trial.byte_count("counted", op)) for op in DATA]
    known = [(moved, own) for moved, own in pairs if moved is not None and own is not None]
    own = sum(mine for _, mine in known)
    others = sum(max(0, moved - mine) for moved, mine in known)
    if len(known) < len(pairs) or not own or others < max(OTHERS_BYTES, OTHERS_SHARE * own):
        return None
    drive = str(device.get("drive") or UNKNOWN)
    return {"others": Number(others, bytes_text), "share": Number(others / own, share_text), "drive": drive}


@rule(
    "low-ceiling",
    "Above the ceiling",
    "The job reached {share} of the ceiling ({op}s; fio: {ceiling} GiB/s at {how}): the ceiling was measured too low, "
    "so shares of it are too high. Raise ceiling.depth or ceiling.jobs, and ceiling.seconds where its rounds differ.",
)
def low_ceiling(evidence: Evidence) -> Seen:
    top = ceiling_of(evidence.trial)
    if top is None:
        return None
    found = []
    for op in DATA:
        best = busiest(evidence.parts, op, top)
        shares = [best[1] if best else None, evidence.whole[f"generation_{op}_ceiling_share"]]
        found += [(share, op) for share in shares if share is not None]
    share, op = max(found, default=(0.0, ""))
    if share <= ABOVE_CEILING:
        return None
    ceiling = Number(top.gib_s[op], number_text)
    return {"share": Number(share, share_text), "op": op, "ceiling": ceiling, "how": top.how()}


@rule(
    "costly-tracer",
    "Tracing slowed the drive",
    "Under {tracer} fio kept only {ratio} of its untraced IOPS at requests of {block}: what was measured is slower "
    "than the job is. Use trace.tracer=ftrace, and leave trace.stacks off.",
)
def costly_tracer(evidence: Evidence) -> Seen:
    loads = _mapping(evidence.trial.section("tracer").get("cost")).get("loads")
    told = [load for load in loads if isinstance(load, Mapping)] if isinstance(loads, Iterable) else []
    for load in told:
        ratio, block = load.get("ratio"), _count(load.get("block_bytes"))
        if isinstance(ratio, float) and block is not None and block >= ENGINE_BYTES and ratio < 1 - TRACER_COST:
            ratios, blocks = Number(ratio, share_text), Number(block, bytes_text)
            return {"tracer": evidence.trial.tracer, "ratio": ratios, "block": blocks}
    return None


@rule(
    "page-cache",
    "The page cache hides the device",
    "The drive moved {share} of the bytes of {what}: memory answered for the rest, and bandwidth as the job sees it is "
    "not the drive's. Lower limits.memory, evict files before they are read, or use direct I/O.",
)
def page_cache(evidence: Evidence) -> Seen:
    found = [*_phase_shares(evidence), *_expected_share(evidence)]
    share, what = min(found, default=(1.0, ""))
    return {"share": Number(share, share_text), "what": what} if share < CACHED else None


def _phase_shares(evidence: Evidence) -> list[tuple[float, str]]:
    """Return the bytes traced in each kind of measured phase as a share of those that the phases say they moved."""
    own: dict[str, int] = {}
    traced: dict[str, int] = {}
    for row in evidence.parts:
        if row["bytes"] and row["traced_read_bytes"] is not None:
            name = " ".join(filter(None, [row["phase"], row.get("attr.api")]))
            own[name] = own.get(name, 0) + row["bytes"]
            traced[name] = traced.get(name, 0) + row["traced_read_bytes"] + row["traced_write_bytes"]
    return [(traced[name] / own[name], name) for name in own]


def _expected_share(evidence: Evidence) -> list[tuple[float, str]]:
    traced, expected = (evidence.trial.byte_count(kind, "read") for kind in ("traced", "expected"))
    return [(traced / expected, "all reads")] if traced is not None and expected else []
