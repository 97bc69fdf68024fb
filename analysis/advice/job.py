"""Rules on the job: what it waited for, and what it was given."""

from __future__ import annotations

import polars as pl

from analysis.advice.device import alike
from analysis.advice.rule import Number, Seen, rule
from analysis.evidence import Evidence
from analysis.metrics import WHOLE
from analysis.spans import GENERATION
from analysis.units import bytes_text, number_text, share_text
from analysis.workload import is_deepspeed_model, settings

_GPU = r"^gpu\d+$"
#: Utilisation in %: below the first a GPU or a drive is idle, above the second a drive has something to do.
IDLE, BUSY = 10.0, 50.0
#: This share of the time is worth a word.
OFTEN = 0.25
#: How far apart in time two samples may be to be of one moment: samplers take turns, some hundred ms each.
TOGETHER_NS = 1_000_000_000
#: A job that takes this share of all processors leaves nothing for more I/O; a drive below this share of its ceiling
#: has some to spare. A span is of reads where some were in flight for this share of it.
CPU_FULL, FAR_FROM_CEILING, READING = 0.9, 0.5, 0.5
#: DeepSpeed keeps tensors smaller than a block in memory; less than this share offloaded is not what was meant.
OFFLOADED = 0.9
#: Reads beyond what the passes need, and time lost in reclaim, that mean a page is evicted before it is used.
READ_AGAIN, RECLAIMING = 1.1, 0.1
#: Memory that cannot be reclaimed, as a share of the limit, from which the next allocation may end the job.
NEAR_LIMIT = 0.9


def _waits(evidence: Evidence) -> pl.DataFrame:
    """Return GPU and drive utilisation at the same moments while generating: `gpu`, `drive`, in %."""
    told = evidence.samples.filter((pl.col("name") == "utilisation") & pl.lit(evidence.generation is not None))
    gpu = told.filter(pl.col("source").str.contains(_GPU)).group_by("t_ns").agg(pl.col("value").mean().alias("gpu"))
    drive = told.filter(pl.col("source") == "device").select("t_ns", pl.col("value").alias("drive"))
    joined = gpu.sort("t_ns").join_asof(drive.sort("t_ns"), on="t_ns", strategy="nearest", tolerance=TOGETHER_NS)
    return joined.drop_nulls()


def _often(waits: pl.DataFrame, when: pl.Expr) -> Seen:
    if waits.is_empty():
        return None
    part = waits.filter(when).height / waits.height
    gpu, drive = (float(waits[name].mean()) for name in ("gpu", "drive"))  # type: ignore[arg-type]
    numbers = {"share": Number(part, share_text), "gpu": Number(gpu, number_text), "drive": Number(drive, number_text)}
    return numbers if part >= OFTEN else None


@rule(
    "both-idle",
    "Drive idle while the GPU waits",
    "In {share} of the time of generating, GPU and drive were both idle (on average GPU {gpu} %, drive {drive} %): the "
    "processors, copies or the engine's own waits are in between. Overlap reads with computing, read further ahead, "
    "and look at the processors.",
)
def both_idle(evidence: Evidence) -> Seen:
    return _often(_waits(evidence), (pl.col("gpu") < IDLE) & (pl.col("drive") < IDLE))


@rule(
    "storage-bound",
    "The GPU waits for the drive",
    "In {share} of the time of generating, the drive was busy and the GPU idle (on average GPU {gpu} %, drive {drive} "
    "%): the job is bound by storage. A larger batch uses each byte more often; a faster drive, several, or less on "
    "the drive shortens the wait.",
)
def storage_bound(evidence: Evidence) -> Seen:
    return _often(_waits(evidence), (pl.col("gpu") < IDLE) & (pl.col("drive") > BUSY))


@rule(
    "idle-gpu",
    "The GPU waits, for what is not known",
    "The GPU was busy {gpu} % of the time {span}, on average, and the drive was not sampled beside it: whether it "
    "waited for storage cannot be told. Run the same as a sweep, which samples both.",
)
def idle_gpu(evidence: Evidence) -> Seen:
    gpu = evidence.samples.filter(pl.col("source").str.contains(_GPU) & (pl.col("name") == "utilisation"))["value"]
    if gpu.is_empty() or not evidence.gauge("device", "utilisation").is_empty():
        return None
    mean = float(gpu.mean())  # type: ignore[arg-type]
    return {"gpu": Number(mean, number_text), "span": evidence.span_told} if mean < BUSY else None


