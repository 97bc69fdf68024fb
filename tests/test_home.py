"""Results at a place that head and nodes share: a folder that both mount, or a URL; an S3 server among them."""

import hashlib
import importlib.util
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from analysis import load_run
from analysis.bucket import Bucket
from analysis.errors import AnalysisError
from analysis.store import RunStore
from sweep import config, delivery
from sweep.cli import main
from sweep.errors import ConfigError
from sweep.home import check_at_head, probe, results_of
from tasks.errors import DeliveryError
from tasks.launch import Outcome
from tests.machine import ROOT, Machine
from tests.test_store import RECORD

FILES = {"logs/job.log": b"0123456789" * 1000, "requests.parquet": b"PAR1 and junk", "logs/empty.log": b""}
SMALL = str(ROOT / "tests" / "small.yaml")


@pytest.fixture
def outcome(tmp_path):
    """What an attempt hands over."""
    folder = tmp_path / "spool"
    (folder / "logs").mkdir(parents=True)
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    files = [
        {"name": name, "size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in FILES.items()
    ]
    return Outcome(RECORD, folder, files, "")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def s3():
    """An S3 server with one bucket; where moto and s3fs are not installed there is none."""
    for name in ("moto", "s3fs", "flask"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name}: pip install 'offload-sweep[s3]' 'moto[server]'")
    port = free_port()
    argv = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    patch = pytest.MonkeyPatch()
    patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    for name, value in (("ACCESS_KEY_ID", "x"), ("SECRET_ACCESS_KEY", "y"), ("DEFAULT_REGION", "us-east-1")):
        patch.setenv(f"AWS_{name}", value)
    import s3fs

    try:
        end = time.monotonic() + 30
        while True:
            try:
                s3fs.S3FileSystem(skip_instance_cache=True).mkdir("results")
                break
            except Exception:  # noqa: BLE001 - whatever a server says that is not there yet
                assert time.monotonic() < end, "the S3 server does not start"
                time.sleep(0.2)
        yield "s3://results/some/prefix"
    finally:
        process.terminate()
        process.wait(10)
        patch.undo()


@pytest.fixture(params=["file", "s3"])
def url(request, tmp_path):
    return request.getfixturevalue("s3") + f"/{tmp_path.name}" if request.param == "s3" else f"file://{tmp_path}/far"


@pytest.fixture
def store(tmp_path, url):
    store = RunStore(str(tmp_path / "results" / "s" / "run1"), url)
    store.create({"sweep": "s", "schema_version": 1, "plan": []}, "name: s\n")
    return store


def attempt(store, outcome, token, **changes):
    """Do what a node does: announced by the driver, checks the place, puts its files, asks for publication."""
    spec, record = SimpleNamespace(slug="x", token=token), {**RECORD, **changes}
    store.expect("x", token)
    delivery.check(store.home(), token)
    store.declare("x", token, outcome.files)
    delivery.put(store.home(), spec, outcome, lambda: None)
    store.publish("x", token, record, outcome.files)


def far(store):
    return Bucket(store.home()["url"])


def check_far(store, **changes):
    assert json.loads(far(store).read("trials/x/trial.json")) == {**RECORD, **changes}
    for name, content in FILES.items():
        assert far(store).read(f"trials/x/{name}") == content


def test_a_trial_goes_by_way_of_the_url(store, outcome, tmp_path):
    attempt(store, outcome, "k-1")
    run = tmp_path / "results" / "s" / "run1"
    for name, content in FILES.items():
        assert (run / "trials" / "x" / name).read_bytes() == content
    check_far(store)
    assert far(store).read("incoming/x-k-1/logs/job.log") is None
    assert far(store).read("run.json") is None
    store.finish({"state": "finished"})
    assert json.loads(far(store).read("run.json"))["state"] == "finished"
    assert far(store).read("sweep.yaml") == b"name: s\n"
    assert far(store).read("summary.parquet") == (run / "summary.parquet").read_bytes()
    assert far(store).read("store.lock") is None


def test_a_later_attempt_takes_the_place_and_one_given_up_does_not(store, outcome):
    attempt(store, outcome, "k-1")
    attempt(store, outcome, "k-2", attempt=2)
    check_far(store, attempt=2)
    late = SimpleNamespace(slug="x", token="k-1")
    delivery.put(store.home(), late, outcome, lambda: None)
    with pytest.raises(AnalysisError, match="attempt k-1 was given up"):
        store.publish("x", "k-1", RECORD, outcome.files)
    check_far(store, attempt=2)
    store.finish({"state": "finished"})
    assert far(store).read("incoming/x-k-1/logs/job.log") is None


def test_what_is_damaged_at_the_url_is_not_published(store, outcome):
    store.expect("x", "k-1")
    store.declare("x", "k-1", outcome.files)
    delivery.put(store.home(), SimpleNamespace(slug="x", token="k-1"), outcome, lambda: None)
    for content in (b"PAR1 and j*nk", b"P", b"PAR1 and junk and very much more"):
        far(store).write("incoming/x-k-1/requests.parquet", content)
        with pytest.raises(AnalysisError, match=r"requests.parquet arrived damaged"):
            store.publish("x", "k-1", RECORD, outcome.files)
    assert far(store).read("trials/x/trial.json") is None


def test_what_a_killed_actor_left_out_is_made_good_at_the_end(store, outcome, tmp_path, url):
    attempt(store, outcome, "k-1")
    far(store).remove("trials/x/trial.json")
    store.expect("y", "k-2-driver")
    store.publish("y", "k-2-driver", {**RECORD, "slug": "y"}, [])
    store._lock.close()
    again = RunStore(str(tmp_path / "results" / "s" / "run1"), url)
    again.resume({}, "name: s\n", [])
    again.finish({"state": "finished"})
    check_far(again)
    assert json.loads(far(again).read("trials/y/trial.json"))["slug"] == "y"


def test_what_a_resume_drops_goes_from_the_url_too(store, outcome, tmp_path, url):
    attempt(store, outcome, "k-1")
    store.finish({"state": "finished"})
    store._lock.close()
    again = RunStore(str(tmp_path / "results" / "s" / "run1"), url)
    again.resume({}, "name: s\n", ["x"])
    assert again.finish({"state": "finished"}) is None
    assert far(again).read("trials/x/trial.json") is None
    assert far(again).names("trials") == []


def test_trouble_at_the_url_costs_the_run_nothing_else(store, outcome, tmp_path, monkeypatch):
    """It is told, figures are drawn all the same, an attempt can be given up, and the copy can be made good later."""
    run = tmp_path / "results" / "s" / "run1"
    attempt(store, outcome, "k-1")

    def put(*_):
        raise AnalysisError("cannot write there")

    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "put", put)
        patch.setattr(Bucket, "write", put)
        store.expect("y", "k-2")
        failed = {**RECORD, "slug": "y", "id": "y", "verdict": {"state": "failed", "reasons": ["lost"]}}
        assert store.give_up("y", "k-2", failed) is None
        assert "cannot write there" in store.finish({"state": "finished"})
        monkeypatch.setattr("analysis.store.draw_run", lambda path: {"run": str(path)})
        assert "cannot write there" in store.draw()["trouble"]
    assert json.loads((run / "run.json").read_text())["state"] == "finished"
    assert store.draw() == {"run": str(run), "trouble": None}
    assert json.loads(far(store).read("trials/y/trial.json")) == failed
    check_far(store)


