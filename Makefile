PYTHON ?= python3
VENV   := .venv

$(VENV)/.stamp: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --upgrade -q pip
	$(VENV)/bin/python -m pip install -q -e '.[dev]'
	touch $@

.PHONY: venv
venv: $(VENV)/.stamp
