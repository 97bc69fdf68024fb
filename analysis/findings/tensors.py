"""Fig. 2 of the study: DeepNVMe's aio against POSIX reads and writes, one tensor at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from analysis.evidence import Evidence
from analysis.figures.fig2 import bandwidth_per_repeat
from analysis.findings.finding import Finding, Judged, finding, ranged, span, untested
from analysis.run import Run
from analysis.stacks import recorded
from analysis.units import bytes_text, number_text

#: aio has to be ahead from some size on, and that at this share of the measured sizes and at more than one of them.
WIDE = 0.5
#: Fewer sizes than these tell nothing of a line: one size is an accident.
LEAST_SIZES = 3
#: So many repeats are apart where their ranges are; of fewer that is chance too often (two against two: 1 in 6), so
#: that they have to be a tenth apart besides, which is how far repeats on one disk agree.
LEAST_REPEATS, NOISE = 3, 0.1
_SINGLE = f"At too many sizes the two are less than {NOISE:.0%} apart".replace("%", " %")
_SINGLE += ", and of one repeat nobody knows how far apart repeats are: run conf/fig2.yaml with repeats=5."
_CLOSE = "At too many sizes repeats of the two are not clearly apart: run conf/fig2.yaml with repeats=5."
_FEW = f"Fewer than {LEAST_SIZES} tensor sizes make no line to judge: run conf/fig2.yaml, which has more."
_AIO, _POSIX = "aio", "POSIX"


@dataclass(frozen=True)
class _Size:
    """The bandwidths of all repeats at one tensor size, GiB/s."""

    bytes: int
    aio: Sequence[float]
    posix: Sequence[float]

    @property
    def ahead(self) -> bool:
        """Whether the slowest repeat of aio is faster than the fastest of POSIX."""
        return _above(self.aio, self.posix)

    @property
    def behind(self) -> bool:
        """Whether the fastest repeat of aio is slower than the slowest of POSIX."""
        return _above(self.posix, self.aio)

    @property
    def repeated(self) -> bool:
        """Whether there is more than one repeat of either."""
        return max(len(self.aio), len(self.posix)) > 1

    @property
    def ratio(self) -> float:
        """Mean of aio over mean of POSIX."""
        return sum(self.aio) / len(self.aio) / (sum(self.posix) / len(self.posix))


def _above(one: Sequence[float], other: Sequence[float]) -> bool:
    margin = 1 + NOISE if min(len(one), len(other)) < LEAST_REPEATS else 1
    return min(one) > margin * max(other)


def aio_loads(run: Run, told: Sequence[Evidence]) -> Finding:
    """Test that aio loads tensors faster than POSIX, and tell from which size on."""
    return _compared(run, "aio-loads", "DeepNVMe's aio loads tensors faster than POSIX reads do", "Load")


def aio_stores(run: Run, told: Sequence[Evidence]) -> Finding:
    """Test that aio stores tensors faster than POSIX, and tell from which size on."""
    return _compared(run, "aio-stores", "DeepNVMe's aio stores tensors faster than POSIX writes do", "Store")


def _compared(run: Run, code: str, claim: str, phase: str) -> Finding:
    repeats = _undisturbed(run)
    own = repeats if repeats.is_empty() else repeats.filter(pl.col("phase").str.starts_with(phase))
    judged = []
    for (row, device), group in own.group_by("row", "device", maintain_order=True) if not own.is_empty() else ():
        if sizes := _sizes(group):
            judged.append(_judged(f"{row}, {device}", sizes))
    if not judged:
        missing = f"No valid trial has a {phase.lower()} of the same tensor size through both aio and POSIX. "
        return untested(run, code, claim, missing + "Run conf/fig2.yaml, with workload.apis=[posix,aio].")
    slugs = own.filter(pl.col("api").is_in([_AIO, _POSIX]))["slug"].unique(maintain_order=True).to_list()
    return finding(run, code, claim, judged, slugs, _undecided(judged))


def _undecided(judged: Sequence[Judged]) -> str:
    """Return what would decide the cells that cannot tell; of too few sizes their note says it."""
    repeats = [one.repeats for one in judged if one.holds is None and not one.note]
    return "" if not repeats else _SINGLE if max(repeats) == 1 else _CLOSE


def _undisturbed(run: Run) -> pl.DataFrame:
    """Return the bandwidths of the trials whose bandwidth is the drive's: recording stacks disturbs it."""
    repeats = bandwidth_per_repeat(run)
    slugs = [trial.slug for trial in run.published if not recorded(trial)]
    return repeats if repeats.is_empty() else repeats.filter(pl.col("slug").is_in(slugs))


def _sizes(group: pl.DataFrame) -> list[_Size]:
    """Return the sizes, from the least, that were moved through both."""
    found = []
    for size in sorted(group["size"].unique().to_list()):
        speeds = {
            api: group.filter((pl.col("size") == size) & (pl.col("api") == api))["gib_s"].to_list()
            for api in (_AIO, _POSIX)
        }
        if all(speeds.values()):
            found.append(_Size(size, speeds[_AIO], speeds[_POSIX]))
    return found


def _judged(cell: str, sizes: Sequence[_Size]) -> Judged:
    last_other = max((place for place, size in enumerate(sizes) if not size.ahead), default=-1)
    winning = sizes[last_other + 1 :]
    behind = sum(size.behind for size in sizes)
    holds = len(winning) >= max(2, WIDE * len(sizes)) and behind < WIDE * len(sizes)
    verdict = True if holds else False if behind else None
    few = _FEW if len(sizes) < LEAST_SIZES else ""
    numbers: dict[str, float] = {"aio ahead from (bytes)": winning[0].bytes} if winning else {}
    for size in sizes:
        for name, values in (("aio", size.aio), ("POSIX", size.posix)):
            numbers |= ranged(f"{bytes_text(size.bytes)} {name} (GiB/s)", values)
    fewest = min(len(values) for size in sizes for values in (size.aio, size.posix))
    return Judged(cell, None if few else verdict, _told(sizes, winning), numbers, fewest, few)


def _told(sizes: Sequence[_Size], winning: Sequence[_Size]) -> str:
    parts = []
    if winning:
        where = "at every size" if len(winning) == len(sizes) else f"from {bytes_text(winning[0].bytes)} on"
        ratio = span([size.ratio for size in winning], number_text)
        top = winning[-1]
        peak = f"{span(top.aio, number_text)} against {span(top.posix, number_text)} GiB/s at {bytes_text(top.bytes)}"
        parts.append(f"ahead {where}, {ratio} times POSIX ({peak})")
    rest = sizes[: len(sizes) - len(winning)]
    for word, chosen in (
        ("ahead", [size for size in rest if size.ahead]),
        ("behind", [size for size in rest if size.behind]),
        (_overlap(sizes), [size for size in rest if not size.ahead and not size.behind]),
    ):
        if chosen:
            ratio = span([size.ratio for size in chosen], number_text)
            means = "means: " if any(size.repeated for size in chosen) else ""
            where = ", ".join(bytes_text(size.bytes) for size in chosen)
            parts.append(f"{word} at {where} ({means}{ratio} times POSIX)")
    return ", ".join(parts)


def _overlap(sizes: Sequence[_Size]) -> str:
    """Return in words what keeps repeats from telling the two apart: the nearest of them are meant, not the means."""
    if all(min(len(size.aio), len(size.posix)) >= LEAST_REPEATS for size in sizes):
        return "repeats overlap"
    nearest = "nearest repeats " if any(size.repeated for size in sizes) else ""
    return f"{nearest}less than {NOISE:.0%} apart".replace("%", " %")
