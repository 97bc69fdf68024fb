"""Sweep files made wrong from the good ones in `conf/`: exit code 2, one message with file and key, nothing started."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sweep import cli, cluster, config
from sweep.errors import UserError
from sweep.plan import Grid
from sweep.trees import copied
from tasks import lease
from tasks.files import conf_dir

ROOT = Path(__file__).parent.parent
GOOD = sorted(path.name for path in conf_dir().glob("*.yaml"))

#: Below these, names are the user's own.
_OWN_NAMES = ("grid", "zip", "values", "env", "shape", "scenarios", "scales")

#: Mutants of a kind that a run of the tests looks at; another seed looks at others.
_OF_A_KIND = 12
_SEED = 6


@dataclass(frozen=True)
class Mutant:
    """A sweep file that is wrong: what was done to which good one, and words that the message must have."""

    what: str
    base: str
    text: bytes
    words: tuple[str, ...]
    overrides: tuple[str, ...] = ()


Tree = dict[str, Any]
Path_ = tuple[Any, ...]


def tree_of(name: str) -> Tree:
    value: Tree = yaml.safe_load((conf_dir() / name).read_text())
    return value


def paths(value: Any, above: Path_ = ()) -> Iterator[Path_]:
    """Yield the path of everything in a tree."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in items:
        yield (*above, name)
        yield from paths(part, (*above, name))


def at(value: Any, path: Path_) -> Any:
    for name in path:
        value = value[name]
    return value


def changed(tree: Tree, path: Path_, value: Any) -> Tree:
    new: Tree = copied(tree)
    at(new, path[:-1])[path[-1]] = value
    return new


def without(tree: Tree, path: Path_) -> Tree:
    new: Tree = copied(tree)
    del at(new, path[:-1])[path[-1]]
    return new


def mutant(what: str, base: str, tree: Any, *words: str) -> Mutant:
    """Return a mutant; one of a scale is looked at with that scale."""
    chosen = ("scale=small",) if what.startswith("scales.small") else ()
    return Mutant(what, base, yaml.safe_dump(tree, sort_keys=False).encode(), words, chosen)


def keys_of(tree: Tree) -> Iterator[Path_]:
    """Yield the paths of all keys that the definition knows."""
    for path in paths(tree):
        if isinstance(path[-1], str) and not (len(path) > 1 and path[-2] in _OWN_NAMES):
            yield path


def leaves(tree: Tree) -> Iterator[Path_]:
    """Yield the paths of the single values of known keys that are no axes."""
    for path in keys_of(tree):
        if not isinstance(at(tree, path), (dict, list)) and not {"grid", "zip"} & {*path}:
            yield path


# --- kinds of mutation -----------------------------------------------------------------------------------------------


def misspelt(base: str, tree: Tree, draw: random.Random) -> Iterator[Mutant]:
    known = {path[-1] for path in keys_of(tree)}
    for path in keys_of(tree):
        name, place = path[-1], draw.randrange(len(path[-1]))
        wrong = draw.choice(
            [name[:place] + name[place] + name[place:], name + name[-1], name[:place] + "_" + name[place:]]
        )
        # a scenario's kind that is misspelt leaves the workload below, to which the scenario's own keys are unknown
        if wrong not in known and not (name == "kind" and "scenarios" in path):
            moved = changed(without(tree, path), (*path[:-1], wrong), at(tree, path))
            told = (wrong, name) if name == "kind" else (f"{wrong}: unknown key", name)
            yield mutant(f"{'.'.join(map(str, path))} misspelt", base, moved, *told)


def of_wrong_type(base: str, tree: Tree, draw: random.Random) -> Iterator[Mutant]:
    for path in leaves(tree):
        wrong = draw.choice([{"x": 1}, [["x"]], [{}]])
        yield mutant(f"{'.'.join(map(str, path))} is {wrong}", base, changed(tree, path, wrong), str(path[-1]))


def missing(base: str, tree: Tree, draw: random.Random) -> Iterator[Mutant]:
    needed = [path for path in (("workload",), ("workload", "kind"), ("extends",)) if path in set(paths(tree))]
    for path in needed:
        yield mutant(f"without {path[-1]}", base, without(tree, path), "workload.kind: is missing")


def broken_axes(base: str, tree: Tree, draw: random.Random) -> Iterator[Mutant]:
    for path in paths(tree):
        if len(path) < 2 or path[-2] != "grid":
            continue
        own = at(tree, path)
        for what, values in {
            "empty": [],
            "a value": own[0],
            "twice": [own[0]] * 2,
            "of keys": {"a": 1},
            "3": 3,
        }.items():
            yield mutant(f"{'.'.join(path)} {what}", base, changed(tree, path, values), f"grid.{path[-1]}")
        wrong = changed(without(tree, path), (*path[:-1], f"{path[-1]}x"), own)
        if "values" in path[-1]:
            continue  # where any name can be an axis
        yield mutant(f"{'.'.join(path)} of no key", base, wrong, f"grid.{path[-1]}x: no such key", path[-1])


