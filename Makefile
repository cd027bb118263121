# `make demo` and `make test` need Python 3.10 or newer and nothing else; all that they install goes into .venv here.

PYTHON ?= python3
VENV = .venv
BIN = $(VENV)/bin
PYTEST_ARGS ?=

.PHONY: help demo demo-shop test coverage covered soak compat compat-python compat-libraries compat-agents lint \
  format bench clean

help:
	@echo "make demo        run examples/quickstart under the agent and show its trace"
	@echo "make demo-shop   run examples/shop, two aiohttp services and a Celery worker, and show one trace through all"
	@echo "make test        run all tests with $(PYTHON)"
	@echo "make test-3.12   run all tests with another Python (3.10 to 3.13), if it is installed"
	@echo "make test-3.14   run all tests with Debian's Python (3.14, 3.15), in a folder made here; needs root"
	@echo "make coverage    run all tests on Debian's Python 3.14, and say which lines and branches of the agent did not run"
	@echo "make soak        record at full speed for SECONDS=600 before a collector that fails in every way"
	@echo "make compat      run other people's tests plain and under the agent, and compare: compat-python, CPython's own,"
	@echo "                 compat-libraries, and compat-agents, other agents alone and with this one; CHOSEN=… for some"
	@echo "make lint        ruff and mypy"
	@echo "make format      let ruff format the code"
	@echo "make bench       measure what the agent costs, in ROUNDS=5, beside OpenTelemetry's; writes benchmarks/RESULTS.md"
	@echo "make clean       remove what was installed here"

demo: $(VENV)/.installed
	@$(BIN)/sw-python run --show --service quickstart examples/quickstart/report.py 2>&1

demo-shop: $(VENV)/.installed-shop
	@$(BIN)/sw-python run --to local examples/shop/shop.py
	@$(BIN)/sw-python show last

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# Another interpreter: python3.12 of the PATH if it runs, else pyenv's. On 3.10, with the oldest versions supported.
test-3.10: export PIP_CONSTRAINT = $(CURDIR)/tests/oldest.txt
test-%:
	@python=$$(sh .ci/find-python $*) && $(MAKE) --no-print-directory test PYTHON=$$python VENV=.venv-$*

test-3.14 test-3.15: test-%:
	@sh .ci/debian-python $* make --no-print-directory test PYTHON=python$* VENV=.venv-$*

# Only from Python 3.14 on does coverage see branches in the agent's own threads. `.ci/not-covered` names the tests that
# cannot hold where coverage loads modules, opens files and patches `os._exit` in each program. Others are slow there, and
# may fail for that; the figure counts nevertheless.
coverage:
	@sh .ci/debian-python 3.14 make --no-print-directory covered PYTHON=python3.14 VENV=.venv-3.14

covered: $(VENV)/.installed-dev
	rm -rf .coverage
	mkdir .coverage
	-$(BIN)/coverage run -m pytest @.ci/not-covered $(PYTEST_ARGS)
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report
	@$(BIN)/coverage json --quiet -o - | $(BIN)/python .ci/covered 95

SECONDS ?= 600
soak: $(VENV)/.installed-dev
	cd tests && ../$(BIN)/python soak.py $(SECONDS)

compat: compat-python compat-libraries compat-agents

CHOSEN ?=
compat-python: $(VENV)/.installed
	$(BIN)/python compat/interpreter.py $(CHOSEN)

compat-libraries: $(VENV)/.installed
	$(BIN)/python compat/libraries.py $(CHOSEN)

compat-agents: $(VENV)/.installed
	$(BIN)/python compat/agents.py $(CHOSEN)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

ROUNDS ?= 5
BENCH_ARGS ?=
bench: $(VENV)/.installed-dev
	@$(BIN)/python benchmarks/run.py --rounds $(ROUNDS) $(BENCH_ARGS)

clean:
	rm -rf .venv .venv-3.* .debian-3.* .compat .bench .coverage

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "sw-python needs Python 3.10 or newer; $(PYTHON) is older. Say which: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml hatch_build.py $(wildcard agent/sw_agent/*.c agent/sw_agent/*/*.c)
	@echo "installing into $(VENV) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@$(BIN)/python -m compileall -q agent plugins sitecustomize
	@touch $@

$(VENV)/.installed-shop: $(VENV)/.installed examples/shop/requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement examples/shop/requirements.txt
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed tests/instrumentations.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement tests/instrumentations.txt
	@touch $@
