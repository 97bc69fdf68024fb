"""Builds pages of the kernel's trace byte by byte, for tests of what reads them.

The layout is that of linux/ring_buffer.h and kernel/trace/ring_buffer.c; the formats are those of a 6.18 kernel.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

PAGE_BYTES = 4096
MISSED = 1 << 31
MISSED_COUNT_STORED = 1 << 30

ISSUE_FORMAT = """\
name: block_rq_issue
ID: 2104
format:
	field:unsigned short common_type;	offset:0;	size:2;	signed:0;
	field:unsigned char common_flags;	offset:2;	size:1;	signed:0;
	field:unsigned char common_preempt_count;	offset:3;	size:1;	signed:0;
	field:int common_pid;	offset:4;	size:4;	signed:1;

	field:dev_t dev;	offset:8;	size:4;	signed:0;
	field:sector_t sector;	offset:16;	size:8;	signed:0;
	field:unsigned int nr_sector;	offset:24;	size:4;	signed:0;
	field:unsigned int bytes;	offset:28;	size:4;	signed:0;
	field:unsigned short ioprio;	offset:32;	size:2;	signed:0;
	field:char rwbs[10];	offset:34;	size:10;	signed:0;
	field:char comm[16];	offset:44;	size:16;	signed:0;
	field:__data_loc char[] cmd;	offset:60;	size:4;	signed:0;

print fmt: "%d,%d %s %u (%s) %llu + %u %s,%u,%u [%s]", ((unsigned int) ((REC->dev) >> 20)), REC->rwbs, REC->comm
"""

COMPLETE_FORMAT = """\
name: block_rq_complete
ID: 2107
format:
	field:unsigned short common_type;	offset:0;	size:2;	signed:0;
	field:unsigned char common_flags;	offset:2;	size:1;	signed:0;
	field:unsigned char common_preempt_count;	offset:3;	size:1;	signed:0;
	field:int common_pid;	offset:4;	size:4;	signed:1;

	field:dev_t dev;	offset:8;	size:4;	signed:0;
	field:sector_t sector;	offset:16;	size:8;	signed:0;
	field:unsigned int nr_sector;	offset:24;	size:4;	signed:0;
	field:int error;	offset:28;	size:4;	signed:1;
	field:unsigned short ioprio;	offset:32;	size:2;	signed:0;
	field:char rwbs[10];	offset:34;	size:10;	signed:0;
	field:__data_loc char[] cmd;	offset:44;	size:4;	signed:0;

print fmt: "%d,%d %s (%s) %llu + %u %s,%u,%u [%d]", ((unsigned int) ((REC->dev) >> 20)), REC->rwbs, REC->error
"""

PAGE_HEADER = """\
	field: u64 timestamp;	offset:0;	size:8;	signed:0;
	field: local_t commit;	offset:8;	size:8;	signed:1;
	field: int overwrite;	offset:8;	size:1;	signed:1;
	field: char data;	offset:16;	size:4080;	signed:0;
"""

#: A record of the test: type, pid, sector, sectors, rwbs, comm, as `common_type` to `comm` of block_rq_issue.
RECORD = struct.Struct("<HBBi I4x q I I H10s 16s I")


@dataclass
class Page:
    """One page under construction; `now` is the time of the last entry."""

    now: int
    data: bytearray = field(default_factory=bytearray)
    flags: int = 0
    rest: bytes = b""

    def entry(self, type_len: int, delta: int, body: bytes) -> None:
        assert 0 <= delta < 1 << 27
        self.data += struct.pack("<I", delta << 5 | type_len) + body
        assert len(self.data) <= PAGE_BYTES - 16

    def long_time(self, type_len: int, value: int) -> None:
        self.entry(type_len, value & (1 << 27) - 1, struct.pack("<I", value >> 27))

    def event(self, t_ns: int, record: bytes, with_length_word: bool = False) -> None:
        """Add a record, preceded by an extension of the time where 27 bits do not hold the distance."""
        if t_ns - self.now >= 1 << 27:
            self.long_time(30, t_ns - self.now)
            self.now = t_ns
        padded = record + bytes(-len(record) % 4)
        if with_length_word or len(padded) > 28 * 4:
            self.entry(0, t_ns - self.now, struct.pack("<I", len(padded) + 4) + padded)
        else:
            self.entry(len(padded) // 4, t_ns - self.now, padded)
        self.now = t_ns

    def absolute(self, t_ns: int) -> None:
        self.long_time(31, t_ns & (1 << 59) - 1)
        self.now = t_ns

    def discarded(self, delta: int, size: int) -> None:
        """Add an entry that the kernel gave up: padding with a time, which the entries after it count on."""
        self.entry(29, delta, struct.pack("<I", size) + b"\xee" * (size - 4))
        self.now += delta

    def encoded(self, begin: int) -> bytes:
        page = struct.pack("<QQ", begin, len(self.data) | self.flags) + self.data + self.rest
        return page + b"\xa5" * (PAGE_BYTES - len(page))


def record(number: int = 2104, pid: int = 1, sector: int = 0, sectors: int = 8, rwbs: bytes = b"R") -> bytes:
    # What is left in the buffer after the terminator must not show.
    texts = (rwbs + b"\0GARBAGEXX")[:10], b"job\0\xff\xff\xff"
    return RECORD.pack(number, 0, 0, pid, 7 << 20, sector, sectors, 0, 0, *texts, 0)
