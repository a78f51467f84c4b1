# Everything in a local environment, made on the first call: `make demo` or `make test` is all a fresh
# machine with Python, a C++ compiler and (if it has one) nvcc needs. Each step says what it does.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.14.1 torchvision==0.29.1
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
SOURCES := setup.py pyproject.toml $(shell find csrc -type f)
SAY := @printf '\n\033[1m== %s\033[0m\n'

.PHONY: help demo serve test campaigns lint builds bench bench-serve bench-forgetting bench-gpu bench-compare
.PHONY: ptxas clean
.PHONY: perf-guard perf-guard-update perf-guard-callgrind

help:  ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.cli  ## Erase "cat" from the embedded CLIP and write clipproj-out/report.html
	$(SAY) "clipproj erase cat"
	@$(BIN)/clipproj erase cat

serve: $(VENV)/.dev  ## The service on the embedded model: http://127.0.0.1:8000, tenants in clipproj-tenants/
	$(SAY) "clipproj serve"
	@$(BIN)/clipproj serve

# A file's tests stay together, with what they share. WORKERS: one for each core where it is not given.
WORKERS ?= auto
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist loadfile

test: $(VENV)/.dev  ## All tests of the CPU path (GPU tests run where there is a GPU)
	$(SAY) "pytest, $(WORKERS) workers"
	@$(PYTEST)

campaigns: $(VENV)/.dev  ## The long ones: all combinations, many seeds, sanitizers, load
	$(SAY) "pytest -m campaign, $(WORKERS) workers"
	@$(PYTEST) -m campaign

lint: $(VENV)/.dev  ## Ruff and clang-format, as pre-commit runs them, and mypy
	$(SAY) "ruff, mypy, clang-format"
	@$(BIN)/ruff check --quiet . && $(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/clang-format --dry-run --Werror $$(find csrc tests/helpers/cuda_on_cpu benchmarks -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.h' -o -name '*.inl')

builds: $(VENV)/.dev  ## The extension without CUDA and, where a toolkit is found, with it
	$(SAY) "builds with CLIPPROJ_CUDA=0 and, given a toolkit, CLIPPROJ_CUDA=1"
	@PATH="$(abspath $(BIN)):$$PATH" .ci/builds

torches: $(VENV)/.dev  ## Operators on the oldest torch that is promised and that pip finds, without a new build
	$(SAY) "registrations, refusals and derivatives on an older torch"
	@PATH="$(abspath $(BIN)):$$PATH" .ci/torches

# THREADS: all cores where it is not given. BENCH: more options (benchmarks/conftest.py), for a look at
# a part; then nothing is kept.
bench: $(VENV)/.bench  ## Operators beside their peers: tables, and benchmarks/results/<machine>.json
	$(SAY) "pytest benchmarks"
	@mkdir -p .benchmarks
	@$(BIN)/python -m pytest benchmarks --benchmark-quiet --benchmark-json=.benchmarks/last.json \
		$(if $(THREADS),--threads $(THREADS)) $(BENCH)
	@$(BIN)/python benchmarks/tables.py .benchmarks/last.json $(if $(BENCH),,--keep benchmarks/results)

bench-serve: $(VENV)/.dev  ## The service under load: no tenant, one, a hundred; 100 000 rows held against float64
	$(SAY) "benchmarks/serve_load.py"
	@$(BIN)/python benchmarks/serve_load.py --rows 100000 --rounds 20 $(BENCH)

bench-forgetting: $(VENV)/.bench  ## What methods forget and cost, beside published ones: benchmarks/results/forgetting.md
	$(SAY) "benchmarks/forgetting.py"
	@$(BIN)/python benchmarks/forgetting.py --keep benchmarks/results $(BENCH)

bench-gpu: $(VENV)/.dev  ## On a GPU, beside copies, eager, torch.compile, Triton: 9 minutes; BENCH=--quick for 3
	$(SAY) "benchmarks/gpu.py"
	@$(BIN)/python benchmarks/gpu.py $(BENCH)

ptxas:  ## What nvcc makes of the CUDA kernels, kept in benchmarks/results/ptxas.md; fails when one spills
	$(SAY) "registers and spills of the CUDA kernels"
	@$(PYTHON) tools/ptxas.py --out benchmarks/results/ptxas.md

bench-compare: $(VENV)/.torch  ## What moved between two result files: OLD=a.json NEW=b.json
	@$(BIN)/python benchmarks/tables.py --compare $(OLD) $(NEW)

perf-guard: $(VENV)/.torch  ## Fails when a CPU kernel executes over 5 % more instructions than kept
	$(SAY) "instructions executed by the CPU kernels"
	@$(BIN)/python benchmarks/guard/count.py

perf-guard-update: $(VENV)/.torch  ## Keeps today's counts, after a change that was meant
	$(SAY) "instructions executed by the CPU kernels, to keep"
	@$(BIN)/python benchmarks/guard/count.py --update

perf-guard-callgrind: $(VENV)/.torch  # the same with callgrind's counts beside (needs valgrind)
	$(SAY) "instructions executed by the CPU kernels, counted twice"
	@$(BIN)/python benchmarks/guard/count.py --callgrind

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
	@$(PIP) --no-deps infinity_emb==0.0.78  # wants an older transformers than it runs with
	@touch $@ $(VENV)/.cli

$(VENV)/.bench: $(VENV)/.torch $(SOURCES)
	$(SAY) "2/2  clipproj, and what it is measured beside: JAX, PEFT, faiss, concept-erasure"
	@$(INSTALL) '.[bench]'
	@touch $@ $(VENV)/.cli $(VENV)/.dev

clean:  ## Remove what was built, keep the environment
	rm -rf build dist *.egg-info clipproj/*.so clipproj-out $(VENV)/.cli $(VENV)/.dev $(VENV)/.bench
