"""Work of a `RunStore` in a process that is killed at some change of the disk; started by a server without threads."""

import builtins
import os
import signal
from multiprocessing import get_context

from analysis.store import RunStore
from tests.test_store import publish

#: What changes the disk; a process that dies does so before or after one of these.
STEPS = [(os, name) for name in ("open", "fsync", "replace", "rename", "mkdir", "pwrite", "unlink")]
STEPS += [(builtins, "open")]
FILES = [("logs/a.log", b"0123456789"), ("requests.parquet", b"PAR1 and junk")]
RECORD = {"sweep": "s", "schema_version": 1, "plan": []}

# a process with polars' threads cannot be forked
_CONTEXT = get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.crashing"])


def second_attempt(run, earlier, begin):
    """Publish a trial; with `earlier`, one of which another attempt is there already."""
    store = RunStore(str(run))
    store.create(RECORD, "name: s\n")
    if earlier:
        publish(store, "k-0", FILES)
    begin()
    publish(store, "k-1", FILES, attempt=2)


def whole_run(run, begin):
    """Begin a run, publish a trial, end the run."""
    begin()
    store = RunStore(str(run))
    store.create(RECORD, "name: s\n")
    publish(store, "k-0", FILES)
    store.finish({"state": "finished"})


def _work(step, work, arguments):
    left = None

    def counted(call):
        def told(*args, **kwargs):
            nonlocal left
            if left is not None:
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return told

    def begin():
        nonlocal left
        left = step

    for module, name in STEPS:
        setattr(module, name, counted(getattr(module, name)))
    work(*arguments, begin)


def killed_at(step, work, *arguments):
    """Run `work` in a process that is killed before its `step`-th change of the disk; say whether it got so far."""
    process = _CONTEXT.Process(target=_work, args=(step, work, arguments))
    process.start()
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0
