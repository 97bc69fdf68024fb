"""The driver's loop on a real Ray, its nodes played by one actor: what is tried again, where, and when it stops."""

from __future__ import annotations

import json
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from sweep.membership import Changes
from sweep.placement import Node, Placement, Placements
from sweep.plan import Grid, Trial
from tasks.machine import Offer
from tasks.spec import TrialSpec

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module", autouse=True)
def a_ray() -> Iterator[None]:
    from sweep import cluster

    with cluster.local(cluster.here()):
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test
        yield


class Crew:
    """Plays the nodes: runs an attempt as `acts` say, by node and trial, and publishes what comes of it."""

    def __init__(self, acts: dict[str, str]) -> None:
        self._acts = acts

    async def attempt(self, spec: TrialSpec, node: str, actor: Any, expected: None) -> dict[str, Any]:
        import asyncio

        from tasks.trial import blank_record

        keys = (f"{node} {spec.id} {spec.attempt}", spec.id, node)
        act = next((self._acts[key] for key in keys if key in self._acts), "valid")
        record = blank_record(spec) | {"node": {"hostname": node}, "verdict": {"state": "valid", "reasons": []}}
        if act.startswith("score"):
            record["metrics"] = {"score": {"value": float(act.split()[1]), "unit": ""}}
        elif act.startswith("sleep"):
            await asyncio.sleep(float(act.split()[1]))
        elif act == "failed":
            record["verdict"] = {"state": "failed", "reasons": ["as told"]}
        elif act == "lost events":
            record |= {"verdict": {"state": "invalid", "reasons": ["as told"]}, "tracer": {"lost": 3}}
        elif act == "error":
            raise ValueError("as told")
        elif act == "late error":
            await actor.publish.remote(spec.slug, spec.token, record, [])
            raise ValueError("as told")
        await actor.publish.remote(spec.slug, spec.token, record, [])
        return {"record": record, "log_tail": ""}


class Told:
    """Progress that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def started(self, identity: str, where: str, attempt: int) -> None:
        self.lines.append(f"{identity} on {where.split()[0]}, attempt {attempt}")

    def phase(self, identity: str, text: str) -> None:
        pass

    def finished(self, identity: str, state: str, reasons: Sequence[str], log_tail: str, again: bool) -> None:
        self.lines.append(f"{identity} {state}{', again' if again else ''}: {'; '.join(reasons)}")

    def planned(self, total: int, more: bool) -> None:
        self.lines.append(f"{'at least ' if more else ''}{total} planned")

    def say(self, text: str) -> None:
        self.lines.append(text)

    tell = say


class Anywhere(Placements):
    """Every node can run every trial that does not name another one."""

    def of(self, trial: Trial) -> list[Placement]:
        wish = trial.config["node"]
        able = [node for node in self.nodes if isinstance(wish, dict) or wish in (None, node.name)]
        return [Placement(node, ("d",), "none", {}, 0) for node in able]

    def at(self, trial: Trial, node: Node) -> Placement | None:
        return next((p for p in self.of(trial) if p.node.ray_id == node.ray_id), None)

    def demand(self, trial: Trial) -> Any:
        return type("Demand", (), {"key": str(trial.config["node"])})


class Script:
    """Changes among the nodes, each due some seconds after the start."""

    def __init__(self, *changes: tuple[float, Changes]) -> None:
        self._changes, self._begin_s = list(changes), time.monotonic()

    def poll(self) -> Changes:
        if self._changes and time.monotonic() - self._begin_s > self._changes[0][0]:
            return self._changes.pop(0)[1]
        return Changes()

    def doubt(self, ray_id: str | None) -> None:
        pass


class Plan(Grid):
    """All these trials at once."""

    def __init__(self, trials: Sequence[Trial]) -> None:
        self.trials, self._asked = tuple(trials), False


def trials(count: int, node: str | None = None) -> list[Trial]:
    config = {"node": node, "trace": {"tracer": "none"}, "workload": {"kind": "command"}}
    config |= {"limits": {"time_limit_s": 60}}
    return [Trial(f"c={n},rep=1", f"c-{n}", {"c": n}, 1, config) for n in range(1, count + 1)]


def node(name: str) -> Node:
    return Node(Offer(name, {}, [], "/"), name)


Run = Callable[..., tuple[Any, list[str]]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return a function that runs trials on nodes that act as told; it returns the scheduler and what it said."""
    from analysis import actor as analysis_actor
    from sweep.scheduler import Policy, Scheduler

    def run(
        planned: Sequence[Trial] | Grid,
        nodes: Sequence[str],
        acts: dict[str, str],
        membership: Any = None,
        finished: Any = None,
        made_before: Path | None = None,
        **policy: Any,
    ) -> tuple[Any, list[str]]:
        crew = ray.remote(num_cpus=0)(Crew).remote(acts)
        actor = analysis_actor.start(str(tmp_path / "run"))
        ray.get(actor.create.remote({"sweep": "s", "plan": []}, "name: s\n"))
        if made_before:
            shutil.copytree(made_before / "trials", tmp_path / "run" / "trials", dirs_exist_ok=True)

        def launch(spec: TrialSpec, placement: Placement, actor: Any, expected: Any) -> Any:
            return crew.attempt.remote(spec, placement.node.name, actor, expected)

        told, placements = Told(), Anywhere([node(name) for name in nodes])
        own = Policy(**policy)
        more = (own, membership, launch, finished)
        plan = planned if isinstance(planned, Grid) else Plan(planned)
        scheduler = Scheduler("s", "k", plan, placements, actor, told, *more)  # type: ignore[arg-type]
        scheduler.run()
        ray.get(actor.finish.remote({"state": "finished"}))
        ray.kill(actor)
        print(*told.lines, sep="\n")
        return scheduler, told.lines

    return run


