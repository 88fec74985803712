# Two targets do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
PEERS := benchmarks/.venv-peers
SYSTEM := orthanc orthanc-dicomweb dcmtk dicom3tools chromium
# The viewer's script: fetched by npm, checked against the hash beside it, never committed.
NIIVUE := @niivue/niivue@0.69.0
RENDER := src/hepar/render
SAME := $(PYTHON) -c 'from hashlib import sha256; from pathlib import Path; \
	script, known = Path("niivue.umd.js"), Path("niivue.sha256").read_text().split()[0]; \
	raise SystemExit(not script.exists() or sha256(script.read_bytes()).hexdigest() != known)'
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.PHONY: demo test test-full lint format peers system viewer clean

## Make a synthetic patient, segment it, and leave the results in out/demo
demo: $(VENV)/.installed
	$(BIN)/hepar demo -o out/demo

## Quick tests (a quarter of an hour on two cores)
test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not full"

## Everything, large property counts and overfit runs included
test-full: system $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --dist worksteal --hypothesis-profile full

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

## The tools we compare with, in an environment of their own
peers: $(PEERS)/.installed

## Debian packages that full tests, benchmarks and pictures of reports need; nothing where they are
system:
	@if ! command -v apt-get > /dev/null; then \
		echo "no apt-get here; tests that need one of these are skipped: $(SYSTEM)"; \
	elif ! dpkg --status $(SYSTEM) > /dev/null 2>&1; then \
		$(SUDO) apt-get update && \
		$(SUDO) apt-get install --yes --no-install-recommends $(SYSTEM); \
	fi

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

## The script of the viewer; without npm hepar works all the same, but for `--viewer`
viewer:
	@cd $(RENDER); \
	if ! $(SAME); then \
		rm -f niivue.umd.js; \
		npm pack --silent --ignore-scripts $(NIIVUE) > /dev/null && \
			tar -xzf niivue-niivue-*.tgz --strip-components=2 package/dist/niivue.umd.js; \
		rm -f niivue-niivue-*.tgz; \
		if [ ! -f niivue.umd.js ]; then \
			echo "no $(NIIVUE) from npm here: hepar goes on without its viewer (docs/viewer.md)"; \
		elif ! $(SAME); then \
			rm niivue.umd.js; \
			echo "$(NIIVUE) is not the file that niivue.sha256 names"; exit 1; \
		fi; \
	fi

# torch first and alone, so that no other package chooses its build
$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt | viewer
	$(PIP) torch
	$(PIP) --editable ".[fast,serve]"
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) --editable ".[test,fast,serve]"
	touch $@

$(PEERS)/.installed: benchmarks/peers.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet torch==2.13.0
	$(PEERS)/bin/python -m pip install --quiet --requirement benchmarks/peers.txt
	touch $@

clean:
	rm -rf out runs .mypy_cache .pytest_cache .ruff_cache