@rule(
    "stalled-on-io",
    "Tasks stalled for I/O",
    "For {share} of the time {span}, every runnable task waited for I/O (pressure, io full). Nothing else could go on: "
    "issue more reads ahead of their use.",
)
def stalled(evidence: Evidence) -> Seen:
    part = _stalled(evidence, "io_full_stalled")
    return (
        {"share": Number(part, share_text), "span": evidence.span_told} if part is not None and part >= OFTEN else None
    )


def _stalled(evidence: Evidence, name: str) -> float | None:
    """Return by how much a counter of stalled seconds grew, as a share of the span."""
    counter = evidence.gauge("pressure", name)
    return float(counter[-1] - counter[0]) / evidence.seconds if len(counter) > 1 and evidence.seconds else None


@rule(
    "busy-processors",
    "The processors are the limit",
    "In {where}, the job's own work took {busy} of all processors, and while reads were in flight they reached {share} "
    "of the ceiling: storage is not what the job waits for. More or faster cores, or computing on a GPU, come before a "
    "faster drive.",
)
def busy_processors(evidence: Evidence) -> Seen:
    found = []
    for row in alike(evidence):
        busy, own, reached = row["busy_share"], row["job_cpu_share"], row["ceiling_share"]
        # Time without reads, such as that of laying out a file, and others' work on the processors say nothing.
        if row["op"] == "read" and None not in (busy, own, reached) and busy >= READING:
            found.append((row["bytes"], own, reached / busy, row["phase"]))
    _, own, reached, where = max(found, default=(0, 0.0, 0.0, ""))
    if own < CPU_FULL or reached >= FAR_FROM_CEILING:
        return None
    where = {WHOLE: "the whole trace", GENERATION: "generation"}.get(where, f"the phases {where}")
    return {"where": where, "busy": Number(own, share_text), "share": Number(reached, share_text)}


@rule(
    "tensors-below-block",
    "Tensors below the block size stay in memory",
    "DeepSpeed offloaded {offloaded} of a model of {model} ({share}): it never swaps a tensor smaller than 1 MiB or "
    "workload.block_size ({block}). A smaller block offloads more of the model.",
)
def small_tensors(evidence: Evidence) -> Seen:
    offloaded, model = (evidence.trial.measured.get(name) for name in ("offloaded_bytes", "model_bytes"))
    if not is_deepspeed_model(evidence.trial) or offloaded is None or model is None or not model[0]:
        return None
    block = str(settings(evidence.trial).get("block_size"))
    seen = {"offloaded": Number(offloaded[0], bytes_text), "model": Number(model[0], bytes_text)}
    part = offloaded[0] / model[0]
    return {**seen, "share": Number(part, share_text), "block": block} if part < OFFLOADED else None


@rule(
    "memory-thrash",
    "The memory limit thrashes",
    "The drive read {again} of what the passes need, and all tasks waited for memory for {stalled} of the time {span}: "
    "pages are evicted before they are used. Raise limits.memory ({limit}), or make the batch smaller.",
)
def thrash(evidence: Evidence) -> Seen:
    traced, expected = (evidence.trial.byte_count(kind, "read") for kind in ("traced", "expected"))
    stalled = _stalled(evidence, "memory_full_stalled")
    limit = evidence.trial.measured.get("memory_limit_bytes")
    if traced is None or not expected or stalled is None or limit is None:
        return None
    if traced / expected < READ_AGAIN and stalled < RECLAIMING:
        return None
    again, waited = Number(traced / expected, share_text), Number(stalled, share_text)
    return {"again": again, "stalled": waited, "span": evidence.span_told, "limit": Number(limit[0], bytes_text)}


@rule(
    "near-memory-limit",
    "Close to an out-of-memory kill",
    "Memory that cannot be reclaimed reached {anonymous}, {share} of the limit of {limit} ({kills} OOM kills): a "
    "little more and the kernel ends the job, and little is left for the page cache. Raise limits.memory.",
)
def near_limit(evidence: Evidence) -> Seen:
    limit, kills = (evidence.trial.measured.get(name) for name in ("memory_limit_bytes", "oom_kills"))
    anonymous = evidence.gauge("cgroup", "anonymous")
    if limit is None or kills is None or anonymous.is_empty():
        return None
    most = float(anonymous.max())  # type: ignore[arg-type]
    if most < NEAR_LIMIT * limit[0] and not kills[0]:
        return None
    numbers = {"anonymous": Number(most, bytes_text), "share": Number(most / limit[0], share_text)}
    return {**numbers, "limit": Number(limit[0], bytes_text), "kills": Number(kills[0], number_text)}
