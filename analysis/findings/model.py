"""Figs. 3 and 4 of the study: weights on the drive, under DeepSpeed and FlexGen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from analysis.ceiling import Ceiling, ceiling_of
from analysis.evidence import Evidence
from analysis.findings import passes, sizes
from analysis.findings.finding import Finding, Judged, Statement, ranged, span
from analysis.run import Run
from analysis.stacks import recorded
from analysis.units import number_text, share_text
from analysis.workload import has_cache_on_disk, has_weights_on_disk, is_deepspeed_model

#: A job that reads within a tenth of what fio does is at the drive's limit: ceilings repeat within about that much.
SATURATED = 0.9
#: What offload files of the model hold, as workloads name it.
ROLE = "weights"
_SWEEPS = "conf/fig3.yaml or conf/fig4.yaml"


def offloads_model(evidence: Evidence) -> bool:
    """Say whether the trial had weights on the drive, and no KV cache."""
    trial = evidence.trial
    return is_deepspeed_model(trial) or (has_weights_on_disk(trial) and not has_cache_on_disk(trial))


def reads_of_128_kib(run: Run, told: Sequence[Evidence]) -> Finding:
    """Test that reads of 128 KiB are most of the requests, and of the bytes."""
    return _tested(
        run,
        told,
        Statement(
            "model-128k-reads",
            "Model offloading is dominated by reads of 128 KiB",
            lambda one: sizes.sizes(one, ("read",)) is not None and sizes.possible(one),
            lambda cell, repeats: sizes.judged(cell, repeats, ("read",), "reads"),
            "none recorded single reads on a device that takes requests of 128 KiB",
            _SWEEPS,
        ),
    )


def drive_not_saturated(run: Run, told: Sequence[Evidence]) -> Finding:
    """Test that reads stay below the measured ceiling."""
    return _tested(
        run,
        told,
        Statement(
            "model-not-saturating",
            "Model offloading does not saturate the drive",
            lambda one: ceiling_of(one.trial) is not None and bool(one.gib_s("read")) and not recorded(one.trial),
            _against_ceiling,
            "none has both a ceiling and traced reads that recording stacks did not disturb",
            _SWEEPS,
            "with ceiling.enabled=true",
            undecided="",
        ),
    )


def whole_model_each_pass(run: Run, told: Sequence[Evidence]) -> Finding:
    """Test that the drive delivered as much as all weights in every pass are."""
    return _tested(
        run,
        told,
        Statement(
            "model-whole-pass",
            "The passes of model offloading together read the whole model from the drive, once each",
            lambda one: passes.share(one, ROLE) is not None,
            lambda cell, repeats: passes.judged(cell, repeats, ROLE),
            "none knows both the bytes read and those that its passes should have",
            _SWEEPS,
        ),
    )


def _tested(run: Run, told: Sequence[Evidence], statement: Statement) -> Finding:
    own = [one for one in told if one.trial.state == "valid" and offloads_model(one)]
    return statement.tested(run, own, "weights on the drive and its KV cache elsewhere")


def _against_ceiling(cell: str, repeats: Sequence[Evidence]) -> Judged:
    speeds = [speed for one in repeats if (speed := one.gib_s("read")) is not None]
    tops = [top for one in repeats if (top := ceiling_of(one.trial)) is not None]
    rounds = [_rounds(one, top) for one, top in zip(repeats, tops, strict=True)]
    shares = [speed / top.gib_s["read"] for speed, top in zip(speeds, tops, strict=True)]
    told = (
        f"{span(speeds, number_text)} GiB/s read {repeats[0].span_told}, {span(shares, share_text)} of what fio reads"
    )
    told += f" ({tops[0].how()}; its rounds: {span([speed for pair in rounds for speed in pair], number_text)} GiB/s)"
    holds, why = _free(speeds, rounds)
    numbers = ranged("read (GiB/s)", speeds) | ranged("share of ceiling", shares)
    return Judged(cell, holds, told + why, numbers, len(repeats))


def _free(speeds: Sequence[float], rounds: Sequence[tuple[float, float]]) -> tuple[bool | None, str]:
    """Return whether the drive had bandwidth to spare in all repeats, and why that cannot be said where it cannot."""
    pairs = list(zip(speeds, rounds, strict=True))
    if any(speed > greatest for speed, (_, greatest) in pairs):
        return None, ", so the ceiling is too low to tell: raise ceiling.depth, ceiling.jobs or ceiling.seconds"
    if all(speed < SATURATED * least for speed, (least, _) in pairs):
        return True, ""
    if all(speed >= SATURATED * greatest for speed, (_, greatest) in pairs):
        return False, ""
    return None, ", within the spread of the ceiling or of the repeats: raise ceiling.seconds or repeats"


def _rounds(evidence: Evidence, top: Ceiling) -> tuple[float, float]:
    """Return the slowest and fastest round of fio's sequential reads, GiB/s; the mean where rounds are not recorded."""
    told = evidence.trial.section("ceiling").get("measurements")
    read = told.get("sequential_read") if isinstance(told, Mapping) else None
    known = [read.get(f"{side}_gib_s") if isinstance(read, Mapping) else None for side in ("least", "greatest")]
    least, greatest = (float(speed) if isinstance(speed, (int, float)) else top.gib_s["read"] for speed in known)
    return least, greatest
