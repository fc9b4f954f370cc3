# Each target sets itself up on a fresh machine: virtual environment, install, data.
VENV ?= .venv
# The tests were last run with this torch and with the packages in constraints.txt. Set TORCH= for another torch, such
# as a build without CUDA, and an empty CONSTRAINTS= for the newest versions of the other packages.
TORCH ?= torch==2.13.0
CONSTRAINTS ?= constraints.txt
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$p && break; done)
RUN = $(VENV)/bin/python -m
INSTALL = $(RUN) pip install --disable-pip-version-check --upgrade --upgrade-strategy eager $(CONSTRAINTS:%=-c %) "$(TORCH)"
NEWEST = $(MAKE) VENV=$(VENV)-latest TORCH=torch CONSTRAINTS=

.PHONY: quickstart test test-slow test-slurm test-gpu test-latest constraints drills check docs clean help

help: ## print this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

quickstart: $(VENV)/installed ## train a tiny model with 4 shards on 2 processes, on real text
	$(RUN) launch.pretrain experiment=quickstart

test: $(VENV)/with-test ## run the tests (about 10 minutes)
	$(RUN) pytest --durations=15

test-slow: $(VENV)/with-test ## run the slow tests: whole runs, every shipped configuration, the wheel
	$(RUN) pytest -m slow --durations=25

test-slurm: $(VENV)/with-test ## test the batch scripts on a temporary Slurm (as root; installs slurm-wlm and munge)
	@PATH="$$PATH:/usr/sbin"; command -v slurmctld slurmd munged >/dev/null || { test "$$(id -u)" = 0 && apt-get update -qq \
		&& DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends slurm-wlm munge; } \
		|| echo "Slurm is not installed and cannot be installed: its tests are skipped"
	$(RUN) pytest -m slurm -rs tests/slurm

test-gpu: $(VENV)/with-test ## run the tests that need a CUDA GPU (about 6 minutes; skipped without one)
	$(RUN) pytest -m gpu -rs tests/gpu

test-latest: ## run the tests with the newest packages, in a separate environment
	rm -f $(VENV)-latest/installed
	$(NEWEST) test

constraints: test-latest ## run the tests with the newest packages; if they pass, pin these in constraints.txt
	$(NEWEST) check docs
	$(VENV)-latest/bin/python -m pip freeze --exclude-editable | grep -vE '^(torch==|triton|pytorch-|nvidia-|cuda-)' > constraints.txt
	@echo "constraints.txt is written; TORCH in the Makefile is set by hand: now" \
		"$$($(VENV)-latest/bin/python -c 'import torch; print(torch.__version__)')"

drills: $(VENV)/with-test ## inject faults into real runs, and print the outcomes (half an hour)
	$(RUN) tests.drills

check: $(VENV)/with-check ## run ruff and mypy: lint, format, types
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

docs: $(VENV)/with-docs ## build the documentation site in build/site; fails on a broken link
	NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --site-dir build/site

clean: ## remove virtual environments and caches, but not data/ and outputs/
	rm -rf $(VENV) $(VENV)-latest build *.egg-info .pytest_cache .ruff_cache .mypy_cache

# What training needs; targets that need more add an extra of pyproject.toml to the same environment.
$(VENV)/installed: pyproject.toml $(CONSTRAINTS)
	@test -n "$(PYTHON)" || { echo "caat needs Python 3.11 or 3.12: none found (set PYTHON=)" >&2; exit 1; }
	@echo "installing into $(VENV) (a few minutes the first time)"
	$(PYTHON) -m venv $(VENV)
	@# This pip also shows its progress while it unpacks.
	$(RUN) pip install --quiet --disable-pip-version-check "pip>=25.1"
	$(INSTALL) -e .
	@touch $@

$(VENV)/with-%: $(VENV)/installed
	$(INSTALL) -e ".[$*]"
	@touch $@
