# `make repro`: set up and run the pipeline. `make test`: set up and run the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OLDEST_LENS := .venv-transformer-lens
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: repro test check bench preset setup slow interop fuzz
repro: setup
	python -m stages.preset check
	dvc repro

test: setup
	pytest --durations=15

slow: setup
	pytest -m slow

fuzz: setup
	python -m tests.fuzz --seconds $(or $(SECONDS),60)

interop: setup .venv-interop/.ready .venv-circuit-tracer/.ready $(OLDEST_LENS)/.ready
	pytest -m interop tests/interop
	PYTHONPATH=$(OLDEST_LENS) pytest tests/language/test_model.py tests/collecting/test_collecting.py tests/evaluation/test_loss.py

# The oldest TransformerLens that pyproject.toml accepts (SAELens asks for it), in place of the pinned one.
$(OLDEST_LENS)/.ready: $(READY)
	$(BIN)/python -m pip install --quiet --no-deps --target $(OLDEST_LENS) transformer-lens==3.9.0 better-abc==0.0.3
	touch $@

.venv-%/.ready: requirements-%.lock
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	touch $@

check: setup
	ruff format --check . && ruff check . && mypy && lint-imports
	python -m tests.audit
	pytest

bench: setup
	python -m benchmarks

preset: setup
	@test -n "$(NAME)" || { echo "say which: make preset NAME=<one of: $$(ls presets | sed 's/.yaml//' | tr '\n' ' ')>"; exit 1; }
	python -m stages.preset apply $(NAME)

setup: $(READY) .dvc/plots_page.html

$(READY): requirements.lock
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	touch $@

.dvc/plots_page.html: $(READY) $(wildcard transcoders/figures/plots_page/*)
	$(BIN)/python -m transcoders.figures.plots_page
