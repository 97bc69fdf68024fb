"""The head node's store: pieces in, whole trials out, nothing from an attempt that was given up."""

import hashlib
import json

import pyarrow.parquet as pq
import pytest

from analysis import load_run
from analysis.errors import AnalysisError
from analysis.store import RunStore

RECORD = {
    "schema_version": 1,
    "id": "a=1,rep=1",
    "slug": "x",
    "cell": {"a": 1},
    "repeat": 1,
    "attempt": 1,
    "tracer": None,
    "verdict": {"state": "valid", "reasons": []},
}


@pytest.fixture
def run(tmp_path):
    return tmp_path / "results" / "s" / "run1"


@pytest.fixture
def store(run):
    store = RunStore(str(run))
    store.create({"sweep": "s", "plan": []}, "name: s\n")
    return store


def manifest(name, content):
    return {"name": name, "size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def send(store, token, name, content, piece=3):
    for offset in range(0, len(content), piece):
        store.receive("x", token, name, offset, content[offset : offset + piece])


def publish(store, token, files=(), **changes):
    store.expect("x", token)
    for name, content in files:
        send(store, token, name, content)
    store.publish("x", token, {**RECORD, **changes}, [manifest(n, c) for n, c in files])


def published(run):
    return json.loads((run / "trials" / "x" / "trial.json").read_text())


def test_a_trial_appears_whole(store, run):
    publish(store, "k-1", [("logs/job.log", b"0123456789")])
    assert (run / "trials" / "x" / "logs" / "job.log").read_bytes() == b"0123456789"
    assert published(run)["verdict"]["state"] == "valid"
    assert (run / "summary.parquet").exists()
    assert (run.parent / "latest").resolve() == run
    assert not list((run / "incoming").iterdir())


def test_a_piece_that_comes_twice_counts_once_and_a_gap_is_refused(store, run):
    store.expect("x", "k-1")
    for offset, piece in ((0, b"abc"), (0, b"abc"), (3, b"def"), (3, b"def")):
        store.receive("x", "k-1", "logs/a.log", offset, piece)
    with pytest.raises(AnalysisError, match="lacks the bytes before 9"):
        store.receive("x", "k-1", "logs/a.log", 9, b"ghi")
    store.publish("x", "k-1", RECORD, [manifest("logs/a.log", b"abcdef")])
    assert (run / "trials" / "x" / "logs" / "a.log").read_bytes() == b"abcdef"


def test_damaged_data_are_not_published(store, run):
    store.expect("x", "k-1")
    store.receive("x", "k-1", "logs/a.log", 0, b"abc")
    with pytest.raises(AnalysisError, match="arrived damaged"):
        store.publish("x", "k-1", RECORD, [manifest("logs/a.log", b"abd")])
    assert not (run / "trials" / "x").exists()


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "logs/../../x", "a/b", "", ".", "..", "logs/", ".hidden"])
def test_a_file_cannot_leave_its_trial(store, name):
    store.expect("x", "k-1")
    with pytest.raises(AnalysisError, match="is no file name of a trial"):
        store.receive("x", "k-1", name, 0, b"")


@pytest.mark.parametrize("slug", ["../x", "a/b", "", ".."])
def test_a_trial_cannot_leave_the_run(store, slug):
    with pytest.raises(AnalysisError, match="cannot name a folder"):
        store.expect(slug, "k-1")


def test_an_attempt_that_was_given_up_cannot_write(store, run):
    store.expect("x", "k-1")
    store.receive("x", "k-1", "logs/a.log", 0, b"abc")
    publish(store, "k-2", attempt=2)
    for late in (
        lambda: store.receive("x", "k-1", "logs/a.log", 3, b"d"),
        lambda: store.publish("x", "k-1", RECORD, []),
    ):
        with pytest.raises(AnalysisError, match="attempt k-1 was given up"):
            late()
    assert published(run)["attempt"] == 2


def test_every_attempt_that_was_published_is_kept(store, run):
    publish(store, "k-1")
    publish(store, "k-1-driver", verdict={"state": "failed", "reasons": ["lost"]})
    publish(store, "k-2", attempt=2)
    assert published(run)["attempt"] == 2
    assert sorted(p.name for p in (run / "superseded").iterdir()) == ["x-k-1", "x-k-1-driver"]


def test_what_an_attempt_published_can_be_asked_for(store):
    assert store.published("x", "k-1") is None
    publish(store, "k-1")
    assert store.published("x", "k-1") == RECORD
    assert store.published("x", "k-2") is None


def test_a_closed_run_holds_no_halves(store, run):
    store.expect("x", "k-1")
    store.receive("x", "k-1", "logs/a.log", 0, b"abc")
    store.finish({"state": "interrupted"})
    assert not (run / "incoming").exists()
    assert json.loads((run / "run.json").read_text())["state"] == "interrupted"


def test_a_trial_whose_trace_cannot_be_read_is_published_and_not_known(store, run):
    store.update({"schema_version": 1})
    publish(store, "k-1", [("requests.parquet", b"PAR1 and junk")])
    assert published(run)["verdict"]["state"] == "valid"
    assert pq.read_table(run / "summary.parquet").num_rows == 0
    assert "requests.parquet" in load_run(run).summary()["unreadable"].item()
