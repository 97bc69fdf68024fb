"""Advice by rule: what a storage person would point at in a trial's data."""

from __future__ import annotations

from analysis.advice import device, job, measurement
from analysis.advice.rule import Advice, Rule
from analysis.evidence import gathered
from analysis.run import Run

__all__ = ["RULES", "Advice", "Rule", "advice"]

#: First whether the numbers mean what they seem to, then what the job did, then what its drive did. A new rule is a
#: small function of a trial's evidence with its text, and one line here.
RULES: tuple[Rule, ...] = (
    measurement.lost_events,
    measurement.single_repeat,
    measurement.ram_backed,
    measurement.buffered_loop,
    measurement.others_on_drive,
    measurement.low_ceiling,
    measurement.costly_tracer,
    measurement.page_cache,
    job.both_idle,
    job.storage_bound,
    job.idle_gpu,
    job.stalled,
    job.busy_processors,
    job.small_tensors,
    job.thrash,
    job.near_limit,
    device.tail_latency,
    device.shallow_queue,
    device.split_readahead,
    device.small_writes,
    device.bookkeeping,
    device.scheduler,
    device.hot_drive,
    device.full_filesystem,
)


def advice(run: Run) -> list[Advice]:
    """Return what the rules say of the trials of `run`, in the order of the rules; of invalid trials only what made
    them so."""
    told = gathered(run)
    return [one for rule in RULES for one in rule.advice(told)]