def published(tmp_path: Path) -> dict[str, dict[str, Any]]:
    records = [json.loads(p.read_text()) for p in (tmp_path / "run" / "trials").glob("*/trial.json")]
    return {record["id"]: record for record in records}


def test_every_trial_is_published_once(run: Run, tmp_path: Path) -> None:
    scheduler, _ = run(trials(6), ["a", "b"], {})
    assert {r["verdict"]["state"] for r in scheduler.records.values()} == {"valid"}
    records = published(tmp_path)
    assert sorted(records) == [t.id for t in trials(6)]
    assert {r["node"]["hostname"] for r in records.values()} == {"a", "b"}


def test_what_an_earlier_driver_finished_is_not_run_and_its_cells_stay_where_they_are(run: Run, tmp_path: Path) -> None:
    planned = [Trial(f"c={c},rep={n}", f"c-{c}-{n}", {"c": c}, n, trials(1)[0].config) for n in (1, 2) for c in "abcd"]
    done = {"verdict": {"state": "valid", "reasons": []}, "metrics": {}, "attempt": 1, "warmup": False}
    homes = {"c=a,rep=1": "n2", "c=b,rep=1": "n2", "c=c,rep=1": "n1", "c=d,rep=1": "gone"}
    finished = {name: {**done, "node": {"hostname": host}} for name, host in homes.items()}
    scheduler, lines = run(planned, ["n1", "n2"], {}, finished=finished)
    assert set(scheduler.records) == {t.id for t in planned}
    ran = {name: r["node"]["hostname"] for name, r in published(tmp_path).items()}
    assert set(ran) == {f"c={c},rep=2" for c in "abcd"}
    assert {c: ran[f"c={c},rep=2"] for c in "abc"} == {"a": "n2", "b": "n2", "c": "n1"}
    assert not [line for line in lines if "rep=1" in line]


def test_lost_events_are_worth_one_more_attempt_and_errors_none(run: Run, tmp_path: Path) -> None:
    acts = {"a c=1,rep=1 1": "lost events", "a c=2,rep=1 1": "failed", "a c=3,rep=1 1": "error"}
    acts |= {"a c=4,rep=1 1": "lost events", "a c=4,rep=1 2": "lost events"}
    run(trials(4), ["a"], acts)
    found = {name: (r["attempt"], r["verdict"]["state"]) for name, r in published(tmp_path).items()}
    assert found == {
        "c=1,rep=1": (2, "valid"),
        "c=2,rep=1": (1, "failed"),
        "c=3,rep=1": (1, "failed"),
        "c=4,rep=1": (2, "invalid"),
    }


