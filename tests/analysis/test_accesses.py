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
from analysis.accesses import access_counts
from tests.analysis.made_run import request_row, write_requests
from tests.analysis.test_trace_metrics import LIGHT

OPS = ("read", "write", "flush", "discard")
request = st.tuples(st.sampled_from(OPS), st.integers(0, 40), st.sampled_from([0, 1, 512, 513, 1024, 4096, 6144]))


def brute_force(requests: list[tuple[str, int, int]]) -> set[tuple[str, int, int]]:
    counted: dict[str, Counter[int]] = {"read": Counter(), "write": Counter()}
    for op, sector, size in requests:
        if op in counted:
            counted[op].update(range(sector, sector + -(-size // 512)))
    return {
        (op, times, sectors) for op, touched in counted.items() for times, sectors in Counter(touched.values()).items()
    }


def rows(requests: list[tuple[str, int, int]]) -> list[dict[str, Any]]:
    return [request_row(n, n + 1 if n % 3 else None, op, size, at) for n, (op, at, size) in enumerate(requests)]


@LIGHT
@given(requests=st.lists(request, max_size=60), most=st.sampled_from([1, 2, 5, 1 << 20]), batch=st.integers(1, 9))
def test_accesses_per_sector_are_exact_however_little_memory(
    requests: list[tuple[str, int, int]],
    most: int,
    batch: int,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trace, "BATCH_ROWS", batch)
    monkeypatch.setattr(accesses, "MOST_BOUNDARIES", most)
    path = tmp_path_factory.mktemp("trial") / "requests.parquet"
    write_requests(path, rows(requests))
    found = access_counts(path)
    assert set(found.rows()) == brute_force(requests)
    assert found.equals(found.sort("op", "accesses"))


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
    with pytest.raises(AnalysisError, match=r"requests\.parquet: cannot be read as requests"):
        access_counts(path)


def test_boundaries_that_cancel_out_take_no_room() -> None:
    stretch = accesses._Stretch(0)
    for start in range(0, 1 << 20, 1 << 10):
        begin = np.arange(start, start + (1 << 10), 8)
        stretch.add(begin, begin + 8)
    stretch._take_in()
    assert stretch._at.tolist() == [0, 1 << 20]
    assert stretch.tally() == {1: 1 << 20}
