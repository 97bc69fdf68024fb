"""How often `analysis.compare` raises a false alarm, and what it finds: simulated runs with noise that was measured.

    python benchmarks/false_alarms.py [--pairs 1000] [--bases 1,3,7] [--cells 4,12,24] [--scale 0.02]
    python benchmarks/false_alarms.py --measure 10 --results results      # measure the noise first, on a quiet machine
    sudo python benchmarks/false_alarms.py --held --measure 8 --results results --noise held.csv

`--measure` runs the sweep `benchmarks/noise.yaml` so many times through the whole pipeline and writes the logarithms of
each phase's bandwidth, less the median of its cell and phase over all runs, to `--noise`. `--held` measures on a drive
that a cgroup holds to a rate (`benchmarks/held.yaml`, `tests/drive.py`): what a drive in memory can do without depends
on two processors, and is another thing every minute.

A simulated run is made of one measured run: by how much its cells and phases were off the mean of all runs, beyond the
chance of few rounds, all with the same sign, which is drawn; and of its rounds, of which as many are drawn anew as it
has, all cells and phases of a round together. Bases are made of other runs, as long as there are others. So heavy
tails, what runs differ by, and what cells have in common in a round stay as they were. A family of more cells than were
measured has each of them several times, each time with rounds of its own. `--scale` makes the noise larger or smaller,
to a stated median spread of a phase within its run: what a quieter machine would see.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from math import comb
from pathlib import Path

import numpy as np
import numpy.typing as npt

from analysis.compare import ALPHA, THRESHOLD, judge
from analysis.matching import BANDWIDTH, Key, Matched

HERE = Path(__file__).resolve().parent
SLOW = 0.9
#: What a sweep ends with where some trials failed; those that are valid count.
SOME_FAILED = 3
#: What becomes slower: nothing, all cells, those of one filesystem, one cell.
CASES = ("nothing", "everything", "one filesystem", "one cell")


@dataclass(frozen=True)
class Noise:
    """Residuals by run, cell, round and phase."""

    residuals: npt.NDArray[np.float64]

    @property
    def spread(self) -> float:
        """The median standard deviation of a phase within its run."""
        return float(np.nanmedian(np.nanstd(self.residuals, axis=2, ddof=1)))

    @property
    def drift(self) -> float:
        """The standard deviation of whole runs."""
        return float(np.nanstd(np.nanmean(self.residuals, axis=(1, 2, 3)), ddof=1))

    @cached_property
    def offsets(self) -> npt.NDArray[np.float64]:
        """By how much each run, and each of its cells and phases beyond that, is off the mean of all runs.

        Less what the chance of few rounds explains, by moments: rounds drawn anew bring that with them, and a second
        time it would be a spread between runs that nobody measured.
        """
        runs, _, repeats, _ = self.residuals.shape
        means = np.nanmean(self.residuals, axis=2)
        off = (means - np.nanmean(means, axis=0)) * (runs / (runs - 1)) ** 0.5
        whole = np.nanmean(off, axis=(1, 2), keepdims=True)
        chance = float(np.nanmean(np.nanmean(self.rounds, axis=(1, 3)) ** 2)) / repeats
        own = np.nanmean(self.rounds**2, axis=(0, 2)) / repeats
        return _beyond(whole, chance) + _beyond(off - whole, own)

    @cached_property
    def rounds(self) -> npt.NDArray[np.float64]:
        """What is left within runs, widened for the mean that was taken from it."""
        count = self.residuals.shape[2]
        held = self.residuals - np.nanmean(self.residuals, axis=2, keepdims=True)
        found: npt.NDArray[np.float64] = held * (count / (count - 1)) ** 0.5
        return found

    @property
    def distinct(self) -> int:
        """How many different runs can be simulated, their order of rounds left aside, of as many cells as measured."""
        runs, _, repeats, _ = self.residuals.shape
        return runs * 2 * comb(2 * repeats - 1, repeats)


def _beyond(offsets: npt.NDArray[np.float64], chance: npt.NDArray[np.float64] | float) -> npt.NDArray[np.float64]:
    """Return offsets of runs (first axis), made smaller by the variance that chance explains of theirs."""
    seen = np.maximum(np.nanmean(offsets**2, axis=0), 1e-30)
    found: npt.NDArray[np.float64] = offsets * np.sqrt(np.maximum(1 - chance / seen, 0))
    return found


def main() -> None:
    """Measure where asked, simulate, and print a table."""
    args = _arguments()
    if args.measure:
        measure(args.measure, args.results, args.noise, args.held)
    noise = read(args.noise)
    if args.scale:
        noise = Noise(noise.residuals * args.scale / noise.spread)
    runs, cells, repeats, phases = noise.residuals.shape
    print(f"noise: {runs} runs of {cells} cells, {repeats} repeats, {phases} phases; within runs {noise.spread:.1%}, "
          f"whole runs {noise.drift:.1%}; {noise.distinct} different runs can be made of them")  # fmt: skip
    for bases in args.bases:
        for count in args.cells:
            for case in CASES:
                begin = time.monotonic()
                pairs = args.pairs if case == "nothing" else args.pairs // 5 or 1
                rng = np.random.default_rng([bases, count, CASES.index(case)])
                found = sum(alarm(rng, noise, bases, count, case) for _ in range(pairs))
                change = "nothing changed" if case == "nothing" else f"{case} {1 - SLOW:.0%} slower"
                told = f"{bases} base{'s' * (bases > 1)}, {count} cells x {phases} phases, {change}"
                took = time.monotonic() - begin
                print(f"{told}: alarms in {found / pairs:.1%} of {pairs} ({took:.0f} s)", flush=True)


def alarm(rng: np.random.Generator, noise: Noise, bases: int, cells: int, case: str) -> bool:
    """Simulate a run and its bases, and say whether the run is said to be slower."""
    drawn = rng.choice(len(noise.residuals), bases + 1, replace=len(noise.residuals) <= bases)
    values = [simulated(rng, noise, run, cells) for run in drawn]
    slow = {"everything": cells, "one filesystem": cells // 2, "one cell": 1}.get(case, 0)
    values[0][:slow] += np.log(SLOW)
    found, _ = judge(measures(values), bases, THRESHOLD, ALPHA)
    return any(one.changed(0, THRESHOLD, ALPHA) for one in found)


def simulated(rng: np.random.Generator, noise: Noise, run: int, cells: int) -> npt.NDArray[np.float64]:
    """Return the residuals of a run made of a measured one, with so many cells: cells, rounds, phases."""
    offset, rounds = rng.choice((-1.0, 1.0)) * noise.offsets[run], noise.rounds[run]
    known, repeats, _ = rounds.shape
    parts = [offset[:, None, :] + rounds[:, rng.integers(repeats, size=repeats)] for _ in range(-(-cells // known))]
    return np.concatenate(parts)[:cells]


def measures(values: Sequence[npt.NDArray[np.float64]]) -> list[Matched]:
    """Return the measures of a simulated run and its bases; the first half of the cells is of one filesystem."""
    cells, _, phases = values[0].shape
    found = []
    for cell in range(cells):
        fs, batch = "ext4" if cell < cells // 2 else "xfs", cell % (cells // 2 or 1)
        text = json.dumps({"batch": batch, "fs": fs}, separators=(",", ":"))
        for phase in range(phases):
            key = Key(text, f"{'store' if phase % 2 else 'load'} {phase}", BANDWIDTH)
            held = [{n: float(np.exp(v)) for n, v in enumerate(run[cell, :, phase]) if v == v} for run in values]
            if all(held):
                found.append(Matched(key, held[0], dict(enumerate(held[1:]))))
    return found


# --- the noise -------------------------------------------------------------------------------------------------------


def measure(count: int, results: Path, path: Path, held: bool) -> None:
    """Run the sweep so many times and write its residuals."""
    name = "held" if held else "noise"
    command = [sys.executable, "-m", "sweep", str(HERE / f"{name}.yaml"), "--results", str(results)]
    before = set((results / name).glob("2*"))
    with _held() if held else nullcontext([]) as words:
        for number in range(count):
            print(f"run {number + 1} of {count}", flush=True)
            done = subprocess.run([*command, *words], check=False, cwd=HERE.parent, stdout=subprocess.DEVNULL)
            if done.returncode not in (0, SOME_FAILED):
                raise SystemExit(f"the sweep ended with exit code {done.returncode}: nothing is measured")
    write(sorted({*(results / name).glob("2*")} - before), path)


@contextmanager
def _held() -> Iterator[list[str]]:
    """Make a drive in memory that is held to a rate, and yield what tells the sweep to use it."""
    sys.path.insert(0, str(HERE.parent))
    from tests import drive

    if not drive.throttles():
        raise SystemExit("--held: this machine has no cgroup v1 blkio, by which a drive is held to a rate")
    with tempfile.TemporaryDirectory() as folder, drive.made(Path(folder), drive.SIZE_BYTES) as found:
        try:
            found.hold()
        except RuntimeError as error:
            raise SystemExit(f"--held: {error}") from None
        yield [f"storage.path={found.folder}"]


def write(runs: Sequence[Path], path: Path) -> None:
    """Write the residuals of these runs' valid trials: a row for each run, cell and repeat, a column for each phase."""
    import pandas as pd

    from analysis.matching import cell_words, measured_phases, valid
    from analysis.observations import of_run

    frames = [valid(of_run(run)) for run in runs]
    rows = pd.concat([frame[frame.op == "all"] for frame in frames])
    rows = rows[rows.phase.isin(measured_phases(rows))]
    rows["value"] = np.log(rows[BANDWIDTH])
    rows["value"] -= rows.groupby(["cell", "phase"]).value.transform("median")
    rows["number"] = rows.run.map({run.name: place for place, run in enumerate(runs)})
    rows["cell"] = rows.cell.map(cell_words)
    wide = rows.pivot_table(index=["number", "cell", "repeat"], columns="phase", values="value")
    wide.round(4).to_csv(path)


