VENV := .venv
BIN := $(VENV)/bin

COMPILE = $(BIN)/uv pip compile --universal --generate-hashes --no-emit-index-url --no-emit-find-links --only-binary :all: \
	--custom-compile-command 'make lock' --quiet

# Debian keeps servers such as nginx where a plain user's PATH does not look.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "%-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/.installed ## make .venv, with the command in .venv/bin/auth-sidecar

test: install tools lint ## lint, then run every test
	$(BIN)/pytest --timeout 120 --numprocesses 4 --dist loadfile --durations 20 --session-timeout 1020

lint: install ## formatting, ruff, mypy, and the rules of the house
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest tests/unit/test_architecture.py tests/unit/test_repository.py

demo: install ## a script that outlives its tokens: about 20 seconds, then a table
	$(BIN)/auth-sidecar demo

lock: install ## write requirements.lock anew, and what the image is made from; UPGRADE=1 takes newer versions
	$(COMPILE) pyproject.toml --group test --group dev --python-version 3.12 $(if $(UPGRADE),--upgrade) --output-file requirements.lock
	$(COMPILE) pyproject.toml --python-version 3.13 --constraint requirements.lock --upgrade --output-file deploy/image/requirements.lock
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

.PHONY: help install test lint demo lock clean tools
