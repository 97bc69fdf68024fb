"""Hosts in namespaces: what tests of clusters stand on."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import namespaces
from tests.machine import ROOT, wait_for

pytestmark = pytest.mark.root

LISTEN = [sys.executable, "-c", "import socket, time; s = socket.create_server(('', 5000)); time.sleep(1000)"]
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], 5000), 1)"

#: Makes a network with one host, says its name, and waits to be killed.
LEFT = """
import time
from tests import namespaces
with namespaces.network() as net:
    net.host("one", "xfs", lambda host: ["sleep", "1000"])
    print(net.name, flush=True)
    time.sleep(1000)
"""


@pytest.fixture(autouse=True)
def _possible():
    if why := namespaces.obstacle():
        pytest.skip(why)


def reaches(host, other):
    process = host.start(sys.executable, "-c", CONNECT, other.address)
    process.communicate()
    return process.returncode == 0


def test_hosts_are_apart_and_reach_each_other():
    with namespaces.network() as net:
        one, two = (net.host(name, fs, lambda host: LISTEN) for name, fs in (("one", "ext4"), ("two", "btrfs")))
        assert [host.run("uname", "-n").strip() for host in (one, two)] == ["one", "two"]
        kinds = [host.run("stat", "--file-system", "--format=%T", str(host.offload)).strip() for host in (one, two)]
        assert kinds == ["ext2/ext3", "btrfs"]
        wait_for(lambda: reaches(one, two), 10)
        two.cut_for(3)
        assert not reaches(one, two)
        wait_for(lambda: reaches(one, two), 10)
        assert two.kill("create_server")
        wait_for(lambda: reaches(one, two), 10)  # it was started again
        two.power_off()
        assert not reaches(one, two)
        two.power_on()
        wait_for(lambda: reaches(one, two), 10)
    assert left(net.name) == []


def test_what_a_killed_process_leaves_is_cleared_by_the_next():
    process = subprocess.Popen([sys.executable, "-c", LEFT], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    name = process.stdout.readline().strip()
    assert len(left(name)) >= 4
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    wait_for(lambda: not [line for line in left(name) if line.startswith("process")], 10)
    namespaces.clear_abandoned()
    wait_for(lambda: not left(name), 10)


def left(name):
    """Return what is there of the network of this name: namespaces, folder, mounts, loop devices, processes."""
    found = [str(p) for folder in ("/run/netns", "/var/tmp") for p in Path(folder).glob(f"{name}*")]
    found += [line for line in Path("/proc/mounts").read_text().splitlines() if f"/var/tmp/{name}" in line]
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if name in (folder / "cmdline").read_text() and int(folder.name) != os.getpid():
                found.append(f"process {folder.name}")
        except OSError:
            continue
    return found
