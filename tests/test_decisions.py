"""What becomes of trials when a run is gone on with, decided on records as trials leave them; nothing runs here."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from analysis.errors import AnalysisError
from analysis.store import RunStore
from sweep import cli, lock, past, resume
from sweep.code import table_of
from sweep.config import as_yaml, load
from sweep.errors import ConfigError, UserError
from sweep.options import Options
from sweep.past import Past
from sweep.placement import Node, Placements
from sweep.plan import Grid, plan_entry
from sweep.resume import Decisions, State
from tasks.machine import Offer, Place
from tasks.spec import TrialSpec
from tasks.trial import blank_record

ROOT = Path(__file__).parent.parent
HALF = {"kernel": "6.1", "cpu": "fast", "files": {}, "storage": {"queue": {"max_sectors_kb": "1280"}}}


@pytest.fixture
def sweep_file(tmp_path: Path) -> Path:
    file = tmp_path / "s.yaml"
    file.write_text(
        "name: s\n"
        "workload: {kind: command, argv: ['true', '{n}', '{m}'], values: {n: 1, m: 1}}\n"
        f"storage: {{kind: directory, path: {tmp_path}, fs: auto}}\n"
        "trace: {tracer: none}\n"
        "ceiling: {enabled: false}\n"
        "grid: {workload.values.n: [1, 2]}\n"
        "repeats: 2\n"
    )
    return file


def node(name: str = "n1", ray_id: str | None = "r1", tmp: str = "/") -> Node:
    offer = Offer(name, {"hostname": name}, [Place("/", "ext4", ("vda",), 1 << 40, False)], "/var")
    offer.capabilities = ["tracer:none", "tracer:diskstats", "root"]
    return Node(offer, ray_id)


class World:
    """A sweep, its run on disk, and nodes that answer what they are told to."""

    def __init__(self, file: Path, results: Path) -> None:
        self.file, self.results = file, results
        self.halves: dict[str, Any] = {"n1": HALF}
        self.asked: list[tuple[str, int]] = []
        self.folder = results / "s" / "run1"

    def plan(self, *words: str) -> Grid:
        return Grid(load(str(self.file), words))

    def finish(self, plan: Grid, states: dict[str, str] | None = None, host: str = "n1", **changes: Any) -> None:
        """Make the run, with those trials of it finished that `states` names, or all of them."""
        store = RunStore(str(self.folder))
        record = {"schema_version": 1, "sweep": "s", "run_id": "run1", "state": "running", "figures": []}
        record |= {"plan": [plan_entry(t) for t in plan.trials], "code": table_of(t.config for t in plan.trials)}
        store.create(record, as_yaml(load(str(self.file))))
        for trial in plan.trials:
            if states is None or trial.id in states:
                self.publish(store, trial, (states or {}).get(trial.id, "valid"), host, **changes)
        store.finish({})
        store._lock.close()

    def publish(self, store: RunStore, trial: Any, state: str, host: str, **changes: Any) -> None:
        print_ = {**trial.fingerprint, "node": copy.deepcopy(self.halves[host])}
        config = dict(trial.config)
        spec = TrialSpec("s", trial.id, trial.slug, dict(trial.cell), trial.repeat, 1, "t-1", config, print_)
        record = blank_record(spec) | {"node": {"hostname": host}} | changes
        record["verdict"] = {"state": state, "reasons": [] if state == "valid" else ["it broke"]}
        record["warmup"] = trial.warmup
        store.expect(trial.slug, "t-1")
        store.publish(trial.slug, "t-1", record, [])

    def ask(self, pairs: Any) -> list[list[Any]]:
        self.asked += [(one.name, len(questions)) for one, questions in pairs]
        return [[copy.deepcopy(self.halves[one.name])] * len(questions) for one, questions in pairs]

    def decide(self, plan: Grid, *nodes: Node) -> Decisions:
        return Decisions(plan, Placements(nodes or [node()]), Past(self.folder), self.ask)


@pytest.fixture
def world(sweep_file: Path, tmp_path: Path) -> World:
    return World(sweep_file, tmp_path / "results")


def states(decisions: Decisions) -> dict[str, str]:
    return {name: one.state.value for name, one in decisions.of.items()}


def reasons(decisions: Decisions) -> set[str]:
    return {reason for one in decisions.of.values() for reason in one.reasons}


def test_what_is_valid_and_the_same_is_reused(world: World) -> None:
    world.finish(world.plan())
    decisions = world.decide(world.plan())
    assert set(states(decisions).values()) == {"reuse"}
    assert (decisions.aside(), decisions.dropped) == ([], [])
    assert [r["verdict"]["state"] for r in decisions.records().values()] == ["valid"] * 4
    assert world.asked == [("n1", 2)]  # two cells, two questions, whatever the repeats


def test_what_is_not_finished_invalid_or_failed_runs(world: World) -> None:
    world.finish(world.plan(), {"n=1,rep=1": "valid", "n=1,rep=2": "invalid", "n=2,rep=1": "failed"})
    decisions = world.decide(world.plan())
    assert states(decisions) == {"n=1,rep=1": "reuse", "n=1,rep=2": "run", "n=2,rep=1": "run", "n=2,rep=2": "run"}
    assert decisions.of["n=1,rep=2"].reasons == ("was invalid", "it broke")
    assert decisions.of["n=2,rep=2"].reasons == ("not finished",)
    assert len(decisions.aside()) == 2


def test_a_changed_key_is_told_from_what_to_what(world: World) -> None:
    world.finish(world.plan())
    decisions = world.decide(world.plan("workload.values.m=2"))
    assert set(states(decisions).values()) == {"stale"}
    assert reasons(decisions) == {"workload.values.m: 1 -> 2"}
    assert decisions.told()[1:] == [
        "stale: 4 trials (n=1,rep=1, n=2,rep=1, n=1,rep=2 and 1 more): workload.values.m: 1 -> 2",
        "kept aside in superseded/: 4 trials",
    ]


def _scenarios(of_b: int) -> str:
    return f"scenarios={{a: {{workload: {{values: {{m: 1}}}}}}, b: {{workload: {{values: {{m: {of_b}}}}}}}}}"


def test_a_tracer_that_the_node_chose_is_not_a_change(world: World) -> None:
    plan = world.plan("trace.tracer=auto")  # of which the node makes diskstats, for it has nothing better
    settled = {**plan.trials[0].config, "trace": {**plan.trials[0].config["trace"], "tracer": "diskstats"}}
    world.finish(plan, {"n=1,rep=1": "valid"}, config=settled)
    assert states(world.decide(world.plan("trace.tracer=auto")))["n=1,rep=1"] == "reuse"
    assert states(world.decide(world.plan("trace.tracer=diskstats")))["n=1,rep=1"] == "reuse"
    better = node()
    better.offer.capabilities.append("tracer:ftrace")
    found = world.decide(world.plan("trace.tracer=auto"), better).of["n=1,rep=1"]
    assert found.reasons == ("trace.tracer: diskstats -> auto",)


def test_what_was_secret_on_the_node_is_not_a_change(world: World) -> None:
    plan = world.plan()
    hidden = json.loads(json.dumps(plan.trials[0].config).replace("true", "***"))
    world.finish(plan, {"n=1,rep=1": "valid"}, config=hidden)
    assert states(world.decide(world.plan()))["n=1,rep=1"] == "reuse"
    assert states(world.decide(world.plan("limits.time_limit_s=7")))["n=1,rep=1"] == "stale"


def test_a_change_of_one_cell_leaves_the_others(world: World) -> None:
    base = _scenarios(1)
    world.finish(world.plan(base))
    decisions = world.decide(world.plan(_scenarios(3)))
    assert {name.partition(",")[0]: state for name, state in states(decisions).items()} == {
        "scenario=a": "reuse",
        "scenario=b": "stale",
    }


def test_how_the_run_was_started_is_told_where_the_sweep_has_less(world: World) -> None:
    world.finish(world.plan("grid.workload.values.n=[1,2,7]"))
    path = world.folder / "run.json"
    argv = ["python", "-m", "sweep", "s.yaml", "grid.workload.values.n=[1,2,7]"]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"argv": argv}))
    told = world.decide(world.plan()).told()
    assert "the run was started with: python -m sweep s.yaml 'grid.workload.values.n=[1,2,7]'" in told
    assert not any("was started" in line for line in world.decide(world.plan("grid.workload.values.n=[1,2,7]")).told())


def test_what_the_sweep_does_not_have_any_more_is_kept_aside(world: World) -> None:
    world.finish(world.plan())
    decisions = world.decide(world.plan("grid.workload.values.n=[1]", "repeats=3"))
    assert states(decisions) == {"n=1,rep=1": "reuse", "n=1,rep=2": "reuse", "n=1,rep=3": "run"}
    assert {one.id for one in decisions.dropped} == {"n=2,rep=1", "n=2,rep=2"}
    assert set(decisions.aside()) == {one.slug for one in decisions.dropped}
    assert "no longer in the sweep: 2 trials (n=2,rep=1, n=2,rep=2)" in decisions.told()


def test_a_changed_file_of_code_is_named(world: World) -> None:
    world.finish(world.plan())
    told = json.loads((world.folder / "run.json").read_text())
    (files,) = told["code"].values()
    told["code"] = {digest: {**files, "tasks/jobs/x.py": "1"} for digest in told["code"]}
    (digest,) = told["code"]
    told["code"] = {"old": told["code"][digest]}
    (world.folder / "run.json").write_text(json.dumps(told))
    for file in world.folder.glob("trials/*/trial.json"):
        file.write_text(file.read_text().replace(digest, "old"))
    decisions = world.decide(world.plan())
    assert reasons(decisions) == {"code of tasks/jobs/x.py: 1 -> (none)"}


def test_a_run_of_an_older_version_is_stale(world: World) -> None:
    world.finish(world.plan(), fingerprint={"plan": "abc", "code": "def"})
    assert reasons(world.decide(world.plan())) == {"its fingerprint is of an older version and cannot be compared"}


def test_a_changed_node_is_told(world: World) -> None:
    world.finish(world.plan())
    world.halves["n1"] = {**HALF, "kernel": "6.2", "storage": {"queue": {"max_sectors_kb": "128"}}}
    assert reasons(world.decide(world.plan())) == {
        "node: kernel: 6.1 -> 6.2",
        "node: storage.queue.max_sectors_kb: 1280 -> 128",
    }


def test_another_node_with_the_same_parts_will_do(world: World) -> None:
    world.finish(world.plan())
    world.halves |= {"n2": {**HALF, "cpu": "slow"}, "n3": HALF}
    gone = world.decide(world.plan(), node("n2", "r2"), node("n3", "r3"))
    assert set(states(gone).values()) == {"reuse"}
    other = world.decide(world.plan(), node("n2", "r2"))
    assert set(states(other).values()) == {"stale"}
    assert "node: cpu: fast -> slow" in reasons(other)
    assert "n1, where it ran, is not here, and n2 is not the same" in reasons(other)


def test_its_own_node_decides_where_it_is_there(world: World) -> None:
    world.finish(world.plan())
    world.halves = {"n1": {**HALF, "kernel": "6.2"}, "n2": HALF}
    assert set(states(world.decide(world.plan(), node("n2", "r2"), node())).values()) == {"stale"}


def test_its_own_node_decides_also_where_it_cannot_take_the_trial_now(world: World) -> None:
    world.finish(world.plan())
    world.halves["n2"] = {**HALF, "cpu": "slow"}
    weak = node()
    weak.offer.capabilities.remove("tracer:none")
    assert set(states(world.decide(world.plan(), node("n2", "r2"), weak)).values()) == {"reuse"}
    world.halves["n1"] = {**HALF, "kernel": "6.2"}
    assert reasons(world.decide(world.plan(), node("n2", "r2"), weak)) == {"node: kernel: 6.1 -> 6.2"}


def test_what_is_finished_and_cannot_run_again_does_not_refuse_a_resume(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world.finish(world.plan(), {"n=1,rep=1": "valid", "n=1,rep=2": "valid", "n=2,rep=1": "valid"})
    weak = node(ray_id=None)
    weak.offer.capabilities.remove("tracer:none")
    monkeypatch.setattr("sweep.cluster.here", lambda: weak)
    argv = [str(world.file), "--resume", "--dry-run", "--results", str(world.results)]
    assert cli.main([*argv, "--only", "n == 1"]) == 0
    assert "left as they are, for no node here can run them: 3 trials" in capsys.readouterr().out
    assert cli.main(argv) == 2
    assert "no node can run 1 of 1 trials" in capsys.readouterr().err


def test_a_node_that_cannot_tell_is_not_the_same(world: World) -> None:
    world.finish(world.plan())
    world.halves["n1"] = "workload.python: /x cannot be started"
    assert reasons(world.decide(world.plan())) == {"node: workload.python: /x cannot be started"}


def test_what_nobody_can_run_is_impossible(world: World) -> None:
    world.finish(world.plan())
    weak = node()
    weak.offer.capabilities.remove("tracer:none")
    decisions = world.decide(world.plan(), weak)
    assert set(states(decisions).values()) == {"impossible"}
    assert "tracer:none" in next(iter(reasons(decisions)))
    assert decisions.records() == {}
    # What its node cannot be asked for now is no reason to do away with it.
    assert decisions.aside() == []
    assert "left as they are, for no node here can run them: 4 trials" in "\n".join(decisions.told())
    assert len(world.decide(world.plan("workload.values.m=2"), weak).aside()) == 4


def test_trials_that_are_not_selected_stay_unless_they_are_stale(world: World) -> None:
    world.finish(world.plan(), {"n=1,rep=1": "valid", "n=2,rep=1": "valid"})
    plan = world.plan()
    plan.select([t for t in plan.trials if t.id == "n=1,rep=2"])
    decisions = world.decide(plan)
    assert states(decisions) == {"n=1,rep=2": "run"}
    assert decisions.aside() == []
    assert {t.id for t in decisions.planned()} == {t.id for t in plan.every}
    plan = world.plan("workload.values.m=7")
    plan.select([t for t in plan.trials if t.id == "n=1,rep=2"])
    decisions = world.decide(plan)
    assert len(decisions.aside()) == 2
    assert any(line.startswith("stale and not selected: 2 trials") for line in decisions.told())


def test_trials_that_failed_and_are_not_selected_stay(world: World) -> None:
    world.finish(world.plan(), {"n=1,rep=1": "valid", "n=2,rep=1": "failed", "n=2,rep=2": "invalid"})
    plan = world.plan()
    plan.select([t for t in plan.trials if t.id in ("n=1,rep=1", "n=2,rep=2")])
    decisions = world.decide(plan)
    assert decisions.aside() == [t.slug for t in plan.trials if t.id == "n=2,rep=2"]
    assert "n=2,rep=1" in {t.id for t in decisions.planned()}
    weak = node()
    weak.offer.capabilities.remove("tracer:none")
    assert world.decide(plan, weak).kept() >= {"n=2,rep=1"}


def test_warm_ups_run_if_and_only_if_a_trial_of_their_cell_does(world: World) -> None:
    plan = world.plan("warmups=1")
    world.finish(plan, {t.id: "valid" for t in plan.trials if t.id != "n=2,rep=2"})
    decisions = world.decide(world.plan("warmups=1"))
    found = {name: state for name, state in states(decisions).items() if "warmup" in name}
    assert found == {"n=1,warmup=1": "reuse", "n=2,warmup=1": "run"}
    decisions = world.decide(world.plan("warmups=2"))
    found = {name: state for name, state in states(decisions).items() if "warmup" in name}
    assert found == {"n=1,warmup=1": "reuse", "n=1,warmup=2": "idle", "n=2,warmup=1": "run", "n=2,warmup=2": "run"}
    assert "n=1,warmup=2" not in {t.id for t in decisions.planned()}


def test_a_trial_that_cannot_be_read_runs_and_is_kept_aside(world: World) -> None:
    world.finish(world.plan())
    slug = world.plan().trials[0].slug
    (world.folder / "trials" / slug / "trial.json").write_text('{"id": "n=1,rep')
    decisions = world.decide(world.plan())
    assert decisions.of["n=1,rep=1"].reasons == ("not finished",)
    assert decisions.aside() == [slug]


def test_a_run_that_has_nothing_in_common_with_the_sweep_is_refused(world: World) -> None:
    world.finish(world.plan())
    with pytest.raises(ConfigError, match=r"--resume: none of the 4 trials of .* is in this sweep"):
        world.decide(world.plan("grid.workload.values.n=[7]"))


@pytest.mark.parametrize(
    "broken",
    [
        "{}",
        "[]",
        "null",
        "\xff",
        '{"id": 1, "slug": "SLUG", "verdict": null}',
        '{"id": "n=1,rep=1", "slug": "elsewhere", "verdict": {"state": "valid", "reasons": []}}',
        '{"id": "n=1,rep=1", "slug": "SLUG", "verdict": {"state": "valid", "reasons": []}, "fingerprint": 1}',
    ],
)
def test_no_record_is_so_strange_that_it_cannot_be_run_again(world: World, broken: str) -> None:
    world.finish(world.plan())
    slug = world.plan().trials[0].slug
    (world.folder / "trials" / slug / "trial.json").write_text(broken.replace("SLUG", slug), encoding="latin-1")
    decisions = world.decide(world.plan())
    assert decisions.of["n=1,rep=1"].state is State.run
    assert decisions.aside() == [slug]


def test_very_many_reasons_are_told_in_few_lines() -> None:
    told = resume._grouped(State.stale, [(f"n={n},rep=1", (f"x: {n} -> 0",)) for n in range(20_000)])
    assert len(told) == 21
    assert told[-1] == "stale: 19980 trials for 19980 further reasons"


# --- the run's folder ------------------------------------------------------------------------------------------------


def test_a_run_is_gone_on_with_in_its_own_folder(world: World) -> None:
    world.finish(world.plan())
    plan = world.plan("repeats=1", "workload.values.m=2")
    decisions = world.decide(plan)
    store = RunStore(str(world.folder))
    session = dict.fromkeys(("argv", "started", "user", "host", "cwd", "git", "versions"), "new")
    record = {**session, "run_id": "run1", "state": "running", "nodes": [{"hostname": "n2"}], "code": {"d": {}}}
    store.resume(decisions.fields(record), "name: s2\n", decisions.aside())
    told = json.loads((world.folder / "run.json").read_text())
    assert (told["resumed"][0]["aside"], told["resumed"][0]["reused"], told["state"]) == (4, 0, "running")
    assert told["resumed"][0]["before"]["state"] == "running"
    assert [entry["id"] for entry in told["plan"]] == ["n=1,rep=1", "n=2,rep=1"]
    assert len(told["code"]) == 2
    assert list((world.folder / "trials").iterdir()) == []
    assert len(list((world.folder / "superseded").glob("*/trial.json"))) == 4
    assert (world.folder / "sweep.yaml").read_text() == "name: s2\n"
    assert "name: s\n" in (world.folder / "superseded" / "sweep.yaml-earlier-1").read_text()
    world.publish(store, plan.trials[0], "valid", "n1")
    assert [t.id for t in Past(world.folder).trials.values()] == ["n=1,rep=1"]


def test_rows_of_trials_that_run_again_leave_the_summary(world: World) -> None:
    import polars as pl

    world.finish(world.plan())
    store = RunStore(str(world.folder))
    slug = world.plan().trials[0].slug
    store.resume({}, "", [slug])
    assert slug not in pl.read_parquet(world.folder / "summary.parquet")["slug"].to_list()
    assert len(pl.read_parquet(world.folder / "summary.parquet")["slug"].unique()) > 0


def test_two_writers_are_one_too_many(world: World) -> None:
    world.finish(world.plan())
    store = RunStore(str(world.folder))
    store.resume({}, "", [])
    with pytest.raises(AnalysisError, match="another process writes to this run"):
        RunStore(str(world.folder)).resume({}, "", [])


def test_which_run_is_meant(world: World, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no run of s in"):
        past.find(world.results, "s", None)
    with pytest.raises(ConfigError, match="the results of a cluster are on its head: go on there"):
        past.find(world.results, "s", None, at_head=True)
    world.finish(world.plan())
    for run in (None, "run1", str(world.folder)):
        assert past.find(world.results, "s", run) == world.folder
    with pytest.raises(ConfigError, match=r"--run: run7 is no run\n  the runs of s: run1"):
        past.find(world.results, "s", "run7")
    for odd in ("x" * 300, "x/" * 3000, "a\0b"):
        with pytest.raises(ConfigError, match="is no run"):
            past.find(world.results, "s", odd)
    with pytest.raises(ConfigError, match="is a run of 's', not of 'other'"):
        past.find(world.results, "other", str(world.folder))


HOLD = """
import sys, time
from pathlib import Path
from sweep import lock
with lock.held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_run_whose_driver_lives_is_refused_and_one_whose_driver_died_is_not(world: World) -> None:
    world.finish(world.plan())
    argv = [sys.executable, "-c", HOLD, str(world.folder)]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=ROOT, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"this run goes on: process {process.pid} of "), lock.held(world.folder):
        pass
    assert str(process.pid) in (lock.driver(world.folder) or "")
    process.kill()
    process.wait()
    assert lock.driver(world.folder) is None
    with lock.held(world.folder):
        pass


