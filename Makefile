# `make repro`: install what running needs, run the pipeline. `make test`: install what testing needs besides, run the tests.
PYTHON ?= python3
UV ?= $(shell command -v uv)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TESTED := $(VENV)/.ready-test
OLDEST_LENS := .venv-transformer-lens
# Two processes share the tests (tests/conftest.py says how): most tests keep one core busy, and some fill the memory of two.
WORKERS := 2
PYTEST := pytest -n $(WORKERS) --no-loadscope-reorder
export PATH := $(CURDIR)/$(BIN):$(PATH)

# uv, where it is installed, makes environments and fills them several times faster than venv and pip (`make UV=`: those).
# It has its own settings of indexes and certificates.
ifneq ($(UV),)
new_environment = "$(UV)" venv --quiet --allow-existing --python "$(PYTHON)" $(1)
install = "$(UV)" pip install --quiet --python $(1)/bin/python
else
new_environment = "$(PYTHON)" -m venv $(1)
install = $(1)/bin/python -m pip install --quiet --disable-pip-version-check
endif

.PHONY: repro test check bench preset setup slow interop fuzz
repro: setup
	python -m stages.preset check
	dvc repro

test: $(TESTED)
	$(PYTEST) --durations=15

slow: $(TESTED)
	pytest -m slow

fuzz: $(TESTED)
	python -m tests.fuzz --seconds $(or $(SECONDS),60)

interop: $(TESTED) .venv-interop/.ready .venv-circuit-tracer/.ready $(OLDEST_LENS)/.ready
	pytest -m interop tests/interop
	PYTHONPATH=$(OLDEST_LENS) pytest tests/language/test_model.py tests/collecting/test_collecting.py tests/evaluation/test_loss.py

# The oldest TransformerLens that pyproject.toml accepts (SAELens asks for it), in place of the pinned one.
$(OLDEST_LENS)/.ready: $(READY)
	$(call install,$(VENV)) --no-deps --target $(OLDEST_LENS) transformer-lens==3.9.0 better-abc==0.0.3
	touch $@

.venv-%/.ready: requirements-%.lock
	$(call new_environment,.venv-$*)
	$(call install,.venv-$*) --requirement $<
	touch $@

check: $(TESTED)
	ruff format --check . && ruff check . && mypy && lint-imports
	python -m tests.audit
	$(PYTEST)

bench: $(TESTED)
	python -m benchmarks

preset: setup
	@test -n "$(NAME)" || { echo "say which: make preset NAME=<one of: $$(ls presets | sed 's/.yaml//' | tr '\n' ' ')>"; exit 1; }
	python -m stages.preset apply $(NAME)

setup: $(READY)

$(READY): requirements.lock
	"$(PYTHON)" -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version) if sys.version_info < (3, 11) else None'
	$(call new_environment,$(VENV))
	$(call install,$(VENV)) --requirement $<
	touch $@

$(TESTED): requirements-test.lock $(READY)
	$(call install,$(VENV)) --requirement $<
	touch $@
