# Both `make quickstart` and `make test` work on a fresh machine: they create .venv first.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
# GPU=cu126, or another CUDA version of Paddle's index, selects Paddle for it. Default: the version that is installed.
GPU ?= $(patsubst $(VENV)/.installed-%,%,$(wildcard $(VENV)/.installed-*))
REQUIREMENTS := $(if $(GPU),requirements-gpu.txt,requirements.txt)
INSTALLED := $(VENV)/.installed$(if $(GPU),-$(GPU))
CONFIG := configs/quickstart/shapes_r18_fpn.yml
RUN := output/shapes_r18_fpn

.PHONY: help setup quickstart test test-slow lint clean

help:
	@echo "make quickstart   install, generate the shapes, train, evaluate, export, predict (minutes on a laptop CPU)"
	@echo "make test         install, run the tests with coverage"
	@echo "make test-slow    slow tests: export every recipe's model, kill runs, measure memory (more minutes)"
	@echo "make setup        install only; GPU=cu126 installs Paddle for that CUDA version"
	@echo "make lint         check code style"
	@echo "make clean        remove generated files (output, dataset/shapes, caches), but not .venv"

setup: $(INSTALLED)

$(INSTALLED): $(REQUIREMENTS) requirements-onnx.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "Python 3.10 or newer is required; choose one with make PYTHON=python3.11 ...")'
	@echo "installing into $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(PY) -m pip uninstall -qq --yes $(if $(GPU),paddlepaddle,paddlepaddle-gpu)
	@PADDLE_CUDA=$(GPU) $(PY) -m pip install --quiet --disable-pip-version-check -r $(REQUIREMENTS) -r requirements-dev.txt
	@rm -f $(VENV)/.installed* && touch $@

quickstart: setup
	$(PY) tools/make_shapes.py --output dataset/shapes
	$(PY) tools/train.py -c $(CONFIG) --resume auto --eval
	$(PY) tools/export_model.py -c $(CONFIG) -o weights=$(RUN) --output $(RUN)/export
	$(PY) tools/infer.py -c $(CONFIG) -o weights=$(RUN) --input dataset/shapes/val --output $(RUN)/predictions
	@echo "AP: $(RUN)/metrics.json   images: $(RUN)/predictions   exported model: $(RUN)/export"

# One process with one thread per core, at most four processes; test files run in parallel.
test: setup
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --maxprocesses 4 --max-worker-restart 0 --dist loadfile --no-loadscope-reorder --cov --cov-report=term --cov-fail-under=85

test-slow: setup
	$(PY) -m pytest --slow tests/test_configs.py tests/modeling/test_detectors_without_pyramid.py \
		tests/training/test_kill_run.py tests/training/test_memory.py

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

clean:
	rm -rf output dataset/shapes .pytest_cache .ruff_cache .coverage
