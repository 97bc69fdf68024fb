"""The report as Chromium shows it: it renders at desk and phone width, sorts, filters, and asks for nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from analysis import draw_run
from tests.analysis.browser import Tab, tab
from tests.analysis.made_run import MIB, make_run, write_record

DESK, PHONE = 1280, 390
TRIALS = "document.querySelector('#trials table')"
GIB = 1 << 30


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with valid, invalid, failed and missing trials, whose amounts sort by value otherwise than by text."""
    run = make_run(tmp_path_factory.mktemp("results"), sizes=(MIB, 4 * MIB), repeats=1)
    for name, count in (("a", 2 * GIB), ("b", 900 * MIB), ("c", 11 * GIB)):
        sums = {"read": count, "write": None}
        changes = {"bytes": {"expected": sums, "traced": sums, "counted": sums}, "tracer": {"name": "diskstats"}}
        write_record(run / "trials" / name, id=f"fs=btrfs,x={name}", cell={"fs": "btrfs"}, **changes)
    return Path(draw_run(run)["report"])


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with tab(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.fixture
def page(browser: Tab, made: Path) -> Tab:
    browser.open(made, DESK)
    return browser


def texts(page: Tab, column: int) -> list[str]:
    script = f"Array.from({TRIALS}.tBodies[0].rows).filter(r => !r.hidden).map(r => r.cells[{column}].innerText.trim())"
    return list(json.loads(page.run(f"JSON.stringify({script})")))


def press_head(page: Tab, column: int) -> str:
    """Click on the head of a column of the trials; return how it says it is sorted."""
    page.run(f"{TRIALS}.querySelector('th[data-column=\"{column}\"] button').click()")
    return str(page.run(f"{TRIALS}.querySelector('th[data-column=\"{column}\"]').getAttribute('aria-sort')"))


def show_all_charts(page: Tab) -> None:
    page.run("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    count = page.run("document.querySelectorAll('figure').length")
    assert count
    for place in range(count):
        page.run(f"document.querySelectorAll('figure')[{place}].scrollIntoView()")
        page.wait(f"document.querySelectorAll('figure')[{place}].querySelector('.vega-embed svg.marks')")


@pytest.mark.parametrize("width", [DESK, PHONE])
def test_it_renders_without_errors_or_network_and_fits(page: Tab, made: Path, width: int) -> None:
    page.events.clear()
    page.open(made, width)
    show_all_charts(page)
    assert page.run("document.querySelectorAll('figure img').length") == 0
    assert page.run("document.documentElement.scrollWidth") == width
    empty = "Array.from(document.querySelectorAll('svg.marks')).filter(one => one.getBoundingClientRect().height < 40)"
    assert page.run(f"{empty}.length") == 0
    assert page.trouble() == []
    assert {address for address in page.requests() if not address.startswith("data:")} == {made.as_uri()}


def test_columns_sort_by_value_up_and_down_and_unknown_last(page: Tab) -> None:
    column = page.run(f"Array.from({TRIALS}.querySelectorAll('th[data-column]')).find(h => h.innerText.trim()"
                      " === 'traced').dataset.column")  # fmt: skip
    assert press_head(page, column) == "ascending"
    up = texts(page, int(column))
    known = [text for text in up if text not in ("unknown", "")]
    assert known[-3:] == ["900 MiB", "2 GiB", "11 GiB"]
    assert up[: len(known)] == known
    assert press_head(page, column) == "descending"
    down = texts(page, int(column))
    assert down[:3] == ["11 GiB", "2 GiB", "900 MiB"]
    assert sorted(down[len(known) :]) == sorted(up[len(known) :])
    assert press_head(page, 0) == "ascending"
    sorted_heads = f"{TRIALS}.querySelectorAll('th[aria-sort=ascending], th[aria-sort=descending]').length"
    assert page.run(sorted_heads) == 1


def test_the_keyboard_sorts_too(page: Tab) -> None:
    page.run(f"{TRIALS}.querySelector('th[data-column=\"0\"] button').focus()")
    before = texts(page, 0)
    page.press("Enter")
    page.press("Enter")
    assert texts(page, 0) == sorted(before, reverse=True)


def test_words_verdicts_and_axes_filter_rows_and_sections(page: Tab) -> None:
    everything = len(texts(page, 0))

    def choose(selector: str, value: str) -> list[str]:
        field = f"document.querySelector({json.dumps('.filter ' + selector)})"
        page.run(f"{field}.value = {json.dumps(value)}; {field}.dispatchEvent(new Event('input', {{bubbles: true}}))")
        return texts(page, 0)

    assert choose("input", "BTRFS x=b") == ["fs=btrfs,x=b"]
    assert page.run("Array.from(document.querySelectorAll('#each > details')).filter(d => !d.hidden).length") == 1
    assert page.run("document.querySelector('.filter output').innerText") == f"1 of {everything} trials"
    assert len(choose("input", "")) == everything
    assert choose("select:not([data-axis])", "=failed") == ["fs=xfs,rep=2"]
    choose("select:not([data-axis])", "")
    assert len(choose("select[data-axis=fs]", "=btrfs")) == 3
    page.run("document.querySelector('.filter button').click()")
    assert len(texts(page, 0)) == everything


def test_a_link_opens_the_folded_section_of_a_trial(page: Tab) -> None:
    page.run("document.querySelector('#trials td a[href^=\"#figure-\"]').click()")
    page.wait("document.querySelector('#each > details[open]')")
    shown = "document.querySelector(location.hash.replace(/[=,]/g, '\\\\$&')).getBoundingClientRect().top"
    page.wait(f"Math.abs({shown}) < innerHeight")


def test_a_command_is_copied_from_a_page_that_is_a_file(page: Tab) -> None:
    place = "document.querySelector('#again .copied')"
    page.run(f"{place}.querySelector('button').click()")
    page.wait(f"{place}.querySelector('button').innerText === 'Copied'")
