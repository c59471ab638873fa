# Two commands do everything on a fresh machine with Python 3.11: `make demo` and `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check clean

demo: $(VENV)/.installed
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/demo

test: $(VENV)/.installed
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/check

check: test

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	# without what it asks for: triton (1 GB) is of no use here, the rest is there
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps autoawq
	touch $@

clean:
	rm -rf $(VENV)
