"""Text of blkparse in its default format: `8,0 3 11 0.009507758 697 D W 223490 + 8 [kjournald]` (blkparse(1)).

An issue (D) and the completion (C) that follows at its device and sector are one request. Times count from the trace's
first event.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np

from analysis.ingest import text
from analysis.ingest.part import BOOT, Part, Source
from analysis.ingest.request_file import RequestFile
from analysis.trace import NEVER
from analysis.units import NS_PER_S, SECTOR_BYTES, count_text

KIND = "blkparse"
ABOUT = "text of blkparse in its default format"

_EVENT = re.compile(
    r"\s*(\d+,\d+)\s+(\d+)\s+(\d+)\s+(\d+)\.(\d{9})\s+(-?\d+)\s+([A-Z]{1,2}|m)\s+(?:([A-Z]+)(?:\s+(.*))?|N\s.*)?\s*"
)
_BLOCKS = re.compile(r"(\d+)\s*\+\s*(\d+)\s*(?:\[(.*)\])?\s*$")
#: `D R 4 (12 00 00 ..) [comm]`: a command that is passed through has bytes and no sector.
_SKIPS = re.compile(r"Skips:\s*(\d+) forward \(\s*(\d+)\s*-")
#: What blkparse sums up at the end.
_SUMMARY = re.compile(
    r"\s*$|CPU\d+ \(|Total \(|Throughput \(|Events \(|Skips:|Input file|"
    r"\s+(?:Reads|Writes|Read|Write|PC|IO unplugs|Allocation|Dispatch|In-flight)\b"
)
_COLUMNS = ("issue_ns", "complete_ns", "insert_ns", "rwbs", "dev", "comm", "sector", "bytes", "error", "pid")
_BATCH = 1 << 16
#: What was in flight when the trace began or ended is no loss; the block layer gives up a request after so long.
_IN_FLIGHT_NS = 30 * NS_PER_S
_OTHER = "a line that is no event of blkparse's default format"
_NO_BLOCKS = "an issue or completion without sectors (a flush, or a command passed through)"


def recognises(head: bytes) -> bool:
    """Say whether a file that has `head` at its beginning or end is such a text."""
    lines = head.decode("utf-8", errors="replace").splitlines()
    found = [_EVENT.fullmatch(line) for line in (*lines[:200], *lines[-200:])]
    return any(event is not None and event[7] in "QGIDCMFPUXARTS" for event in found)


class _Pairing:
    """Joins the events of a text to rows."""

    def __init__(self, part: Part, out: RequestFile) -> None:
        self.part, self._out = part, out
        self.open: dict[tuple[str, int], list[int]] = {}
        self.inserts: dict[tuple[str, int], int] = {}
        self.events: Counter[str] = Counter()
        self.orphans: list[int] = []
        self.overtaken = 0
        self.now = 0
        self._rows: list[list[int]] = []

    def take(self, number: int, event: re.Match[str]) -> None:
        """Take one event of the text."""
        dev, action, rwbs, rest = event[1], event[7], event[8], event[9]
        self.now = int(event[4]) * NS_PER_S + int(event[5])
        self.events[action] += 1
        if action not in "DCIR" or rwbs is None:
            return
        blocks = _BLOCKS.match(rest or "")
        if blocks is None or len(blocks[1]) > 18 or len(blocks[2]) > 9:
            if action in "DC":
                self.part.skipped.add(_NO_BLOCKS, self.part.source.name, number)
            return
        key, sectors = (dev, int(blocks[1])), int(blocks[2])
        if action == "D":
            self._issue(key, rwbs, sectors, blocks[3] or "", int(event[6]))
        elif action == "C":
            self._complete(key, sectors, blocks[3] or "")
        elif action == "I":
            self.inserts[key] = self.now
        else:
            self.open.pop(key, None)  # requeued: the next issue counts

    def _issue(self, key: tuple[str, int], rwbs: str, sectors: int, comm: str, pid: int) -> None:
        if key in self.open:
            self.overtaken += 1
            self._write(self.open[key])
        codes = [
            self._out.code(name, word)
            for name, word in (("rwbs", rwbs), ("dev", key[0].replace(",", ":")), ("comm", comm))
        ]
        inserted = self.inserts.pop(key, NEVER)
        self.open[key] = [self.now, NEVER, inserted, *codes, key[1], sectors * SECTOR_BYTES, 0, min(pid, 2**31 - 1)]

    def _complete(self, key: tuple[str, int], sectors: int, error: str) -> None:
        row = self.open.pop(key, None)
        if row is None:
            if sectors:  # a flush that a write carried completes a second time, without sectors
                self.orphans.append(self.now)
            return
        row[1], row[7] = self.now, sectors * SECTOR_BYTES
        row[8] = -abs(int(error)) if re.fullmatch(r"-?\d{1,5}", error) else 0
        self._write(row)

    def _write(self, row: list[int]) -> None:
        self._rows.append(row)
        if len(self._rows) >= _BATCH:
            self.flush()

    def flush(self) -> None:
        """Hand the rows on."""
        if self._rows:
            self._out.add(dict(zip(_COLUMNS, np.array(self._rows, np.int64).T, strict=True)))
            self._rows = []

    def finish(self) -> int:
        """Write what is still open; return how many rows and completions miss their other half for no known reason."""
        lost = sum(self.now - row[0] > _IN_FLIGHT_NS for row in self.open.values())
        for row in self.open.values():
            self._write(row)
        self.flush()
        return lost + sum(t > _IN_FLIGHT_NS for t in self.orphans)


def read(source: Source, folder: Path) -> Part:
    """Write the trace to `requests.parquet` in `folder` and return what else the text tells."""
    part = Part(source, KIND, clock=BOOT)
    lost = 0
    provenance = {"importer": KIND, "file": source.name}
    with RequestFile(folder / "requests.parquet", provenance, ["issue", "completion", "insert"], _COLUMNS) as out:
        pairing = _Pairing(part, out)
        for number, line in text.lines(part):
            event = _EVENT.fullmatch(line)
            if event is not None and len(event[4]) < 10:
                pairing.take(number, event)
            elif found := _SKIPS.search(line):
                lost += int(found[2])
            elif not _SUMMARY.match(line):
                part.skipped.add(_OTHER, source.name, number)
        unmatched = pairing.finish()
    _describe(part, out, pairing, lost, unmatched)
    return part


def _describe(part: Part, out: RequestFile, pairing: _Pairing, lost: int, unmatched: int) -> None:
    malformed = part.skipped.counts[_OTHER]
    part.tracer = {
        "name": "blktrace",
        "requests": out.rows,
        "lost": lost,
        "unmatched": unmatched,
        "overtaken": pairing.overtaken,
        "malformed": malformed,
        "in_flight_at_begin": len(pairing.orphans),
        "in_flight_at_end": len(pairing.open),
        "merges": pairing.events["M"] + pairing.events["F"],
        "events": dict(pairing.events),
        "begin_ns": out.begin_ns,
        "end_ns": out.end_ns,
    }
    part.moved = out.moved
    faults = {
        f"{count_text(lost, 'event')} lost by the tracer": lost,
        f"{count_text(unmatched, 'issue or completion', 'issues and completions')} without the other half": unmatched,
        f"{count_text(pairing.overtaken, 'sector')} issued again before the completion": pairing.overtaken,
        f"{count_text(malformed, 'line')} of the trace could not be read": malformed,
    }
    part.reasons += [reason for reason, count in faults.items() if count]
    if not out.rows:
        part.failures.append(f"{part.source.name} holds no request (no event D or C)")
