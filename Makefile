# Every target makes the environment it needs first; on a warm checkout that takes no time.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin

# Processes are started by the hundred here; each would compile its imports again.
unexport PYTHONDONTWRITEBYTECODE

# One kill-and-fault loop: which backend, how many kills, which seed (printed when not given).
BACKEND ?= both
N ?= 200
SEED ?=

.PHONY: help install venv venv-gen venv-emulators testbed demo demo-edge test real check bench faults long proto proto-check landed lock format clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

install: venv ## make .venv with everything and `hatoba` in it
	@echo "ready: $(BIN)/hatoba --help"

venv:
	@$(PYTHON) tools/build/environment.py .venv dev --project

venv-emulators:
	@$(PYTHON) tools/build/environment.py .venv-emulators emulators

venv-gen:
	@$(PYTHON) tools/build/environment.py .venv-gen gen

demo: venv ## the whole loop, from images to an explained prediction; the server is killed twice
	@$(BIN)/python tools/demo/demo.py

demo-edge: venv ## devices behind a router, whose links and power fail; needs root
	@$(BIN)/python tools/demo/demo_edge.py

test: venv venv-gen venv-emulators ## stubs, lint, types, all suites, also on real components, one short round of faults and long
	@$(BIN)/python tools/build/suite.py test

real: venv venv-emulators ## the tests on real Docker, Kubernetes and emulators of AWS: up, all of them, down
	@$(BIN)/python tools/build/suite.py real

check: venv ## the quick part: lint, format, types, arrows, unit tests
	@$(BIN)/python tools/build/suite.py check

testbed: venv venv-emulators ## real Docker, Kubernetes and emulators of AWS for single test runs (DOWN=1 ends them)
	@$(BIN)/python tools/testbed/testbed.py $(if $(DOWN),down,up --where-possible docker registry moto ministack kubernetes)

bench: venv venv-emulators ## figures with their floors, into build/bench.json
	@$(BIN)/python tools/bench/bench.py

faults: venv ## kill -9 at every failpoint while jobs run: N=200 SEED= BACKEND=both|hosts|mock|null|containers|k8s-gpu|ecs|batch-spot
	@$(BIN)/python tools/faults/faults.py --backend $(BACKEND) --count $(N) $(if $(SEED),--seed $(SEED))

long: venv venv-emulators ## the tests that take minutes, in full rounds
	@$(BIN)/pytest -m slow --round full

proto: venv venv-gen ## lint the contract, compare it with the landed one, write stubs and schema
	@$(BIN)/python tools/build/contract.py generate

proto-check: venv venv-gen
	@$(BIN)/python tools/build/contract.py check

landed: venv-gen ## make today's contract the one that `buf breaking` compares with
	@$(PYTHON) tools/build/contract.py landed

lock: venv ## renew locks/*.txt (UPGRADE=1: to the newest that fits)
	@tools/build/lock.sh

format: venv venv-gen ## ruff's fixes and format, buf's format
	@$(BIN)/ruff check --quiet --fix-only . && $(BIN)/ruff format --quiet .
	@.venv-gen/bin/buf format --write proto --path proto/hatoba

clean: ## remove environments, caches and what was built
	rm -rf .venv .venv-gen .venv-emulators .venv*.lock build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
