"""What a machine without a network is set up from."""

import importlib.util
import os
import subprocess
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def bundle():
    loader = SourceFileLoader("bundle", str(ROOT / "scripts" / "bundle"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("bundle", loader))
    loader.exec_module(module)
    return module


def test_it_is_what_the_project_needs_without_torch_and_what_only_torch_needs(bundle):
    needed = dict(bundle.needed("3.12"))
    assert {"ray", "polars", "polars-runtime-32", "altair", "omegaconf", "flexgen", "deepspeed", "setuptools"} <= set(
        needed
    )
    assert not {"torch", "triton", "sympy", "networkx", "offload-sweep"} & set(needed)
    assert not {"pytest", "hypothesis", "mypy"} & set(needed), "tests are run elsewhere"
    assert {"ray", "pytest", "hypothesis", "nbformat", "pluggy"} <= set(dict(bundle.needed("3.12", tests=True)))


def test_it_is_what_the_tree_asks_for_whatever_was_installed(bundle, tmp_path, monkeypatch):
    text = (ROOT / "pyproject.toml").read_text()
    (tmp_path / "pyproject.toml").write_text(text.replace("dependencies = [", 'dependencies = [\n"pytest",', 1))
    monkeypatch.setattr(bundle, "ROOT", tmp_path)
    assert {"pytest", "pluggy", "ray"} <= set(dict(bundle.needed("3.12")))
    (tmp_path / "pyproject.toml").write_text(text.replace("dependencies = [", 'dependencies = [\n"no-such",', 1))
    with pytest.raises(SystemExit, match=r"no-such, which .* is not installed here: run make set"):
        bundle.needed("3.12")


def test_wheels_of_another_python_or_version_are_replaced(bundle, tmp_path):
    names = [
        "ray-2.60.0-cp311-cp311-manylinux2014_x86_64.whl",
        "ray-2.59.0-cp312-cp312-manylinux2014_x86_64.whl",
        "ray-2.60.0-cp312-cp312-manylinux2014_x86_64.whl",
        "polars_runtime_32-2.1.0-cp311-abi3-manylinux_2_17_x86_64.whl",
        "altair-6.3.0-py3-none-any.whl",
    ]
    for name in names:
        (tmp_path / name).touch()
    assert bundle.is_there("ray", "2.60.0", "3.12", tmp_path)
    assert bundle.is_there("polars-runtime-32", "2.1.0", "3.12", tmp_path)
    assert bundle.is_there("altair", "6.3.0", "3.12", tmp_path)
    assert not bundle.is_there("pandas", "3.1.1", "3.12", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[2:])


def test_a_tool_comes_with_its_libraries_and_without_the_c_library(bundle, tmp_path):
    bundle.take_tool("python3", tmp_path)
    assert (tmp_path / "programs" / "python3").is_file()
    assert not [path.name for path in (tmp_path / "lib").iterdir() if path.name.startswith(("libc.so", "ld-linux"))]
    bundle.take_tool("no-such-tool", tmp_path)


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"OFFLINE": "nowhere"}, "OFFLINE=nowhere: there is no folder nowhere/wheels"),
        ({"OFFLINE": "{empty}"}, "has no torch: add TORCH=system"),
    ],
)
def test_set_up_says_what_is_wrong_before_it_begins(tmp_path, variables, told):
    (tmp_path / "wheels").mkdir()
    own = {name: value.format(empty=tmp_path) for name, value in variables.items()}
    done = subprocess.run(
        [ROOT / "scripts" / "setup"], env=os.environ | own, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert told in done.stderr
