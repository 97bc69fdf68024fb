"""What a trial is told: the part of a sweep's configuration that a node acts on.

Plain dataclasses of plain values, so that OmegaConf can check a YAML file against them and JSON can carry them.
The text in each field's metadata is the documentation of that key (`python -m sweep --keys`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any


def key(default: Any, text: str) -> Any:
    """Return a dataclass field for one configuration key, with its documentation."""
    make = {"default_factory": default} if callable(default) else {"default": default}
    return field(**make, metadata={"help": text})


class StorageKind(Enum):
    """Where the offload directory comes from."""

    loop = "loop"
    directory = "directory"
    device = "device"


class Backing(Enum):
    """What a loop image lies on."""

    disk = "disk"
    tmpfs = "tmpfs"


#: Filesystems that a trial can make on a loop image, with the mkfs options that make them quiet and forcing.
FILESYSTEMS: dict[str, tuple[str, ...]] = {"ext4": ("-q", "-F"), "xfs": ("-q", "-f"), "btrfs": ("-q", "-f")}

#: By which of its options mkfs leaves a drive's blocks as they are; it would discard them all otherwise.
NO_DISCARD: dict[str, tuple[str, ...]] = {"ext4": ("-K",), "xfs": ("-K",), "btrfs": ("-K",)}

#: The smallest image mkfs makes, in bytes. xfsprogs refuses less than 300 MiB, btrfs-progs less than 109 MiB.
SMALLEST_IMAGE_BYTES = {"ext4": 16 << 20, "xfs": 300 << 20, "btrfs": 128 << 20}


#: Value of `storage.fs` that takes an existing directory's filesystem as it is.
ANY_FILESYSTEM = "auto"


@dataclass
class QueueLimits:
    """Block queue settings, in /sys/block/<device>/queue; null leaves the device as it is."""

    max_sectors_kb: int | None = key(None, "largest request in KiB; 128 is what the study's NVMe drive does")
    read_ahead_kb: int | None = key(None, "read-ahead of buffered reads in KiB")
    scheduler: str | None = key(None, "I/O scheduler, such as none, mq-deadline, kyber or bfq")
    nr_requests: int | None = key(None, "requests that the queue holds; with scheduler none the drive bounds it")


@dataclass
class Storage:
    """The filesystem under test."""

    kind: StorageKind = key(
        StorageKind.loop,
        "loop: an image file that the trial makes; directory: one that exists; device: a scratch drive it formats",
    )
    fs: str = key(
        "ext4", "filesystem: made on a loop image or a device, verified in an existing directory (auto: as it is)"
    )
    path: str | None = key(None, "folder for images, or the existing directory; null: the node's own")
    device: str | None = key(
        None, "device only: the drive or partition to format, which the node's own node.yaml must list as scratch"
    )
    allow_format: bool = key(False, "device only: true says that all that is on storage.device may be lost")
    backing: Backing = key(Backing.disk, "loop only: the image lies on a disk (direct I/O) or in memory (tmpfs)")
    image_size: int | str = key("2GiB", "loop only: size of the image")
    mkfs_options: list[str] = key(list, "loop and device: further arguments of mkfs")
    mount_options: list[str] = key(
        list, "mount options, such as noatime, verified after the mount; those a directory's mount must have"
    )
    trim: bool = key(False, "directory, device: discard free space (fstrim), or all of the device, before the trial")
    queue: QueueLimits = key(QueueLimits, "block queue settings of the traced devices")


@dataclass
class Trace:
    """How requests are recorded."""

    tracer: str = key(
        "auto",
        "ftrace, bpftrace: one row per block request (need root); diskstats: the device's counters over time; none; "
        "auto: the one that disturbs least on the node",
    )
    buffer_size: int | str = key("4MiB", "memory per CPU between the kernel and the tracer")
    spool_memory: int | str = key("512MiB", "ftrace: raw trace kept in memory; what is more goes to the node's disk")
    sample_interval_ms: int = key(200, "interval of CPU, memory and device samples")
    stacks: bool = key(
        False,
        "count requests by kernel and user stack, for a flame graph (bpftrace, root); costs bandwidth and latency",
    )
    measure_cost: bool = key(
        False, "before the trial, the same fio job untraced and traced in turn on its storage: a minute, needs fio"
    )


@dataclass
class Limits:
    """When a trial is stopped."""

    time_limit_s: int = key(600, "a trial that runs longer is stopped and counted as failed")
    memory: int | str | None = key(
        None, "memory of the job with its page cache, by cgroup (needs root); null: no limit"
    )


@dataclass
class Ceiling:
    """What fio reaches on a trial's own storage, measured before it; `docs/ceiling.md`."""

    enabled: bool | None = key(
        None, "true: measure, and refuse a node without fio; false: leave it out; null: where fio is installed"
    )
    block_size: int | str = key("128KiB", "size of fio's requests; the study's drive splits larger ones to this")
    depth: int = key(32, "requests that each job of fio keeps in flight")
    jobs: int = key(1, "jobs of fio at once, each on its own part of the file")
    seconds: int = key(2, "time of each of the four measurements, half of it in each of two rounds")
    file_size: int | str = key("1GiB", "size of fio's file; half of the free space where that is less")
    max_age_hours: int = key(24, "a measurement of the same storage older than this is made again; 0: always")


@dataclass
class NodeWish:
    """Which nodes may run a trial, beside what its other keys need."""

    gpu: str | None = key(None, "model of the node's GPUs, or a part of its name, such as H100; null: any, or none")
    name: str | None = key(None, "host name of the node, such as gpu1; null: any")


@dataclass
class TrialSpec:
    """One attempt at one trial, as it travels to the node. `config` holds plain values, enums by name.

    A `warmup` is not counted; `keep` leaves the offload files on the node (`tasks.kept`).
    """

    sweep: str
    id: str
    slug: str
    cell: dict[str, Any]
    repeat: int
    attempt: int
    token: str
    config: dict[str, Any]
    fingerprint: dict[str, Any]
    warmup: bool = False
    keep: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, the inverse of `TrialSpec(**value)`."""
        return asdict(self)


def storage_of(config: dict[str, Any]) -> Storage:
    """Return the `storage` section of a trial's configuration."""
    values = dict(config["storage"])
    values["kind"] = StorageKind[values["kind"]]
    values["backing"] = Backing[values["backing"]]
    values["queue"] = QueueLimits(**values["queue"])
    return Storage(**values)


def trace_of(config: dict[str, Any]) -> Trace:
    """Return the `trace` section of a trial's configuration."""
    return Trace(**config["trace"])


def ceiling_of(config: dict[str, Any]) -> Ceiling:
    """Return the `ceiling` section of a trial's configuration."""
    return Ceiling(**config["ceiling"])


def node_of(config: dict[str, Any]) -> NodeWish:
    """Return the `node` section of a trial's configuration; one from before there was any has no wishes."""
    return NodeWish(**config.get("node", {}))


def limits_of(config: dict[str, Any]) -> Limits:
    """Return the `limits` section of a trial's configuration."""
    return Limits(**config["limits"])
