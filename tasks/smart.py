"""Health of an NVMe drive, from its SMART / Health Information log page.

NVM Express Base Specification, revision 2.0: Get Log Page command (5.16), log identifier 02h (5.16.1.3). The command
goes through NVME_IOCTL_ADMIN_CMD of the controller's node (include/uapi/linux/nvme_ioctl.h), which needs root.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

_LOG_BYTES = 512
_GET_LOG_PAGE, _SMART_LOG, _ALL_NAMESPACES = 0x02, 0x02, 0xFFFFFFFF
_TIMEOUT_MS = 5000
_KELVIN = 273
#: A data unit is a thousand blocks of 512 bytes, whatever the format of the drive.
_DATA_UNIT_BYTES = 512_000


class _AdminCommand(ctypes.Structure):
    """struct nvme_admin_cmd."""

    _fields_ = (
        ("opcode", ctypes.c_uint8),
        ("flags", ctypes.c_uint8),
        ("reserved", ctypes.c_uint16),
        ("nsid", ctypes.c_uint32),
        ("cdw2", ctypes.c_uint32),
        ("cdw3", ctypes.c_uint32),
        ("metadata", ctypes.c_uint64),
        ("address", ctypes.c_uint64),
        ("metadata_bytes", ctypes.c_uint32),
        ("data_bytes", ctypes.c_uint32),
        ("cdw10", ctypes.c_uint32),
        ("cdw11", ctypes.c_uint32),
        ("cdw12", ctypes.c_uint32),
        ("cdw13", ctypes.c_uint32),
        ("cdw14", ctypes.c_uint32),
        ("cdw15", ctypes.c_uint32),
        ("timeout_ms", ctypes.c_uint32),
        ("result", ctypes.c_uint32),
    )


#: _IOWR('N', 0x41, struct nvme_admin_cmd), as include/uapi/asm-generic/ioctl.h composes it.
NVME_IOCTL_ADMIN_CMD = 3 << 30 | ctypes.sizeof(_AdminCommand) << 16 | ord("N") << 8 | 0x41


@dataclass(frozen=True)
class Health:
    """What a drive says of itself: temperature in °C, wear and spare in percent, bytes moved in its life, errors.

    `percentage_used` is the vendor's estimate of the life used up, and may pass 100; 255 stands for all above 254.
    """

    temperature_c: int
    percentage_used: int
    available_spare_percent: int
    data_read_bytes: int
    data_written_bytes: int
    power_on_hours: int
    media_errors: int
    critical_warning: int


def health(controller: Path) -> Health:
    """Return the health of the drive behind a controller's node, such as /dev/nvme0.

    Raises OSError where it cannot be asked: no such node, no permission, or a status that is not success.
    """
    log = ctypes.create_string_buffer(_LOG_BYTES)
    dwords = _LOG_BYTES // 4 - 1
    command = _AdminCommand(
        opcode=_GET_LOG_PAGE,
        nsid=_ALL_NAMESPACES,
        address=ctypes.addressof(log),
        data_bytes=_LOG_BYTES,
        cdw10=_SMART_LOG | dwords << 16,
        timeout_ms=_TIMEOUT_MS,
    )
    node = os.open(controller, os.O_RDONLY | os.O_CLOEXEC)
    try:
        status = fcntl.ioctl(node, NVME_IOCTL_ADMIN_CMD, command)
    finally:
        os.close(node)
    if status:
        raise OSError(f"{controller} answered Get Log Page with status {status:#x}")
    return parse(log.raw)


def parse(log: bytes) -> Health:
    """Return what a log page of 512 bytes says; raises ValueError where it is shorter."""
    if len(log) < _LOG_BYTES:
        raise ValueError(f"a SMART log has {_LOG_BYTES} bytes, this one {len(log)}")

    def number(begin: int, end: int) -> int:
        """Return the bytes `begin` to `end`, both included, as the specification names them."""
        return int.from_bytes(log[begin : end + 1], "little")

    return Health(
        critical_warning=number(0, 0),
        temperature_c=number(1, 2) - _KELVIN,
        available_spare_percent=number(3, 3),
        percentage_used=number(5, 5),
        data_read_bytes=number(32, 47) * _DATA_UNIT_BYTES,
        data_written_bytes=number(48, 63) * _DATA_UNIT_BYTES,
        power_on_hours=number(128, 143),
        media_errors=number(160, 175),
    )
