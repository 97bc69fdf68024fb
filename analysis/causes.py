"""What the trace says beside a change: sizes, depth, latency, bytes, whose files, and what fio reached meanwhile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from analysis.attribution import DATA
from analysis.matching import Key, rows_of
from analysis.observations import ROLE
from analysis.units import bytes_text, latency_text, number_text

if TYPE_CHECKING:
    import pandas as pd

#: Columns of which the cause is made, with their words.
_COLUMNS = {
    "bytes": "bytes",
    "requests": "requests",
    "request_bytes_mean": "request sizes",
    "request_bytes_mode": "the most frequent request size",
    "depth_mean": "depth",
    "d2c_mean_us": "D2C mean",
    "d2c_p50_us": "D2C p50",
    "d2c_p99_us": "D2C p99",
    "sequential_share": "sequential share",
    "busy_share": "busy share",
    "interarrival_p50_us": "time between requests",
    "job_cpu_share": "the job's share of the processors",
}
#: The mean first: bandwidth is depth times size by mean D2C (Little's law), and a drive that is held to a rate answers
#: most requests at once and a few very late, so that its median may even fall.
_LATENCIES = ("d2c_mean_us", "d2c_p50_us", "d2c_p99_us")
_BYTES = ("bytes", "request_bytes_mean", "request_bytes_mode")
#: A shift of a share of 1 by less is none.
_SHARE = 0.05


@dataclass(frozen=True)
class Cause:
    """Why a measure changed, as far as the trace tells: `words` are the figures, `verdict` what they amount to."""

    words: str
    verdict: str

    def __str__(self) -> str:
        return f"{self.words}: {self.verdict}" if self.words else self.verdict


def cause(key: Key, now: pd.DataFrame, bases: Sequence[pd.DataFrame], threshold: float) -> Cause:
    """Return what changed beside a measure, between the medians of valid trials now and in the bases.

    What differs by less than `threshold` is unchanged. The operation is the one that moved most bytes.
    """
    import pandas as pd

    before = pd.concat([base[base.cell == key.cell] for base in bases])
    op = _operation(key, before)
    own, other = rows_of(key, now, op), rows_of(key, before, op)
    moves = _moves(own, other, threshold)
    if "requests" not in moves:
        return Cause("", "the trials hold no single requests, so the trace tells no cause")
    return Cause(_words(op, moves, _roles(own, other, threshold)), _verdict(moves) + _ceiling(op, now, before, key))


@dataclass(frozen=True)
class _Move:
    """A column's medians before and now, and which way it went: -1, 0 or 1."""

    name: str
    before: float
    now: float
    way: int

    @property
    def change(self) -> str:
        """How much, in percent of what it was."""
        return f"{self.now / self.before - 1:+.0%}".replace("%", " %") if self.before else "from nothing"

    def text(self) -> str:
        """Return the move as `D2C mean +18 % (85 µs -> 100 µs)`."""
        if not self.way:
            return f"{_COLUMNS[self.name]} unchanged"
        return (
            f"{_COLUMNS[self.name]} {self.change} ({_value(self.name, self.before)} -> {_value(self.name, self.now)})"
        )


def _value(name: str, value: float) -> str:
    if name in _BYTES or name.startswith(ROLE):
        return bytes_text(value)
    if name.endswith("_us"):
        return latency_text(value)
    return number_text(value)


def _operation(key: Key, rows: pd.DataFrame) -> str:
    moved = {op: float(rows_of(key, rows, op).bytes.sum()) for op in DATA}
    return key.op if key.op in DATA else max(DATA, key=lambda op: moved[op])


def _moves(own: pd.DataFrame, other: pd.DataFrame, threshold: float) -> dict[str, _Move]:
    found = {}
    for name in _COLUMNS:
        now, before = (float(frame[name].astype("float64").median()) if name in frame else float("nan")
                       for frame in (own, other))  # fmt: skip
        if now == now and before == before:
            least = _SHARE if name.endswith("_share") else threshold * abs(before)
            found[name] = _Move(name, before, now, 0 if abs(now - before) <= least else 1 if now > before else -1)
    return found


