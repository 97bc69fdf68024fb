"""The benchmark of false alarms: its noise can be read, and what it simulates is judged as the documentation says."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from analysis.observations import of_run
from benchmarks.false_alarms import HERE, Noise, alarm, read, write
from tests.analysis.made_run import MIB, make_run


def quiet() -> Noise:
    noise = read(HERE / "noise.csv")
    return Noise(noise.residuals * 0.02 / noise.spread)


def test_the_measured_noise_is_of_several_whole_runs() -> None:
    noise = read(HERE / "noise.csv")
    runs, cells, repeats, phases = noise.residuals.shape
    assert runs >= 5
    assert repeats == 5
    assert cells * phases >= 8
    assert np.isfinite(noise.residuals).mean() > 0.9
    assert (HERE / "noise.csv").stat().st_size < 100_000


def test_of_unchanged_runs_few_raise_an_alarm_and_of_slowed_ones_most() -> None:
    noise, rng = quiet(), np.random.default_rng(3)
    assert sum(alarm(rng, noise, 1, 4, "nothing") for _ in range(16)) <= 3
    for case in ("everything", "one filesystem", "one cell"):
        assert sum(alarm(rng, noise, 1, 4, case) for _ in range(4)) >= 3, case


def test_residuals_keep_what_runs_differ_by_as_a_whole(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(n), sizes=(MIB,), repeats=3, broken=False) for n in range(3)]
    for place, run in enumerate(runs):
        run.rename(run.parent / f"run{place}")
    runs = [run.parent / f"run{place}" for place, run in enumerate(runs)]
    write(runs, tmp_path / "noise.csv")
    noise = read(tmp_path / "noise.csv")
    assert noise.residuals.shape == (3, 2, 3, 4)
    assert noise.drift < 1e-9  # made alike
    frame = of_run(runs[0])
    own = frame[(frame.phase == "load aio cpu 1 MiB") & (frame.op == "all") & (frame.cell == '{"fs":"ext4"}')]
    log = np.log(own.bandwidth_gib_s.to_numpy())
    np.testing.assert_allclose(noise.residuals[0, 0, :, 0], log - np.median(log), atol=1e-4)
