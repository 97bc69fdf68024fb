"""What a hostile node could send: nothing of it leaves the run's folder, fills the disk, or breaks the run."""

import os
import sys

import pytest

from analysis import load_run
from analysis.errors import AnalysisError, StoreFull
from analysis.store import RunStore
from tests.test_store import RECORD, declared, manifest, publish


@pytest.fixture
def run(tmp_path):
    return tmp_path / "results" / "s" / "run1"


@pytest.fixture
def store(run):
    store = RunStore(str(run))
    store.create({"sweep": "s", "plan": []}, "name: s\n")
    return store


NAMES = ["../x", "/etc/passwd", "logs/../../x", "a/b", "", ".", "..", "logs/", ".hidden", "a\0b", "a\n", "a" * 200]


@pytest.mark.parametrize("name", [*NAMES, "logs", "trial.json", None, 7, ["a"]])
def test_a_file_cannot_leave_its_trial(store, name):
    store.expect("x", "k-1")
    with pytest.raises(AnalysisError, match="is no file name of a trial"):
        store.declare("x", "k-1", [{**manifest("a", b""), "name": name}])


@pytest.mark.parametrize("name", NAMES)
def test_a_piece_cannot_leave_its_trial(store, name):
    declared(store, ("a.log", b"abc"))
    with pytest.raises(AnalysisError, match="is no file that the attempt said it would send"):
        store.receive("x", "k-1", name, 0, b"abc")


@pytest.mark.parametrize("slug", ["../x", "a/b", "", "..", "a\0", "a" * 300, "a\n"])
def test_a_trial_cannot_leave_the_run(store, slug):
    for wrong in ((slug, "k-1"), ("x", slug)):
        with pytest.raises(AnalysisError, match="cannot name a folder"):
            store.expect(*wrong)


def test_no_more_is_taken_than_was_declared(store, run):
    declared(store, ("a.log", b"abc"))
    for offset, piece in ((0, b"abcd"), (3, b"d"), (1 << 40, b"d"), (-1, b"a")):
        with pytest.raises(AnalysisError, match="has 3 bytes"):
            store.receive("x", "k-1", "a.log", offset, piece)
    with pytest.raises(AnalysisError, match="other files than"):
        store.declare("x", "k-1", [manifest("a.log", b"abcd")])
    with pytest.raises(AnalysisError, match="other files than"):
        store.publish("x", "k-1", RECORD, [])


@pytest.mark.parametrize(
    "lie", [{"size_bytes": -1}, {"size_bytes": "9"}, {"size_bytes": None}, {"sha256": "x"}, {"sha256": None}]
)
def test_a_size_that_is_none(store, lie):
    store.expect("x", "k-1")
    with pytest.raises(AnalysisError, match="no size and SHA-256"):
        store.declare("x", "k-1", [manifest("a.log", b"") | lie])


def test_more_than_the_disk_holds_is_refused_before_it_is_sent(store):
    store.expect("x", "k-1")
    with pytest.raises(StoreFull, match=r"the disk of .* is full: .* are free, x needs 1,048,576 TiB"):
        store.declare("x", "k-1", [manifest("a.log", b"") | {"size_bytes": 1 << 60}])


def test_too_many_files(store):
    store.expect("x", "k-1")
    for files in ([manifest(f"a{n}", b"") for n in range(5000)], [manifest("a", b"")] * 2):
        with pytest.raises(AnalysisError, match="too many for a trial"):
            store.declare("x", "k-1", files)


def test_links_in_a_shared_folder_are_not_followed(store, run, tmp_path):
    (tmp_path / "secret").write_bytes(b"abc")
    declared(store, ("a.log", b"abc"))
    folder = run / "incoming" / "x-k-1"
    (folder / "a.log").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="symbolic link"):
        store.publish("x", "k-1", RECORD, [manifest("a.log", b"abc")])
    with pytest.raises(OSError, match="symbolic link"):
        store.receive("x", "k-1", "a.log", 0, b"xyz")
    assert (tmp_path / "secret").read_bytes() == b"abc"
    (folder / "a.log").unlink()
    (folder / "a.log").write_bytes(b"abc")
    (folder / "further").symlink_to("/")
    with pytest.raises(AnalysisError, match="'further' came with the trial"):
        store.publish("x", "k-1", RECORD, [manifest("a.log", b"abc")])
    (folder / "further").unlink()
    os.mkfifo(folder / "b.log")  # reading it would wait for ever
    with pytest.raises(AnalysisError, match=r"'b.log' came with the trial"):
        store.publish("x", "k-1", RECORD, [manifest("a.log", b"abc")])


DEEP = {}
for _ in range(sys.getrecursionlimit() + 10):
    DEEP = {"a": DEEP}


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 99},
        {"schema_version": "x"},
        {"slug": "../../y"},
        {"id": None},
        {"cell": [1]},
        {"attempt": "abc"},
        {"repeat": None},
        {"verdict": None},
        {"verdict": {"state": "splendid", "reasons": []}},
        {"verdict": {"state": ["valid"], "reasons": []}},
        {"verdict": {"state": "valid", "reasons": "<script>"}},
        {"node": DEEP},
        {"node": {1, 2}},
        {"node": "x" * (17 << 20)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_record_that_is_none_is_not_published(store, run, change):
    declared(store)
    with pytest.raises(AnalysisError, match=r"x: the record of its attempt"):
        store.publish("x", "k-1", {**RECORD, **change}, [])
    assert not (run / "trials" / "x").exists()
    publish(store, "k-2")
    store.finish({"schema_version": 1})
    assert [trial.slug for trial in load_run(run).published] == ["x"]
