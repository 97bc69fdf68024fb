"""One trial's configuration, checked beyond its types: what no node could ever do, or would do to the wrong thing."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf, errors

from sweep.definition import SECTIONS, Definition
from sweep.errors import ConfigError, ImpossibleError, first_line
from sweep.trees import flattened
from sweep.values import nearest, typed
from tasks import workloads
from tasks.spec import FILESYSTEMS, SMALLEST_IMAGE_BYTES, Backing, QueueLimits, Storage, StorageKind, storage_of
from tasks.tracers import TRACERS
from tasks.units import format_bytes, parse_bytes

#: Part of an image that filesystems keep for themselves, in bytes, beside 6 % of it: journals, inode tables.
_FILESYSTEM_BYTES = 80 << 20

#: Requests past the page cache are whole logical blocks; those of most drives are this long.
_DIRECT_BYTES = 512

#: Options of mkfs and mount by which a filesystem takes further devices (mkfs.xfs(8), mke2fs(8), btrfs(5)).
_OTHER_DEVICE = re.compile(r"\b(device|logdev|rtdev|journal_path|journal_dev|name)\s*=")

#: A scheduler as /sys/block/<device>/queue/scheduler lists it.
_SCHEDULER = re.compile(r"[a-z][a-z0-9_-]*")

#: Options by which mkfs makes nothing, or stops asking whether it should.
_NOT_MADE = {"ext4": ("-n", "-S", "-F"), "xfs": ("-N", "-f"), "btrfs": ("-f", "--force")}

#: No program of any use starts in less memory.
_LEAST_MEMORY_BYTES = 4 << 20


def workload_kind(source: str, raw: Mapping[str, Any]) -> str:
    """Return the kind of a sweep's workload; raise ConfigError where it has none, or one that is not known."""
    section = raw.get("workload", {})
    if "kind" not in section:
        near = difflib.get_close_matches("kind", map(str, section), 1)
        hint = f"did you mean kind by {near[0]}? " if near else ""
        raise ConfigError(source, "workload.kind", "is missing", f"{hint}one of: {', '.join(workloads.WORKLOADS)}")
    kind = str(section["kind"])
    if kind not in workloads.WORKLOADS:
        raise ConfigError(source, "workload.kind", f"no workload {kind!r}", nearest(kind, workloads.WORKLOADS))
    return kind