def _roles(own: pd.DataFrame, other: pd.DataFrame, threshold: float) -> list[str]:
    """Return whose bytes became more or fewer, where extents told whose they were."""
    found = []
    for name in (name for name in own.columns if name.startswith(ROLE) and name in other):
        now, before = (float(frame[name].astype("float64").median()) for frame in (own, other))
        if now == now and before == before and abs(now - before) > threshold * max(before, now):
            role = name.removeprefix(ROLE).removesuffix("_bytes")
            found.append(f"{role} {bytes_text(before)} -> {bytes_text(now)}")
    return found


def _words(op: str, moves: Mapping[str, _Move], roles: Sequence[str]) -> str:
    """Return the columns that a reader looks for first, and of the others those that changed."""
    always = [moves[name] for name in (*_LATENCIES, "request_bytes_mean", "depth_mean") if name in moves]
    others = ("bytes", "sequential_share", "busy_share", "interarrival_p50_us", "job_cpu_share")
    further = [moves[name] for name in others if name in moves and moves[name].way]
    told = [move.text() for move in always if move.way] + [move.text() for move in further]
    same = [_COLUMNS[move.name] for move in always if not move.way]
    told += [f"{_listed(same)} unchanged"] if same else []
    told += [f"bytes by file: {', '.join(roles)}"] if roles else []
    return f"{op}s: " + ", ".join(told)


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _verdict(moves: Mapping[str, _Move]) -> str:
    """Return what the figures amount to: the first of the causes that fits, from the top of the path downwards."""
    way = {name: move.way for name, move in moves.items()}
    slower = _slower(way)
    if way.get("bytes") == 1:
        return "more bytes were moved for the same work"
    if way.get("request_bytes_mean") == -1:
        return "requests became smaller: the path above the drive splits or no longer merges them"
    if slower and way.get("depth_mean") == 1:
        return "more requests waited at the drive, each for longer: it answered slower, or more was asked of it at once"
    if slower and way.get("sequential_share") == -1:
        return "requests are less sequential, and the drive answered them slower"
    if slower:
        return "the drive answered slower"
    if way.get("request_bytes_mean") == 1:
        return "requests became larger, and fewer of them were in flight"
    if -1 in (way.get("depth_mean"), way.get("busy_share")) or way.get("interarrival_p50_us") == 1:
        return "the drive answered as fast and was asked less: held back above it, by job, page cache or a limit"
    if any(way.values()):
        return "what changed in the trace does not explain it"
    return "nothing in the trace changed with it: the time went by outside the drive"


def _slower(way: Mapping[str, int]) -> bool:
    """Return whether requests took longer: by their mean, by their median, or a late few that kept others waiting."""
    mean, median, late = (way.get(name, 0) for name in _LATENCIES)
    return mean == 1 or (mean == 0 and (median == 1 or (late == 1 and way.get("depth_mean") != -1)))


def _ceiling(op: str, now: pd.DataFrame, before: pd.DataFrame, key: Key) -> str:
    """Return whether fio, beside the trials, became slower too; nothing where it was not measured anew."""
    name = f"ceiling_{op}_gib_s"
    own, other = (frame[frame.cell == key.cell].drop_duplicates(["run", "slug"]) for frame in (now, before))
    # one that is older than the run was kept from an earlier one, be it among the bases or not
    fresh = own[own.ceiling_measured_at >= own.run_started]
    values = [float(frame[name].median()) for frame in (fresh, other)]
    if not all(value > 0 for value in values):
        return ""
    change, between = values[0] / values[1] - 1, f"{number_text(values[1])} -> {number_text(values[0])} GiB/s"
    if change <= -_SHARE:
        told = f"{change:.0%}".replace("%", " %")
        return f"; fio beside it fell too ({told}, {between}), so the drive itself is slower"
    return f"; fio beside it reached as much ({between}), so it is not the drive by itself"
