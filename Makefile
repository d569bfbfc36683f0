# Everything sets itself up: `make demo` and `make test` need Python 3.11 or later and nothing else.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help env demo test test-all test-again test-ledger test-hostile test-mutation lint settings clean \
        bench-utility bench-step bench-coverage bench-ledger bench-audit bench-attack bench-accounting \
        bench-forgery

help: ## what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

env: $(STAMP) ## build the environment in .venv

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed: make PYTHON=/path/to/python3.11 …"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $(STAMP)

demo: $(STAMP) ## train, audit and report on the first data found, until the dataset locks
	$(BIN)/dptrain demo $(ARGS)

test: $(STAMP) ## the tests that CI runs (under 15 minutes on two cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

test-all: $(STAMP) ## every test, the slow ones too
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "" $(ARGS)

test-again: $(STAMP) ## the suite N times (N=20), and how often each test failed
	$(BIN)/python -m tests.again $(or $(N),20) $(ARGS)

test-ledger: $(STAMP) ## crash, race and fault counts of the ledger (under 60 minutes)
	$(BIN)/python -m benchmarks.ledger_faults

test-hostile: $(STAMP) ## hostile patients (20,000 a kind of layer), manifests, headers and files (a million rows)
	$(BIN)/python -m benchmarks.hostile
	$(BIN)/python -m benchmarks.hostile_files

test-mutation: $(STAMP) ## would a test notice one changed operator? (sample=N seed=S; goes on where it was)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.mutation $(if $(sample),--sample $(sample)) $(if $(seed),--seed $(seed)) $(ARGS)

lint: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy tests benchmarks

settings: $(STAMP) ## write docs/settings.md anew from the code
	$(BIN)/python -m dptrain.settings.help

bench-accounting: $(STAMP) ## overhead of the gate against joint PLD
	$(BIN)/python -m benchmarks.accounting
bench-ledger: $(STAMP) ## time and memory of the ledger
	$(BIN)/python -m benchmarks.ledger
bench-forgery: $(STAMP) ## forgeries of a finished run, and which were noticed (15 minutes)
	$(BIN)/python -m benchmarks.forgery
bench-coverage: $(STAMP) ## exactness on every MONAI network
	$(BIN)/python -m benchmarks.coverage
bench-step: $(STAMP) ## step time and memory against plain SGD and Opacus
	$(BIN)/python -m benchmarks.step_time
bench-audit: $(STAMP) ## exposed patients, and how fast reference models train
	$(BIN)/python -m benchmarks.audit
bench-attack: $(STAMP) ## reconstruction, with and without protection
	$(BIN)/python -m benchmarks.attack
bench-utility: $(STAMP) ## utility against epsilon (QUICK=1: under 20 minutes)
	$(BIN)/python -m benchmarks.utility $(if $(QUICK),--quick)

clean: ## remove the environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
