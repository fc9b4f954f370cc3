# Each target sets itself up on a fresh machine: virtual environment, install, data.
VENV ?= .venv
# The torch that the tests were last run with. TORCH= takes another, such as a build without CUDA.
TORCH ?= torch==2.13.0
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$p && break; done)
RUN = $(VENV)/bin/python -m

.PHONY: quickstart test test-slow test-slurm drills check docs clean help

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

quickstart: $(VENV)/installed ## train a tiny model with 4 shards on 2 processes, on real text
	$(RUN) launch.pretrain experiment=quickstart

test: $(VENV)/installed ## the tests (minutes)
	$(RUN) pytest

test-slow: $(VENV)/installed ## slower truths: real runs end to end, every shipped config, the wheel
	$(RUN) pytest -m slow

test-slurm: $(VENV)/installed ## the batch scripts on a Slurm started for it (as root; installs slurm-wlm and munge)
	@PATH="$$PATH:/usr/sbin"; command -v slurmctld slurmd munged >/dev/null || { test "$$(id -u)" = 0 && apt-get update -qq \
		&& DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends slurm-wlm munge; } \
		|| echo "Slurm is not here and cannot be installed: its tests are skipped"
	$(RUN) pytest -m slurm -rs tests/slurm

drills: $(VENV)/installed ## break real runs in every way we know of, and print what became of them (half an hour)
	$(RUN) tests.drills

check: $(VENV)/installed ## lint, format, types
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

docs: $(VENV)/installed ## the documentation as a site, in build/site; fails on a broken link
	NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --site-dir build/site

clean: ## remove the virtual environment and caches (never data/ or outputs/)
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache

$(VENV)/installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "caat needs Python 3.11 or 3.12: none found (set PYTHON=)" >&2; exit 1; }
	@echo "installing into $(VENV) (a few minutes the first time)"
	$(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet --disable-pip-version-check "$(TORCH)" -e ".[dev]"
	@touch $@
