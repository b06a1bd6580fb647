# Needs Python >= 3.10, git and make; everything else is built into .venv.   make help

.SHELLFLAGS := -eu -c
MAKEFLAGS   += --no-print-directory
.DEFAULT_GOAL := help

PYTHON   ?= python3
WORKERS  ?= 4
ARGS     ?=
SEED     ?=
FAULTS   ?=
MINUTES  ?=
KINDS    ?=
PRELOAD  ?=
VENV     := .venv
BIN      := $(VENV)/bin
STAMP    := $(VENV)/.stamp
PYTEST    = $(BIN)/python -m pytest $(ARGS)
PARALLEL  = -n $(WORKERS) --dist worksteal
STAGE     = $(BIN)/python tools/stage.py

.PHONY: help compiled venv proto docs gates unit integration e2e test demo bench soak chaos test-deps clean

help:  ## show what can be made
	@echo "agentd: make <target>   (PYTHON=python3.12 picks an interpreter, ARGS='-k name' reaches pytest)"
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "  %-12s %s\n", $$1, $$2 }'

venv: $(STAMP)  ## build .venv with agentd, agentctl and the tools (quick when it is there)

# The stamp holds what was installed from: a touched but unchanged pyproject.toml costs nothing.
$(STAMP): pyproject.toml tools/venv.py
	@command -v $(PYTHON) >/dev/null || { echo "make: no $(PYTHON) here: install Python >= 3.10 or say PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) tools/venv.py $(VENV)

proto:  ## regenerate agentd/v1 from proto/ with the pinned old tools of .venv-proto
	@$(PYTHON) tools/protogen.py

docs: venv  ## make docs/api.md from the docstrings of agentd.elastic
	@$(BIN)/python -m tools.apidoc

gates: venv  ## format, lint, types, import contracts, fresh stubs and docs, proto lint
	@$(STAGE) "ruff format" -- $(BIN)/ruff format --check --quiet .
	@$(STAGE) "ruff lint" -- $(BIN)/ruff check --quiet .
	@$(STAGE) "mypy" -- $(BIN)/mypy
	@$(STAGE) "import contracts" -- $(BIN)/lint-imports
	@$(STAGE) "fresh stubs" -- $(BIN)/python tools/protogen.py --check
	@$(STAGE) "fresh api docs" -- $(BIN)/python -m tools.apidoc --check
	@$(STAGE) "buf lint" -- $(BIN)/python tools/buflint.py

# Where Python may not write bytecode (PYTHONDONTWRITEBYTECODE), every process would compile all of it again.
compiled: venv
	@$(BIN)/python -m compileall -q agentd client

unit: venv  ## pure tests, seconds
	@$(STAGE) "unit tests" -- $(PYTEST) $(PARALLEL) tests/unit

integration: compiled  ## tests with real processes on this machine
	@$(STAGE) "integration tests" -- $(PYTEST) $(PARALLEL) tests/integration

e2e: compiled  ## whole fleets: daemons, client and command line together
	@$(STAGE) "end-to-end tests" -- $(PYTEST) $(PARALLEL) tests/e2e

test: gates compiled  ## all gates, then all tests; under ten minutes on two cores
	@$(STAGE) "tests" -- $(PYTEST) $(PARALLEL) tests

demo: compiled  ## three agentds, a killed worker, its recovery: under a minute
	@$(BIN)/python examples/demo.py

bench: compiled  ## all figures, beside torchrun's: ARGS="--only rendezvous --full" chooses
	@$(BIN)/python -m benchmarks $(ARGS)

soak: compiled  ## the tests that run for minutes
	@$(PYTEST) -m soak --timeout 1800 tests

chaos: compiled  ## a storm of faults over five agentds: SEED=, FAULTS= or MINUTES=, KINDS=WORKER_KILL,..., PRELOAD=0|1|standby (root)
	@SEED=$(SEED) FAULTS=$(FAULTS) MINUTES=$(MINUTES) KINDS=$(KINDS) PRELOAD=$(PRELOAD) \
		$(PYTEST) -q -s -m soak --timeout 0 tests/e2e/chaos/test_chaos.py::test_storms_as_asked_for

test-deps: venv  ## what the optional tests need: torch by pip, buf and grpc-js by npm, system packages by apt when root
	@$(BIN)/python tools/testdeps.py

clean:  ## remove what make built
	rm -rf $(VENV) .venv-proto build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