def test_a_publication_that_ends_after_the_run_leaves_the_copy_whole(store, outcome, monkeypatch):
    complete = store._mirror.complete

    def late(*told):
        assert store.finish({"state": "finished"}) is None
        complete(*told)

    monkeypatch.setattr(store._mirror, "complete", late)
    attempt(store, outcome, "k-1")
    check_far(store)


@pytest.fixture
def shared(tmp_path):
    store = RunStore(str(tmp_path / "nfs" / "s" / "run1"), str(tmp_path / "nfs"))
    store.create({"sweep": "s", "schema_version": 1, "plan": []}, "name: s\n")
    return store


def test_a_trial_goes_by_way_of_a_shared_folder(shared, outcome, tmp_path):
    attempt(shared, outcome, "k-1")
    attempt(shared, outcome, "k-2", attempt=2)
    shared.finish({"state": "finished"})
    run = load_run(tmp_path / "nfs" / "s" / "run1")
    assert [trial.attempt for trial in run.published] == [2]
    for name, content in FILES.items():
        assert (run.published[0].path / name).read_bytes() == content
    assert not [path.name for path in run.path.iterdir() if path.name.startswith(".")]


def test_a_slow_share_is_given_little_at_a_time(shared, outcome, monkeypatch):
    """Between two signs of life no more is left to a wait for the drive than a slow one takes in a moment."""
    content = bytes(range(256)) * (40 << 12)
    (outcome.folder / "big.bin").write_bytes(content)
    outcome.files[:] = [{"name": "big.bin", "size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}]
    told, synced = [], os.fdatasync

    def fdatasync(handle):
        told.append(os.fstat(handle).st_size)
        synced(handle)

    incoming = Path(shared.home()["folder"]) / "incoming" / "x-k-1"
    monkeypatch.setattr(os, "fdatasync", fdatasync)
    monkeypatch.setattr(os, "fsync", lambda handle: pytest.fail("one long wait"))
    monkeypatch.setattr(delivery, "sync", lambda folder: None)
    shared.expect("x", "k-1")
    shared.declare("x", "k-1", outcome.files)
    monkeypatch.setattr(delivery, "_PIECE_BYTES", 1 << 20)
    delivery.put(shared.home(), SimpleNamespace(slug="x", token="k-1"), outcome, lambda: told.append("alive"))
    assert (incoming / "big.bin").read_bytes() == content
    sizes = [size for size in told if size != "alive"]
    assert len(sizes) > 10
    assert max(later - earlier for earlier, later in itertools.pairwise(sizes)) <= 4 << 20
    assert all("alive" in (one, other) for one, other in itertools.pairwise(told))


def test_a_node_that_sees_another_folder_is_told_so_before_it_measures(shared, tmp_path):
    home = shared.home()
    with pytest.raises(DeliveryError, match=r"is not the head's folder here .* mount the same folder at the same path"):
        delivery.check(home | {"folder": str(tmp_path / "elsewhere")}, "k-1")
    other = tmp_path / "other"
    (other / "incoming").mkdir(parents=True)
    (other / home["marker"]).write_text("of another run")
    with pytest.raises(DeliveryError, match="is another folder here than on the head"):
        delivery.check(home | {"folder": str(other)}, "k-1")
    (tmp_path / "nfs" / "s" / "run1" / "incoming").rmdir()
    with pytest.raises(DeliveryError, match="cannot write to"):
        delivery.check(home, "k-1")


def test_an_attempt_given_up_finds_no_folder_to_write_to(shared, outcome):
    shared.expect("x", "k-1")
    shared.declare("x", "k-1", outcome.files)
    shared.expect("x", "k-2")
    with pytest.raises(DeliveryError, match="cannot be written: No such file"):
        delivery.put(shared.home(), SimpleNamespace(slug="x", token="k-1"), outcome, lambda: None)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("results", "data.shared: must be a path that starts with /"),
        ("xyz://bucket/x", "data.shared: nothing known serves xyz://"),
        ("file://user:pw@host/x", "data.shared: must hold no user or password"),
    ],
)
def test_a_place_that_cannot_be(tmp_path, place, words):
    with pytest.raises(ConfigError, match=words):
        config.load(SMALL, [f"data.shared={place}"])


