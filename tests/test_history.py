"""The history page: two weeks of simulated nights, a step in the middle, and what else changed, on the right night."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis import history, ledger, multiples, series
from tests import nights

STEP = 7
STEP_DAY = "2026-11-08"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "s"
    made.mkdir()
    return made


def entered(folder: Path, number: int, **told: Any) -> None:
    rows = [nights.night(place, sweep=folder.name, **told) for place in range(number)]
    ledger.append(folder.parent / ledger.FILE, pd.concat(rows, ignore_index=True))


def slower(number: int, cell: Mapping[str, Any]) -> float:
    return 0.85 if number >= STEP and cell["storage.fs"] == "xfs" else 1.0


def table(page: str, section: str) -> list[list[str]]:
    """Return the cells of the first table of a section, as text."""
    found = re.search(rf'<section id="{section}">.*?</section>', page, re.DOTALL)
    assert found
    rows = re.findall(r"<tr.*?</tr>", found[0], re.DOTALL)[1:]
    return [[html.unescape(re.sub("<.*?>", "", cell)) for cell in re.findall(r"<td.*?</td>", row)] for row in rows]


def test_two_weeks_with_a_step_in_the_middle(folder: Path) -> None:
    entered(folder, 14, level=slower, kernel=lambda number: "6.18.1" if number < 10 else "6.18.2")
    page = history.write(folder).read_text()
    steps = table(page, "steps")
    assert {row[0] for row in steps} == {STEP_DAY}
    told = {(row[1], row[2]) for row in steps}
    cells = ["fs=xfs, batch_size=16", "fs=xfs, batch_size=64"]
    assert told == {
        (cell, what) for cell in cells for what in ("Bandwidth of reads in decode", "Latency p99 of reads in decode")
    }
    for row in steps:
        change = float(row[3].replace("−", "-").removesuffix(" %"))
        assert change == pytest.approx(-15 if "Bandwidth" in row[2] else 17.6, abs=2)
        assert row[7] == "nothing that is recorded"
    assert table(page, "changes") == [["A", "2026-11-11", "kernel", "6.18.1", "6.18.2", "all"]]
    names = sorted(path.name for path in (folder / "history").iterdir())
    assert names == [
        f"{name}.{kind}"
        for name in ("bandwidth-of-reads-in-decode", "latency-p99-of-reads-in-decode")
        for kind in ("png", "svg")
    ]
    picture = (folder / "history" / "bandwidth-of-reads-in-decode.svg").read_text()
    assert len(re.findall(">−1[456] %<", picture)) == 2
    assert "Bandwidth of reads in decode, GiB/s" in picture


def test_a_change_on_the_night_of_a_step_is_told_beside_it(folder: Path) -> None:
    entered(folder, 14, level=slower, kernel=lambda number: "6.18.1" if number < STEP else "6.18.2")
    steps = table(history.write(folder).read_text(), "steps")
    assert {(row[0], row[7]) for row in steps} == {(STEP_DAY, "A")}


def test_nights_of_noise_have_no_step(folder: Path) -> None:
    entered(folder, 14)
    page = history.write(folder).read_text()
    assert "No step was found in 8 series." in page
    assert "Nothing that is recorded: kernel" in page


def test_the_page_loads_nothing_and_takes_no_text_for_markup(folder: Path) -> None:
    cells = ({"storage.fs": "<script>alert(1)</script>"}, {"storage.fs": "x&y"})
    entered(folder, 3, cells=cells, kernel=lambda number: f"<b>{number}</b>")
    page = history.write(folder).read_text()
    assert "<script" not in page
    assert "<b>1" not in page
    assert not re.search(r'(src|href)="https?:', page)


def test_few_nights_are_a_page_too(folder: Path) -> None:
    entered(folder, 1, repeats=1)
    assert "1 night from 2026-11-01" in history.write(folder).read_text()


def test_what_is_not_valid_is_not_drawn_and_without_anything_it_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entered(folder, 2, verdict="invalid")
    assert history.main([str(folder)]) == 2
    assert "no history: " in capsys.readouterr().err
    assert history.main([str(folder.parent / "nowhere")]) == 2


def test_a_job_of_which_no_bytes_are_known_is_followed_by_its_time() -> None:
    rows = nights.night(0, bytes=pd.NA, bandwidth_gib_s=float("nan"), d2c_p99_us=float("nan"))
    found = series.series(ledger.results(rows))
    assert {one.title for one in found} == {"Duration of decode"}


def test_of_each_cell_the_operation_that_moves_most_is_followed() -> None:
    rows = nights.night(0)
    first = rows.cell == rows.cell.iloc[0]
    rows.loc[first, "op"] = rows[first].op.replace({"read": "write", "write": "read"})
    found = series.series(ledger.results(rows))
    assert [(one.title, one.cell == rows.cell.iloc[0]) for one in found if "Bandwidth" in one.title] == [
        ("Bandwidth of writes in decode", True),
        *[("Bandwidth of reads in decode", False)] * 3,
    ]


def test_letters_go_on_after_z() -> None:
    assert [multiples.letter(place) for place in (0, 25, 26, 27, 52)] == ["A", "Z", "AA", "AB", "BA"]


def test_cells_are_called_by_what_tells_them_apart() -> None:
    a, b = '{"a.fs":"xfs","a.x":1,"b.x":2}', '{"a.fs":"xfs","a.x":2,"b.x":3}'
    assert series.labels([a, b]) == {a: "a.x=1, b.x=2", b: "a.x=2, b.x=3"}
    assert series.labels([a]) == {a: "fs=xfs, a.x=1, b.x=2"}
    assert series.labels(["{}"]) == {"{}": "all trials"}
