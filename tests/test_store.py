"""The head node's store: pieces in, whole trials out, nothing from an attempt that was given up."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor, wait

import pyarrow.parquet as pq
import pytest

from analysis import intake, load_run, summary
from analysis.errors import AnalysisError
from analysis.run import load_trial
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
    """Send the pieces of one file that is declared."""
    for offset in range(0, len(content), piece):
        store.receive("x", token, name, offset, content[offset : offset + piece])


def publish(store, token, files=(), **changes):
    store.expect("x", token)
    store.declare("x", token, [manifest(n, c) for n, c in files])
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


def test_a_run_of_some_trials_does_not_take_the_place_of_the_latest_whole_one(run):
    whole = {"schema_version": 1, "sweep": "s", "plan": []}
    RunStore(str(run)).create(whole, "name: s\n")
    some = {"schema_version": 1, "sweep": "s", "plan": [], "selection": {"only": ["a == 1"], "trials": []}}
    RunStore(str(run.with_name("run2"))).create(some, "name: s\n")
    assert (run.parent / "latest").resolve() == run
    RunStore(str(run.with_name("run3"))).create(whole, "name: s\n")
    assert (run.parent / "latest").resolve() == run.with_name("run3")


def test_of_runs_of_some_trials_the_newest_is_the_latest(run):
    for name in ("run1", "run2"):
        some = {"schema_version": 1, "sweep": "s", "plan": [], "selection": {"only": [], "trials": [name]}}
        RunStore(str(run.with_name(name))).create(some, "name: s\n")
        assert (run.parent / "latest").resolve() == run.with_name(name)


def declared(store, *files, token="k-1"):
    store.expect("x", token)
    store.declare("x", token, [manifest(name, content) for name, content in files])


def test_pieces_may_come_twice_and_in_any_order(store, run):
    declared(store, ("logs/a.log", b"abcdef"))
    for offset, piece in ((3, b"def"), (0, b"abc"), (0, b"abc"), (3, b"def")):
        store.receive("x", "k-1", "logs/a.log", offset, piece)
    store.publish("x", "k-1", RECORD, [manifest("logs/a.log", b"abcdef")])
    assert (run / "trials" / "x" / "logs" / "a.log").read_bytes() == b"abcdef"


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ([(0, b"abd")], "arrived damaged"),
        ([(0, b"ab")], "arrived damaged"),
        ([(1, b"bc")], "arrived damaged"),
        ([], "did not arrive"),
    ],
)
def test_damaged_data_are_not_published(store, run, pieces, words):
    declared(store, ("logs/a.log", b"abc"))
    for offset, piece in pieces:
        store.receive("x", "k-1", "logs/a.log", offset, piece)
    with pytest.raises(AnalysisError, match=words):
        store.publish("x", "k-1", RECORD, [manifest("logs/a.log", b"abc")])
    assert not (run / "trials" / "x").exists()


@pytest.mark.parametrize("slug", ["../x", "a/b", "", ".."])
def test_a_trial_cannot_leave_the_run(store, slug):
    with pytest.raises(AnalysisError, match="cannot name a folder"):
        store.expect(slug, "k-1")


def test_an_attempt_that_was_given_up_cannot_write(store, run):
    declared(store, ("logs/a.log", b"abcd"))
    store.receive("x", "k-1", "logs/a.log", 0, b"abc")
    publish(store, "k-2", attempt=2)
    for late in (
        lambda: store.receive("x", "k-1", "logs/a.log", 3, b"d"),
        lambda: store.declare("x", "k-1", []),
        lambda: store.publish("x", "k-1", RECORD, []),
    ):
        with pytest.raises(AnalysisError, match="attempt k-1 was given up"):
            late()
    assert published(run)["attempt"] == 2
    assert not list((run / "incoming").iterdir())


def test_an_attempt_that_is_given_up_while_it_publishes_does_not(store, run, monkeypatch):
    declared(store)
    verify = intake.check_nothing_else
    monkeypatch.setattr("analysis.store.check_nothing_else", lambda *a: (verify(*a), store.expect("x", "k-2")))
    with pytest.raises((AnalysisError, FileNotFoundError)):
        store.publish("x", "k-1", RECORD, [])
    assert not (run / "trials" / "x").exists()


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


FAILED = {**RECORD, "verdict": {"state": "failed", "reasons": ["lost"]}}


def test_an_attempt_that_did_not_publish_is_given_up_for_good(store, run):
    declared(store)
    assert store.give_up("x", "k-1", FAILED) is None
    assert published(run)["verdict"]["state"] == "failed"
    for late in (lambda: store.publish("x", "k-1", RECORD, []), lambda: store.expect("x", "k-1")):
        with pytest.raises(AnalysisError, match="attempt k-1 was given up"):
            late()
    assert published(run)["verdict"]["state"] == "failed"


def test_an_attempt_that_published_is_not_given_up(store, run):
    publish(store, "k-1")
    assert store.give_up("x", "k-1", FAILED) == RECORD
    assert published(run) == RECORD
    assert not (run / "superseded").exists()


def test_no_publication_finishes_between_the_look_and_the_giving_up(store, run, monkeypatch):
    """The attempt publishes, from another thread, at the worst moment: one of the two counts, and both know which."""
    declared(store)
    look = store.published
    with ThreadPoolExecutor(1) as pool:

        def looking(*which):
            known = look(*which)
            late.append(pool.submit(store.publish, "x", "k-1", RECORD, []))
            wait(late, timeout=0.5)
            return known

        late = []
        monkeypatch.setattr(store, "published", looking)
        told = store.give_up("x", "k-1", FAILED)
        error = late[0].exception()
    assert told is None
    assert isinstance(error, (AnalysisError, FileNotFoundError))
    assert published(run)["verdict"]["state"] == "failed"
    assert not (run / "superseded").exists()


def test_at_the_url_too_the_latest_attempt_stays(tmp_path, monkeypatch):
    """An earlier attempt that comes to its place there after a later one does not take it."""
    store = RunStore(str(tmp_path / "results" / "s" / "run1"), f"file://{tmp_path}/bucket")
    store.create({"sweep": "s", "plan": []}, "name: s\n")
    store.expect("x", "k-1")
    complete = store._mirror.complete

    def overtaken(*told):
        monkeypatch.setattr(store._mirror, "complete", complete)
        publish(store, "k-2", attempt=2)
        complete(*told)

    monkeypatch.setattr(store._mirror, "complete", overtaken)
    store.publish("x", "k-1", RECORD, [])
    assert published(tmp_path / "bucket" / "s" / "run1")["attempt"] == 2


def test_a_closed_run_holds_no_halves(store, run):
    declared(store, ("logs/a.log", b"abcd"))
    store.receive("x", "k-1", "logs/a.log", 0, b"abc")
    store.finish({"state": "interrupted"})
    assert not (run / "incoming").exists()
    with pytest.raises(AnalysisError, match="the run has ended"):
        store.publish("x", "k-1", RECORD, [manifest("logs/a.log", b"abcd")])
    assert not (run / "trials" / "x").exists()
    assert json.loads((run / "run.json").read_text())["state"] == "interrupted"


def test_a_trial_that_is_analysed_while_the_run_ends_does_not_break_the_summary(store, monkeypatch):
    """Its rows come while the summary is being written: they wait."""
    publish(store, "k-1")
    append, late = summary._append, []

    def appending(path, rows):
        late.append(pool.submit(store._add_to_summary, "x", "k-1", store._path / "trials" / "x", 0))
        wait(late, timeout=1)
        assert not late[0].done()
        append(path, rows)

    store._summary.add("x", summary.summary_rows(load_trial(store._path / "trials" / "x")))
    monkeypatch.setattr(summary, "_append", appending)
    with ThreadPoolExecutor(1) as pool:
        store.finish({"state": "finished"})
    assert late[0].result() is None


def test_a_trial_whose_trace_cannot_be_read_is_published_and_not_known(store, run):
    store.update({"schema_version": 1})
    publish(store, "k-1", [("requests.parquet", b"PAR1 and junk")])
    assert published(run)["verdict"]["state"] == "valid"
    assert pq.read_table(run / "summary.parquet").num_rows == 0
    assert "requests.parquet" in load_run(run).summary()["unreadable"].item()


def test_many_nodes_publish_at_once(store, run):
    """Pieces and publications of many trials from many threads: every one is there, to the byte, and in the summary."""

    def one(place):
        slug, content = f"t{place}", bytes([place]) * 50_000
        files = [manifest("logs/a.log", content)]
        store.expect(slug, "k")
        store.declare(slug, "k", files)
        for offset in range(0, len(content), 10_000):
            store.receive(slug, "k", "logs/a.log", offset, content[offset : offset + 10_000])
        store.publish(slug, "k", {**RECORD, "slug": slug, "id": slug}, files)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(40)))
    store.finish({"schema_version": 1})
    assert sorted(pq.read_table(run / "summary.parquet")["slug"].to_pylist()) == sorted(f"t{n}" for n in range(40))
    for place in range(40):
        assert (run / "trials" / f"t{place}" / "logs" / "a.log").read_bytes() == bytes([place]) * 50_000
