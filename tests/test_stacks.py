"""Stacks of requests: what bpftrace prints, read back; names of code; real trials with kernel and user stacks."""

import ctypes
import ctypes.util
import mmap
import os
import re
import shutil
import subprocess
from collections import Counter

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweep.placement import needs
from tasks import stacks
from tasks.stacks import BYTES, NO_KERNEL, NO_USER, REQUESTS, Counts, Folding, Key
from tasks.symbols import AddressSpace, Symbols, demangled, mappings
from tasks.trial import manifest
from tests.conftest import trial_config

KIB = 1024
CODES = {name: code for code, name in stacks._OPERATIONS.items()}
NAMES = st.from_regex(r"[a-z_][a-z0-9_.]{0,20}", fullmatch=True)
ADDRESSES = st.integers(0x1000, 2**47)
KERNEL = st.lists(NAMES, max_size=5).map(lambda names: frames(f"ffffffff81b083ac {name}+12" for name in names))
USER = st.lists(ADDRESSES, max_size=4).map(tuple)
#: Linux lets a process call itself anything of 15 bytes.
COMMS = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1, max_size=15)
KEYS = st.builds(Key, st.sampled_from(sorted(CODES)), st.integers(1, 2**22), COMMS, KERNEL, USER)


def frames(lines):
    """Return a stack as bpftrace 0.17 prints it in the key of a map."""
    text = "".join(f"\t{line}\n" for line in lines)
    return text and f"\n{text}"


def leaves(counts):
    """Return the counts with no more than the innermost user frame."""
    found = Counter()
    for key, n in counts.items():
        found[key._replace(user=key.user[:1])] += n
    return found


def printed(requests, moved):
    """Return what the script prints for these counts by key, whose maps were large enough."""
    total = Counter()
    lines = ["Attaching 6 probes...\n", "B\n"]
    for key, n in requests.items():
        total[key.op] += n
        lines.append(f"P\t{key.pid}\n")
    lines.append("E\n\n\n")
    maps = {"bytes": moved, "leaf_bytes": leaves(moved), "leaf_requests": leaves(requests), "requests": requests}
    for name, counts in maps.items():
        for key, n in counts.items():
            user = frames(f"{a:x} {a:#x} ([unknown])" for a in key.user)
            lines.append(f"@{name}[{CODES[key.op]}, {key.pid}, {key.comm}, {key.kernel}, {user}]: {n}\n")
        lines.append("\n")
    return "".join([*lines, *(f"@total[{CODES[op]}]: {n}\n" for op, n in total.items()), "\n"])


def parsed(text):
    return Counts.parse(text.splitlines(keepends=True))


@given(st.dictionaries(KEYS, st.tuples(st.integers(1, 10**9), st.integers(0, 10**12)), max_size=8))
def test_what_bpftrace_prints_is_read_back(counted):
    requests = Counter({key: n for key, (n, _) in counted.items()})
    moved = Counter({key: size for key, (_, size) in counted.items()})
    counts = parsed(printed(requests, moved))
    assert counts.malformed == 0
    assert counts.lost == 0
    assert counts.maps["requests"] == requests
    assert counts.maps["bytes"] == moved
    folded = Folding({}).fold(counts.maps["requests"], counts.maps["leaf_requests"])
    assert folded.total() == counts.total.total() == requests.total()
    assert all(line.split(";")[0] in CODES for line in folded)


@given(st.dictionaries(KEYS, st.integers(1, 100), min_size=1, max_size=4), st.data())
def test_output_that_breaks_off_never_counts_too_much(counted, data):
    text = printed(Counter(counted), Counter())
    counts = parsed(text[: data.draw(st.integers(0, len(text)))])
    assert counts.malformed <= 1
    assert all(n <= counted[key] for key, n in counts.maps["requests"].items())
    assert counts.maps["leaf_requests"].total() <= sum(counted.values())


@given(st.dictionaries(KEYS, st.integers(1, 100), min_size=1, max_size=6), st.data())
def test_stacks_that_found_no_room_are_folded_by_what_is_left(counted, data):
    whole = {key: n for key, n in counted.items() if data.draw(st.booleans())}
    known = leaves(counted)
    # A stack without a place in the kernel's table loses its frames.
    if data.draw(st.booleans()):
        known = Counter()
        for key, n in counted.items():
            known[key._replace(user=())] += n
    folded = Folding({}).fold(Counter(whole), known)
    assert folded.total() == sum(counted.values())


