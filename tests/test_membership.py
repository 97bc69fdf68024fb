"""Which nodes take part in a sweep: those that join late, are lost, come back, have other code, or stay silent."""

import time
from functools import partial

import pytest

from sweep import membership
from sweep.errors import ClusterError
from sweep.membership import MACHINE_LABEL, Answer, Inquiry, Membership, asked
from sweep.placement import SLOT, Node
from tasks.machine import Offer


def entry(ray_id, machine=None, alive=True):
    return {
        "NodeID": ray_id,
        "Alive": alive,
        "NodeManagerHostname": f"host-{ray_id}",
        "NodeManagerAddress": "10.0.0.1",
        "Resources": {SLOT: 1.0} if alive else {},
        "Labels": {MACHINE_LABEL: machine} if machine else {},
    }


def node(ray_id):
    return Node(Offer(f"host-{ray_id}", {}, [], "/state"), ray_id)


class FakeInquiry(Inquiry):
    """Nodes answer when the test says so; Ray is not asked."""

    def __init__(self):
        super().__init__()
        self.answering, self.refusing = set(), {}

    def ask(self, entry):
        self._asked[f"ref-{entry['NodeID']}"] = membership._Asked(entry, time.monotonic())

    def answers(self, wait_s=0.0):
        done = [ref for ref, a in self._asked.items() if a.entry["NodeID"] in self.answering | set(self.refusing)]
        return [self.answer(self._asked.pop(ref).entry) for ref in done]

    def answer(self, entry):
        ray_id, machine = entry["NodeID"], membership._machine(entry)
        refusal = self.refusing.get(ray_id)
        return Answer(ray_id, ray_id, machine, None if refusal else node(ray_id), refusal)


@pytest.fixture
def cluster(monkeypatch):
    """A list of nodes as Ray would give it, read at every look, and answers under the test's control."""
    entries = []
    monkeypatch.setattr(membership, "candidates", lambda: [e for e in entries if e["Alive"]])
    monkeypatch.setattr(membership, "_LOOK_S", 0.0)
    return entries


def membership_of(*ids):
    made = Membership([node(ray_id) for ray_id in ids], started_locally=False)
    made._inquiry = FakeInquiry()
    return made


def test_nothing_changes_where_the_nodes_stay(cluster):
    cluster += [entry("a"), entry("b")]
    members = membership_of("a", "b")
    assert members.poll() == membership.Changes()


def test_nobody_joins_a_ray_of_ones_own(monkeypatch):
    monkeypatch.setattr(membership, "candidates", partial(pytest.fail, "it was asked"))
    assert Membership([node("a")], started_locally=True).poll() == membership.Changes()


def test_a_late_node_joins_once_it_has_answered_and_only_once(cluster):
    cluster += [entry("a"), entry("b")]
    members = membership_of("a")
    assert members.poll().joined == []
    members._inquiry.answering.add("b")
    assert [n.ray_id for n in members.poll().joined] == ["b"]
    assert members.poll() == membership.Changes()


def test_a_node_that_is_gone_is_lost_once(cluster):
    cluster += [entry("a"), entry("b", alive=False)]
    members = membership_of("a", "b")
    assert members.poll().lost == ["b"]
    assert members.poll().lost == []


def test_a_machine_that_came_back_replaces_its_old_entry_still_listed_as_alive(cluster):
    cluster += [entry("a"), entry("b", "box"), entry("c", "box")]
    members = membership_of("a", "b")
    members._inquiry.answering.add("c")
    changes = members.poll()
    assert ([n.ray_id for n in changes.joined], changes.lost) == (["c"], ["b"])
    assert members.poll() == membership.Changes()


def test_a_node_with_other_code_is_told_of_once_and_asked_again_under_a_new_id_only(cluster):
    cluster.append(entry("a"))
    members = membership_of("a")
    cluster.append(entry("b"))  # one that was there before is told of as the sweep begins
    members._inquiry.refusing["b"] = "node host-b has other code"
    assert members.poll().refused == ["node host-b has other code"]
    assert members.poll().refused == []
    cluster[1] = entry("b2")
    members._inquiry.answering.add("b2")
    assert [n.ray_id for n in members.poll().joined] == ["b2"]


