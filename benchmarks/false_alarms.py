"""How often `analysis.compare` raises a false alarm, and what it finds: simulated runs with noise that was measured.

    python benchmarks/false_alarms.py [--pairs 1000] [--bases 1,3,7] [--cells 4,12,24] [--scale 0.02]
    python benchmarks/false_alarms.py --measure 10 --results results      # measure the noise first, on a quiet machine

`--measure` runs the sweep `benchmarks/noise.yaml` so many times through the whole pipeline and writes the logarithms of
each phase's bandwidth, less the median of its cell and phase over all runs, to `--noise`. A simulated run is one of
those runs, drawn at random, with everything that its rounds, cells and phases have in common; bases are other ones. So
heavy tails, drift between runs and drift within them stay as they were. A family of more cells than were measured has
each of them several times, begun at another round. `--scale` makes the noise larger or smaller, to a stated median
spread of a phase within its run: what a quieter machine would see.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from analysis.compare import ALPHA, THRESHOLD, judge
from analysis.matching import BANDWIDTH, Key, Matched

HERE = Path(__file__).resolve().parent
SLOW = 0.9
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


def main() -> None:
    """Measure where asked, simulate, and print a table."""
    args = _arguments()
    if args.measure:
        measure(args.measure, args.results, args.noise)
    noise = read(args.noise)
    if args.scale:
        noise = Noise(noise.residuals * args.scale / noise.spread)
    runs, cells, repeats, phases = noise.residuals.shape
    print(f"noise: {runs} runs of {cells} cells, {repeats} repeats, {phases} phases; within runs {noise.spread:.1%}, "
          f"whole runs {noise.drift:.1%}")  # fmt: skip
    for bases in args.bases:
        for count in args.cells:
            for case in CASES:
                begin = time.monotonic()
                pairs = args.pairs if case == "nothing" else args.pairs // 5 or 1
                rng = np.random.default_rng([bases, count, CASES.index(case)])
                found = sum(alarm(rng, noise, bases, count, case) for _ in range(pairs))
                told = f"{bases} base{'s' * (bases > 1)}, {count} cells x {phases} phases, {case} {1 - SLOW:.0%} slower"
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
    """Return the residuals of a run with so many cells: cells, rounds, phases."""
    own = noise.residuals[run]
    parts = [np.roll(own[cell % len(own)], int(rng.integers(own.shape[1])) if cell >= len(own) else 0, axis=0)
             for cell in range(cells)]  # fmt: skip
    return np.array(parts)


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


def measure(count: int, results: Path, path: Path) -> None:
    """Run the sweep so many times and write its residuals."""
    command = [sys.executable, "-m", "sweep", str(HERE / "noise.yaml"), "--results", str(results)]
    before = set((results / "noise").glob("2*"))
    for number in range(count):
        print(f"run {number + 1} of {count}", flush=True)
        subprocess.run(command, check=False, cwd=HERE.parent, stdout=subprocess.DEVNULL)
    write(sorted({*(results / "noise").glob("2*")} - before), path)


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
    parser.add_argument("--results", type=Path, default=Path("results"), help="where those runs are kept")
    return parser.parse_args()


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


if __name__ == "__main__":
    main()
