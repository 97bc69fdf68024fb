"""The benchmark of false alarms: its noise can be read, and what it simulates is judged as the documentation says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.observations import of_run
from benchmarks.false_alarms import HERE, Noise, alarm, main, read, simulated, write
from sweep.config import load
from sweep.plan import Grid
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
    for bases in (1, 4):
        # at 5 % more than 3 of 30 come once in 16 times; the numbers drawn are the same each time
        assert sum(alarm(rng, noise, bases, 4, "nothing") for _ in range(30)) <= 3
        for case in ("everything", "one filesystem", "one cell"):
            assert sum(alarm(rng, noise, bases, 4, case) for _ in range(5)) >= 4, case


def test_a_simulated_run_is_a_measured_ones_offsets_and_rounds_drawn_anew() -> None:
    noise, rng = quiet(), np.random.default_rng(4)
    runs, cells, repeats, phases = noise.residuals.shape
    made = simulated(rng, noise, 0, cells)
    assert made.shape == (cells, repeats, phases)
    of_offset = [np.nan_to_num(made - sign * noise.offsets[0][:, None]) for sign in (1, -1)]
    kept = np.nan_to_num(noise.rounds[0])
    # of one of the signs every round is a measured one, whole
    assert any(
        all(any(np.allclose(m[:, n], kept[:, k]) for k in range(repeats)) for n in range(repeats)) for m in of_offset
    )
    several = {simulated(rng, noise, 0, cells).tobytes() for _ in range(40)}
    assert len(several) > 35
    assert noise.distinct == runs * 2 * 126
    assert simulated(rng, noise, 0, 3 * cells + 1).shape == (3 * cells + 1, repeats, phases)


def test_simulated_runs_differ_within_and_as_a_whole_as_measured_ones_do() -> None:
    noise, rng = quiet(), np.random.default_rng(5)
    runs, cells, _, _ = noise.residuals.shape
    made = Noise(np.array([simulated(rng, noise, n % runs, cells) for n in range(40 * runs)]))
    assert made.spread == pytest.approx(noise.spread, rel=0.15)
    assert noise.drift * 0.9 < made.drift < noise.drift * 1.5  # the chance of few rounds comes on top


@pytest.mark.parametrize("name", ["noise", "held"])
def test_the_sweeps_that_measure_noise_are_valid(name: str, tmp_path: Path) -> None:
    sweep = load(str(HERE / f"{name}.yaml"), [f"storage.path={tmp_path}"] if name == "held" else [])
    assert {trial.repeat for trial in Grid(sweep).trials} == {1, 2, 3, 4, 5}
    assert sweep.name == name


def test_held_without_measuring_is_a_mistake(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr("sys.argv", ["false_alarms.py", "--held"])
    with pytest.raises(SystemExit):
        main()
    assert "give --measure RUNS too" in capsys.readouterr().err


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