def test_a_shared_folder_is_where_results_are(tmp_path):
    assert results_of("/mnt/x", "results") == Path("/mnt/x")
    assert results_of("s3://b/x", "there") == Path("there")
    with pytest.raises(ConfigError, match="--results: would not be used"):
        results_of("/mnt/x", "there")
    sweep = config.load(SMALL, [f"data.shared={tmp_path}"])
    assert sweep.shared == str(tmp_path)
    assert f"shared: {tmp_path}" in config.as_yaml(sweep)


def test_a_shared_folder_that_is_not_there_is_not_made(tmp_path, capsys):
    """Where the share is not mounted, that would be a folder on the machine's own disk."""
    folder = tmp_path / "nfs" / "results"
    assert main([SMALL, f"data.shared={folder}"]) == 2
    assert f"data.shared: there is no folder {folder} on this machine" in capsys.readouterr().err
    assert not folder.parent.exists()
    folder.mkdir(parents=True)
    probe("s.yaml", str(folder))


def test_a_place_that_cannot_be_written_to_is_refused_before_launch(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"data.shared: cannot write file://.*/file/"):
        probe("s.yaml", f"file://{tmp_path}/file/x")


def test_nodes_that_try_a_place_at_the_same_time_do_not_hinder_each_other(tmp_path, monkeypatch):
    write = Bucket.write

    def written(bucket, name, content):
        write(bucket, name, content)
        monkeypatch.setattr(Bucket, "write", write)
        Bucket(bucket.url).probe()

    monkeypatch.setattr(Bucket, "write", written)
    Bucket(f"file://{tmp_path}/far").probe()
    assert not list((tmp_path / "far").iterdir())