def impossible_sizes(base: str, tree: Tree, draw: random.Random) -> Iterator[Mutant]:
    for path in leaves(tree):
        if path[-1] in ("image_size", "space", "expect_read", "memory"):
            for size in ("-1GiB", "1 parsec", 0, "1.5B", f"9{'0' * 400}", "GiB"):
                yield mutant(f"{'.'.join(path)}: {size}", base, changed(tree, path, size), str(path[-1]))
        if path[-1] == "image_size":
            yield mutant(f"{'.'.join(path)}: too small", base, changed(tree, path, "1MiB"), "image_size: 1 MiB are too")
            words = ("no node can run", "storage.image_size: 9000 TiB", "free on")
            yield mutant(f"{'.'.join(path)}: too large", base, changed(tree, path, "9000TiB"), *words)


def unknown_kinds(base: str, tree: Tree, draw: random.Random) -> Iterator[Mutant]:
    kinds: dict[Path_, str] = {
        ("workload", "kind"): "tensorio",
        ("storage", "kind"): "lop",
        ("storage", "backing"): "tmps",
        ("trace", "tracer"): "ftrac",
        ("order",): "randm",
        ("on_impossible",): "skp",
        ("scale",): "smal",
        ("figures",): "fig22",
    }
    for path, kind in kinds.items():
        new = copied(tree)
        for place in range(1, len(path)):
            at(new, path[: place - 1]).setdefault(path[place - 1], {})
        value = [kind] if path == ("figures",) else kind
        if base != "fig6.yaml" or path != ("workload", "kind"):
            yield mutant(f"{'.'.join(path)}: {kind}", base, changed(new, path, value), path[-1], kind)


def bad_conditions(base: str, tree: Tree, draw: random.Random) -> Iterator[Mutant]:
    texts = ["", "fs", "fs ==", "fs = xfs", "== xfs", "(fs == xfs", "fs in xfs", "fs in []", "fs == xfs and", "9 > fs"]
    texts += ["fs == $(reboot)", "__import__('os')", "no_such_axis == 1", "fs == 'xfs", "not", "fs == xfs xfs"]
    for text in texts:
        section = draw.choice(["exclude", "only"])
        yield mutant(f"{section}: {text}", base, tree | {section: [text]}, f"{section}[0]: ")


def broken_text(base: str, tree: Tree, draw: random.Random) -> Iterator[Mutant]:
    text = (conf_dir() / base).read_text()
    lines = text.splitlines(keepends=True)
    place = draw.randrange(len(text))
    indented = next((n for n, line in enumerate(lines) if line.startswith("  ")), None)
    first = next(iter(tree))
    made = {
        "a NUL byte": text[:place] + "\0" + text[place:],
        "a list at the top": "".join(f"- {line}" if line[0].isalpha() else f"  {line}" for line in lines),
        "an open bracket": text + "only: [fs == xfs\n",
        "two documents": text + "---\n" + text,
        "a key twice": text + f"{first}: again\n",
        "no end of text": text + "description2: 'it\n",
    }
    if indented is not None:
        made["a tab"] = "".join([*lines[:indented], "\t" + lines[indented].lstrip(), *lines[indented + 1 :]])
    for what, wrong in made.items():
        words = ("found duplicate key",) if what == "a key twice" else ("must be",) if "list" in what else ("YAML",)
        yield Mutant(what, base, wrong.encode(), words)
    yield Mutant("no text", base, bytes(draw.randrange(128, 256) for _ in range(64)), ("is no text file",))
    yield Mutant("nothing", base, b"# " + text.encode().replace(b"\n", b"\n# "), ("is empty",))


def huge_numbers(base: str, tree: Tree, draw: random.Random) -> Iterator[Mutant]:
    for name, number in (("repeats", 10**9), ("warmups", 10**6), ("cooldown_s", 1e300), ("cooldown_s", float("inf"))):
        yield mutant(f"{name}: {number}", base, tree | {name: number}, f"{name}: must be ")
    if "scenarios" not in tree and base != "fig6.yaml":
        axes = {"limits.time_limit_s": [*range(1, 3000)], "trace.sample_interval_ms": [*range(10, 3000)]}
        grid = dict(tree.get("grid") or {}) | axes
        yield mutant("millions of cells", base, tree | {"grid": grid}, "grid: makes ", "cells")


