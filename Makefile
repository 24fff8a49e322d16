# Both `make quickstart` and `make test` work on a fresh machine: they create .venv first, from python3 or, if Paddle has
# no wheels for that one, from the newest Python on the PATH that it has wheels for.
PYTHON ?= python3
CANDIDATES := $(PYTHON) $(if $(filter python3,$(PYTHON)),python3.13 python3.12 python3.11 python3.10)
VENV := .venv
PY := $(VENV)/bin/python
# pip compiles nothing, which would take as long as the rest of an installation: Python writes the bytecode of a module
# when it is first imported. PYTHONDONTWRITEBYTECODE, which many containers set, would prevent that and make each start
# seconds longer. `setup` therefore imports once what training imports; a failure there is shown and ignored.
PIP := $(PY) -m pip install --quiet --disable-pip-version-check --no-compile
unexport PYTHONDONTWRITEBYTECODE
# GPU=cu126, or another CUDA version of Paddle's index, selects Paddle for it. Default: the version that is installed.
GPU ?= $(filter-out cpu,$(patsubst $(VENV)/.paddle-%,%,$(wildcard $(VENV)/.paddle-*)))
REQUIREMENTS := $(if $(GPU),requirements-gpu.txt,requirements.txt)
INSTALLED := $(VENV)/.paddle-$(or $(GPU),cpu)
TOOLS_INSTALLED := $(VENV)/.tests

.PHONY: help setup setup-tests quickstart test coverage test-slow lint clean

help:
	@echo "make quickstart   install, generate the shapes, train, evaluate, export, predict (minutes on a laptop CPU)"
	@echo "make test         install, run the tests"
	@echo "make coverage     run the tests and measure which lines they reach, which takes a quarter longer"
	@echo "make test-slow    slow tests: export every recipe's model, kill runs, measure memory (more minutes)"
	@echo "make setup        install only; GPU=cu126 installs Paddle for that CUDA version"
	@echo "make lint         check code style and type hints"
	@echo "make clean        remove generated files (output, dataset/shapes, caches), but not .venv"

setup: $(INSTALLED)

setup-tests: $(TOOLS_INSTALLED)

$(INSTALLED): $(REQUIREMENTS) pyproject.toml
	@for python in $(CANDIDATES); do \
		if $$python tools/check_python.py > /dev/null 2>&1; then break; fi; python=; \
	done; \
	if [ -z "$$python" ]; then $(PYTHON) tools/check_python.py; exit 2; fi; \
	echo "installing into $(VENV), with $$($$python --version) ..."; \
	$$python -m venv $(VENV)
	@$(PY) -m pip uninstall -qq --yes $(if $(GPU),paddlepaddle,paddlepaddle-gpu)
	@PADDLE_CUDA=$(GPU) $(PIP) -r $(REQUIREMENTS)
	-@$(PY) -c "import ppdet_lite; ppdet_lite.Detector; import ppdet_lite.training.loop, matplotlib.figure, visualdl"
	@rm -f $(VENV)/.paddle-* && touch $@

$(TOOLS_INSTALLED): $(INSTALLED) requirements-dev.txt
	@echo "installing what the tests need ..."
	@$(PIP) -r requirements-dev.txt
	@touch $@

quickstart: setup
	$(PY) -m ppdet_lite quickstart

# Test files run in parallel, in one more process than there are cores, since many tests wait for processes that they
# start; in four at most. Each process has one thread.
PROCESSES = $(shell $(PY) -c "import os; print(min(4, os.cpu_count() + 1))")
PYTEST = OMP_NUM_THREADS=1 $(PY) -m pytest -n $(PROCESSES) --max-worker-restart 0 --dist loadfile --no-loadscope-reorder

test: setup-tests
	$(PYTEST)

coverage: setup-tests
	$(PYTEST) --cov --cov-report=term --cov-fail-under=85

test-slow: setup-tests
	$(PY) -m pytest --slow tests/test_configs.py tests/modeling/test_detectors_without_pyramid.py tests/peers \
		tests/assembly/test_zoo_runs.py tests/benchmarks tests/deployment tests/training

lint: setup-tests
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean:
	rm -rf output dataset/shapes .pytest_cache .ruff_cache .mypy_cache .coverage
