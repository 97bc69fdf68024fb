"""Which code a trial depends on: its own workload's, and what all share; nothing of it may be forgotten."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from modulefinder import ModuleFinder
from pathlib import Path

import pytest

from sweep import code
from tasks.errors import TaskError
from tasks.workloads import WORKLOADS, load

ROOT = Path(__file__).parent.parent
PRINT = """
import sys
from sweep import code
for kind in code.WORKLOADS:
    print(kind, code.digest_of({"workload": {"kind": kind}, "trace": {"tracer": sys.argv[1], "stacks": False}}))
print("all", code.code_hash())
"""


def config(kind: str, tracer: str = "ftrace", stacks: bool = False) -> dict:
    return {"workload": {"kind": kind}, "trace": {"tracer": tracer, "stacks": stacks}}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what runs, to change a line in."""
    for name in ("sweep", "tasks", "analysis", "bpftrace"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def digests(tree: Path, tracer: str = "ftrace") -> dict[str, str]:
    argv = [sys.executable, "-c", PRINT, tracer]
    done = subprocess.run(argv, cwd=tree, env={"PYTHONPATH": str(tree)}, capture_output=True, text=True, check=True)
    return dict(line.split() for line in done.stdout.splitlines())


def changed_by(tree: Path, path: str, tracer: str = "ftrace") -> set[str]:
    before = digests(tree, tracer)
    with (tree / path).open("a") as f:
        f.write("\n# one more line\n" if path.endswith(".py") else "\n// one more line\n")
    after = digests(tree, tracer)
    return {name for name in before if before[name] != after[name]}


@pytest.mark.parametrize(
    ("path", "affected"),
    [
        ("tasks/jobs/flexgen_generate.py", {"flexgen"}),
        ("tasks/jobs/generation_log.py", {"flexgen", "deepspeed_model"}),
        ("tasks/workloads/tensor_io.py", {"tensor_io"}),
        ("tasks/jobs/aio_library.py", set(WORKLOADS)),
        ("tasks/storage.py", set(WORKLOADS)),
        ("tasks/workloads/__init__.py", set(WORKLOADS)),
        ("analysis/schema.py", set(WORKLOADS)),
    ],
)
def test_a_line_touches_the_trials_that_run_it(tree: Path, path: str, affected: set[str]) -> None:
    assert changed_by(tree, path) == affected | {"all"}


def test_a_tracers_script_touches_those_who_trace_with_it(tree: Path) -> None:
    assert changed_by(tree, "bpftrace/requests.bt") == {"all"}
    assert changed_by(tree, "bpftrace/requests.bt", "auto") == {*WORKLOADS, "all"}
    assert any("stacks.bt" in path for path in code.code_of(config("command", stacks=True)))


@pytest.mark.parametrize("path", ["sweep/scheduler.py", "analysis/report/page.py"])
def test_code_that_no_trial_depends_on_touches_none_and_must_be_the_same_on_nodes(tree: Path, path: str) -> None:
    assert changed_by(tree, path) == {"all"}


def test_a_file_that_no_workload_names_is_everybodys(tree: Path) -> None:
    (tree / "tasks/jobs/found_at_run_time.py").write_text("")
    assert changed_by(tree, "tasks/jobs/found_at_run_time.py") == {*WORKLOADS, "all"}


@pytest.mark.parametrize("kind", WORKLOADS)
def test_what_a_workloads_modules_and_jobs_really_import_is_among_its_code(kind: str) -> None:
    """By another way of finding imports than the one under test."""
    jobs = ROOT / "tasks/jobs"
    own = code.code_of(config(kind))
    module = Path(sys.modules[load(kind).__module__].__file__)
    names = [n.value for n in ast.walk(ast.parse(module.read_text())) if isinstance(n, ast.Constant)]
    scripts = [jobs / n for n in names if isinstance(n, str) and n.endswith(".py") and "/" not in n]
    assert scripts or kind == "command"
    for script in [module, *scripts]:
        finder = ModuleFinder(path=[str(jobs), str(ROOT)], excludes=["torch", "deepspeed", "flexgen", "transformers"])
        finder.run_script(str(script))
        files = {Path(m.__file__).resolve() for m in finder.modules.values() if m.__file__}
        for file in files:
            if file.is_relative_to(ROOT / "tasks"):
                assert str(file.relative_to(ROOT)) in own


def test_every_job_is_reached_by_a_workload_or_by_all() -> None:
    shared = {"tasks/jobs/__init__.py", "tasks/jobs/aio_library.py", "tasks/jobs/free_space.py"}
    jobs = {f"tasks/jobs/{p.name}" for p in (ROOT / "tasks/jobs").glob("*.py")}
    reached = {path for kind in WORKLOADS for path in code.code_of(config(kind))}
    everybodys = set.intersection(*(set(code.code_of(config(kind))) for kind in WORKLOADS))
    assert jobs <= reached
    assert jobs & everybodys == shared, "name a new job's script in its workload's module, or list it here as shared"


def test_the_file_of_a_workload_of_somebody_elses_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WORKLOADS, "pattern", "tests.pattern_workload")
    assert any(path.endswith("tests/pattern_workload.py") for path in code.code_of(config("pattern")))


