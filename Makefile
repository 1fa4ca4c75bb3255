# Ten papers, one command each. `make help` lists what there is.
SHELL := /bin/bash
.DEFAULT_GOAL := help

TEN := dda rebnn winograd3d dcd smmix crd hqss lts labnet kcd
HERE := $(strip $(foreach project,$(TEN),$(if $(wildcard $(project)/train.py),$(project))))
PROJECTS ?= $(HERE)
PYTHON ?= python3

# PY=python uses the caller's environment as it is; otherwise .venv is made once and used.
ifdef PY
RUN := $(PY)
READY :=
else
RUN := $(CURDIR)/.venv/bin/python
READY := .venv/ready
endif

# A git worktree runs its own code, whatever is installed.
export PYTHONPATH := $(CURDIR)

.PHONY: help setup reproduce test-all test-common test-ci smoke configs lint format contract bench clean \
	$(TEN:%=test-%) $(TEN:%=smoke-%)

help: ## this list
	@echo "make TARGET [PROJECTS=\"kcd lts\"] [SEEDS=5] [PY=python] [TORCH_INDEX=URL]"
	@grep -hE '^[a-z%-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z%-]+):[^#]*## /  \1\t/' | expand -t 18
	@echo "  test-PROJECT    smoke-PROJECT    with PROJECT one of: $(HERE)"

setup: $(READY) ## create .venv and install everything, once

.venv/ready: constraints.txt pyproject.toml ci/requirements.txt $(HERE:%=%/requirements.txt)
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	$(if $(TORCH_INDEX),.venv/bin/python -m pip install -q -c constraints.txt --index-url $(TORCH_INDEX) torch torchvision)
	cd ci && ../.venv/bin/python -m pip install -q -r requirements.txt $(HERE:%=-r ../%/requirements.txt)
	touch $@

reproduce: $(READY) ## the papers' claims on small real data, and a report
	$(RUN) -m ci.reproduce $(PROJECTS) $(if $(SEEDS),--seeds $(SEEDS))

test-all: test-common test-ci $(HERE:%=test-%) ## every test, each project in a process of its own

test-common test-ci $(TEN:%=test-%): test-%: $(READY)
	$(RUN) -m pytest $*/tests

smoke: $(HERE:%=smoke-%) ## two training steps and an evaluation of each project

$(TEN:%=smoke-%): smoke-%: $(READY)
	$(RUN) -m pytest $*/tests/test_train.py -m smoke

configs: $(READY) ## one training step of every config on stand-in data (long)
	$(RUN) -m pytest $(HERE:%=%/tests) -m long

lint: $(READY) ## ruff, and the contract that all projects keep
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m ci.contract

format: $(READY) ## let ruff put the code into shape
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

bench: $(READY) ## every project's benchmark, one after another
	$(RUN) -m ci.bench $(PROJECTS)

clean: ## remove runs, reports and caches; .venv stays
	rm -rf reproduction build dist *.egg-info .pytest_cache .hypothesis .ruff_cache $(TEN:%=%/runs)
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
