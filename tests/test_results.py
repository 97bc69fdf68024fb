"""What is committed of the study on a GPU: every trial valid, its bytes told thrice, its pictures there."""

import re
from pathlib import Path

import polars as pl
import pytest

from sweep import config
from sweep.plan import Grid

RESULTS = Path(__file__).parent.parent / "docs" / "results"
RUNS = sorted(path.parent for path in RESULTS.glob("*/*/summary.parquet"))


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_every_trial_is_valid_with_expected_traced_and_counted_bytes(run):
    trials = pl.read_parquet(run / "summary.parquet").filter(pl.col("expected_read_bytes").is_not_null())
    assert set(trials["verdict"]) == {"valid"}
    assert set(trials["trial"]) == {trial.id for trial in Grid(config.load(str(run / "sweep.yaml"), [])).trials}
    for op in ("read", "write"):
        expected, traced, counted = (trials[f"{what}_{op}_bytes"] for what in ("expected", "traced", "counted"))
        assert (traced == counted).all()
        assert ((traced - expected).abs() <= 0.02 * expected).all()


@pytest.mark.parametrize("page", sorted(RESULTS.rglob("*.md")), ids=lambda page: str(page.relative_to(RESULTS)))
def test_every_picture_and_file_that_a_page_names_is_there(page):
    named = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    assert named
    assert [name for name in named if not (page.parent / name).exists()] == []


def test_they_are_small_and_hold_no_traces():
    assert RUNS
    files = [path for path in RESULTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 5_000_000
    assert not [path for path in files if path.name == "requests.parquet"]