def circles(base: str, tree: Tree, draw: random.Random) -> Iterator[Mutant]:
    for what, wrong in {
        "itself": "c.yaml",
        "a file that extends it": "back.yaml",
        "two": ["good.yaml", "far.yaml"],
    }.items():
        words = ("extends: a sweep cannot extend itself",)
        yield mutant(f"extends {what}", base, tree | {"extends": wrong}, *words)
    for wrong, word in (
        ("nope.yaml", "no such file"),
        (".", "no such file"),
        (3, "must be a file name"),
        ({}, "must be"),
    ):
        yield mutant(f"extends {wrong}", base, tree | {"extends": wrong}, "extends: ", word)


def values_for_sections(base: str, tree: Tree, draw: random.Random) -> Iterator[Mutant]:
    for name in ("workload", "storage", "trace", "limits", "ceiling", "grid", "zip", "scenarios", "scales"):
        wrong = draw.choice([3, "text", ["a"], True, 1.5])
        yield mutant(f"{name}: {wrong}", base, tree | {name: wrong}, f"{name}: must ")


def unplaceable(base: str, tree: Tree, draw: random.Random) -> Iterator[Mutant]:
    storage = dict(tree.get("storage") or {}) | {"path": "/no/such/folder"}
    yield mutant(
        "no folder", base, tree | {"storage": storage}, "no node can run", "storage.path: /no/such/folder is no"
    )
    limits = dict(tree.get("limits") or {}) | {"memory": "9000GiB"}
    if "noroot" not in base and "scenarios" not in tree:
        yield mutant("more memory than there is", base, tree | {"limits": limits}, "no node can run", "limits.memory")
        device = {"kind": "device", "device": "/dev/no-such-device", "allow_format": True}
        words = ("no node can run", "storage.device")
        yield mutant("no such device", base, tree | {"storage": device}, *words)
    node = {"name": "no-such-node"}
    yield mutant("no such node", base, tree | {"node": node}, "no node can run", "node.name", "no-such-node")


KINDS: dict[str, Callable[[str, Tree, random.Random], Iterator[Mutant]]] = {
    made.__name__: made
    for made in (
        *(misspelt, of_wrong_type, missing, broken_axes, impossible_sizes, unknown_kinds, bad_conditions, broken_text),
        *(huge_numbers, circles, values_for_sections, unplaceable),
    )
}


def mutants(kind: str, most: int) -> list[Mutant]:
    """Return mutants of one kind, of all files, a different choice for another seed."""
    draw = random.Random(f"{_SEED} {kind}")
    found = [one for base in GOOD for one in KINDS[kind](base, tree_of(base), draw)]
    return draw.sample(found, min(most, len(found)))


# --- what becomes of them --------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OFFLOAD_SWEEP_STATE", str(tmp_path / "state"))
    here = tmp_path / "here"
    here.mkdir()
    prepare(here)
    monkeypatch.chdir(here)
    return here


def prepare(here: Path) -> None:
    """Make what mutants refer to: the files that come with the package, and those that lead back."""
    for name in GOOD:
        shutil.copy(conf_dir() / name, here)
    (here / "good.yaml").write_text("workload: {kind: tensor_io}\n")
    (here / "back.yaml").write_text("extends: c.yaml\n")
    (here / "far.yaml").write_text("extends: [good.yaml, back.yaml]\n")


