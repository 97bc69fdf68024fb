"""Rules on the drive: what was asked of it, how it answered, and in what state it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from analysis.advice.rule import Number, Seen, rule
from analysis.attribution import DATA
from analysis.evidence import Evidence
from analysis.metrics import GENERATION as GENERATING
from analysis.metrics import WHOLE
from analysis.spans import GENERATION
from analysis.units import KIB, bytes_text, latency_text, number_text, share_text

#: p99.9 this many times the median is a tail; beyond p99.9 there have to be ten requests to speak of.
TAIL, TAIL_REQUESTS = 10.0, 10_000
#: Busy most of the time with this few requests at once, and far from its ceiling: the drive was asked for too little.
SHALLOW, BUSY_SHARE, FAR_FROM_CEILING = 4.0, 0.5, 0.7
#: Writes up to this size are small: page cache and journal write them, engines do not. Fewer are not worth a word.
SMALL_BYTES, MANY_WRITES = 16 * KIB, 100
DOMINANT = 0.5
#: The phase that engines and jobs of ours open around all others.
JOB = "job"
#: Windows that end where a request does leave no smaller ones over.
ODD = 0.1
#: Journal and metadata as a share of the bytes written.
BOOKKEEPING = 0.05
#: °C from which drives slow themselves down: NVMe's usual warning temperature is 70 to 85.
HOT_C = 70
#: A filesystem with less free than this share looks for gaps, and so do flash drives.
FREE = 0.1


@rule(
    "tail-latency",
    "Tail latency",
    "p99.9 of {op} latency is {ratio} times the median in {where} ({tail} against {median}; greatest {most}). A step "
    "waits for its slowest request: look at the latency figure, and for writes or flushes beside the reads.",
)
def tail_latency(evidence: Evidence) -> Seen:
    found = []
    for row in alike(evidence):
        tail, median = row["d2c_p999_us"], row["d2c_p50_us"]
        if tail is not None and median and row["requests"] >= TAIL_REQUESTS:
            found.append((tail / median, row))
    ratio, row = max(found, key=lambda one: one[0], default=(0.0, {}))
    if ratio < TAIL:
        return None
    names = {"tail": "d2c_p999_us", "median": "d2c_p50_us", "most": "d2c_max_us"}
    numbers = {name: Number(row[column], latency_text) for name, column in names.items()}
    return {**numbers, "ratio": Number(ratio, number_text), "op": row["op"], "where": _place(evidence, row)}


def alike(evidence: Evidence) -> list[Mapping[str, Any]]:
    """Return the profile of the spans whose requests are of one kind: generation, or else each phase, or the whole."""
    own = [row for row in evidence.profile if row["op"] in DATA]
    phases = [row for row in own if row["name"] not in (None, JOB)]
    return [row for row in own if row["phase"] == GENERATION] or phases or own


def _place(evidence: Evidence, row: Mapping[str, Any]) -> str:
    """Return the row's span in words, for generation with the phase in which the slowest thousandth was slowest."""
    if row["phase"] == WHOLE:
        return "the whole trace"
    if row["phase"] != GENERATION:
        return f"the phases {row['phase']}"
    others = [one for one in evidence.profile if one["op"] == row["op"] and one["name"] in GENERATING]
    known = [(one["d2c_p999_us"], one["phase"]) for one in others if one["d2c_p999_us"] is not None]
    return "generation" + (f", worst in {max(known)[1]}" if known else "")


@rule(
    "shallow-queue",
    "The queue is too shallow for the drive",
    "While the drive was busy it had {depth} reads at once on average, and reached {share} of the ceiling: it can do "
    "more at once. Raise workload.queue_depth or parallelism, or read further ahead (storage.queue.read_ahead_kb).",
)
def shallow_queue(evidence: Evidence) -> Seen:
    row = evidence.measured("read")
    mean, busy, reached = (row.get(name) for name in ("depth_mean", "busy_share", "ceiling_share"))
    if mean is None or not busy or reached is None or busy < BUSY_SHARE or reached >= FAR_FROM_CEILING:
        return None
    depth = Number(mean / busy, number_text)
    return {"depth": depth, "share": Number(reached, share_text)} if depth.value < SHALLOW else None


