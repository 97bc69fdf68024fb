# `make help` says what there is.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?=
VENV ?= .venv
TORCH ?= torch==2.13.0
OFFLINE ?=
ARGS ?=
export PYTHON VENV TORCH OFFLINE

.PHONY: help quickstart test check setup clean

help:
	@echo 'make quickstart   set up, run conf/quickstart.yaml on this machine, say where its report is'
	@echo 'make test         set up, run every test that this machine allows'
	@echo 'make check        set up, then ruff, mypy and import-linter'
	@echo 'make setup        system packages (as root), $$(VENV), Python packages, the async_io of DeepSpeed'
	@echo 'make clean        remove what set-up and tests made here; results/ and ~/.cache/offload-sweep stay'
	@echo
	@echo 'Variables, as in: make setup TORCH=system'
	@echo '  PYTHON   interpreter for the virtual environment; default: the first Python 3.11 or newer found'
	@echo '  VENV     where the virtual environment is; default: .venv'
	@echo '  TORCH    what pip installs as torch; default: torch==2.13.0'
	@echo '           TORCH=system keeps the torch of PYTHON, with its CUDA, and installs none'
	@echo '           TORCH="torch --index-url URL" takes another build of it'
	@echo '  OFFLINE  folder that scripts/bundle filled where there is a network: nothing is downloaded (docs/offline.md)'
	@echo '  ARGS     more arguments for quickstart (key=value ...) or test (-k NAME ...)'

setup:
	@scripts/setup

quickstart: setup
	@$(VENV)/bin/python -m sweep conf/quickstart.yaml $(ARGS)

test: export BROWSER = 1
test: setup
	$(VENV)/bin/python -m pytest -n 2 --dist loadscope --reruns 1 $(ARGS)

check: setup
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

clean:
	@if [ -e "$(VENV)/.made-by-offload-sweep" ]; then rm -rf "$(VENV)"; \
	elif [ -e "$(VENV)" ]; then echo "$(VENV) was not made by make setup: left alone"; fi
	rm -rf build dist offload_sweep.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find sweep tasks analysis tests -name __pycache__ -prune -exec rm -rf {} +
