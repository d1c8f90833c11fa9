# make demo   from nothing to a trained, evaluated model and its pictures
# make test   lint, import contracts, the whole test suite (offline once installed)
# make torture   200 kills of local runs and 20 on Ray; every store must then be the undisturbed one
# make browser   a browser for the tests of `sagecache report`'s page (Debian's package, as root; 100 MB, 20 s)
# make lint   ruff and the import contracts; `make format` mends what ruff can
# make bench  measure all that is claimed of the store and of the step, 15 minutes at most; writes benchmarks/RESULTS.md
#             `make bench-quick` prints rough figures in a minute
# make wheel  build dist/*.whl
# make clean  remove .venv and build leftovers; data and checkpoints stay
#
# Needs Python 3.11 with venv, and make. Another interpreter: make PYTHON=/path/to/python3.11 test

PYTHON ?= python3.11
VENV ?= .venv
WORKERS ?= 2
TORCH := torch==2.13.0
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
BENCH_INSTALLED := $(VENV)/.installed-bench
SOURCES := sagecache configs tools benchmarks tests

.DELETE_ON_ERROR:
.PHONY: demo test browser torture lint format bench bench-quick wheel clean install

demo: $(INSTALLED)
	$(BIN)/sagecache demo

# One thread a process: two pytest workers and the processes that tests start share two cores.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

# Without one these tests are skipped, with this reason.
BROWSERS := chromium-headless-shell chrome-headless-shell chromium chromium-browser google-chrome google-chrome-stable
browser:
	@for name in $(BROWSERS); do command -v $$name && exit; done; \
	test "$$(id -u)" = 0 && command -v apt-get > /dev/null && apt-get update -qq && \
	apt-get install -qq -y --no-install-recommends chromium-headless-shell > /dev/null && \
	command -v chromium-headless-shell || echo "no browser: the page is not tested in one"

torture: $(INSTALLED)
	OMP_NUM_THREADS=1 PYTHONPATH=.:tests $(BIN)/python tests/torture.py

lint: $(INSTALLED)
	$(BIN)/ruff check $(wildcard $(SOURCES))
	$(BIN)/ruff format --check $(wildcard $(SOURCES))
	$(BIN)/lint-imports --no-cache --no-logo

format: $(INSTALLED)
	$(BIN)/ruff check --fix $(wildcard $(SOURCES))
	$(BIN)/ruff format $(wildcard $(SOURCES))

bench: $(BENCH_INSTALLED)
	$(BIN)/python -m benchmarks

bench-quick: $(BENCH_INSTALLED)
	$(BIN)/python -m benchmarks --quick

wheel: $(INSTALLED)
	$(BIN)/python -m pip wheel --no-deps --no-build-isolation --wheel-dir dist .

clean:
	rm -rf $(VENV) build dist .ruff_cache .hypothesis .pytest_cache
	find sagecache benchmarks tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

install: $(INSTALLED)

# The stamp is written last: a killed install is done again, a finished one only when its inputs change.
$(INSTALLED): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(TORCH)
	$(BIN)/python -m pip install --no-deps -r requirements.lock
	$(BIN)/python -m pip install --no-deps --no-build-isolation -e .
	touch $@

$(BENCH_INSTALLED): $(INSTALLED) requirements-bench.lock
	$(BIN)/python -m pip install --no-deps -r requirements-bench.lock
	touch $@
