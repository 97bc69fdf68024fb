"""Whatever was finished and whatever changed since: exactly what is valid and untouched by a change is reused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from sweep.code import digest, digest_of
from sweep.past import Finished
from sweep.placement import Placements
from sweep.plan import Trial
from sweep.resume import Decisions, State
from tests.conftest import trial_config
from tests.test_decisions import HALF, node

CELLS, REPEATS = "abcd", (1, 2)


class Plan:
    """A plan of trials made by hand."""

    is_open = False

    def __init__(self, trials: list[Trial], selected: list[Trial]) -> None:
        self.every, self.trials = tuple(trials), tuple(selected)
        self.planned = self.trials


class Past:
    """A run that lies nowhere."""

    path, unreadable = Path("/nowhere"), []

    def __init__(self, trials: list[Finished], code: dict[str, dict[str, str]]) -> None:
        self.trials = {one.id: one for one in trials}
        self.record = {"plan": [{"id": one.id} for one in trials]}
        self._code = code

    def code(self, wanted: str | None) -> dict[str, str] | None:
        return self._code.get(str(wanted))


def config(cell: str, key: int) -> dict[str, Any]:
    workload = {"kind": "command", "argv": ["true", cell], "values": {"key": key}}
    storage = {"kind": "directory", "path": "/", "fs": "auto", "queue": {}}
    return trial_config("none", workload=workload, storage=storage)


def finished(trial: Trial, state: str, key: int, code: str, half: dict[str, Any]) -> Finished:
    recorded = json.loads(json.dumps(config(trial.cell["c"], key)))
    return Finished(trial.id, trial.slug, state, ("why",), "n1", recorded, digest(recorded), code, half, 1, "", {})


def trial(cell: str, repeat: int, configs: dict[str, Any], cells: dict[str, Any]) -> Trial:
    return Trial(f"c={cell},rep={repeat}", f"c-{cell}-{repeat}", cells[cell], repeat, configs[cell])


past_trials = st.fixed_dictionaries(
    {
        "state": st.sampled_from(["valid", "valid", "invalid", "failed", "absent"]),
        "key": st.sampled_from([0, 0, 0, 1]),
        "code": st.sampled_from(["now", "now", "now", "old", "forgotten"]),
        "kernel": st.sampled_from(["6.1", "6.1", "6.1", "5.0"]),
    }
)
runs = st.fixed_dictionaries({f"c={c},rep={n}": past_trials for c in CELLS for n in REPEATS})


@settings(max_examples=60, deadline=None)
@given(runs, st.sets(st.sampled_from([f"c={c},rep={n}" for c in CELLS for n in REPEATS])))
def test_exactly_what_is_valid_and_untouched_is_reused(run: dict[str, dict[str, Any]], left_out: set[str]) -> None:
    configs = {c: config(c, 0) for c in CELLS}
    cells = {c: {"c": c} for c in CELLS}
    trials = [trial(c, n, configs, cells) for n in REPEATS for c in CELLS]
    now = digest_of(configs["a"])
    codes = {"now": now, "old": "old", "forgotten": "forgotten"}
    done = [
        finished(t, told["state"], told["key"], codes[told["code"]], {**HALF, "kernel": told["kernel"]})
        for t in trials
        if (told := run[t.id])["state"] != "absent"
    ]
    past = Past(done, {"old": {"tasks/x.py": "1"}})

    def ask(pairs: Any) -> Any:
        return [[copy.deepcopy(HALF) for _ in questions] for _, questions in pairs]

    selected = [t for t in trials if t.id not in left_out]
    decisions = Decisions(Plan(trials, selected), Placements([node()]), past, ask)  # type: ignore[arg-type]
    for t in selected:
        told, decision = run[t.id], decisions.of[t.id]
        untouched = (told["key"], told["code"], told["kernel"]) == (0, "now", "6.1")
        if told["state"] != "valid":
            assert decision.state is State.run
        else:
            assert decision.state is (State.reuse if untouched else State.stale)
        words = " ".join(decision.reasons)
        assert ("workload.values.key: 1 -> 0" in words) == (told["state"] == "valid" and told["key"] == 1)
        assert ("node: kernel: 5.0 -> 6.1" in words) == (told["state"] == "valid" and told["kernel"] == "5.0")
        assert ("code of tasks/x.py: 1 -> (none)" in words) == (told["state"] == "valid" and told["code"] == "old")
        assert (f"code: forgotten -> {now}" in words) == (told["state"] == "valid" and told["code"] == "forgotten")
    assert set(decisions.records()) == {t.id for t in selected if decisions.of[t.id].state is State.reuse}
    good = {t.id for t in trials if run[t.id] == {"state": "valid", "key": 0, "code": "now", "kernel": "6.1"}}
    left = {one.id for one in done if one.id in left_out and one.state != "valid"}
    assert decisions.kept() == good | left
    assert set(decisions.aside()) == {one.slug for one in done if one.id not in good | left}
    assert {t.id for t in decisions.planned()} >= {t.id for t in selected} | good
