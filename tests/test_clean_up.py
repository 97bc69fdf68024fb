"""What is left of a trial that offloads with an engine, under a memory limit and a tracer, when somebody is killed."""

import os
import signal

import pytest

from tests.machine import Attempt, Machine, wait_for

pytestmark = [pytest.mark.root, pytest.mark.ray, pytest.mark.slow]

SWEEP = "tests/flexgen.yaml"
ENGINE = "flexgen_generate.py"

#: Within so many seconds nothing of an attempt may be left on its node, whoever was killed.
LIMIT_S = 15

#: What a trial of the sweep takes of the machine while its engine runs.
HELD = {"folder", "loop", "mount", "queue", "cgroup", "ftrace"}


@pytest.fixture
def machine(tmp_path):
    (tmp_path / "state").mkdir()
    return Machine(tmp_path / "state", tmp_path / "results")


def generating(machine):
    """Wait until the engine has begun to offload and return the attempt."""
    wait_for(lambda: machine.measuring(ENGINE) and offloading(machine), 120)
    attempt = Attempt(machine, machine.attempts()[-1])
    assert attempt.held == HELD
    assert len(attempt.left()) >= len(HELD) + 2, "engine and supervisor are there to be seen"
    return attempt


def offloading(machine):
    return any(machine.state.glob("offload-sweep-*/mnt/offload/**/*[0-9]*"))


def kill(machine, *words):
    """SIGKILL the processes of the machine's sweeps with one of these words in their command line."""
    victims = [line for line in machine.processes() if any(word in line for word in words)]
    assert victims
    for line in victims:
        os.kill(int(line.split()[0]), signal.SIGKILL)


def test_cancelled(machine):
    process = machine.start(SWEEP)
    attempt = generating(machine)
    process.send_signal(signal.SIGINT)
    told(attempt, "cancel")
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert machine.attempts() == []


def test_worker_killed(machine):
    process = machine.start(SWEEP)
    attempt = generating(machine)
    kill(machine, "ray::run_attempt")
    told(attempt, "worker SIGKILL")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert machine.attempts() == []


def test_driver_killed(machine):
    process = machine.start(SWEEP)
    attempt = generating(machine)
    process.kill()
    told(attempt, "driver SIGKILL")
    process.communicate(timeout=60)


def told(attempt, what):
    """Say how long it took until nothing of the attempt was left, and hold that to the limit."""
    seconds = attempt.gone_after_s()
    print(f"\n{what}: nothing was left after {seconds:.1f} s")
    assert seconds < LIMIT_S
