"""Malformed sweeps and command lines: exit code 2, one message that names file and key, nothing started or made."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from sweep import cli, cluster
from sweep.definition import Search, Until
from tasks import lease, machine

ROOT = Path(__file__).parent.parent
SMALL = "workload: {kind: tensor_io, sizes: [1MiB], apis: [posix]}\n"

#: Keys that choose among trials, as good as they are, by section.
CHOOSING = {
    "repeats": {**vars(Until()), "until": "ci"},
    "search": {**vars(Search()), "find": "largest", "values": [1, 2]},
}


def workload(keys: str) -> str:
    return f"workload: {{kind: tensor_io, {keys}}}\n"


#: A sweep file, and what the message must say: first the key, then what would be right, with the nearest match.
FILES: dict[str, tuple[str | bytes, list[str]]] = {
    # unknown keys
    "unknown key at the top": (SMALL + "repeat: 3\n", ["repeat: unknown key", "did you mean repeats?"]),
    "the workload misspelt": ("worklod: {kind: tensor_io}\n", ["worklod: unknown key", "did you mean workload?"]),
    "unknown key of a section": (
        SMALL + "storage: {imagesize: 1GiB}\n",
        ["storage.imagesize: unknown key", "did you mean storage.image_size?"],
    ),
    "unknown key two levels down": (
        SMALL + "storage: {queue: {max_sector_kb: 1}}\n",
        ["storage.queue.max_sector_kb: unknown key", "did you mean storage.queue.max_sectors_kb?"],
    ),
    "unknown key like no other": (SMALL + "storage: {zzz: 1}\n", ["storage.zzz: unknown key", "valid: kind, fs, path"]),
    "unknown key of the workload": (
        "workload: {kind: tensor_io, size: [1MiB]}\n",
        ["workload.size: unknown key", "did you mean workload.sizes?"],
    ),
    "a number as a key": (SMALL + "3: 4\n", ["3: keys must be text"]),
    # wrong types
    "text for a number": (SMALL + "repeats: many\n", ["repeats: must be a whole number, not 'many'"]),
    "a fraction for a number": (SMALL + "repeats: 1.5\n", ["repeats: must be a whole number, not '1.5'"]),
    "yes for a number": (SMALL + "repeats: yes\n", ["repeats: must be a whole number, not true"]),
    "a list for a number": (workload("loops: [1]"), ["workload.loops: must be a whole number, not [1]"]),
    "text for yes or no": (workload("fsync: maybe"), ["workload.fsync: must be true or false, not 'maybe'"]),
    "a number for yes or no": (workload("fsync: 1"), ["workload.fsync: must be true or false, not 1"]),
    "a list for text": (SMALL + "description: [a]\n", ['description: must be text, not ["a"]']),
    "keys for text": (SMALL + "storage: {fs: {a: 1}}\n", ['storage.fs: must be text, not {"a": 1}']),
    "a value for a section": (SMALL + "storage: xfs\n", ["storage: must hold keys, not 'xfs'", "its keys: kind, fs"]),
    "a value for the workload": ("workload: tensor_io\n", ["workload: must hold keys, not 'tensor_io'"]),
    "a value for a list": (workload("sizes: 1MiB"), ["workload.sizes: must be a list, such as [1MiB], not '1MiB'"]),
    "keys for a list": (SMALL + "figures: {a: 1}\n", ['figures: must be a list, not {"a": 1}']),
    "a list in a list": (SMALL + "figures: [[fig2]]\n", ['figures: holds ["fig2"]; each entry must be text']),
    "a fraction for a size": (workload("sizes: [1.5]"), ["workload.sizes: holds 1.5", "a size such as 64MiB"]),
    "a word that is none of the choices": (
        SMALL + "storage: {kind: lop}\n",
        ["storage.kind: must be one of loop, directory, device, not 'lop'"],
    ),
    # null
    "null for text": (SMALL + "description:\n", ["description: must not be null"]),
    "null for a number": (SMALL + "repeats: null\n", ["repeats: must not be null"]),
    "null for a size": (SMALL + "storage: {image_size: null}\n", ["storage.image_size: must not be null"]),
    "null for a list": (workload("sizes: null"), ["workload.sizes: must not be null"]),
    "null in a list": (workload("sizes: [null]"), ["workload.sizes: holds null", "such as 64MiB"]),
    "null for a section": (SMALL + "storage:\n", ["storage: must hold keys, not null"]),
    "null for the workload": ("workload:\n", ["workload: must hold keys, not null"]),
    "null on an axis": (SMALL + "grid: {storage.fs: [xfs, null]}\n", ["storage.fs: must not be null"]),
    "a value still to be given": (SMALL + "name: ???\n", ["name: has no value yet"]),
    # no sweep at all
    "an empty file": ("", ["c.yaml: is empty", "workload: {kind: tensor_io}"]),
    "only comments": ("# nothing\n\n# more\n", ["c.yaml: is empty"]),
    "a binary file": (b"\x89PNG\r\n\x1a\n\x00\xff\xfe", ["c.yaml: is no text file"]),
    "zero bytes": (SMALL + "name: a\0b\n", ["c.yaml: is no valid YAML"]),
    "a bracket left open": (SMALL + "storage: {fs: xfs\nrepeats: 3\n", ["c.yaml:3: is no valid YAML"]),
    "a tab as indentation": ("workload:\n\tkind: tensor_io\n", ["c.yaml:2: is no valid YAML"]),
    "two documents": (SMALL + "---\n" + SMALL, ["c.yaml:2: is no valid YAML"]),
    "a key twice": (SMALL + "repeats: 1\nrepeats: 2\n", ["c.yaml:3: is no valid YAML: found duplicate key repeats"]),
    "a Python object": (SMALL + "name: !!python/object:os.system x\n", ["c.yaml:2: is no valid YAML"]),
    "an alias of itself": (SMALL + "grid: &g {storage.fs: [*g]}\n", ["c.yaml"]),
    "far too deep": ("name: " + "[" * 1200 + "]" * 1200, ["c.yaml: is no valid YAML"]),
    "a list at the top": ("- workload\n", ["c.yaml: must be a mapping of keys"]),
    "a word at the top": ("tensor_io\n", ["c.yaml: must be a mapping of keys"]),
    "a number at the top": ("42\n", ["c.yaml: must be a mapping of keys"]),
    # the grid
    "an empty axis": (SMALL + "grid: {storage.fs: []}\n", ["grid.storage.fs: has no values"]),
    "an axis that is no list": (SMALL + "grid: {storage.fs: xfs}\n", ["grid.storage.fs: must be a list of values"]),
    "a value beneath an axis": (
        "workload: {kind: command, argv: [ls, '{depth}'], values: fio}\ngrid: {workload.values.depth: [1]}\n",
        ["workload.values: must hold keys, not 'fio'"],
    ),
    "binary data": (SMALL + "description: !!binary Ymlu\n", ["description: holds bytes; a value is text"]),
    "a value still to be given in a list": (workload("sizes: ['???']"), ["workload.sizes: holds ???"]),
    "more trials than memory": (
        SMALL + "repeats: 10000\ngrid: {limits.time_limit_s: [" + ", ".join(map(str, range(1, 300))) + "]}\n",
        ["grid: makes 2990000 trials; 2000000 is the most"],
    ),
    "a file without end": ("# " + "x" * (17 << 20), ["c.yaml: is longer than the 16 MiB"]),
    "a key that a terminal would obey": (SMALL + '"\\e[31mred": 1\n', ["\\x1b[31mred: unknown key"]),
    "a grid that is a list": (SMALL + "grid: [storage.fs]\n", ["grid: must map configuration keys to lists"]),
    "an axis of an unknown key": (
        SMALL + "grid: {storage.filesystem: [xfs]}\n",
        ["grid.storage.filesystem: no such key to make an axis of", "did you mean storage.fs?"],
    ),
    "an axis without its section": (SMALL + "grid: {queue_depth: [1]}\n", ["did you mean workload.queue_depth?"]),
    "an axis of a section": (SMALL + "grid: {storage: [xfs]}\n", ["grid.storage: no such key to make an axis of"]),
    "a value twice on an axis": (SMALL + "grid: {storage.fs: [xfs, xfs]}\n", ["grid.storage.fs: lists 'xfs' twice"]),
    "an axis dotted and nested": (
        SMALL + "grid: {storage.fs: [xfs], storage: {fs: [ext4]}}\n",
        ["grid.storage.fs: is there twice"],
    ),
    "a bad value on an axis": (SMALL + "grid: {storage.fs: [xfs, zfs]}\n", ["storage.fs: cannot make 'zfs'"]),
    "a bad type on an axis": (SMALL + "grid: {workload.loops: [1, x]}\n", ["workload.loops: must be a whole number"]),
    "an axis that a scenario's program has not": (
        SMALL + "grid: {workload.loops: [1]}\nscenarios: {a: {workload: {kind: command, argv: [ls]}}}\n",
        ["c.yaml, scenarios.a: grid.workload.loops: no such key to make an axis of", "null in this scenario's grid"],
    ),
    # scales and scenarios
    "keys for a scale's name": (SMALL + "scale: {a: b}\n", ["scale: must be the name of one entry of scales"]),
    "a list of scales": (SMALL + "scale: [a]\nscales: {a: {}}\n", ['of scales, not ["a"]']),
    "an unknown key of a scale": (
        SMALL + "scales: {s: {limit: {memory: 1GiB}}}\n",
        ["scales.s.limit: unknown key", "did you mean scales.s.limits?"],
    ),
    "a scale in a scale": (SMALL + "scales: {s: {scales: {}}}\n", ["scales.s.scales: unknown key"]),
    "a scale that takes away no axis": (
        SMALL + "grid: {workload.loops: [1]}\nscale: s\nscales: {s: {grid: {workload.lops: null}}}\n",
        ["c.yaml, scales.s: grid.workload.lops: is null", "did you mean workload.loops?"],
    ),
    "a scenario's grid that is a number": (
        SMALL + "grid: 3\nscenarios: {a: {}}\n",
        ["c.yaml, scenarios.a: grid: must map"],
    ),
    "a number for the grid below a scale": (
        SMALL + "grid: 3\nscale: s\nscales: {s: {grid: {storage.fs: null}, scenarios: {a: {}}}}\n",
        ["c.yaml, scales.s: grid.storage.fs: is null", "there are no axes below"],
    ),
    "scenarios of a scale that are a list": (
        SMALL + "scale: s\nscales: {s: {scenarios: [a]}}\nscenarios: {a: {}}\n",
        ["scenarios: must map names to keys"],
    ),
    # names of things that do not exist
    "no workload": ("repeats: 3\n", ["workload.kind: is missing", "tensor_io"]),
    "no kind of workload": ("workload: {sizes: [1MiB]}\n", ["workload.kind: is missing"]),
    "unknown workload": ("workload: {kind: tensorio}\n", ["workload.kind: no workload 'tensorio'", "mean tensor_io?"]),
    "a list of workloads": ("workload: {kind: [tensor_io]}\n", ["workload.kind: no workload"]),
    "unknown filesystem": (SMALL + "storage: {fs: xsf}\n", ["storage.fs: cannot make 'xsf'", "did you mean xfs?"]),
    "unknown tracer": (SMALL + "trace: {tracer: ftrac}\n", ["trace.tracer: no tracer 'ftrac'", "did you mean ftrace?"]),
    "unknown measure": (
        SMALL + "figures: ['metric:read.iop@x']\n",
        ["figures: metric:read.iop@x:", "did you mean read.iops?"],
    ),
    "unknown axis of a figure": (
        SMALL + "grid: {workload.queue_depth: [1, 8]}\nfigures: ['metric:duration_s@queue_dept']\n",
        ["no axis 'queue_dept'", "did you mean workload.queue_depth?"],
    ),
    "unknown figure": (SMALL + "figures: [fig22]\n", ["figures: no figure is called 'fig22'", "did you mean fig2?"]),
    "unknown api": (workload("apis: [posics]"), ["workload.apis: 'posics' is not one of", "did you mean posix?"]),
    "gds for the CPU": (
        workload("apis: [gds], tensor_devices: [cpu]"),
        ["workload.apis: gds moves CUDA tensors only"],
    ),
    "an api twice": (workload("apis: [aio, aio]"), ["workload.apis: lists 'aio' twice"]),
    "unknown tensor device": (workload("tensor_devices: [cudda]"), ["workload.tensor_devices:", "did you mean cuda?"]),
    "auto and another device": (
        workload("tensor_devices: [auto, cpu]"),
        ["workload.tensor_devices: auto stands alone"],
    ),
    # numbers out of range
    "no repeats": (SMALL + "repeats: 0\n", ["repeats: must be 1 to 10000, not 0"]),
    "negative repeats": (SMALL + "repeats: -1\n", ["repeats: must be 1 to 10000, not -1"]),
    "repeats beyond reason": (SMALL + f"repeats: 1{'0' * 20}\n", ["repeats: must be 1 to 10000"]),
    "no loops": (workload("loops: 0"), ["workload.loops: must be 1 or more, not 0"]),
    "no time": (SMALL + "limits: {time_limit_s: 0}\n", ["limits.time_limit_s: must be 1 or more"]),
    "no request size": (SMALL + "storage: {queue: {max_sectors_kb: 0}}\n", ["storage.queue.max_sectors_kb: must be 1"]),
    "negative read-ahead": (
        SMALL + "storage: {queue: {read_ahead_kb: -1}}\n",
        ["storage.queue.read_ahead_kb: must be 0"],
    ),
    "a buffer too small": (SMALL + "trace: {buffer_size: 1KiB}\n", ["trace.buffer_size: must be 4 KiB or more"]),
    "samples too often": (SMALL + "trace: {sample_interval_ms: 1}\n", ["trace.sample_interval_ms: must be 10 or more"]),
    "a size in parsecs": (workload("sizes: [64 parsecs]"), ["workload.sizes: '64 parsecs' is not a size", "64MiB"]),
    "a size of nothing": (workload("sizes: [0]"), ["workload.sizes: 0 is not a whole number of bytes above zero"]),
    "a negative size": (workload("sizes: [-1]"), ["workload.sizes: -1 is not a size"]),
    "a size of half a byte": (workload("sizes: [1.5B]"), ["workload.sizes: '1.5B' is not a whole number of bytes"]),
    "a size beyond reason": (workload(f"sizes: [4096{'0' * 400}]"), ["workload.sizes: 4096000", "below 8 EiB"]),
    "a size that direct I/O cannot move": (workload("sizes: [1000]"), ["workload.sizes: 1000 is no multiple of 4 KiB"]),
    "no sizes": (workload("sizes: []"), ["workload.sizes: must not be empty"]),
    # storage
    "an image smaller than the tensors": (
        workload("sizes: [1GiB]") + "storage: {image_size: 512MiB}\n",
        ["storage.image_size: 512 MiB are too small", "1 GiB of offload files"],
    ),
    "an image larger than the disk": (
        SMALL + "storage: {image_size: 9000TiB}\n",
        ["c.yaml: no node can run 1 of 1 trials", "storage.image_size: 9000 TiB", "free on /"],
    ),
    "an image larger than any disk": (
        SMALL + f"storage: {{image_size: 9{'0' * 400}}}\n",
        ["storage.image_size: 9", "below 8 EiB"],
    ),
    "mkfs on another device": (
        SMALL + "storage: {mkfs_options: [/dev/nvme0n1]}\n",
        ["storage.mkfs_options: '/dev/nvme0n1' may name another device"],
    ),
    "a journal on another device": (
        SMALL + "storage: {mkfs_options: [-J, device=sdb]}\n",
        ["storage.mkfs_options: 'device=sdb' may name another device"],
    ),
    "a mount with another device": (
        SMALL + "storage: {mount_options: ['logdev=sdb']}\n",
        ["storage.mount_options: 'logdev=sdb' may name another device"],
    ),
    "images in memory called a disk": (
        SMALL + "storage: {path: /dev/shm}\n",
        ["storage.path: /dev/shm is in memory", "storage.backing=tmpfs"],
    ),
    "an offload folder in memory": (
        SMALL + "storage: {kind: directory, path: /dev/shm, fs: tmpfs}\n",
        ["storage.path: /dev/shm is tmpfs, on no block device"],
    ),
    "images in a folder that is not there": (
        SMALL + "storage: {path: /no/such/folder}\n",
        ["c.yaml: no node can run 1 of 1 trials", "storage.path: /no/such/folder is no folder"],
    ),
    "an offload folder that is not there": (
        SMALL + "storage: {kind: directory, path: /no/such/folder}\n",
        ["c.yaml: no node can run", "storage.path: /no/such/folder is no folder"],
    ),
    "an offload folder that is a file": (
        SMALL + "storage: {kind: directory, path: /etc/passwd}\n",
        ["c.yaml: no node can run", "storage.path: /etc/passwd is no folder"],
    ),
    "a program that is not there": (
        "workload: {kind: command, argv: [my-engine, '{offload_dir}']}\n",
        ["c.yaml: no node can run 1 of 1 trials", "workload.argv: my-engine is in no folder of PATH on this node"],
    ),
    "a program that is not where it should be": (
        "workload: {kind: command, argv: [/no/such/engine]}\n",
        ["c.yaml: no node can run", "workload.argv: /no/such/engine is no program on this node"],
    ),
    "an interpreter that is not there": (
        workload("sizes: [1MiB], python: /no/such/python"),
        ["c.yaml: no node can run", "workload.python: /no/such/python is no program on this node"],
    ),
    "a folder on another filesystem than the label says": (
        SMALL + "storage: {kind: directory, fs: zfs, path: /usr}\n",
        ["c.yaml: no node can run", "storage.fs: /usr is ", "not zfs"],
    ),
    "a mkfs that makes nothing": (
        SMALL + "storage: {mkfs_options: [-n]}\n",
        ["storage.mkfs_options: '-n' forces mkfs, or keeps it from making"],
    ),
    "a relative folder": (SMALL + "storage: {path: images}\n", ["storage.path: must start with /", "'images'"]),
    "memory in a folder": (SMALL + "storage: {backing: tmpfs, path: /tmp}\n", ["storage.path: storage.backing=tmpfs"]),
    "a name with a slash": (SMALL + "name: a/b\n", ["name: 'a/b' cannot name a folder"]),
    "a name that leads out": (SMALL + "name: ..\n", ["name: '..' cannot name a folder"]),
    # references
    "a reference to no key": (
        SMALL + "description: ${workload.kid}\n",
        ["description: Interpolation key 'workload.kid' not found", "did you mean workload.kind?"],
    ),
    "references in a circle": (SMALL + "description: ${name}\nname: ${description}\n", ["Recursive interpolation"]),
    "a reference left open": (SMALL + "description: '${'\n", ["c.yaml: is no valid YAML"]),
    "a base that is not there": (SMALL + "extends: nope.yaml\n", ["c.yaml: extends: no such file: nope.yaml"]),
    "a base that is a number": (SMALL + "extends: 3\n", ["c.yaml: extends: must be a file name or a list of them"]),
    "a base that is null": (SMALL + "extends:\n", ["c.yaml: extends: must be a file name"]),
    "a base that is itself": (SMALL + "extends: c.yaml\n", ["c.yaml: extends: a sweep cannot extend itself"]),
    "a base that is malformed": (SMALL + "extends: broken.yaml\n", ["broken.yaml:2: is no valid YAML"]),
    "a base that comes back": (SMALL + "extends: back.yaml\n", ["c.yaml: extends: a sweep cannot extend itself"]),
}

#: Command lines after `python -m sweep`, beside a valid file `good.yaml`, and what the message must say.
LINES: dict[str, tuple[list[str], list[str]]] = {
    "no file named": ([], ["name a sweep file", "quickstart.yaml"]),
    "no such file": (
        ["nothing-like-it.yaml"],
        [
            "nothing-like-it.yaml: no such file",
            "fig2.yaml, fig3.yaml, fig4.yaml, fig5.yaml, fig6.yaml, fio.yaml, nightly.yaml, quickstart-noroot.yaml, "
            "quickstart.yaml, search.yaml",
        ],
    ),
    "an override before the file": (
        ["repeats=3", "conf/quickstart.yaml"],
        ["command line: repeats=3 is no sweep file: name that first, and overrides after it"],
    ),
    "nearly the name of a file": (
        ["conf/quickstar.yaml"],
        ["quickstar.yaml: no such file", "mean conf/quickstart.yaml?"],
    ),
    "a folder": (["."], [".: is a folder, not a sweep file", "broken.yaml, good.yaml"]),
    "a name too long": (["n" * 5000], ["cannot be read"]),
    "a word without =": (["good.yaml", "repeats"], ["command line: repeats: is no override; write key=value"]),
    "an override without a key": (["good.yaml", "=3"], ["command line: =3: is no override"]),
    "an override with a hole": (["good.yaml", "storage..fs=3"], ["command line: storage..fs=3: is no override"]),
    "an override with broken YAML": (["good.yaml", "repeats=[1"], ["command line: repeats: '[1' is no YAML value"]),
    "an override with an open reference": (["good.yaml", "repeats=${"], ["command line: repeats: '${' is no YAML"]),
    "an override without a value": (["good.yaml", "repeats="], ["repeats: must not be null"]),
    "an override of an unknown key": (
        ["good.yaml", "storage.kid=loop"],
        ["storage.kid: unknown key", "mean storage.kind?"],
    ),
    "an override of a wrong type": (["good.yaml", "repeats=x"], ["repeats: must be a whole number, not 'x'"]),
    "an override below a value": (["good.yaml", "storage.fs.x=3"], ["storage.fs: must be text"]),
    "an override of an axis": (
        ["good.yaml", "grid.storage.fs=[ext4]", "storage.fs=xfs"],
        ["command line: storage.fs: is an axis of this sweep", "'grid.storage.fs=[xfs]'"],
    ),
    "an override beside a list of workloads": (
        ["good.yaml", "scenarios={a: {workload: {kind: [command]}}}", "workload.loops=2"],
        ["workload.kind: no workload"],
    ),
    "an override of the bases": (["good.yaml", "extends=a.yaml"], ["command line: extends: belongs into a sweep file"]),
    "an override that empties an axis": (["good.yaml", "grid.storage.fs=[]"], ["grid.storage.fs: has no values"]),
    "an unknown option": (["good.yaml", "--dryrun"], ["unrecognized arguments: --dryrun", "did you mean --dry-run?"]),
    "an option without its value": (["good.yaml", "--results"], ["--results: expected one argument"]),
    "results in a file": (["good.yaml", "--results", "good.yaml"], ["--results: cannot write to", "Not a directory"]),
    "results where nobody can write": (
        ["good.yaml", "--results", "/proc/nope"],
        ["--results: cannot write to /proc/nope"],
    ),
}


@pytest.fixture(autouse=True)
def nothing_is_started(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever would start, mount or clean up something fails the test; the handlers of signals are put back."""
    for module, name in ((cluster, "local"), (cluster, "joined"), (lease, "reap")):
        monkeypatch.setattr(module, name, lambda *a, **k: pytest.fail("something was started"))
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with what the cases refer to."""
    monkeypatch.setenv("OFFLOAD_SWEEP_STATE", str(tmp_path / "state"))
    here = tmp_path / "here"
    here.mkdir()
    (here / "good.yaml").write_text(SMALL + "trace: {tracer: none}\nstorage: {kind: directory, path: /}\n")
    (here / "broken.yaml").write_text("{\n")
    (here / "back.yaml").write_text("extends: c.yaml\n")
    monkeypatch.chdir(here)
    return here


def everything_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def refused(argv: list[str], words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = everything_in(folder)
    assert cli.main(argv) == 2
    printed = capsys.readouterr()
    check(printed.out, printed.err, words)
    assert everything_in(folder) == before


def check(out: str, err: str, words: list[str]) -> None:
    assert out == ""
    assert err.startswith("sweep: ")
    assert err.count("sweep: ") == 1
    assert "Traceback" not in err
    assert not [word for word in words if word not in err], err


@pytest.mark.parametrize("case", FILES)
def test_malformed_files(case: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, words = FILES[case]
    (folder / "c.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(["c.yaml"], words if "yaml" in words[0] else ["c.yaml: ", *words], folder, capsys)


@pytest.mark.parametrize(("section", "name"), [(s, name) for s, keys in CHOOSING.items() for name in keys])
@pytest.mark.parametrize("value", ["${workload.loops}", ["${oc.env:HOME}"], {"from": "${nope}"}])
def test_references_in_keys_that_choose_among_trials(
    section: str, name: str, value: object, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = CHOOSING[section] | {name: value}
    (folder / "c.yaml").write_text(SMALL + yaml.safe_dump({section: keys}))
    refused(
        ["c.yaml"], [f"c.yaml: {section}.{name}", "cannot refer to another key", "the value itself"], folder, capsys
    )


@pytest.mark.parametrize("case", LINES)
def test_malformed_command_lines(
    case: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv, words = LINES[case]
    # The file is a good one on any machine, so that only what the case says is wrong.
    monkeypatch.setattr("sweep.run.fit", lambda *a: None)
    refused(argv, words, folder, capsys)


def test_a_gpu_that_no_node_has(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "gpus", list)
    (folder / "c.yaml").write_text(workload("sizes: [1MiB], apis: [posix], tensor_devices: [cuda]"))
    words = ["c.yaml: no node can run 1 of 1 trials", "rep=1", "workload.tensor_devices: no NVIDIA GPU on this node"]
    refused(["c.yaml"], words, folder, capsys)


def test_a_refusal_names_the_trials_that_it_is_about(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "c.yaml").write_text(SMALL + "grid: {storage.image_size: [1GiB, 9000TiB]}\nrepeats: 5\n")
    words = ["no node can run 5 of 10 trials", "image_size=9000TiB,rep=1", "and 2 more"]
    refused(["c.yaml"], words, folder, capsys)


@pytest.mark.parametrize("case", ["unknown key at the top", "a bracket left open", "an image larger than the disk"])
def test_the_same_as_a_process(case: str, folder: Path) -> None:
    content, words = FILES[case]
    assert isinstance(content, str)
    (folder / "c.yaml").write_text(content)
    before = everything_in(folder)
    done = subprocess.run(
        [sys.executable, "-m", "sweep", "c.yaml"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=60,
    )
    assert done.returncode == 2
    check(done.stdout, done.stderr, words)
    assert everything_in(folder) == before