def test_the_innermost_frame_survives_and_kernel_threads_have_none():
    kernel = frames(["ffffffff81b083ac submit_bio+12", "ffffffff81000130 entry_SYSCALL_64+1"])
    mine = AddressSpace(os.getpid())
    mine.look()
    pread = ctypes.cast(ctypes.CDLL(None).pread, ctypes.c_void_p).value
    key = Key("read", 7, "fio", kernel, (pread,))
    whole = Counter({key._replace(user=(pread, 0x2B0000002B)): 4})
    (line,) = Folding({7: mine}).fold(whole, Counter({key: 10}))
    assert re.fullmatch(r"read;fio;pread\S* \(libc\.so\S*\);entry_SYSCALL_64_\[k\];submit_bio_\[k\]", line)
    unnamed = Folding({7: mine}).fold(Counter(), Counter({key._replace(user=(1,)): 1}))
    assert list(unnamed) == [f"read;fio;{NO_USER};entry_SYSCALL_64_[k];submit_bio_[k]"]
    thread = Key("write", 9, "kworker/u8:2+flush-7:0", kernel, ())
    assert list(Folding({}).fold(Counter(), Counter([thread]))) == ["write;kworker;entry_SYSCALL_64_[k];submit_bio_[k]"]
    assert list(Folding({}).fold(Counter(), Counter([thread._replace(kernel="")]))) == [f"write;kworker;{NO_KERNEL}"]


def test_requests_that_no_map_had_room_for_are_lost():
    text = "@leaf_requests[1, 7, fio, , ]: 10\n@total[1]: 12\n@total[2]: 5\nnonsense\nLost 3 events\n"
    counts = parsed(text)
    assert (counts.lost, counts.malformed, dict(counts.total)) == (7, 1, {"read": 12, "write": 5})


def test_code_of_this_process_gets_its_names():
    mine = AddressSpace(os.getpid())
    assert not mine
    mine.look()
    libc = ctypes.CDLL(None)
    pread = ctypes.cast(libc.pread, ctypes.c_void_p).value
    assert mine.name(pread, returns=False).startswith("pread")
    assert "(libc.so" in mine.name(pread + 1, returns=True)
    assert mine.name(1, returns=False) is None
    with mmap.mmap(-1, 4096) as data:
        assert mine.name(ctypes.addressof(ctypes.c_char.from_buffer(data)), returns=False) is None


def test_mappings_are_those_that_can_be_executed():
    text = (
        "55d0-55e0 r--p 00000000 fe:00 12 /usr/bin/a b\n"
        "55e0-55f0 r-xp 00001000 fe:00 12                         /usr/bin/a b\n"
        "7f00-7f10 r-xp 00000000 00:00 0 \n"
        "7fff-8000 r-xp 00000000 00:00 0                          [vdso]\ntorn 55"
    )
    assert [(m.begin, m.offset, m.path) for m in mappings(text)] == [
        (0x55E0, 0x1000, "/usr/bin/a b"),
        (0x7F00, 0, ""),
        (0x7FFF, 0, "[vdso]"),
    ]


@given(st.binary(max_size=300))
def test_a_file_that_is_no_program_has_no_symbols(content):
    path = f"/dev/shm/offload-sweep-test-{os.getpid()}"
    try:
        for text in (content, b"\x7fELF\x02\x01" + content):
            with open(path, "wb") as f:
                f.write(text)
            assert Symbols(path).function(4096) is None
    finally:
        os.unlink(path)


def test_cxx_names_are_readable():
    if not ctypes.util.find_library("stdc++"):
        pytest.skip("no C++ library here")
    assert demangled("_ZN3aio5startEPKc") == "aio::start(char const*)"
    assert demangled("pread") == "pread"
    assert demangled("_Zno_such_name") == "_Zno_such_name"


def test_stacks_need_bpftrace():
    fio = {"kind": "command", "argv": ["fio"]}
    assert "tracer:bpftrace" not in needs(trial_config(workload=fio))
    assert needs(trial_config(workload=fio, trace={"stacks": True}))["tracer:bpftrace"] == "trace.stacks"


def folded(folder, name=REQUESTS):
    lines = (line.rpartition(" ") for line in (folder / name).read_text().splitlines())
    return {tuple(stack.split(";")): int(n) for stack, _, n in lines}


