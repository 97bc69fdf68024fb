"""A trial whose data cannot be read says so, and costs the other trials of its run nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis import load_run, write_summary
from analysis.__main__ import main
from analysis.advice import advice
from analysis.evidence import gathered
from analysis.findings import findings
from analysis.profile import read_profile
from analysis.summary import read_summary
from tests.analysis.made_run import MIB, make_run


def junk(path: Path) -> None:
    path.write_bytes(b"PAR1" + bytes(range(256)) * 4)


def wrong_columns(path: Path) -> None:
    pq.write_table(pa.table({"a": [1], "b": ["x"]}), path)


def wrong_types(path: Path) -> None:
    table = pq.read_table(path)
    place = table.schema.get_field_index("bytes")
    pq.write_table(table.set_column(place, "bytes", pa.array(["many"] * table.num_rows)), path)


def damaged_pages(path: Path) -> None:
    """Leave the end of the file, which tells what is in it, as it is."""
    data = bytearray(path.read_bytes())
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    data[4:footer] = b"\xa5" * (footer - 4)
    path.write_bytes(data)


DAMAGE = [junk, wrong_columns, wrong_types, damaged_pages]


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("cached", [False, True])
def test_the_other_trials_keep_their_metrics_and_the_broken_one_says_what_is_wrong(
    tmp_path: Path, damage: Callable[[Path], None], cached: bool
) -> None:
    run = make_run(tmp_path, sizes=(MIB, 2 * MIB))
    whole, before = read_profile(load_run(run)), read_summary(load_run(run))
    if not cached:
        (run / "metrics.parquet").unlink()
    broken = load_run(run).published[0]
    damage(broken.path / "requests.parquet")
    for path, frame, old in (
        (run / "metrics.parquet", read_profile(load_run(run)), whole),
        (write_summary(run), read_summary(load_run(run)), before),
    ):
        others = pl.col("slug") != broken.slug
        assert frame.filter(others).equals(old.filter(others))
        if not cached or damage is not damaged_pages:
            own = frame.filter(~others)
            assert own["unreadable"].str.contains("requests.parquet").all()
            assert set(own["phase"]) == {"trial"}
        told = pq.read_table(path).to_pylist()
        assert not any(row["unreadable"] for row in told)
        assert cached or broken.slug not in [row["slug"] for row in told]
    assert broken.slug not in [one.trial.slug for one in gathered(load_run(run))]


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("place", [0, -1])
def test_the_report_is_drawn_and_tells_of_it(
    tmp_path: Path, damage: Callable[[Path], None], place: int, capsys
) -> None:
    run = make_run(tmp_path, sizes=(MIB,), repeats=1)
    broken = [trial for trial in load_run(run).published if trial.table("requests")][place]
    damage(broken.path / "requests.parquet")
    assert main([str(run)]) == 0
    assert "report.html" in capsys.readouterr().out
    assert findings(load_run(run))
    assert all(broken.slug not in one.trials for one in advice(load_run(run)))
    page, text = ((run / name).read_text() for name in ("report.html", "report.md"))
    row = next(line for line in text.splitlines() if line.startswith("| ") and broken.id.replace("_", r"\_") in line)
    assert "its data cannot be read" in row
    section = page[page.index(f'id="trial-{broken.slug}"') :]
    assert "requests.parquet" in section[: section.index("</details>")]


def test_damage_after_metrics_were_kept_costs_neither_findings_nor_advice(tmp_path: Path) -> None:
    run = make_run(tmp_path, sizes=(MIB,), repeats=1)
    write_summary(run)
    read_profile(load_run(run))
    damaged_pages(load_run(run).published[0].path / "requests.parquet")
    assert findings(load_run(run))
    assert isinstance(advice(load_run(run)), list)
    assert [one.sizes.is_empty() for one in gathered(load_run(run))[:2]] == [True, False]
