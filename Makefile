# Python 3.11 and make are all that is needed: `make demo` sets up .venv from the locked requirements.
# Targets leave stamps in .venv, so a warm call does nothing again.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
UV_VERSION := 0.13.9
VENV := .venv
BIN := $(VENV)/bin
PRISM_VERSION := v$(shell sed -n 's/^apache-beam\[.*\]==//p' requirements.in)
PRISM := $(HOME)/.apache_beam/cache/prism/bin/prism-$(PRISM_VERSION)
FAKE_GCS_VERSION := v1.56.1
FAKE_GCS := $(HOME)/go/bin/fake-gcs-server
PYTEST := $(BIN)/python -m pytest
# Of these tests most wait for a server or a process; more of them at a time want 3 GB of memory each.
JOBS ?= 2
SETUP := setup.py pyproject.toml requirements.in schemas/version.py

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-faults lint format lock docs bench prism fake-gcs flink-up flink-down install install-dev clean

help: ## lists the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: install ## the main job end to end, on the embedded default
	$(BIN)/beamrec demo $(ARGS)

install: $(VENV)/.runtime $(VENV)/.project ## .venv with what beamrec needs to run

install-dev: $(VENV)/.dev $(VENV)/.project ## .venv with the test and lint tools too

test: install-dev ## all tests but the slow kill-and-restart ones; ARGS="tests/io -k ledger" selects
	$(PYTEST) -m "not faults" -n $(JOBS) --dist loadfile $(ARGS)

test-faults: install-dev ## kills, drains and restarts of whole process trees (BEAMREC_FAULTS=short: fewer)
	$(PYTEST) -m faults -n $(JOBS) --dist loadfile $(ARGS)

lint: install-dev .mypy/beamrec ## ruff check, ruff format --check, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd .mypy && ../$(BIN)/mypy --config-file ../pyproject.toml -p beamrec

format: install-dev ## lets ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(BIN)/uv ## requirements*.in to requirements*.lock, with hashes
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --custom-compile-command "make lock" $(ARGS) requirements.in -o requirements.lock
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --custom-compile-command "make lock" -c requirements.lock $(ARGS) requirements-dev.in -o requirements-dev.lock
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --custom-compile-command "make lock" $(ARGS) bench/requirements.in -o bench/requirements.lock

docs: install-dev ## docs/options.md and docs/metrics.md, from the code
	$(BIN)/python docs/options.py
	$(BIN)/python docs/metrics.py

bench: install-dev ## beamrec beside its peers, 1.5 to 2 hours on a quiet machine (see bench/README.md)
	$(BIN)/python bench/batch/run.py $(ARGS)

prism: $(PRISM) ## Beam's local streaming runner, built with Go (beamrec builds or downloads it by itself too)

$(PRISM):
	@command -v go >/dev/null || { echo "make prism: Go is not installed; see https://go.dev/doc/install" >&2; exit 1; }
	mkdir -p $(@D)
	GOBIN=$(abspath $(VENV))/go go install github.com/apache/beam/sdks/v2/go/cmd/prism@$(PRISM_VERSION)
	mv $(VENV)/go/prism $@

fake-gcs: $(FAKE_GCS) ## a server that speaks Google Cloud Storage's protocol, for the tests, built with Go

$(FAKE_GCS):
	@command -v go >/dev/null || { echo "make fake-gcs: Go is not installed; see https://go.dev/doc/install" >&2; exit 1; }
	GOBIN=$(@D) go install github.com/fsouza/fake-gcs-server@$(FAKE_GCS_VERSION)

flink-up: install ## a Flink cluster on this machine, with no container (docs/runners.md); it is kept running
	$(BIN)/python -m beamrec.runners.flink_cluster up

flink-down: install ## ends it; checkpoints and logs stay in .beamrec/flink
	$(BIN)/python -m beamrec.runners.flink_cluster down

clean: ## removes what make and the tools made; .beamrec with its data stays
	rm -rf $(VENV) .mypy .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "make: Python 3.11 is needed, $(PYTHON) is another; try make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(BIN)/uv: | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -q uv==$(UV_VERSION)

# uv installs the 3 GB of the lock in a minute, pip in many. uv trusts the system's certificates, else its own.
define install_lock
	@echo "installing $(1)"
	@$(MAKE) --no-print-directory -s $(BIN)/uv || echo "uv is not to be had; pip takes a while longer"
	@$(BIN)/uv pip install -q --system-certs --python $(BIN)/python --require-hashes -r $(1) || \
	  $(BIN)/uv pip install -q --python $(BIN)/python --require-hashes -r $(1) || \
	  $(BIN)/python -m pip install --disable-pip-version-check -q --require-hashes -r $(1)
	@touch $@
endef

$(VENV)/.runtime: requirements.lock | $(BIN)/python
	$(call install_lock,requirements.lock)

$(VENV)/.dev: requirements-dev.lock | $(BIN)/python
	$(call install_lock,requirements-dev.lock)
	@touch $(VENV)/.runtime

# The lock has the build tools, so nothing is fetched here.
$(VENV)/.project: $(SETUP) | $(VENV)/.runtime
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --no-build-isolation --no-index -e .
	@touch $@

# mypy cannot follow package_dir: it is shown a folder of links, `.mypy/beamrec/<folder>`.
.mypy/beamrec: setup.py
	mkdir -p $@
	for folder in schemas transforms model io runners pipelines; do ln -sfn ../../$$folder $@/$$folder; done
	@touch $@
