"""The actor is killed, or the disk fills up, at any point: a reader sees whole trials only, and the run goes on."""

import json
import os
import subprocess
from contextlib import suppress

import pytest

from analysis import load_run
from analysis.errors import StoreFull
from analysis.store import RunStore
from tests.crashing import FILES, killed_at, second_attempt, whole_run
from tests.test_store import RECORD, manifest, publish


def check_readable(run, attempts):
    """Everything that a reader finds is whole."""
    if not (run / "run.json").exists():
        return []
    found = load_run(run).published
    for trial in found:
        assert trial.attempt in attempts
        assert trial.state == "valid"
        for name, content in FILES:
            assert (trial.path / name).read_bytes() == content
    json.loads((run / "run.json").read_text())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("earlier", [False, True], ids=["first attempt", "second attempt"])
def test_an_actor_killed_at_any_point_publishes_no_half(tmp_path, earlier):
    seen = set()
    for step in range(200):
        run = tmp_path / f"{step}" / "s" / "run"
        killed = killed_at(step, second_attempt, run, earlier)
        seen.add(tuple(trial.attempt for trial in check_readable(run, {1, 2})))
        again = RunStore(str(run))
        again.resume({}, "name: s\n", [])
        assert not list((run / "incoming").iterdir())
        assert not [path for path in run.iterdir() if path.name.startswith(".")]
        publish(again, "k-2", FILES, attempt=3)
        assert [trial.attempt for trial in check_readable(run, {3})] == [3]
        if not killed:
            break
    assert step > 15
    assert not killed
    # between the old attempt's leaving and the new one's coming there is none; never two, never a half
    assert seen == ({(1,), (), (2,)} if earlier else {(), (2,)})


@pytest.mark.slow
def test_an_actor_killed_at_any_point_of_its_begin_or_end_leaves_a_record_or_none(tmp_path):
    for step in range(300):
        run = tmp_path / f"{step}" / "s" / "run"
        killed = killed_at(step, whole_run, run)
        check_readable(run, {1})
        if not killed:
            break
    assert step > 40
    assert not killed
    assert load_run(run).record["state"] == "finished"


@pytest.fixture
def small_disk(tmp_path):
    """A filesystem of 48 MiB for the results."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder):
    """Take all that is left of a filesystem; return the file that has it."""
    hog = folder / "hog"
    with hog.open("wb", buffering=0) as f, suppress(OSError):
        while True:
            f.write(bytes(4 << 10))
    return hog


@pytest.fixture
def full_store(small_disk):
    store = RunStore(str(small_disk / "s" / "run"))
    store.create({"sweep": "s", "schema_version": 1, "plan": []}, "name: s\n")
    yield store
    store._lock.close()


@pytest.mark.root
def test_a_trial_that_does_not_fit_is_refused_with_what_it_needs(full_store, small_disk):
    publish(full_store, "k-1", FILES)
    full_store.expect("y", "k-2")
    with pytest.raises(StoreFull) as told:
        full_store.declare("y", "k-2", [manifest("a.log", b"") | {"size_bytes": 20 << 20}])
    assert f"the disk of {small_disk}/s/run is full: 48.0 MiB are free, y needs 20 MiB" in str(told.value)
    assert "32 MiB stay free" in str(told.value)
    full_store.finish({"state": "broken"})
    run = load_run(small_disk / "s" / "run")
    assert run.record["state"] == "broken"
    assert [trial.slug for trial in run.published] == ["x"]


@pytest.mark.root
def test_what_others_send_counts(full_store):
    for place in range(2):
        full_store.expect(f"t{place}", "k")
    half = [manifest("a.log", b"") | {"size_bytes": 10 << 20}]
    full_store.declare("t0", "k", half)
    with pytest.raises(StoreFull, match=r"and the trials that others send 10 MiB"):
        full_store.declare("t1", "k", half)
    full_store.expect("t0", "k-given-up")
    full_store.declare("t1", "k", half)


@pytest.mark.root
@pytest.mark.parametrize("where", ["receive", "publish"])
def test_a_disk_that_others_fill_meanwhile(full_store, small_disk, where):
    """Whoever else fills the disk under us: a clear word, no half trial, and all goes on once there is room."""
    publish(full_store, "k-1", FILES)
    content = os.urandom(1 << 20)
    full_store.expect("y", "k-2")
    full_store.declare("y", "k-2", [manifest("a.log", content)])
    if where == "publish":
        full_store.receive("y", "k-2", "a.log", 0, content)
    hog = fill(small_disk)
    record = {**RECORD, "slug": "y"}
    steps = {
        "receive": lambda: full_store.receive("y", "k-2", "a.log", 0, content),
        "publish": lambda: full_store.publish("y", "k-2", record, [manifest("a.log", content)]),
    }
    with pytest.raises(StoreFull, match=r"the disk of .* is full"):
        steps[where]()
    assert [trial.slug for trial in check_readable(small_disk / "s" / "run", {1})] == ["x"]
    hog.unlink()
    for step in steps.values():
        step()
    full_store.finish({"state": "finished"})
    assert sorted(trial.slug for trial in load_run(small_disk / "s" / "run").published) == ["x", "y"]


@pytest.mark.root
def test_a_full_disk_at_the_end_is_told_and_the_record_is_the_old_one(full_store, small_disk):
    publish(full_store, "k-1", FILES)
    run = small_disk / "s" / "run"
    hog = fill(small_disk)
    with pytest.raises(StoreFull):
        full_store.finish({"state": "finished", "more": "x" * (1 << 20)})
    assert "state" not in load_run(run).record
    hog.unlink()
    full_store._lock.close()
    again = RunStore(str(run))
    again.resume({}, "name: s\n", [])
    again._lock.close()
    assert [trial.slug for trial in load_run(run).published] == ["x"]
