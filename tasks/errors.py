"""What can go wrong on a node. Every message is one a user reads: what, where, what to do."""

from __future__ import annotations


class TaskError(Exception):
    """A trial cannot go on; its text is the reason recorded in the verdict.

    TaskError
    ├── StorageError      the drive, filesystem or image is not what the trial asked for
    ├── TracerError       the tracer did not start, or did not say that it was live
    ├── NodeConfigError   node.yaml cannot be read (`tasks.node_config`)
    ├── LimitError        a memory limit cannot be set (`tasks.cgroup`)
    ├── InterpreterError  `workload.python` cannot run the job (`tasks.interpreter`)
    ├── AsyncIOError      DeepSpeed's async_io cannot be built or loaded (`tasks.async_io`)
    ├── FioError          fio is missing, did not run, or said nothing that can be read
    └── DeliveryError     the place that the sweep names for its results cannot be used from this node
    """


class StorageError(TaskError):
    """The drive, filesystem or image is not what the trial asked for."""


class TracerError(TaskError):
    """The tracer did not start, or did not say that it was live."""


class FioError(TaskError):
    """fio is missing, did not run, or said nothing that can be read."""


class DeliveryError(TaskError):
    """The place that the sweep names for its results cannot be used from this node."""


class Cancelled(BaseException):
    """The trial was told to stop. Not an Exception: nothing may swallow it on its way through the clean-ups."""
