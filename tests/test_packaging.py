"""What `pip install .` puts on a machine."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("sweep", "tasks", "analysis")
#: Folders of data, and where they are in the wheel.
DATA = {"conf": "sweep/conf", "bpftrace": "tasks/bpftrace"}


def files(folder: str) -> list[Path]:
    found = (f for f in (ROOT / folder).rglob("*") if f.is_file() and "__pycache__" not in f.parts)
    return [f.relative_to(ROOT) for f in found]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the source, unpacked as pip would."""
    work = tmp_path_factory.mktemp("packaging")
    source, wheels, site = work / "source", work / "wheels", work / "site"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in (*PACKAGES, *DATA):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = ["-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(wheels), str(source)]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = wheels.iterdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


@pytest.mark.parametrize("package", PACKAGES)
def test_every_file_of_a_package_is_installed(installed: Path, package: str) -> None:
    expected = {str(f) for f in files(package)}
    assert f"{package}/py.typed" in expected
    assert not {name for name in expected if not (installed / name).is_file()}


@pytest.mark.parametrize("folder", DATA)
def test_every_data_file_is_installed(installed: Path, folder: str) -> None:
    expected = [installed / DATA[folder] / f.relative_to(folder) for f in files(folder)]
    assert expected
    assert not [f for f in expected if not f.is_file()]


def test_nothing_else_is_installed(installed: Path) -> None:
    assert {f.name for f in installed.iterdir() if not f.name.endswith(".dist-info")} == set(PACKAGES)


def test_metadata(installed: Path) -> None:
    (info,) = installed.glob("*.dist-info")
    assert info.name == "offload_sweep-0.1.0.dist-info"
    assert (info / "licenses" / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert "offload-sweep = sweep.cli:main" in (info / "entry_points.txt").read_text()


@pytest.mark.parametrize("place", ["clone", "installed"])
def test_data_files_are_found_at_run_time(installed: Path, place: str) -> None:
    site = ROOT if place == "clone" else installed
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "from tasks.files import bpftrace_script, conf_dir\n"
        "print(conf_dir(), bpftrace_script('requests.bt'), sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    conf, script = map(Path, done.stdout.splitlines())
    assert conf.is_relative_to(site)
    assert script.is_relative_to(site)
    assert conf.is_dir()
    assert script.read_bytes() == (ROOT / "bpftrace" / "requests.bt").read_bytes()


def test_every_requirement_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    pins = [line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines()]
    assert all(len(pin) == 2 and "+" not in pin[1] for pin in pins)
    pinned = {normal(name) for name, _ in pins}
    assert not {normal(re.split(r"[<>=\[]", name)[0]) for name in wanted} - pinned


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