def test_a_silent_node_is_told_of_once_and_joins_when_it_answers(cluster, monkeypatch):
    cluster += [entry("a"), entry("b")]
    members = membership_of("a")
    assert members.poll().refused == []
    monkeypatch.setattr(membership, "_ANSWER_LIMIT_S", -1.0)
    assert members.poll().refused == ["node host-b (10.0.0.1) has not answered yet; it is used once it does"]
    assert members.poll().refused == []
    members._inquiry.answering.add("b")
    assert [n.ray_id for n in members.poll().joined] == ["b"]


def test_one_that_died_before_it_answered_is_forgotten(cluster):
    cluster += [entry("a"), entry("b")]
    members = membership_of("a")
    members.poll()
    cluster[1] = entry("b", alive=False)
    assert members.poll() == membership.Changes()
    assert members._inquiry.ids() == set()


def test_one_silent_node_does_not_hold_up_the_others(monkeypatch):
    inquiry = FakeInquiry()
    inquiry.answering |= {"a", "c"}
    monkeypatch.setattr(membership, "Inquiry", lambda: inquiry)
    monkeypatch.setattr(membership, "_GRACE_S", 0.2)
    begin_s = time.monotonic()
    answers = asked([entry("a"), entry("b"), entry("c")])
    assert time.monotonic() - begin_s < 5
    assert [a.node is not None for a in answers] == [True, False, True]
    assert "has not answered yet" in answers[1].refusal


def test_the_entry_of_before_of_a_machine_that_answered_is_not_told_of(monkeypatch):
    inquiry = FakeInquiry()
    inquiry.answering.add("new")
    monkeypatch.setattr(membership, "Inquiry", lambda: inquiry)
    monkeypatch.setattr(membership, "_GRACE_S", 0.1)
    assert [a.ray_id for a in asked([entry("old", "box"), entry("new", "box")])] == ["new"]


def test_one_that_failed_is_not_told_of_either_where_its_machine_answered(monkeypatch):
    inquiry = FakeInquiry()
    inquiry.answering.add("new")
    inquiry.refusing["old"] = "node vm does not answer: no longer there"
    monkeypatch.setattr(membership, "Inquiry", lambda: inquiry)
    assert [a.ray_id for a in asked([entry("old", "box"), entry("new", "box")])] == ["new"]


@pytest.fixture
def several():
    """A head and a way to add and remove nodes, all of them real raylets on this machine."""
    import ray
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "resources": {SLOT: 1.0}})
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.mark.ray
@pytest.mark.slow
def test_real_nodes_join_and_are_lost(several, state, monkeypatch):
    from sweep import cluster

    members = Membership(cluster._nodes(), started_locally=False)
    assert len(members._known) == 1
    late = several.add_node(num_cpus=1, resources={SLOT: 1.0}, labels={MACHINE_LABEL: "late"})
    seen = until(members, lambda changes: changes.joined)
    assert [n.ray_id for n in seen.joined] == [late.node_id]
    assert all(members.poll() == membership.Changes() for _ in range(200))
    assert members._inquiry.ids() == set()  # who is known is not asked again
    several.remove_node(late, allow_graceful=False)
    assert until(members, lambda changes: changes.lost).lost == [late.node_id]
    monkeypatch.setattr(membership, "code_hash", lambda: "0123456789abcdef")
    with pytest.raises(ClusterError, match=r"(?s)no node of the cluster can take part.*other code.*0123456789abcdef"):
        cluster._nodes()


def until(members, wanted, limit_s=60):
    end_s = time.monotonic() + limit_s
    while not wanted(changes := members.poll()):
        assert time.monotonic() < end_s, "it did not happen in time"
        time.sleep(0.05)
    return changes
