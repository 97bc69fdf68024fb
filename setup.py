"""Everything is in pyproject.toml but this: `conf/` and `bpftrace/` are installed inside packages that read them."""

from setuptools import find_namespace_packages, setup

ours = find_namespace_packages(include=["sweep*", "tasks*", "analysis*"], exclude=["*.__pycache__"])
setup(
    packages=[*ours, "sweep.conf", "tasks.bpftrace"],
    package_dir={"sweep.conf": "conf", "tasks.bpftrace": "bpftrace"},
)
