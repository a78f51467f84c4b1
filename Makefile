# Everything in a local environment, made on the first call: `make demo` or `make test` is all a fresh
# machine with Python, a C++ compiler and (if it has one) nvcc needs. Each step says what it does.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.14.1 torchvision==0.29.1
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
SOURCES := setup.py pyproject.toml $(shell find csrc -type f)
SAY := @printf '\n\033[1m== %s\033[0m\n'

.PHONY: help demo test lint builds bench clean

help:  ## This list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.cli  ## Erase "cat" from the embedded CLIP and write clipproj-out/report.html
	$(SAY) "clipproj erase cat"
	@$(BIN)/clipproj erase cat

test: $(VENV)/.dev  ## All tests of the CPU path (GPU tests run where there is a GPU)
	$(SAY) "pytest"
	@$(BIN)/python -m pytest

lint: $(VENV)/.dev  ## Ruff and clang-format, as pre-commit runs them
	$(SAY) "ruff, clang-format"
	@$(BIN)/ruff check --quiet . && $(BIN)/ruff format --check --quiet .
	@$(BIN)/clang-format --dry-run --Werror $$(find csrc -type f)

builds: $(VENV)/.dev  ## The extension without CUDA and, where a toolkit is found, with it
	$(SAY) "builds with CLIPPROJ_CUDA=0 and, given a toolkit, CLIPPROJ_CUDA=1"
	@PATH="$(abspath $(BIN)):$$PATH" .ci/builds

bench: $(VENV)/.dev  ## Operators beside their peers
	$(SAY) "pytest benchmarks"
	@$(BIN)/python -m pytest benchmarks

# Builds share one torch (no isolation) and find the environment's ninja on the PATH.
INSTALL := PATH="$(abspath $(BIN)):$$PATH" $(PIP) --no-build-isolation --editable

$(VENV)/.torch:
	$(SAY) "1/2  $(VENV) with $(TORCH): several GB and some minutes, once"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) $(TORCH) 'setuptools>=77' 'pybind11>=3' ninja wheel numpy
	@touch $@

$(VENV)/.cli: $(VENV)/.torch $(SOURCES)
	$(SAY) "2/2  clipproj and its command line: compiling takes a minute, two with CUDA kernels"
	@$(INSTALL) '.[cli]'
	@touch $@

$(VENV)/.dev: $(VENV)/.torch $(SOURCES)
	$(SAY) "2/2  clipproj, test and lint tools: compiling takes a minute, two with CUDA kernels"
	@$(INSTALL) '.[dev]'
	@touch $@ $(VENV)/.cli

clean:  ## Remove what was built, keep the environment
	rm -rf build dist *.egg-info clipproj/*.so clipproj-out $(VENV)/.cli $(VENV)/.dev