def checked_trial(source: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """Return one cell's configuration with every default filled in; raise ConfigError where it makes no sense."""
    config = typed_trial(source, value)
    space_bytes = check_workload(source, config["workload"])
    check_storage(source, config["storage"], space_bytes)
    for section, check in CHECKS.items():
        check(source, config[section])
    return config


def typed_trial(source: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """Return one cell's configuration with every default filled in; raise ConfigError where a type is wrong."""
    told = interpolated(source, value)
    kind = workload_kind(source, told)
    own = {k: v for k, v in told["workload"].items() if k != "kind"}
    config = {k: v for k, v in typed(source, Definition, told, "").items() if k in SECTIONS}
    return config | {"workload": {"kind": kind, **typed(source, workloads.load(kind).Config, own, "workload.")}}


def interpolated(source: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the value with `${key}` replaced by what that key holds; raise ConfigError where there is none."""
    try:
        told = OmegaConf.to_container(OmegaConf.create(dict(value)), resolve=True)
    except errors.OmegaConfBaseException as e:
        missing = re.match("Interpolation key '(.*)' not found", first_line(e))
        near = difflib.get_close_matches(missing[1], [path for path, _ in flattened(value, "")], 1) if missing else ()
        raise ConfigError(source, e.full_key, first_line(e), f"did you mean {near[0]}?" if near else "") from None
    assert isinstance(told, dict)
    return {str(k): v for k, v in told.items()}


def check_workload(source: str, workload: dict[str, Any]) -> int:
    """Refuse a workload that makes no sense; return the bytes of room that its offload files need."""
    made = workloads.of_config({"workload": workload})
    for problem in made.problems():
        raise ImpossibleError(source, f"workload.{problem.key}", problem.text)
    return made.space_bytes()


def check_storage(source: str, section: dict[str, Any], needed: int) -> None:
    """Refuse storage that makes no sense, or has no room for `needed` bytes of offload files."""
    storage = storage_of({"storage": section})
    if storage.path and not Path(storage.path).is_absolute():
        raise ConfigError(source, "storage.path", f"must start with /, for nodes share no folder; not {storage.path!r}")
    _check_queue(source, storage.queue)
    if storage.device and storage.kind is not StorageKind.device:
        text = f"would not be used: storage.kind is {storage.kind.name}"
        raise ImpossibleError(source, "storage.device", text, "set storage.kind=device to measure that device")
    if storage.kind is StorageKind.directory:
        if storage.mkfs_options:
            text = "nothing is made in an existing directory: its filesystem is used as it is"
            raise ImpossibleError(source, "storage.mkfs_options", text)
        return
    if storage.fs not in FILESYSTEMS:
        raise ConfigError(source, "storage.fs", f"cannot make {storage.fs!r}", nearest(storage.fs, FILESYSTEMS))
    for name, options in (("mkfs_options", storage.mkfs_options), ("mount_options", storage.mount_options)):
        for option in options:
            if "/" in option or _OTHER_DEVICE.search(option):
                text = f"{option!r} may name another device or file; a trial touches its own image only"
                raise ConfigError(source, f"storage.{name}", text)
            if name == "mkfs_options" and option in _NOT_MADE[storage.fs]:
                text = f"{option!r} forces mkfs, or keeps it from making a filesystem; leave it out"
                raise ConfigError(source, f"storage.{name}", text)
    if storage.kind is StorageKind.device:
        _check_device(source, storage)
    else:
        _check_image(source, storage, needed)


def _check_queue(source: str, queue: QueueLimits) -> None:
    # the kernel makes four of fewer requests (BLKDEV_MIN_RQ)
    for name, least in (("max_sectors_kb", 1), ("read_ahead_kb", 0), ("nr_requests", 4)):
        if (limit := vars(queue)[name]) is not None and limit < least:
            raise ConfigError(source, f"storage.queue.{name}", f"must be {least} or more, not {limit}")
    if queue.scheduler is not None and not _SCHEDULER.fullmatch(queue.scheduler):
        text = f"{queue.scheduler!r} is no scheduler; one that the node's queue lists: none, mq-deadline, kyber, bfq"
        raise ConfigError(source, "storage.queue.scheduler", text)


def _check_device(source: str, storage: Storage) -> None:
    if not storage.device or not storage.device.startswith("/dev/") or ".." in storage.device.split("/"):
        text = "must name the drive or partition to format, such as /dev/disk/by-id/nvme-..., "
        raise ConfigError(source, "storage.device", f"{text}not {storage.device!r}")
    if not storage.allow_format:
        text = f"must be true for storage.kind=device: each trial makes a new {storage.fs} on {storage.device}"
        raise ConfigError(source, "storage.allow_format", text)
    if storage.path:
        text = "would not be used: storage.device says where the filesystem is made"
        raise ImpossibleError(source, "storage.path", text)


def _check_image(source: str, storage: Storage, needed: int) -> None:
    if storage.trim:
        text = "a trial makes a new loop image, with nothing to trim; it is for storage.kind directory and device"
        raise ImpossibleError(source, "storage.trim", text)
    if storage.backing is Backing.tmpfs and storage.path:
        raise ImpossibleError(source, "storage.path", "storage.backing=tmpfs has its own place; leave storage.path out")
    try:
        image_bytes = parse_bytes(storage.image_size)
    except ValueError as e:
        raise ConfigError(source, "storage.image_size", str(e)) from None
    if problem := too_small(image_bytes, storage.fs, needed):
        raise ImpossibleError(source, "storage.image_size", problem)


def too_small(device_bytes: int, fs: str, needed: int) -> str | None:
    """Say why a filesystem of this size on a device cannot hold `needed` bytes of offload files, or None."""
    least = max(SMALLEST_IMAGE_BYTES[fs], int(needed * 1.06) + _FILESYSTEM_BYTES)
    text = f"{format_bytes(device_bytes)} are too small: {fs} and {format_bytes(needed)} of offload files"
    return f"{text} need {format_bytes(least)}" if device_bytes < least else None


def _check_limits(source: str, limits: Mapping[str, Any]) -> None:
    if limits["time_limit_s"] < 1:
        raise ConfigError(source, "limits.time_limit_s", "must be 1 or more seconds")
    try:
        if limits["memory"] is not None and parse_bytes(limits["memory"]) < _LEAST_MEMORY_BYTES:
            raise ValueError(f"must be {format_bytes(_LEAST_MEMORY_BYTES)} or more: nothing starts in less")
    except ValueError as e:
        raise ConfigError(source, "limits.memory", str(e)) from None


def _check_trace(source: str, trace: Mapping[str, Any]) -> None:
    known = ("auto", *TRACERS)
    if trace["tracer"] not in known:
        raise ConfigError(source, "trace.tracer", f"no tracer {trace['tracer']!r}", nearest(trace["tracer"], known))
    if trace["sample_interval_ms"] < 10:
        raise ConfigError(source, "trace.sample_interval_ms", "must be 10 or more: sampling itself takes time")
    for name, least in (("buffer_size", 4096), ("spool_memory", 1)):
        try:
            if parse_bytes(trace[name]) < least:
                raise ValueError(f"must be {format_bytes(least)} or more")
        except ValueError as e:
            raise ConfigError(source, f"trace.{name}", str(e)) from None


def _check_ceiling(source: str, ceiling: Mapping[str, Any]) -> None:
    for name, least in (("depth", 1), ("jobs", 1), ("seconds", 1), ("max_age_hours", 0)):
        if ceiling[name] < least:
            raise ConfigError(source, f"ceiling.{name}", f"must be {least} or more, not {ceiling[name]}")
    for name in ("block_size", "file_size"):
        try:
            size = parse_bytes(ceiling[name])
            if name == "block_size" and size % _DIRECT_BYTES:
                raise ValueError(f"{format_bytes(size)} is not a multiple of {_DIRECT_BYTES} B, as direct I/O needs it")
        except ValueError as e:
            raise ConfigError(source, f"ceiling.{name}", str(e)) from None


#: What is checked of the sections that need no other.
CHECKS: dict[str, Callable[[str, Mapping[str, Any]], None]] = {
    "trace": _check_trace,
    "ceiling": _check_ceiling,
    "limits": _check_limits,
}
