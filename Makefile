# Each target sets itself up on a fresh machine: virtual environment, install, data.
VENV ?= .venv
# The torch that the tests were last run with; constraints.txt has the other packages. TORCH= takes another, such as a
# build without CUDA, and an empty CONSTRAINTS= the newest of the others.
TORCH ?= torch==2.13.0
CONSTRAINTS ?= constraints.txt
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$p && break; done)
RUN = $(VENV)/bin/python -m
INSTALL = $(RUN) pip install --disable-pip-version-check --upgrade --upgrade-strategy eager $(CONSTRAINTS:%=-c %) "$(TORCH)"
NEWEST = $(MAKE) VENV=$(VENV)-latest TORCH=torch CONSTRAINTS=

.PHONY: quickstart test test-slow test-slurm test-latest constraints drills check docs clean help

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

quickstart: $(VENV)/installed ## train a tiny model with 4 shards on 2 processes, on real text
	$(RUN) launch.pretrain experiment=quickstart

test: $(VENV)/with-test ## the tests (minutes)
	$(RUN) pytest

test-slow: $(VENV)/with-test ## slower truths: real runs end to end, every shipped config, the wheel
	$(RUN) pytest -m slow

test-slurm: $(VENV)/with-test ## the batch scripts on a Slurm started for it (as root; installs slurm-wlm and munge)
	@PATH="$$PATH:/usr/sbin"; command -v slurmctld slurmd munged >/dev/null || { test "$$(id -u)" = 0 && apt-get update -qq \
		&& DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends slurm-wlm munge; } \
		|| echo "Slurm is not here and cannot be installed: its tests are skipped"
	$(RUN) pytest -m slurm -rs tests/slurm

test-latest: ## the tests with the newest of all packages, in an environment of its own
	rm -f $(VENV)-latest/installed
	$(NEWEST) test

constraints: test-latest ## once these pass, what they were run with is what `make` installs: constraints.txt
	$(NEWEST) check docs
	$(VENV)-latest/bin/python -m pip freeze --exclude-editable | grep -vE '^(torch==|triton|pytorch-|nvidia-|cuda-)' > constraints.txt
	@echo "constraints.txt is written; TORCH in the Makefile is set by hand: now" \
		"$$($(VENV)-latest/bin/python -c 'import torch; print(torch.__version__)')"

drills: $(VENV)/with-test ## break real runs in every way we know of, and print what became of them (half an hour)
	$(RUN) tests.drills

check: $(VENV)/with-check ## lint, format, types
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

docs: $(VENV)/with-docs ## the documentation as a site, in build/site; fails on a broken link
	NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --site-dir build/site

clean: ## remove the virtual environments and caches (never data/ or outputs/)
	rm -rf $(VENV) $(VENV)-latest build *.egg-info .pytest_cache .ruff_cache .mypy_cache

# What training needs; targets that need more add an extra of pyproject.toml to the same environment.
$(VENV)/installed: pyproject.toml $(CONSTRAINTS)
	@test -n "$(PYTHON)" || { echo "caat needs Python 3.11 or 3.12: none found (set PYTHON=)" >&2; exit 1; }
	@echo "installing into $(VENV) (a few minutes the first time)"
	$(PYTHON) -m venv $(VENV)
	@# This pip shows how far it is while it unpacks as well.
	$(RUN) pip install --quiet --disable-pip-version-check "pip>=25.1"
	$(INSTALL) -e .
	@touch $@

$(VENV)/with-%: $(VENV)/installed
	$(INSTALL) -e ".[$*]"
	@touch $@
