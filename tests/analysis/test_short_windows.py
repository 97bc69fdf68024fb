"""Charts over time of a window shorter than a bin, of one bin, and of many: none is wider than its axis."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from analysis import load_run, vega
from analysis.errors import AnalysisError
from analysis.figures import draw, figure
from analysis.run import Run
from tests.analysis.made_run import BEGIN_NS, MIB, make_run, request_row, write_record, write_requests

OVER_TIME = ("bandwidth", "timeline", "sectors", "depth", "fig5", "fig6", "pressure", "latency")
#: The width of a chart over time in pixels, its axis labels and legend included, with room for longer labels.
WIDEST = 900


def made(root: Path, offsets_ns: list[int]) -> Run:
    """Return a run of one trial whose requests were issued at these times and complete at once."""
    trial = root / "trials" / "t"
    write_record(trial, tracer={"name": "made"})
    times = [BEGIN_NS + offset for offset in offsets_ns]
    write_requests(trial / "requests.parquet", [request_row(time, time, "write", 4096) for time in times])
    plan = [{"id": "x=1,rep=1", "slug": "t", "cell": {"x": 1}, "repeat": 1}]
    (root / "run.json").write_text(json.dumps({"schema_version": 1, "plan": plan}))
    return load_run(root)


@pytest.mark.parametrize("last_ns", [0, 200_000, 5_000_000, 10_000_000, 12_000_000, 25_000_000, 7_000_000_000])
def test_no_chart_over_time_is_wider_than_its_axis(tmp_path: Path, last_ns: int) -> None:
    run = made(tmp_path, [0, last_ns // 2, last_ns])
    for name in OVER_TIME:
        for panel in figure(name).charts(run):
            svg = vega.svg(vega.plain(panel.chart.to_dict()))
            width = float((re.search(r'<svg[^>]* width="([0-9.]+)"', svg) or [0, "inf"])[1])
            assert width <= WIDEST, f"{panel.name} of {last_ns} ns"
            assert vega.pdf(svg)


def test_one_request_is_drawn(tmp_path: Path) -> None:
    panel = next(iter(figure("bandwidth").charts(made(tmp_path, [0]))))
    assert panel.reason is None


class PanicException(BaseException):
    """As pyo3's, which is no Exception."""


PanicException.__module__ = "pyo3_runtime"


def test_what_the_converter_cannot_draw_says_so_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = load_run(make_run(tmp_path, sizes=(MIB,), repeats=1, broken=False))
    calls: list[str] = []

    def pdf(svg: str) -> bytes:
        calls.append(svg)
        if len(calls) == 1:
            raise PanicException("called `Option::unwrap()` on a `None` value")
        return b"%PDF"

    monkeypatch.setattr(vega.vl_convert, "svg_to_pdf", pdf)
    first, *others = draw(run, ["fig2", "sizes"], tmp_path / "figures")
    assert first.reason is not None
    assert "Option::unwrap()" in first.reason
    assert first.files["pdf"].is_file()
    assert others
    assert all(one.reason is None for one in others)


def test_an_interrupt_is_none_of_the_converters_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(svg: str) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(vega.vl_convert, "svg_to_pdf", stop)
    with pytest.raises(KeyboardInterrupt):
        vega.pdf("<svg/>")


def test_a_converters_value_error_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(svg: str) -> bytes:
        raise ValueError("no such font\nat line 1")

    monkeypatch.setattr(vega.vl_convert, "svg_to_pdf", refuse)
    with pytest.raises(AnalysisError, match=r"the picture cannot be made: no such font$"):
        vega.pdf("<svg/>")