def test_a_node_that_keeps_failing_is_named_and_its_trials_go_elsewhere(run: Run, tmp_path: Path) -> None:
    scheduler, lines = run(trials(10), ["good", "bad"], {"bad": "failed"})
    assert {r["verdict"]["state"] for r in scheduler.records.values()} == {"valid"}
    assert {r["node"]["hostname"] for r in published(tmp_path).values()} == {"good"}
    (word,) = [line for line in lines if "quarantined" in line]
    assert word.startswith("node bad is quarantined: its last 3 attempts were not valid; once more elsewhere: c=")


def test_what_was_published_before_an_error_counts_as_it_is(run: Run, tmp_path: Path) -> None:
    scheduler, lines = run(trials(8), ["a", "b"], {"b": "late error"}, max_failures=1)
    assert {r["verdict"]["state"] for r in scheduler.records.values()} == {"valid"}
    assert len(published(tmp_path)) == 8
    assert not [line for line in lines if "quarantined" in line]


def test_a_node_where_attempts_die_is_not_trusted_either(run: Run, tmp_path: Path) -> None:
    scheduler, lines = run(trials(8), ["good", "bad"], {"bad": "error"})
    assert {r["verdict"]["state"] for r in scheduler.records.values()} == {"valid"}
    assert [line for line in lines if line.startswith("node bad is quarantined")]


def test_where_all_nodes_fail_none_is_to_blame(run: Run) -> None:
    scheduler, lines = run(trials(8), ["a", "b"], {"a": "failed", "b": "failed"})
    assert len(scheduler.records) == 8
    assert not [line for line in lines if "quarantined" in line]


def test_no_more_are_started_once_too_many_failed(run: Run, tmp_path: Path) -> None:
    scheduler, _ = run(trials(9), ["a"], {"a": "failed"}, max_failures=2)
    assert scheduler.stopped_by == "2 trials failed or are not valid"
    assert len(published(tmp_path)) == 2


def test_at_the_first_failure_what_runs_is_stopped(run: Run, tmp_path: Path) -> None:
    begin = time.monotonic()
    scheduler, _ = run(trials(9), ["a", "b"], {"a": "failed", "b": "sleep 50"}, fail_fast=True)
    assert time.monotonic() - begin < 30
    assert scheduler.stopped_by == "1 trial failed or is not valid"
    assert list(published(tmp_path)) == ["c=1,rep=1"]


def test_a_lost_node_gets_no_more_and_its_attempt_cannot_finish(run: Run, tmp_path: Path) -> None:
    script = Script((1.0, Changes(lost=["a"])), (2.0, Changes(joined=[node("c")])))
    scheduler, lines = run(trials(2, "a"), ["a"], {"a": "sleep 3"}, script, patience_s=1.0)
    # Nobody else may run what asks for node a: it waits, then fails; the attempt that still ran has published nothing.
    assert [r["verdict"] for r in scheduler.records.values()] == 2 * [
        {"state": "failed", "reasons": ["every node that could run it was lost"]}
    ]
    assert "2 trials wait for a node that can run them, 1 s at most" in lines
    time.sleep(2.5)
    assert {r["verdict"]["state"] for r in published(tmp_path).values()} == {"failed"}


def test_trials_of_a_lost_node_run_on_one_that_joins_late(run: Run, tmp_path: Path) -> None:
    script = Script((1.0, Changes(lost=["a"])), (2.5, Changes(joined=[node("late")])))
    scheduler, lines = run(trials(3), ["a"], {"a": "sleep 30"}, script)
    assert {r["verdict"]["state"] for r in scheduler.records.values()} == {"valid"}
    assert {r["node"]["hostname"] for r in published(tmp_path).values()} == {"late"}
    assert "node late joined" in lines
    assert "c=1,rep=1 failed, again: node a is gone" in lines


