"""What the doctor says of a machine, of one that lacks things, and of a cluster with a node in trouble."""

import json
import os
import time

import pytest

from sweep import doctor, membership
from sweep.checkup import Checkup, examined, fix_of, needed_by, shipped
from tasks import leftovers, machine, node_config
from tasks.lease import Lease
from tasks.machine import Offer, Place
from tasks.scratch import Scratch

FACTS = {"kernel": "6.18.0-generic", "cpus": 2, "gpus": [], "memory_bytes": 8 << 30}


def an_offer(capabilities, missing=(), **values):
    places = [Place("/", "ext4", ("nvme0n1",), 1 << 42, False, "rw"), Place("/dev/shm", "tmpfs", (), 1 << 40, True)]
    given = {"places": places, "state_dir": "/var/lib/offload-sweep", "memory_bytes": 64 << 30, "facts": FACTS}
    return Offer("box", capabilities=list(capabilities), missing=dict(missing), **{**given, **values})


EVERYTHING = sorted({*needed_by(), "tracer:none", "tracer:diskstats", "fs:btrfs"})


def without(name, reason):
    return an_offer([c for c in EVERYTHING if c != name], {name: reason})


def test_every_shipped_sweep_is_looked_at_with_all_its_scales():
    names = [wanted.name for wanted in shipped()]
    assert {"quickstart", "fig4", "fig4 scale=small", "fio"} <= set(names)
    assert all(wanted.cells for wanted in shipped())


def test_a_machine_that_has_everything_runs_everything():
    found = examined(an_offer(EVERYTHING), {})
    assert (list(found.runs), found.cannot, found.lacks) == ([w.name for w in shipped()], {}, ())


def test_what_is_missing_names_the_sweeps_that_need_it_and_the_command():
    found = examined(without("engine:flexgen", "flexgen is not installed (make setup), or ..."), {})
    (lack,) = found.lacks
    assert lack.fix == "make setup"
    assert {"fig4 (flexgen)", "fig5 (flexgen)"} <= set(lack.needed_by)
    assert "fig4" in found.cannot
    assert "fig4" not in found.runs
    assert "fig3" in found.runs
    text = "\n".join(doctor.report([found]))
    assert "engine:flexgen: flexgen is not installed" in text
    assert "mend it: make setup" in text
    assert "needed by fig4 (flexgen)" in text


def test_a_sweep_of_which_some_cells_run_says_how_many():
    partly = examined(without("fs:xfs", "mkfs.xfs is not installed: apt-get install xfsprogs"), {})
    some = [text for text in partly.runs if "cells" in text]
    assert some
    assert all(text.partition(":")[0] in partly.cannot for text in some)


@pytest.mark.parametrize(
    ("reason", "command"),
    [
        ("bpftrace is not installed: apt-get install bpftrace", "apt-get install bpftrace"),
        ("the kernel has no loop devices: modprobe loop", "modprobe loop"),
        ("DeepSpeed's async_io is not built: run python -m tasks.async_io build", "python -m tasks.async_io build"),
        ("no NVIDIA GPU on this node", None),
    ],
)
def test_the_command_that_mends_is_taken_from_the_reason(reason, command):
    assert fix_of(reason) == command


def test_what_this_machine_itself_lacks_can_be_mended_or_is_no_command_s_matter(state):
    """The reasons that `tasks.machine` gives: each has a command, or is one of those that only hardware mends."""
    hopeless = ("GPU", "tracefs", "cufile", "scratch device", "the kernel of this node has no", "cgroup", "told not to")
    for reason in machine.offer().missing.values():
        assert fix_of(reason) or any(word in reason for word in hopeless), reason