def read(path: Path) -> Noise:
    """Return the residuals that `write` wrote."""
    with path.open(newline="", encoding="utf-8") as file:
        head, *rows = list(csv.reader(file))
    runs, cells, repeats = (list(dict.fromkeys(row[place] for row in rows)) for place in range(3))
    found = np.full((len(runs), len(cells), len(repeats), len(head) - 3), np.nan)
    for row in rows:
        told = [float(value) if value else np.nan for value in row[3:]]
        found[runs.index(row[0]), cells.index(row[1]), repeats.index(row[2])] = told
    return Noise(found)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1000, help="simulated runs without a change; a fifth with one")
    parser.add_argument("--bases", type=_numbers, default=[1, 3, 7])
    parser.add_argument("--cells", type=_numbers, default=[4, 12, 24])
    parser.add_argument("--scale", type=float, help="median spread of a phase within its run, such as 0.02")
    parser.add_argument("--noise", type=Path, default=HERE / "noise.csv")
    parser.add_argument("--measure", type=int, metavar="RUNS", help="measure the noise anew in so many runs")
    parser.add_argument(
        "--held", action="store_true", help="measure on a drive in memory that is held to a rate (root)"
    )
    parser.add_argument("--results", type=Path, default=Path("results"), help="where those runs are kept")
    args = parser.parse_args()
    if args.held and not args.measure:
        parser.error("--held says on what is measured: give --measure RUNS too")
    return args


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


if __name__ == "__main__":
    main()
