# On a fresh machine with Python 3.10 or newer, make and a package index:
#     make audit                        installs, makes a challenge with known truth, audits it: ./data and ./work
#     make audit ARGS="--data DATA"     the same with options of jobs.audit
#     make test, make quick, make lint  what a change must pass; SPLIT= runs one file of tests after the other
#     make long                         the tests that take minutes each: all 60 systems, real slices, a whole U-Net
#     make gpu                          the tests that need a GPU
# Paths are relative and programs are run by `python -m`, so that the checkout may lie in a path with spaces.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
# Two files of tests at a time, in the order of their names: tests wait for processes to start more than for cores.
SPLIT ?= -n 2 --dist loadfile --no-loadscope-reorder
RUN := $(VENV)/bin/python -m

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

.PHONY: audit test quick long gpu lint

audit: $(VENV)/installed
	$(RUN) jobs.audit $(ARGS)

test: $(VENV)/installed-dev
	$(RUN) pytest $(SPLIT) $(ARGS)

quick: $(VENV)/installed-dev
	$(RUN) pytest $(SPLIT) -m "not slow and not long" $(ARGS)

long: $(VENV)/installed-dev
	$(RUN) pytest -m long $(ARGS)

gpu: $(VENV)/installed-dev
	$(RUN) pytest -m gpu $(ARGS)

lint: $(VENV)/installed-dev
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): PyTorch is large, this takes a few minutes"
	$(RUN) pip install --quiet -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(RUN) pip install --quiet -e ".[dev]"
	touch $@