# --- changed while a sweep runs --------------------------------------------------------------------------------------

EDITED = """
import sys
from pathlib import Path
from sweep import code
def config(tracer):
    return {"workload": {"kind": "tensor_io"}, "trace": {"tracer": tracer, "stacks": False}}
planned = {name: code.digest_of(config(name)) for name in ("auto", "ftrace")}
code.check_unchanged(config("ftrace"), planned["ftrace"])
code.check_unchanged(config("diskstats"), planned["auto"])
file = Path(sys.argv[1])
if sys.argv[2] == "gone":
    file.unlink()
else:
    file.write_bytes(file.read_bytes() + b"\\n")
for name in planned:
    try:
        code.check_unchanged(config("ftrace"), planned[name])
        print("the same")
    except code.TaskError as e:
        print(e)
"""


def edited(tree: Path, path: str, how: str = "longer") -> list[str]:
    argv = [sys.executable, "-c", EDITED, path, how]
    done = subprocess.run(argv, cwd=tree, env={"PYTHONPATH": str(tree)}, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize("how", ["longer", "gone"])
@pytest.mark.parametrize("path", ["tasks/jobs/tensor_io.py", "tasks/storage.py", "analysis/schema.py"])
def test_code_that_changes_under_a_running_sweep_is_told(tree: Path, path: str, how: str) -> None:
    told = edited(tree, path, how)
    assert len(told) == 2
    assert all(f"the code on this machine ({path}) is not the one that the sweep was planned with" in t for t in told)


@pytest.mark.parametrize("path", ["tasks/jobs/flexgen_generate.py", "sweep/scheduler.py"])
def test_code_of_others_may_change_meanwhile(tree: Path, path: str) -> None:
    assert edited(tree, path) == ["the same", "the same"]


class _Actor:
    """Stands for the analysis actor: has no home for files, and remembers what was asked of it."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> _Actor:
        self.asked.append(name)
        return self

    def remote(self, *_: object) -> None:
        return None


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_an_attempt_on_other_code_publishes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, state: Path, when: str
) -> None:
    from sweep import remote
    from tasks.launch import Outcome
    from tests.conftest import trial_config, trial_spec

    file = tmp_path / "tensor_io.py"
    file.write_text("first")
    monkeypatch.setattr(code, "_files", lambda: {"tasks/jobs/tensor_io.py": file})
    monkeypatch.setattr(code, "_code", lambda *_: {"tasks/jobs/tensor_io.py": code._hash(file)})
    monkeypatch.setattr(remote, "_answer", lambda reference: reference)
    spec = trial_spec(trial_config("none", workload={"kind": "tensor_io"}))
    spec.fingerprint["plan"] = {"code": code.digest({"tasks/jobs/tensor_io.py": code._hash(file)})}
    launches = []

    @contextmanager
    def launched(*_: object) -> Iterator[Outcome]:
        launches.append(1)
        file.write_text("second")
        yield Outcome({}, tmp_path, [], "")

    monkeypatch.setattr(remote, "launched", launched)
    if when == "before":
        file.write_text("second")
    actor = _Actor()
    with pytest.raises(TaskError, match="end the sweep, and go on with --resume"):
        remote.run_attempt(spec, actor, None)
    assert len(launches) == (when == "meanwhile")
    assert not {"declare", "publish"} & set(actor.asked)