def test_advice_tells_of_clock_space_leftovers_and_shared_drives():
    offer = an_offer(
        EVERYTHING,
        places=[Place("/", "ext4", ("nvme0n1",), 1 << 30, False, "rw")],
        storage={"ext4": "/data", "xfs": "/data"},
        scratch=[Scratch("/dev/sdb", ("/dev/sdb",), 1, ("sdb",), True, "/dev/sdb is in use")],
    )
    told = {"skew_s": -90.0, "problems": ["mount /x: busy"], "leftovers": ["/dev/shm/offload-sweep-1"]}
    advice = "\n".join(examined(offer, told).advice)
    for words in (
        "its clock is 90.0 s behind this machine's: timedatectl set-ntp true",
        "only 1 GiB free in the state folder",
        "storage ext4=/data shares the drive nvme0n1 with the state folder",
        "storage xfs=/data is ext4, not xfs",
        "cannot be removed: mount /x: busy",
        "/dev/shm/offload-sweep-1 is of a sweep with another state folder",
        "/dev/sdb is in use",
    ):
        assert words in advice


def test_a_clock_is_only_called_wrong_where_it_must_be():
    assert membership.skew_s(105.0, 100.0, 110.0) == 0
    assert membership.skew_s(113.0, 100.0, 110.0) == 3
    assert membership.skew_s(95.0, 100.0, 110.0) == -5
    assert membership.skew_s(None, 100.0, 110.0) == 0


def test_the_report_is_readable_at_100_columns():
    poor = examined(an_offer(["tracer:none", "tracer:diskstats"], dict.fromkeys(EVERYTHING, "needs root: x")), {})
    silent = Checkup("far", "node far (10.0.0.9) has other code (x) than this machine (y): install the same version")
    lines = doctor.report([poor, silent])
    assert max(map(len, lines)) <= 100
    assert any("nothing: see below" in line for line in lines)
    assert any("other code" in line for line in lines)


def test_exit_codes_tell_whether_anything_can_run(monkeypatch, capsys, state):
    rich, poor = examined(an_offer(EVERYTHING), {}), Checkup("far", "does not answer")
    for found, code in (([rich], 0), ([rich, poor], 3), ([poor], 2)):
        monkeypatch.setattr(doctor, "of_cluster", lambda address, found=found: found)
        assert doctor.main(["--address", "x:1", "--json"]) == code
        assert len(json.loads(capsys.readouterr().out)) == len(found)


def test_this_machine_is_looked_at_without_ray(state, capsys):
    assert doctor.main(["--json"]) in (0, 2)
    (told,) = json.loads(capsys.readouterr().out)
    assert told["offer"]["state_dir"] == str(state)
    assert {"name", "reason", "needed_by", "fix"} == set(told["lacks"][0])


def test_a_cluster_that_is_not_there_is_one_message(capsys, state):
    begin_s = time.monotonic()
    assert doctor.main(["--address", "127.0.0.1:6397"]) == 2
    assert time.monotonic() - begin_s < 10
    assert "no Ray cluster answers" in capsys.readouterr().err


def test_leftovers_are_what_no_attempt_accounts_for(state, monkeypatch, tmp_path):
    (tmp_path / "shm").mkdir()
    monkeypatch.setattr(leftovers, "_MEMORY", tmp_path / "shm")
    monkeypatch.setattr(leftovers, "_TRACING", tmp_path / "none")
    monkeypatch.setattr(leftovers.cgroup, "find", lambda: None)
    Lease.take("key-1")
    (state / "attempts" / "lost-3").mkdir()
    (state / "attempts" / "lost-3" / "lease.json").write_text("")
    (tmp_path / "nvme").mkdir()
    monkeypatch.setenv(node_config.FLAGS_VARIABLE, json.dumps({"storage": {"xfs": str(tmp_path / "nvme")}}))
    for folder in (state, tmp_path / "shm", tmp_path / "nvme"):
        (folder / "offload-sweep-kept-key-0").mkdir()
    (tmp_path / "nvme" / "offload-sweep-lost-3").mkdir()
    for token in ("key-1", "key-1-cost", "gone-7"):
        (tmp_path / "shm" / f"offload-sweep-{token}").mkdir()
    os.makedirs(state / "offload-sweep-gone-8")
    names = ["offload-sweep-gone-8", "offload-sweep-lost-3", "offload-sweep-gone-7"]
    assert [os.path.basename(path) for path in leftovers.found()] == names