def test_a_bucket_that_is_missing_or_not_allowed_is_refused_before_launch(s3, monkeypatch):
    with pytest.raises(ConfigError, match=r"cannot write s3://nowhere/x/.*bucket"):
        probe("s.yaml", "s3://nowhere/x")
    import s3fs

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(ConfigError, match=r"cannot write s3://results/x/.*credentials"):
        probe("s.yaml", "s3://results/x")
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "file", "s3"])
def test_a_sweep_whose_results_are_shared(tmp_path, kind, request):
    (tmp_path / "state").mkdir()
    far_away = tmp_path / "far"
    far_away.mkdir()
    place = {"folder": str(far_away), "file": f"file://{far_away}"}.get(kind) or request.getfixturevalue("s3")
    machine = Machine(tmp_path / "state", far_away if kind == "folder" else tmp_path / "results")
    changes = ["workload.apis=[posix]", "trace.tracer=diskstats", "storage.kind=directory", "storage.fs=auto"]
    changes += [f"storage.path={tmp_path}", "grid={workload.loops: [1, 2]}", "storage.queue.max_sectors_kb=null"]
    code, out, err = machine.run(SMALL, f"data.shared={place}", *changes)
    assert (code, err) == (0, ""), out
    run = load_run(machine.latest())
    assert [trial.state for trial in run.published] == ["valid"] * 2
    if kind != "folder":
        mirror = Bucket(f"{place}/small/{machine.latest().resolve().name}")
        for path in run.path.rglob("*"):
            if path.is_file() and path.suffix != ".lock":
                assert mirror.read(str(path.relative_to(run.path))) == path.read_bytes(), path


@pytest.mark.ray
@pytest.mark.slow
def test_a_sweep_whose_figures_do_not_reach_the_url(tmp_path):
    """That is told at its end; it has its report, and going on with it makes up for what is missing."""
    (tmp_path / "state").mkdir()
    machine = Machine(tmp_path / "state", tmp_path / "results")
    words = ["workload.apis=[posix]", "trace.tracer=diskstats", "storage.kind=directory", "storage.fs=auto", "grid={}"]
    words += [f"storage.path={tmp_path}", "storage.queue.max_sectors_kb=null", f"data.shared=file://{tmp_path}/far"]
    process = machine.start(SMALL, *words)
    end = time.monotonic() + 120
    while not (runs := list((tmp_path / "far" / "small").glob("*/"))) and time.monotonic() < end:
        time.sleep(0.05)
    (runs[0] / "figures").touch()
    out, err = process.communicate(timeout=240)
    assert (process.returncode, "report:" in out) == (0, True), err
    assert "sweep: not all of the run is at its URL: cannot write" in err
    (runs[0] / "figures").unlink()
    code, _, err = machine.run(SMALL, *words, "--resume")
    assert (code, err) == (0, "")
    assert any((runs[0] / "figures").iterdir())


# --- going on with a run from a machine that is not the head ---------------------------------------------------------


@pytest.mark.parametrize("head", ["127.0.0.1:6379", "127.0.0.9:6379"])
def test_a_run_is_gone_on_with_at_its_head(head):
    check_at_head(head, None)


@pytest.mark.parametrize("head", ["192.0.2.7:6379", "[2001:db8::1]:6379", "no-address:1"])
def test_a_run_is_not_gone_on_with_from_afar(head):
    for shared in (None, "s3://bucket/x"):
        with pytest.raises(ConfigError, match=re.escape(f"are on its head, {head}, and this is another machine")):
            check_at_head(head, shared)
    check_at_head(head, "/mnt/nfs/results")
