"""A clock that is set back or forth changes no duration, and lets no two runs have one folder."""

import datetime
import os
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from analysis.report import words
from sweep import run as sweep_run
from tasks import trial
from tests.conftest import trial_config


class Jumping(datetime.datetime):
    """A clock that goes back an hour each time somebody looks."""

    looks = 0

    @classmethod
    def now(cls, tz=None):
        cls.looks += 1
        return datetime.datetime(2026, 11, 21, 20, tzinfo=tz) - datetime.timedelta(hours=cls.looks)


@pytest.fixture
def jumping(monkeypatch):
    module = SimpleNamespace(datetime=Jumping, timedelta=datetime.timedelta, UTC=datetime.UTC)
    monkeypatch.setattr(trial, "datetime", module)
    monkeypatch.setattr(sweep_run, "datetime", module)


def test_a_trial_ends_after_it_began_whatever_the_clock_does(run_here, jumping, tmp_path):
    storage = {"kind": "directory", "fs": "auto", "path": str(tmp_path), "queue": {}}
    workload = {"kind": "command", "argv": ["sleep", "0.3"], "values": {}, "env": {}, "space": "1MiB"}
    workload |= {"expect_read": None, "expect_write": None}
    record, _ = run_here(trial_config("none", workload=workload, storage=storage))
    took_s = words.seconds(record["started"], record["ended"])
    assert took_s is not None
    assert 0.3 <= took_s < 60


def test_a_run_that_ended_before_it_began_took_nobody_knows_how_long():
    assert words.seconds("2026-11-21T10:00:01+00:00", "2026-11-21T10:00:00+00:00") is None


def test_no_two_runs_have_one_folder(tmp_path, monkeypatch):
    class Frozen(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.datetime(2026, 11, 21, 20)

    monkeypatch.setattr(sweep_run, "datetime", SimpleNamespace(datetime=Frozen))
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: sweep_run._new_folder(tmp_path, "s"), range(24)))
    assert len({*folders}) == 24
    assert sorted(os.listdir(tmp_path / "s"))[0] == "20261121-200000"
