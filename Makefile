# Two commands do all the set-up: `make quickstart` and `make test`. Both make the virtual environment they need.
PYTHON ?= python3
VENV ?= .venv
SWEEP ?= sweeps/quickstart.yaml

.PHONY: quickstart test lint install clean

quickstart: install
	$(VENV)/bin/raysft run $(SWEEP)

# Two processes, each with whole files, in their order: those that take minutes come first, and fill the gaps.
# Most tests wait for processes of Ray as long as they compute.
test: install
	$(VENV)/bin/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --upgrade pip
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
