# Each target makes its own virtual environment, .venv, if there is none.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: verify test newest lint bench notebooks wheel clean

verify: $(VENV)/verify.installed
	$(BIN)/python -m verify $(ARGS)

test: $(VENV)/test.installed
	$(BIN)/python -m pytest -n 2 $(ARGS)

# The same on Python 3.13 or newer with the newest JAX, where there is such an interpreter.
newest:
	.ci/newest $(ARGS)

lint: $(VENV)/test.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(VENV)/bench.installed
	$(BIN)/python -m benchmarks $(ARGS)

# Runs every notebook from its .py and fails where a cell does; `make notebooks ARGS=--keep` also
# writes the outputs into the .ipynb files that are committed.
notebooks: $(VENV)/notebooks.installed
	$(BIN)/python notebooks/run.py $(ARGS)

# The built wheel must install and import where there is no source tree.
wheel: $(VENV)/test.installed
	rm -rf build dist
	$(BIN)/python -m build --wheel --outdir dist .
	$(BIN)/python tests/install_wheel.py dist

$(VENV)/%.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	touch $@

clean:
	rm -rf $(VENV) .venv-newest build dist *.egg-info
