# Two commands: `make demo` runs the main job on the built-in street world, `make test` the tests.
# `make test-notebooks` executes the notebooks of colab/. All make .venv the first time, with the exact versions of constraints.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-notebooks lint clean

demo: $(VENV)/installed
	$(BIN)/python -m jax_uda.main --config configs/demo.py --workdir runs/demo

test: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/python -m pytest tests -n 2 --dist loadfile --no-loadscope-reorder \
	  --ignore=tests/parity --ignore=tests/notebooks --ignore=tests/browser

test-notebooks: $(VENV)/installed-notebooks
	$(BIN)/python -m pytest tests/notebooks -n 2

lint: $(VENV)/installed
	$(BIN)/ruff check .

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit('Python 3.11 or newer is needed: make PYTHON=python3.12 …' if sys.version_info < (3, 11) else 0)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

$(VENV)/installed-notebooks: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,notebooks]'
	touch $@

clean:
	rm -rf $(VENV)
