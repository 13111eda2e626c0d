# Every target sets up $(VENV) by itself, from python3 and its venv module alone, and again when setup.py or
# constraints.txt change. `make test PYTHON=python3.12 VENV=.venv-3.12` does the same beside it.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check -qq
PYTEST := $(PY) -m pytest -q --durations=10 --durations-min=5

# On a CPU a step of training takes its memory anew each time: in pages of 2 MB (glibc 2.35) that is a tenth faster. To
# measure steps it is kept, or what runs in between would cost the next step the pages that were given back meanwhile.
LARGE_PAGES := GLIBC_TUNABLES=glibc.malloc.hugetlb=1
KEPT_PAGES := $(LARGE_PAGES):glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184:glibc.malloc.arena_max=1

# The virtual environment must hold what setup.py says and nothing from around it.
unexport PYTHONPATH PYTHONHOME PYTHONSAFEPATH VIRTUAL_ENV PIP_TARGET PIP_PREFIX
export PIP_USER := 0

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-slow parity bench lint format hooks clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

demo: $(VENV)/.package ## run the demo of examples/shapes: answers, images, scores, fine-tuning
	@$(LARGE_PAGES) $(PY) -m examples.shapes.demo

# These compile far more than they compute: machine code that is not optimised takes a third off. The slow ones compute.
test: $(VENV)/.test ## the tests, but for the slow ones and the comparison with PyTorch
	@XLA_FLAGS="$$XLA_FLAGS --xla_backend_optimization_level=0" $(PYTEST) -n $(WORKERS) --dist loadfile --ignore tests/parity

test-slow: $(VENV)/.test ## the slow tests; those of the true size one at a time, for they fill most of the memory
	@$(PYTEST) -m slow -n $(WORKERS) --dist loadfile --ignore tests/parity --ignore tests/golden
	@$(PYTEST) -m slow tests/golden

parity: $(VENV)/.parity ## the comparison with transformers and diffusers on PyTorch
	@$(PYTEST) -m "" tests/parity

bench: $(VENV)/.parity ## time and memory beside PyTorch
	@$(PY) -m benchmarks.inference
	@$(KEPT_PAGES) $(PY) -m benchmarks.train
	@$(PY) -m benchmarks.evaluate

lint: $(VENV)/.test ## style, format and types; the launchers by their own tools
	@$(PY) -m ruff check
	@$(PY) -m ruff format --check
	@$(PY) -m mypy
	@$(VENV)/bin/shellcheck .ci/run launch/*/*.sh launch/*/*.sbatch
	@$(VENV)/bin/hadolint launch/docker/*.Dockerfile
	@$(PY) .ci/manifests.py launch/gke/*.yaml

format: $(VENV)/.test ## mend what can be mended by itself
	@$(PY) -m ruff check --fix
	@$(PY) -m ruff format

hooks: $(VENV)/.test ## run lint before every commit
	@$(PY) -m pre_commit install

clean: ## remove the virtual environments and all caches
	@rm -rf .venv* .cache .*_cache build *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.package: setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one with make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$(PYTHON) has no venv module; install it (on Debian and Ubuntu: apt install python3-venv)." >&2; exit 1; }
	@echo "Setting up $(VENV); the first time takes a few minutes."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install -c constraints.txt -e '.[demo]'
	@touch $@

$(VENV)/.test: $(VENV)/.package
	@$(PIP) install -c constraints.txt -e '.[demo,test]'
	@touch $@

# torch first and by itself: it settles which build the others find, and no second one is fetched for them.
$(VENV)/.parity: $(VENV)/.test
	@$(PIP) install torch==2.13.0
	@$(PIP) install -c constraints.txt -e '.[demo,test,parity]'
	@touch $@
