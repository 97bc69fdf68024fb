"""Process 1 of a host in namespaces: sets up what the host has, then keeps its one service alive, as systemd does.

    python namespace_init.py SETUP    JSON: {"hostname": ..., "before": [ARGV, ...], "service": ARGV, "down": PATH}

The service is started again whenever it ends, unless the file PATH is there. Every orphan of the host is adopted and
reaped here, and the kernel ends all that runs on the host when this process ends (pid_namespaces(7)).
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time

#: As `RestartSec=` of a unit.
_RESTART_S = 2.0


def main() -> None:
    setup = json.loads(sys.argv[1])
    socket.sethostname(setup["hostname"])
    for argv in setup["before"]:
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    print("ready", flush=True)
    while True:
        while os.path.exists(setup["down"]):
            _reap()
            time.sleep(0.1)
        service = os.spawnvp(os.P_NOWAIT, setup["service"][0], setup["service"])
        while service not in _reap():
            signal.sigtimedwait([signal.SIGCHLD], 0.5)
        time.sleep(_RESTART_S)


def _reap() -> list[int]:
    """Take the exit codes of children that have ended; return their pids."""
    ended = []
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if not pid:
            return ended
        ended.append(pid)


if __name__ == "__main__":
    main()
