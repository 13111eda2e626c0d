# Each target installs what it needs into $(VENV), and again when setup.py or constraints.txt change. It needs Python 3.11
# or newer with the venv module. `make test PYTHON=python3.12 VENV=.venv-3.12` uses another Python and environment.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check -qq
PYTEST := $(PY) -m pytest -q --durations=10 --durations-min=5

# On a CPU, XLA allocates the memory of a training step at each call. Pages of 2 MB (glibc 2.35) reduce the time of a step
# by a tenth. For timings malloc also keeps freed memory, because a virtual machine is slow to provide it again.
LARGE_PAGES := GLIBC_TUNABLES=glibc.malloc.hugetlb=1
KEPT_PAGES := $(LARGE_PAGES):glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184:glibc.malloc.arena_max=1

# Programs in the virtual environment must not import packages from outside it.
unexport PYTHONPATH PYTHONHOME PYTHONSAFEPATH VIRTUAL_ENV PIP_TARGET PIP_PREFIX
export PIP_USER := 0

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-slow test-nightly parity bench wheel-test docs lint format hooks clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

demo: $(VENV)/.package ## a small model answers, generates, is scored and is fine-tuned; writes runs/demo/index.html
	@$(LARGE_PAGES) $(PY) -m examples.shapes.demo

# The tests spend more time compiling than computing. Without optimization they take a third less time.
QUICK_COMPILER := XLA_FLAGS="$$XLA_FLAGS --xla_backend_optimization_level=0"

test: $(VENV)/.test ## the tests, except slow and nightly ones and the comparison with PyTorch
	@$(QUICK_COMPILER) $(PYTEST) -n $(WORKERS) --dist loadfile --ignore tests/parity

test-slow: $(VENV)/.test ## the slow tests
	@$(QUICK_COMPILER) $(PYTEST) -m "slow and not nightly" -n $(WORKERS) --dist loadfile --ignore tests/parity

test-nightly: $(VENV)/.test ## the nightly tests; the golden ones run one at a time, because each fills the memory
	@$(PYTEST) -m nightly -n $(WORKERS) --dist loadfile --ignore tests/parity --ignore tests/golden
	@$(PYTEST) -m nightly tests/golden

parity: $(VENV)/.parity ## the comparison with transformers and diffusers on PyTorch
	@$(PYTEST) -m "" tests/parity

bench: $(VENV)/.parity ## measure time and memory, compared with PyTorch
	@$(PY) -m benchmarks.inference
	@$(KEPT_PAGES) $(PY) -m benchmarks.train
	@$(PY) -m benchmarks.evaluate

wheel-test: ## build the wheel, install it into an empty environment, and run the commands there
	@.ci/wheel_test $(PYTHON)

docs: $(VENV)/.docs ## build the documentation site in build/site
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet --strict

lint: $(VENV)/.test ## style, format and types, and the launchers of clusters
	@$(PY) -m ruff check
	@$(PY) -m ruff format --check
	@$(PY) -m mypy
	@$(VENV)/bin/shellcheck .ci/run .ci/wheel_test launch/*/*.sh launch/*/*.sbatch
	@$(VENV)/bin/hadolint launch/docker/*.Dockerfile
	@$(PY) .ci/manifests.py launch/gke/*.yaml launch/kubernetes/*.yaml

format: $(VENV)/.test ## fix style and format where a tool can
	@$(PY) -m ruff check --fix
	@$(PY) -m ruff format

hooks: $(VENV)/.test ## run lint before every commit
	@$(PY) -m pre_commit install

clean: ## remove the virtual environments, build outputs and caches
	@rm -rf .venv* .cache .*_cache build *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.package: setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is required; name one with make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$(PYTHON) has no venv module; install it (on Debian and Ubuntu: apt install python3-venv)." >&2; exit 1; }
	@echo "Setting up $(VENV); the first time takes a few minutes."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install -c constraints.txt -e '.[demo]'
	@touch $@

$(VENV)/.test: $(VENV)/.package
	@$(PIP) install -c constraints.txt -e '.[demo,test]'
	@touch $@

$(VENV)/.docs: $(VENV)/.package
	@$(PIP) install -c constraints.txt -e '.[docs]'
	@touch $@

# torch is installed first, so that the other packages accept this build and do not download another one.
$(VENV)/.parity: $(VENV)/.test
	@$(PIP) install torch==2.13.0
	@$(PIP) install -c constraints.txt -e '.[demo,test,parity]'
	@touch $@
