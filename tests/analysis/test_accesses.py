"""Accesses per sector against counting them one by one, and where in time they happened."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis import AnalysisError, accesses, trace
from analysis.accesses import access_counts, footprints
from analysis.spans import Sections, spans
from tests.analysis.made_run import phase_row, request_row, write_phases, write_record, write_requests
from tests.analysis.test_trace_metrics import LIGHT

OPS = ("read", "write", "flush", "discard")
request = st.tuples(st.sampled_from(OPS), st.integers(0, 40), st.sampled_from([0, 1, 512, 513, 1024, 4096, 6144]))


def brute_force(requests: list[tuple[str, int, int]], devices: list[str]) -> set[tuple[str, int, int]]:
    counted: dict[str, Counter[tuple[str, int]]] = {"read": Counter(), "write": Counter()}
    for (op, sector, size), dev in zip(requests, devices, strict=False):
        if op in counted:
            counted[op].update((dev, at) for at in range(sector, sector + -(-size // 512)))
    return {
        (op, times, sectors) for op, touched in counted.items() for times, sectors in Counter(touched.values()).items()
    }


def rows(requests: list[tuple[str, int, int]]) -> list[dict[str, Any]]:
    return [request_row(n, n + 1 if n % 3 else None, op, size, at) for n, (op, at, size) in enumerate(requests)]


@LIGHT
@given(
    requests=st.lists(request, max_size=60),
    devices=st.just(["7:0"] * 60) | st.lists(st.sampled_from(["7:0", "7:1", "259:4"]), min_size=60, max_size=60),
    most=st.sampled_from([0, 16, 80, 1 << 20]),
    walk=st.sampled_from([2, 5, 1 << 20]),
    buckets=st.sampled_from([1, 3, 64]),
    batch=st.integers(1, 9),
)
def test_accesses_per_sector_are_exact_however_little_memory(
    requests: list[tuple[str, int, int]],
    devices: list[str],
    most: int,
    walk: int,
    buckets: int,
    batch: int,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trace, "BATCH_ROWS", batch)
    for name, value in (("MOST_BYTES", most), ("_WALK", walk), ("_BUCKETS", buckets)):
        monkeypatch.setattr(accesses, name, value)
    path = tmp_path_factory.mktemp("trial") / "requests.parquet"
    write_requests(path, [row | {"dev": dev} for row, dev in zip(rows(requests), devices, strict=False)])
    found = access_counts(path)
    assert set(found.rows()) == brute_force(requests, devices)
    assert found.equals(found.sort("op", "accesses"))


times = st.integers(0, 60)


@LIGHT
@given(
    requests=st.lists(request, max_size=60),
    stretches=st.lists(st.tuples(times, times, st.sampled_from("abc")), max_size=12),
    most=st.sampled_from([0, 16, 80, 1 << 20]),
    walk=st.sampled_from([2, 5, 1 << 20]),
    batch=st.integers(1, 9),
)
def test_footprints_are_the_sectors_touched_in_each_span(
    requests: list[tuple[str, int, int]],
    stretches: list[tuple[int, int, str]],
    most: int,
    walk: int,
    batch: int,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trace, "BATCH_ROWS", batch)
    for name, value in (("MOST_BYTES", most), ("_WALK", walk), ("_WORD", 2)):
        monkeypatch.setattr(accesses, name, value)
    folder = tmp_path_factory.mktemp("trial")
    write_record(folder, tracer={"name": "made", "begin_ns": 3, "end_ns": 50})
    write_requests(folder / "requests.parquet", rows(requests))
    write_phases(folder / "phases.parquet", [phase_row(name, b, e) for b, e, name in stretches])
    told = spans(folder)
    found = footprints(folder / "requests.parquet", told, Sections(told))
    for span, own in zip(told, found, strict=True):
        touched: dict[str, set[int]] = {"read": set(), "write": set()}
        moments = {t for b, e in zip(span.begin_ns, span.end_ns, strict=True) for t in range(b, e)}
        for t, (op, at, size) in enumerate(requests):
            if op in touched and t in moments:
                touched[op].update(range(at, at + -(-size // 512)))
        wanted = {op: len(held) for op, held in touched.items()}
        assert own == wanted | {"all": len(touched["read"] | touched["write"])}


def test_large_sectors_and_sizes_are_no_trouble(tmp_path: Path) -> None:
    far = 1 << 40
    write_requests(tmp_path / "r.parquet", rows([("read", far, 1 << 30), ("read", far + 1, 512), ("write", 0, 512)]))
    assert access_counts(tmp_path / "r.parquet").rows() == [
        ("read", 1, (1 << 21) - 1),
        ("read", 2, 1),
        ("write", 1, 1),
    ]


def test_a_file_that_is_none_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "requests.parquet"
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(AnalysisError, match=r"requests\.parquet: "):
        access_counts(path)


def test_many_requests_for_few_sectors_take_little_room() -> None:
    cover = accesses._Cover(np.int64)
    for _ in range(100):
        begin = np.arange(0, 1 << 20, 1 << 10)
        cover.add(begin, begin + (1 << 10))
        assert cover.fold() == 4
    assert cover.tally() == {100: 1 << 20}