def test_a_run_that_cannot_be_written_to_is_refused_in_words(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.finish(world.plan())

    def stale(*_: Any, **__: Any) -> None:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(lock, "locked", stale)
    with pytest.raises(UserError, match="run1: cannot write to it: Stale file handle"):
        lock.wait_for_writer(world.folder)


def test_a_folder_that_never_became_a_run_is_removed(tmp_path: Path) -> None:
    with lock.held(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()
    assert not (tmp_path / "run").exists()


def test_a_first_run_that_is_interrupted_early_leaves_no_folder(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from sweep import run

    def interrupted(*_: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(run._Run, "drive", interrupted)
    monkeypatch.setattr(run, "fit", lambda *_: None)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run.run_sweep(load(str(world.file)), world.plan(), Options(world.results))
        assert not (world.results / "s").exists()
    world.finish(world.plan())
    with pytest.raises(KeyboardInterrupt):
        run.run_sweep(load(str(world.file)), world.plan(), Options(world.results))
    assert sorted(path.name for path in (world.results / "s").iterdir()) == ["latest", "run1"]


def test_run_without_resume_is_a_mistake(sweep_file: Path) -> None:
    argv = [sys.executable, "-m", "sweep", str(sweep_file), "--run", "x"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--run x says which run to go on with: add --resume" in done.stderr


def test_nothing_to_resume_is_told(sweep_file: Path, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "sweep", str(sweep_file), "--resume", "--results", str(tmp_path / "r")]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no run of s in" in done.stderr
    assert "Traceback" not in done.stderr


def test_questions_are_few_for_very_many_trials(world: World) -> None:
    plan = world.plan("grid.workload.values.n=[1]", "repeats=300")
    world.finish(plan, {plan.trials[0].id: "valid"})
    decisions = world.decide(plan)
    assert len(decisions.of) == 300
    assert world.asked == [("n1", 1)]
