"""The next trial for a node: in the plan's order, where it can run, a cell's trials on one node."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from sweep.backlog import Backlog
from sweep.health import STREAK, Health
from sweep.placement import Node, Placement, Placements
from sweep.plan import Trial
from tasks.machine import Offer


def node(name: str, *capabilities: str) -> Node:
    return Node(Offer(name, {}, [], "/", list(capabilities)), name)


class Known(Placements):
    """Placements by a capability that a trial's configuration names."""

    def of(self, trial: Trial) -> list[Placement]:
        able = [n for n in self.nodes if trial.config["wants"] in n.offer.capabilities]
        return [Placement(n, (), "none", {}, 0) for n in able]

    def demand(self, trial: Trial) -> object:  # type: ignore[override]
        return type("Demand", (), {"key": trial.config["wants"]})


def trials(cells: Sequence[str], repeats: int) -> list[Trial]:
    """Return the interleaved trials of cells, each of which wants a capability."""
    configs = [{"wants": wants} for wants in cells]
    return [
        Trial(f"c={c},rep={r}", f"c-{c}-{r}", {"c": c}, r, configs[c])
        for r in range(1, repeats + 1)
        for c in range(len(cells))
    ]


def test_a_cell_stays_on_the_node_of_its_first_trial() -> None:
    nodes = [node("a", "x"), node("b", "x")]
    backlog = Backlog(Known(nodes))
    for trial in trials(["x", "x"], 2):
        backlog.push(trial)
    taken = [(n.name, backlog.pop(n)) for n in (nodes[0], nodes[1], nodes[1], nodes[0], nodes[0])]
    assert [(name, w.trial.id if w else None) for name, w in taken] == [
        ("a", "c=0,rep=1"),
        ("b", "c=1,rep=1"),
        ("b", "c=1,rep=2"),
        ("a", "c=0,rep=2"),
        ("a", None),
    ]


def test_a_trial_that_is_tried_again_comes_first() -> None:
    (only,) = nodes = [node("a", "x")]
    backlog = Backlog(Known(nodes))
    first, second = trials(["x", "x"], 1)
    backlog.push(second)
    backlog.push(first, attempt=2)
    waiting = backlog.peek(only)
    assert waiting is not None
    assert (waiting.trial, waiting.attempt) == (first, 2)
    assert backlog.pop(only) == waiting


def test_trials_of_a_lost_node_go_to_another_and_wait_where_there_is_none() -> None:
    a, b = node("a", "x"), node("b", "y")
    backlog = Backlog(Known([a, b]))
    one, two = trials(["x"], 2)
    backlog.push(one)
    assert backlog.pop(a)
    backlog.push(two)
    backlog.leave("a")
    assert [w.trial for w in backlog.stranded()] == [two]
    assert backlog.pop(b) is None
    late = node("c", "x")
    backlog.join(late)
    assert backlog.stranded() == []
    found = backlog.pop(late)
    assert found is not None
    assert found.trial == two
    assert not backlog


@given(
    cells=st.lists(st.sampled_from("xyz"), min_size=1, max_size=6),
    repeats=st.integers(1, 3),
    able=st.lists(st.sets(st.sampled_from("xyz"), min_size=1), min_size=1, max_size=4),
    turns=st.lists(st.integers(0, 3), max_size=30),
    lost=st.integers(0, 40),
)
def test_it_hands_out_what_looking_at_all_trials_would(
    cells: list[str], repeats: int, able: list[set[str]], turns: list[int], lost: int
) -> None:
    nodes = [node(str(n), *sorted(names)) for n, names in enumerate(able)]
    backlog, waiting, homes = Backlog(Known(list(nodes))), trials(cells, repeats), dict[int, str]()
    for trial in waiting:
        backlog.push(trial)
    for count, turn in enumerate(turns):
        if count == lost:
            gone = nodes.pop(0)
            backlog.leave(gone.ray_id)
            homes = {cell: home for cell, home in homes.items() if home != gone.name}
        if not nodes:
            break
        one = nodes[turn % len(nodes)]
        fits = [
            t
            for t in waiting
            if t.config["wants"] in one.offer.capabilities and homes.get(t.cell["c"], one.name) == one.name
        ]
        found = backlog.pop(one)
        assert (found.trial if found else None) == (fits[0] if fits else None)
        if found:
            waiting.remove(found.trial)
            homes[found.trial.cell["c"]] = one.name
        assert len(backlog) == len(waiting)
    impossible = [t for t in waiting if not any(t.config["wants"] in n.offer.capabilities for n in nodes)]
    assert [w.trial for w in backlog.stranded()] == impossible


def test_a_node_that_fails_in_a_row_while_others_do_not_is_not_trusted() -> None:
    health = Health()
    failed = trials(["x"] * STREAK, 1)
    for trial in failed:
        health.ended("bad", trial, valid=False)
    assert health.failing("bad") == []
    health.ended("good", failed[0], valid=True)
    assert health.failing("bad") == failed
    assert health.failing("good") == []
    health.ended("bad", failed[0], valid=True)
    assert health.failing("bad") == []