def test_a_drive_rests_between_two_trials(run: Run) -> None:
    begin = time.monotonic()
    _, lines = run(trials(3), ["a"], {}, cooldown_s=1.0)
    assert time.monotonic() - begin >= 2.0
    assert sum(line.startswith("resting ") for line in lines) == 2


# --- plans that choose -----------------------------------------------------------------------------------------------

SEARCH = """
workload: {kind: command, argv: ["true", "{n}"], values: {n: 1}}
grid: {storage.fs: [ext4, xfs]}
search: {axis: workload.values.n, values: [1, 2, 4, 8, 16, 32, 64], metric: metric.score, at_most: 100, confirm: 2}
"""
REPEATS = """
workload: {kind: command, argv: ["true", "{n}"], values: {n: 1}}
grid: {workload.values.n: [1, 2, 3, 4]}
repeats: {until: ci, metric: metric.score, max: 6}
"""


def chosen_from(tmp_path: Path, text: str) -> Any:
    from sweep.adaptive import plan_of
    from sweep.config import load

    (tmp_path / "s.yaml").write_text(text)
    return plan_of(load(str(tmp_path / "s.yaml")))


def scores(plan: Any, seed: int) -> dict[str, str]:
    """What each trial comes to, by its id: some fail, the others have a score that grows with n."""
    chance = random.Random(seed)
    told = {}
    for trial in plan.trials:
        value = trial.cell["n"] * 7 * chance.lognormvariate(0, 0.1)
        told[trial.id] = "failed" if chance.random() < 0.05 else f"score {value}"
    return told


@pytest.mark.parametrize(("text", "seed"), [(SEARCH, 1), (SEARCH, 2), (REPEATS, 3), (REPEATS, 4)])
def test_a_plan_that_chooses_ends_on_several_nodes_and_resumes(run: Run, tmp_path: Path, text: str, seed: int) -> None:
    plan = chosen_from(tmp_path, text)
    acts = scores(plan, seed)
    scheduler, lines = run(plan, ["a", "b"], acts)
    begun = [line.split(" on ")[0] for line in lines if " on " in line]
    assert sorted(begun) == sorted(set(begun)) == sorted(published(tmp_path))
    assert {trial.id for trial in plan.planned} == set(begun)
    assert not plan.is_open
    assert lines[0] == f"at least {8 if 'search' in text else 12} planned"
    stored = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [entry["id"] for entry in stored["plan"]] == [trial.id for trial in plan.planned]
    (tmp_path / "run").rename(tmp_path / "whole")

    kept = {name: scheduler.records[name] for name in begun[: len(begun) // 2]}
    for trial in plan.planned:
        if trial.id not in kept:
            shutil.rmtree(tmp_path / "whole" / "trials" / trial.slug)
    again = chosen_from(tmp_path, text)
    run(again, ["a", "b"], acts, finished=kept, made_before=tmp_path / "whole")
    assert again.outcome() == plan.outcome()
    assert set(published(tmp_path)) == set(begun)
    assert {trial.id for trial in again.planned} == set(begun)


def test_a_search_stays_on_the_node_of_its_first_trial(run: Run, tmp_path: Path) -> None:
    plan = chosen_from(tmp_path, SEARCH)
    run(plan, ["a", "b"], {trial.id: f"score {trial.cell['n'] * 7}" for trial in plan.trials})
    homes = {(r["cell"]["fs"], r["node"]["hostname"]) for r in published(tmp_path).values()}
    assert len(homes) == 2


def test_a_metric_that_no_trial_has_stops_the_run_and_what_was_measured_is_kept(run: Run, tmp_path: Path) -> None:
    plan = chosen_from(tmp_path, SEARCH.replace("grid: {storage.fs: [ext4, xfs]}", ""))
    scheduler, _ = run(plan, ["a", "b"], {})
    assert scheduler.stopped_by == (
        "n=8,rep=1 has no metric.score: nothing recorded it; its job reports no metrics of its own"
    )
    assert list(published(tmp_path)) == ["n=8,rep=1"]
