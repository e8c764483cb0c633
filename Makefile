PYTHON ?= python3
VENV   ?= .venv

BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --quiet --disable-pip-version-check
LOCK = uv pip compile --quiet --universal --generate-hashes --python-version 3.11 \
	--custom-compile-command 'make lock'

ON_KAFKA = tests/relay tests/consuming

# The demo runs without the package being installed.
export PYTHONPATH := src:.
export PYTHON

.DEFAULT_GOAL := help
.PHONY: help demo demo-kafka setup venv servers test check docs quick test-pythons bench soak format lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/demo ## run the example bank (needs python3 only)
	@$(BIN)/python -m examples.bank

DEMO_DATABASE ?= mysql

demo-kafka: $(VENV)/demo-kafka ## the same with a database server, a relay and Kafka (DEMO_DATABASE=postgres)
	@tests/rig/install.sh demo $(DEMO_DATABASE)
	@$(BIN)/python -m examples.bank.servers $(DEMO_DATABASE)

setup: venv servers ## all that a developer needs

venv: $(VENV)/dev ## the development environment, pinned by hash

servers: ## install the servers that the tests start (none is left running)
	@tests/rig/install.sh servers

test: venv servers check docs ## the static checks and all tests, on every database
	@echo "== pytest, every database; the tests on Kafka run beside the others and are shown behind them"
	@mkdir -p .cache; $(BIN)/pytest -m "not soak" $(ON_KAFKA) >.cache/kafka-tests.log 2>&1 & kafka=$$!; \
	$(BIN)/pytest -m "not soak" $(ON_KAFKA:%=--ignore=%); others=$$?; \
	wait $$kafka; kafka=$$?; cat .cache/kafka-tests.log; [ $$others = 0 ] && [ $$kafka = 0 ]

check: venv ## the static checks (seconds)
	@echo "== ruff, codespell, import-linter, mypy, pyright"
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/codespell
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/mypy
	@$(BIN)/pyright

quick: venv ## the tests that need no server
	@echo "== pytest, SQLite only, $$($(BIN)/python --version)"
	@$(BIN)/pytest -m "not soak" --databases=sqlite

test-pythons: ## `make quick` with each supported Python that is found
	@for version in 3.11 3.12 3.13; do \
	  for python in python$$version ~/.pyenv/versions/$$version.*/bin/python; do \
	    if $$python -c '' 2>/dev/null; then \
	      $(MAKE) quick PYTHON=$$python VENV=.venv-$$version || exit 1; continue 2; \
	    fi; \
	  done; \
	  echo "== Python $$version not found: skipped"; \
	done

docs: .venv-docs/made ## the documentation as a site, in .cache/site; a link that leads nowhere fails
	@echo "== mkdocs"
	@NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --quiet

bench: venv servers ## the benchmarks
	@$(BIN)/python -m benchmarks

soak: venv servers ## the tests that run for minutes
	@$(BIN)/pytest -m soak --timeout=0

format: venv ## format, and fix what ruff can
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format .

.venv-docs/made: requirements-docs.txt
	@echo "== .venv-docs, from requirements-docs.txt"
	@tests/rig/install.sh python
	@$(PYTHON) -m venv --clear .venv-docs
	@.venv-docs/bin/python -m pip --quiet --disable-pip-version-check install \
	  --no-deps --require-hashes -r requirements-docs.txt
	@touch $@

lock: ## pin the development requirements again, with the newest versions (needs uv)
	@$(LOCK) --upgrade requirements-dev.in -o requirements-dev.txt
	@$(LOCK) --upgrade requirements-demo.in -o requirements-demo.txt
	@$(LOCK) --upgrade requirements-docs.in -o requirements-docs.txt
	@$(LOCK) --upgrade requirements-demo-kafka.in -o requirements-demo-kafka.txt

clean: ## delete what these targets made in this folder
	@rm -rf .venv .venv-3.* .venv-docs .cache .*_cache .hypothesis .coverage* htmlcov build dist
	@find src tests examples benchmarks -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	@echo "== $(VENV), from $(PYTHON)"
	@tests/rig/install.sh python
	@$(PYTHON) -m venv --clear $(VENV)

# The files pin all there is, so pip installs just that: left to resolve, it takes a dependency
# with an extra (coverage[toml]) in its newest version, and stops because that has no hash.
$(VENV)/demo $(VENV)/demo-kafka: $(VENV)/%: requirements-%.txt | $(BIN)/python
	@echo "== installing $<"
	@$(PIP) install --no-deps --require-hashes --only-binary :all: -r $<
	@touch $@

$(VENV)/dev: requirements-dev.txt pyproject.toml | $(BIN)/python
	@echo "== installing requirements-dev.txt (about a minute the first time)"
	@tests/rig/install.sh build
	@$(PIP) install --no-deps --require-hashes -r requirements-dev.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@
