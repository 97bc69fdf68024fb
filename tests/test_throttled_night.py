"""Three nights on a drive in memory: the second like the first, in the third the drive is held to 85 % of its speed.

The drive is a loop device on tmpfs with a filesystem, on which trials make their images as on a disk. A cgroup (v1
blkio) holds it to a stated speed in all three nights, one that this machine reaches whatever else it does: what such
a device could do without depends on its two processors, and is another thing every minute. The throttle is of the
drive and not of the trial's own loop device: requests that a throttle holds back are not issued yet, so on the traced
device itself it would show as fewer requests in flight and not as latency.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from analysis import ledger
from tests import drive

ROOT = Path(__file__).parent.parent
SHARE = 0.85
CONF = ROOT / "benchmarks" / "held.yaml"
#: One is enough: a night of both takes two minutes.
FS = "xfs"


@pytest.fixture
def slow_drive(tmp_path: Path) -> Iterator[drive.Drive]:
    if not drive.throttles():
        pytest.skip("this machine has no cgroup v1 blkio, by which a drive is slowed down")
    with drive.made(tmp_path, drive.SIZE_BYTES) as found:
        found.hold()
        yield found


def night(place: Path, results: Path) -> subprocess.CompletedProcess[str]:
    # a tracer that is not chosen anew in the state folder of this test
    words = [f"storage.path={place}", f"grid.storage.fs=[{FS}]", "trace.tracer=ftrace", "--baseline", "latest:2"]
    command = [sys.executable, "-m", "sweep", str(CONF), *words, "--results", str(results)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600, check=False)


@pytest.mark.root
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_slower_drive_is_found_in_the_night_it_became_so(
    slow_drive: drive.Drive, tmp_path: Path, state: Path
) -> None:
    place, results = slow_drive.folder, tmp_path / "results"
    first = night(place, results)
    assert (first.returncode, "this is the first" in first.stdout) == (0, True), first.stderr
    second = night(place, results)
    assert (second.returncode, "No regression" in second.stdout) == (0, True), second.stdout + second.stderr
    slow_drive.slow_down(SHARE * drive.RATE, SHARE * drive.RATE)
    third = night(place, results)
    assert third.returncode == 4, third.stdout + third.stderr
    folder = (results / "held" / "latest").resolve()
    text = (folder / "comparison.txt").read_text()
    print(text)
    assert text in third.stdout
    assert "REGRESSION: 2 of 2 measures slower" in text
    told = json.loads((folder / "comparison.json").read_text())
    single = [one for one in told["regressions"] if one["members"] == 1]
    assert {(json.loads(one["cell"])["fs"], one["phase"].split()[0]) for one in single} == {
        (FS, phase) for phase in ("store", "load")
    }
    for one in single:
        assert one["change"] == pytest.approx(SHARE - 1, abs=0.04)
        assert one["interval"][0] <= one["change"] <= one["interval"][1] < -0.05
        assert one["p"] <= 0.05
        assert re.search(r"request sizes( and depth)? unchanged", one["cause"])
        assert one["cause"] in text
    # a store waits for the last of its requests, and a throttle lets most go at once: few are late, by what is left of
    # a slice of 100 ms, so that its latency is another every night
    load = next(one["cause"] for one in single if one["phase"].startswith("load"))
    assert re.search(r"D2C mean \+\d+ %.*the drive.* slower", load)
    frame = ledger.read(results / ledger.FILE)
    assert frame.run.nunique() == 3
    assert {json.loads(cell)["fs"] for cell in frame.cell.unique()} == {FS}
    assert (results / "held" / "history.html").is_file()