@rule(
    "split-readahead",
    "Buffered reads are split",
    "{share} of the bytes read {span} came through readahead, in windows of up to {window} that the device's limit of "
    "{limit} splits into up to {pieces} requests; {odd} of these reads are smaller than the limit (readahead begins "
    "small, and stops at pages that memory still has and at ends of files). Direct I/O asks for whole requests; with "
    "buffered reads compare storage.queue.read_ahead_kb, which sets the window.",
)
def split_readahead(evidence: Evidence) -> Seen:
    window, limit = evidence.queue_limit("read_ahead_kb"), evidence.queue_limit("max_sectors_kb")
    reads = evidence.sizes.filter(pl.col("op") == "read")
    ahead = reads.filter(pl.col("rwbs").str.contains("A", literal=True))
    moved, count = int((reads["bytes"] * reads["count"]).sum()), int(ahead["count"].sum())
    if window is None or limit is None or window <= limit or not moved or not count:
        return None
    part = int((ahead["bytes"] * ahead["count"]).sum()) / moved
    odd = int(ahead.filter(pl.col("bytes") < limit * KIB)["count"].sum()) / count
    if part < DOMINANT or odd < ODD:
        return None
    sizes = {"window": Number(window * KIB, bytes_text), "limit": Number(limit * KIB, bytes_text)}
    shares = {"share": Number(part, share_text), "odd": Number(odd, share_text)}
    return {**shares, **sizes, "pieces": Number(-(-window // limit), number_text), "span": evidence.span_told}


@rule(
    "small-writes",
    "Small requests dominate the writes",
    "{share} of the writes {span} are of {size} or less and carry {moved} of the bytes written. Each costs the drive "
    "and the kernel about what a large one does: write whole blocks, or several tokens at once.",
)
def small_writes(evidence: Evidence) -> Seen:
    writes = evidence.sizes.filter(pl.col("op") == "write")
    count, moved = int(writes["count"].sum()), int((writes["bytes"] * writes["count"]).sum())
    small = writes.filter(pl.col("bytes") <= SMALL_BYTES)
    if count < MANY_WRITES or not moved or (part := int(small["count"].sum()) / count) <= DOMINANT:
        return None
    carried = Number(int((small["bytes"] * small["count"]).sum()) / moved, share_text)
    size = Number(SMALL_BYTES, bytes_text)
    return {"share": Number(part, share_text), "span": evidence.span_told, "size": size, "moved": carried}


@rule(
    "bookkeeping-writes",
    "The filesystem writes for itself",
    "Journal and metadata are {share} of the bytes written ({moved}, {fs}). Fewer and larger files, fewer fsyncs, or "
    "noatime leave more of the drive's writes to the job.",
)
def bookkeeping(evidence: Evidence) -> Seen:
    own = [evidence.whole.get(f"role.{role}_write_bytes") for role in ("journal", "metadata")]
    total = evidence.whole["traced_write_bytes"]
    known = [moved for moved in own if moved is not None]
    if not known or not total or sum(known) < BOOKKEEPING * total:
        return None
    moved, fs = Number(sum(known), bytes_text), str(evidence.trial.section("storage").get("fs"))
    return {"share": Number(sum(known) / total, share_text), "moved": moved, "fs": fs}


@rule(
    "scheduler",
    "A scheduler stands before the drive",
    "The queue of {device} has the scheduler {scheduler}, which sorts and holds requests for an NVMe drive that needs "
    "neither. Set storage.queue.scheduler=none.",
)
def scheduler(evidence: Evidence) -> Seen:
    device, queue = evidence.trial.section("device"), evidence.trial.section("storage").get("queue")
    drives = [drive for drive in device.get("drives") or () if isinstance(drive, Mapping)]
    name = queue.get("scheduler") if isinstance(queue, Mapping) else None
    flash = drives and all(drive.get("transport") == "nvme" for drive in drives)
    if not flash or not isinstance(name, str) or name in ("none", "unknown", ""):
        return None
    return {"device": str(device.get("name")), "scheduler": name}


@rule(
    "hot-drive",
    "The drive is hot",
    "{drive} was at {temperature} °C: drives slow themselves down about there, and repeats measured hot and cold "
    "differ. Cool it, or leave time between trials.",
)
def hot_drive(evidence: Evidence) -> Seen:
    found = []
    for drive in evidence.trial.section("device").get("drives") or ():
        health = drive.get("health") if isinstance(drive, Mapping) else None
        readings = [_temperature(health.get(when)) for when in ("begin", "end")] if isinstance(health, Mapping) else []
        found += [(reading, str(drive.get("name"))) for reading in readings if reading is not None]
    temperature, name = max(found, default=(0.0, ""))
    return {"temperature": Number(temperature, number_text), "drive": name} if temperature >= HOT_C else None


def _temperature(reading: Any) -> float | None:
    value = reading.get("temperature_c") if isinstance(reading, Mapping) else None
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


@rule(
    "full-filesystem",
    "The filesystem is nearly full",
    "Only {free} of {size} were free ({share}): new files lie in the gaps that are left, in more and smaller pieces, "
    "and flash has little room to collect. Free some, or make storage.image_size larger.",
)
def full_filesystem(evidence: Evidence) -> Seen:
    free, size = evidence.trial.section("storage").get("free_bytes"), evidence.trial.section("device").get("size_bytes")
    if not isinstance(free, int) or not isinstance(size, int) or not size or free / size >= FREE:
        return None
    return {
        "free": Number(free, bytes_text),
        "size": Number(size, bytes_text),
        "share": Number(free / size, share_text),
    }
