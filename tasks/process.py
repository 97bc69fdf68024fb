"""Child processes: argument lists only, in a group of their own, ended with their parent."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tasks.errors import TaskError

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

#: How long a killed process may take to end. One that waits for a drive ends when the drive answers, or never.
_KILL_LIMIT_S = 60.0
_LIBC = ctypes.CDLL(None, use_errno=True)


def die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the thread that started this process ends (prctl(2), PR_SET_PDEATHSIG)."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _begin_afresh() -> None:
    """Give a child its own death and default signals: Ray's workers block SIGINT, supervisors ignore it."""
    die_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def sync_filesystem(handle: int) -> None:
    """Write the filesystem of an open file to its device (syncfs(2)); raises OSError where the kernel could not."""
    if _LIBC.syncfs(handle):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def adopt_orphans() -> None:
    """Become the parent of every orphaned descendant (prctl(2), PR_SET_CHILD_SUBREAPER)."""
    _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1)


def tool(argv: Sequence[str], error: type[TaskError], timeout_s: float = 120) -> str:
    """Run a short system tool and return what it printed; raise `error` with its own words where it fails."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise error(f"{argv[0]} is not installed on this node") from None
    except subprocess.TimeoutExpired:
        raise error(f"{' '.join(argv)} did not end within {timeout_s:.0f} s") from None
    if done.returncode:
        words = (done.stderr or done.stdout).strip() or f"exit code {done.returncode}"
        raise error(f"{' '.join(argv)}: {words}")
    return done.stdout


@contextmanager
def child(
    argv: Sequence[str],
    log: Path,
    environment: Mapping[str, str],
    output: Path | None = None,
    cgroup_procs: Path | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `argv` as a process group; end what is left of the group at the end.

    Standard error goes to `log`, and so does standard output unless `output` names another file. `cgroup_procs` is
    the file by which the child enters a cgroup before anything of it runs.
    """

    def begin() -> None:
        if cgroup_procs is not None:
            cgroup_procs.write_text("0")
        _begin_afresh()

    with log.open("ab") as errors, (output or log).open("ab") as printed:
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=errors,
                env=dict(environment),
                start_new_session=True,
                preexec_fn=begin,
            )
        except (OSError, subprocess.SubprocessError) as e:
            if not isinstance(e, OSError):
                raise TaskError(f"cannot start {argv[0]}: it cannot enter its cgroup") from e
            raise TaskError(f"cannot start {argv[0]}: {e.strerror}") from e
    try:
        yield process
    finally:
        end_group(process)


def end_group(process: subprocess.Popen[bytes], grace_s: float = 5.0) -> None:
    """End a child and its process group: SIGTERM, then SIGKILL after `grace_s`."""
    if process.poll() is None:
        _signal_group(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
    _signal_group(process.pid, signal.SIGKILL)
    try:
        process.wait(_KILL_LIMIT_S)
    except subprocess.TimeoutExpired:
        text = f"process {process.pid} cannot be ended: it waits in the kernel, for a drive that hangs?"
        raise TaskError(text) from None


def interrupt(
    process: subprocess.Popen[bytes], limit_s: float = 30.0, until: Callable[[], bool] = lambda: False
) -> None:
    """Send SIGINT until the process has ended, or has heard as `until` says: bpftrace misses one at times."""
    end = time.monotonic() + limit_s
    while process.poll() is None and not until() and time.monotonic() < end:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(0.5)
        except subprocess.TimeoutExpired:
            continue


def _signal_group(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, number)


def exit_in_words(code: int) -> str:
    """Return what a child's exit code means: `exit code 3`, or `killed by SIGKILL`."""
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


def log_tail(log: Path, lines: int = 15, limit_bytes: int = 16384) -> str:
    """Return the last lines of a log, bounded in bytes."""
    try:
        with log.open("rb") as f:
            f.seek(max(0, log.stat().st_size - limit_bytes))
            text = f.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])