@pytest.mark.root
def test_every_request_of_a_trial_has_a_stack(run_here, left_behind):
    pattern = [(i * 4 * KIB, 4 * KIB) for i in range(2000)]
    config = trial_config(workload={"kind": "pattern", "pattern": pattern}, trace={"stacks": True})
    record, folder = run_here(config)
    assert record["verdict"] == {"state": "valid", "reasons": []}
    assert record["stacks"]["state"] == "recorded"
    assert record["stacks"]["lost"] == record["stacks"]["malformed"] == 0

    reads = {stack: n for stack, n in folded(folder).items() if stack[0] == "read"}
    trace = pl.read_parquet(folder / "requests.parquet").filter(pl.col("op").cast(pl.String) == "read")
    # What the tracer's window leaves out, before and after, is none of the job's.
    assert 0 <= sum(reads.values()) - trace.height <= 10
    moved = sum(n for stack, n in folded(folder, BYTES).items() if stack[0] == "read")
    assert 0 <= moved - trace["bytes"].sum() <= 10 * 128 * KIB
    most = max(reads, key=reads.get)
    assert reads[most] == 2000
    assert any("submit_bio" in frame or "blk_mq" in frame for frame in most)
    assert any(frame.startswith("preadv") and "libc" in frame for frame in most)
    assert {REQUESTS, BYTES} <= {file["name"] for file in manifest(folder)}
    assert [entry for entry in left_behind() if folder.parent.name not in entry] == []


_PROGRAM = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>
static void *buffer;
__attribute__((noinline)) static int read_block(int fd, int i) { return pread(fd, buffer, 4096, 4096L * i) != 4096; }
__attribute__((noinline)) int load_layer(int fd) {
    int bad = 0;
    for (int i = 0; i < 500; i++) bad |= read_block(fd, i);
    return bad;
}
int main(int argc, char **argv) {
    int fd = open(argv[1], O_RDWR | O_CREAT | O_DIRECT, 0600);
    posix_memalign(&buffer, 4096, 4096);
    for (int i = 0; i < 500; i++) if (pwrite(fd, buffer, 4096, 4096L * i) != 4096) return 1;
    return load_layer(fd);
}
"""


@pytest.mark.root
@pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc")
def test_a_program_with_frame_pointers_is_seen_down_to_main(run_here, tmp_path):
    (tmp_path / "reader.c").write_text(_PROGRAM)
    build = ["gcc", "-O1", "-fno-omit-frame-pointer", "-fno-optimize-sibling-calls", "-o", "reader", "reader.c"]
    subprocess.run(build, cwd=tmp_path, check=True, capture_output=True)
    workload = {"kind": "command", "argv": [str(tmp_path / "reader"), "{offload_dir}/file"], "space": "2MiB"}
    record, folder = run_here(trial_config(workload=workload, trace={"stacks": True}))
    assert record["verdict"]["state"] == "valid", record
    reads = {stack: n for stack, n in folded(folder).items() if stack[:2] == ("read", "reader")}
    most = max(reads, key=reads.get)
    assert reads[most] == 500
    # read_block itself is missing: pread makes no frame of its own, so the walk starts at its caller's.
    called = [frame for frame in most if not frame.endswith("_[k]")]
    assert "main (reader)" in called
    assert called.index("main (reader)") < called.index("load_layer (reader)")
    assert called[-1].startswith("pread")


@pytest.mark.root
def test_a_trial_outlives_its_stacks(run_here, monkeypatch, tmp_path):
    script = tmp_path / "stacks.bt"
    script.write_text('BEGIN { printf("B\\n"); } tracepoint:block:no_such_event { @ = count(); }')
    monkeypatch.setattr(stacks, "bpftrace_script", lambda name: script)
    record, folder = run_here(
        trial_config(workload={"kind": "pattern", "pattern": [(0, 4 * KIB)]}, trace={"stacks": True})
    )
    assert record["verdict"] == {"state": "valid", "reasons": []}
    assert record["stacks"]["state"] == "failed"
    assert "did not start" in record["stacks"]["reason"]
    assert "no_such_event" in record["trouble"]
    assert not (folder / REQUESTS).exists()
    assert (folder / "requests.parquet").exists()


@pytest.mark.root
def test_a_bpftrace_that_dies_early_is_told(run_here, monkeypatch, tmp_path):
    script = tmp_path / "stacks.bt"
    script.write_text('BEGIN { printf("B\\n"); } interval:ms:1 { exit(); }')
    monkeypatch.setattr(stacks, "bpftrace_script", lambda name: script)
    record, folder = run_here(
        trial_config(workload={"kind": "pattern", "pattern": [(0, 4 * KIB)]}, trace={"stacks": True})
    )
    assert record["verdict"] == {"state": "valid", "reasons": []}
    assert "ended early" in record["stacks"]["reason"]
    assert not (folder / REQUESTS).exists()
