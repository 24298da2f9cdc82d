# Everything works on a fresh machine with python >= 3.11 (with venv) and make.
#
#   make demo        fit a model on real data, show the results, export it and serve a request
#   make test        run the tests            make test-slow   run the long tests as well
#   make lint        check style and types
#   make benchmark SUITE=paper-small   methods side by side; hours for the larger suites
#   make docs        run the examples and build the site: site/index.html
#   make notebooks   the tutorials as notebooks, in notebooks/

VENV := .venv
BIN := $(VENV)/bin
export TF_CPP_MIN_LOG_LEVEL := 2

# The first interpreter that is new enough and can make environments; or `make PYTHON=...`.
CHECK := import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11 python; do \
	$$name -c '$(CHECK)' >/dev/null 2>&1 && echo $$name && break; done)

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint benchmark notebooks docs

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | sed -n '1,8p'

# TensorFlow's start-up messages go to a file, which is shown if the program fails.
demo: $(VENV)/.installed-demo
	@$(BIN)/python examples/houses_demo.py 2>$(VENV)/demo.log || { cat $(VENV)/demo.log >&2; exit 1; }

# Two processes, each with whole files: their fixtures are models, made once a file.
PROCESSES ?= 2
PYTEST := $(BIN)/python -m pytest -q -n $(PROCESSES) --dist loadfile

test: $(VENV)/.installed-test
	$(PYTEST) --durations=10

test-slow: $(VENV)/.installed-test
	$(PYTEST) --durations=10 -m "slow or not slow"

lint: $(VENV)/.installed-test
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy

SUITE ?= tiny
benchmark: $(VENV)/.installed-benchmark
	$(BIN)/python -m benchmarks $(SUITE)

docs: $(VENV)/.installed-docs
	$(PYTEST) keras_lmmvae
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet && echo "The site: site/index.html"

NOTEBOOKS ?= notebooks
KERNEL := {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
notebooks: $(VENV)/.installed-notebooks
	@mkdir -p $(NOTEBOOKS)
	@for name in $(basename $(notdir $(wildcard tutorials/*.py))); do \
		$(BIN)/python -m jupytext --quiet --update-metadata '$(KERNEL)' \
			tutorials/$$name.py -o $(NOTEBOOKS)/$$name.ipynb || exit 1; \
	done

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "No python >= 3.11 with venv was found;" \
		"install one, or name it: make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# One stamp per extra: a second call installs nothing, a change of the requirements does.
$(VENV)/.installed-%: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[$*]"
	@touch $@