def wrong_in(one: Mutant, code: int, out: str, err: str) -> list[str]:
    """Return what is wrong with how a mutant was refused."""
    found = [f"{word!r} is missing" for word in one.words if word not in err]
    found += [f"ended with {code}"] if code != 2 else []
    found += ["printed something"] if out else []
    single = err.startswith("sweep: ") and err.count("sweep: ") == 1 and "Traceback" not in err
    found += [] if single else ["is not one message"]
    found += [] if ".yaml" in err.partition("\n")[0] or "command line" in err else ["names no file"]
    plain = err.replace("\n", "").isprintable() and len(err) < 6000
    return found + ([] if plain else ["holds what no terminal should see"])


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_mutation_is_refused_in_one_message(
    kind: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in ((cluster, "local"), (cluster, "joined"), (lease, "reap")):
        monkeypatch.setattr(module, name, lambda *a, **k: pytest.fail("something was started"))
    monkeypatch.setattr(cli.interrupt, "install", lambda: None)
    before = {path.name for path in folder.iterdir()} | {"c.yaml"}
    chosen, bad = mutants(kind, _OF_A_KIND), {}
    for one in chosen:
        (folder / "c.yaml").write_bytes(one.text)
        code = cli.main(["c.yaml", *one.overrides])
        out, err = capsys.readouterr()
        if wrong := wrong_in(one, code, out, err):
            bad[f"{one.base}: {one.what}"] = (wrong, err)
    assert chosen
    assert not bad
    assert {path.name for path in folder.iterdir()} == before


def started_by(mark: str) -> list[str]:
    """Return the command lines of the processes that carry the mark in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def as_process(one: Mutant, here: Path, mark: str) -> list[str]:
    """Run the real command on a mutant in a folder of its own; return what is wrong with how it ended."""
    here.mkdir()
    prepare(here)
    (here / "c.yaml").write_bytes(one.text)
    before = {path.name for path in here.iterdir()}
    done = subprocess.run(
        [sys.executable, "-m", "sweep", "c.yaml", *one.overrides],
        cwd=here,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MUTATION_TEST": mark},
        timeout=120,
    )
    wrong = wrong_in(one, done.returncode, done.stdout, done.stderr)
    wrong += [f"made {name}" for name in {path.name for path in here.iterdir()} - before]
    return [f"{one.base}: {one.what}: {text}: {done.stderr}" for text in wrong]


def test_fifty_by_the_real_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 2, one clear message, no traceback; no folder, process, mount, loop device or lease comes of it."""
    state = tmp_path / "state"
    monkeypatch.setenv("OFFLOAD_SWEEP_STATE", str(state))
    chosen = [one for kind in KINDS for one in mutants(kind, 5)]
    assert len(chosen) >= 50
    mark = uuid.uuid4().hex
    with ThreadPoolExecutor(2) as pool:
        ended = pool.map(lambda turn: as_process(turn[1], tmp_path / f"m{turn[0]}", mark), enumerate(chosen))
        wrong = [text for found in ended for text in found]
    assert not wrong
    assert started_by(mark) == []
    assert str(state) not in Path("/proc/mounts").read_text()
    assert not list(state.glob("attempts/*"))
    assert not [path for path in state.glob("*") if path.name.startswith("offload-sweep-")]


# --- any mutation at all ---------------------------------------------------------------------------------------------

SCALARS: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    10**30,
    1.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    "\0",
    "é☃",
    "\x1b[31m",
]
SCALARS += [
    "${name}",
    "${nope}",
    "${",
    "${storage}",
    "???",
    "64MiB",
    "9e99GiB",
    "fs == xfs",
    "2024-01-01",
    "~",
    "a" * 3000,
    b"x",
]
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from(SCALARS),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["a", "", "a.b", "kind", "storage.fs", 1, None, True, "."]), inner, max_size=2
        )
    ),
    max_leaves=4,
)
WORDS = sorted({str(path[-1]) for name in GOOD for path in keys_of(tree_of(name))} | {"zip", "seed", "exclude", "only"})


@st.composite
def mutated(draw: st.DrawFn) -> tuple[str, list[str]]:
    """Return the text of a good sweep with a few things changed in its tree, and in its text, and overrides."""
    tree: Any = tree_of(draw(st.sampled_from(GOOD)))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(paths(tree)) or [()]))
        if not path:
            break
        what, parent = draw(st.sampled_from(["set", "drop", "move", "add", "copy"])), at(tree, path[:-1])
        if what == "set":
            parent[path[-1]] = draw(VALUES)
        elif what == "drop":
            del parent[path[-1]]
        elif what == "copy":
            parent[path[-1]] = copied(at(tree, draw(st.sampled_from(list(paths(tree))))))
        elif isinstance(parent, dict):
            value = draw(VALUES) if what == "add" else parent.pop(path[-1])
            parent[draw(st.sampled_from(WORDS) | st.text("ab._ \0", max_size=3))] = value
    text = yaml.safe_dump(tree, sort_keys=False)
    if text and draw(st.integers(0, 3)) == 0:
        place = draw(st.integers(0, len(text)))
        text = (
            text[:place]
            + draw(st.sampled_from(["\t", "\0", ":", "{", "&a ", "*a", "!!", "- ", "'", "%", "\x85"]))
            + text[place:]
        )
    overrides = st.sampled_from(["scale=small", "repeats=2", "grid=1", "scenarios={a: {}}", "zip=[]", "figures=[]"])
    return text, draw(st.lists(overrides, max_size=2))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(made=mutated())
def test_any_mutation_is_a_sweep_or_one_message(
    tmp_path_factory: pytest.TempPathFactory, made: tuple[str, list[str]]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    for name in GOOD:
        shutil.copy(conf_dir() / name, folder)
    (folder / "c.yaml").write_text(made[0])
    try:
        sweep = config.load(str(folder / "c.yaml"), made[1])
        trials = Grid(sweep).trials
    except UserError as error:
        told = str(error)
        assert told.replace("\n", "").isprintable(), repr(told)
        assert len(told) < 6000
        return
    (folder / "again.yaml").write_text(config.as_yaml(sweep))
    assert [one.id for one in Grid(config.load(str(folder / "again.yaml"))).trials] == [one.id for one in trials]
