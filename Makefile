# Everything works on a fresh machine with Python (>= 3.10) and make. The first install is some 1.1 GB: LiteLLM is large.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PORT ?= 4000
# 0.0.0.0 lets other machines in.
HOST ?= 127.0.0.1
CONFIG ?= config.example.yaml

# LiteLLM looks prices up on the internet otherwise.
export LITELLM_LOCAL_MODEL_COST_MAP = True
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# Without bytecode, each process of a test run compiles the package and its tests again: a seventh of the fast lane.
export PYTHONDONTWRITEBYTECODE =

.PHONY: run test test-fast kept-proxy test-litellm lint site wheel wheel-all format bench soak install clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt requirements-dev.txt
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV); the first time this is some 1.1 GB."
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[proxy]" --requirement requirements-dev.txt
	@touch $@

run: install
	@$(BIN)/python examples/run_proxy.py --config $(CONFIG) --port $(PORT) --host $(HOST)

test: install
	$(BIN)/pytest -m "not soak" --numprocesses 2

# What starts no proxy, and few processes.
test-fast: install
	$(BIN)/pytest -m "not soak and not proxy and not slow" --numprocesses 2

# A proxy for `pytest --kept-proxy`, until Ctrl-C.
kept-proxy: install
	@$(BIN)/python -m tests.proxy.kept

# The tests of the adapter with another LiteLLM, in an environment of its own: make test-litellm VERSION=1.98.0
test-litellm: OTHER = build/litellm-$(VERSION)
test-litellm:
	@test -n "$(VERSION)" || { echo "Name a version: make test-litellm VERSION=1.98.0"; exit 2; }
	@case "$(VERSION)" in 1.107.*) echo "LiteLLM 1.107 is reported as compromised."; exit 2;; esac
	@test -d $(OTHER) || $(PYTHON) -m venv $(OTHER)
	$(OTHER)/bin/pip install --quiet --editable ".[proxy]" --requirement requirements-dev.txt "litellm[proxy]==$(VERSION)"
	$(OTHER)/bin/pytest -m "not soak" --numprocesses 2 tests/proxy tests/proxy_parts tests/pricing

# Half an hour of chaos and what else takes long; SOAK_MINUTES=2 makes it shorter.
soak: install
	$(BIN)/pytest -m soak --timeout 7200

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/build_site.py

# The documentation as a site in build/site, with every link checked.
site: install
	$(BIN)/python tools/build_site.py

# The built wheel, tested as it is installed; wheel-all with every Python of the classifiers that is there.
wheel: install
	$(BIN)/python tools/check_wheel.py

wheel-all: install
	$(BIN)/python tools/check_wheel.py --all

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install
	$(BIN)/python -m benchmarks.ledger
	$(BIN)/python -m benchmarks.request
	$(BIN)/python -m benchmarks.recording
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.partitioned
	$(BIN)/python -m benchmarks.migration
	$(BIN)/python -m benchmarks.stalls
	$(BIN)/python -m benchmarks.proxy
	$(BIN)/python -m benchmarks.overshoot
	$(BIN)/python -m benchmarks.queries
	$(BIN)/python -m benchmarks.patterns
	$(BIN)/python -m benchmarks.fleet

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
