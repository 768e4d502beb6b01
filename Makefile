# Two commands do it all, on a machine with nothing but Python 3.11 and make:
#   make demo    the quick-start notebook on the embedded data: figures and a results table in demo/
#   make test    all tests, and every notebook executed
# For those who change a notebook:
#   make notebooks   executes every notebook afresh, in place; its figures go to figures/

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test notebooks clean

demo: $(INSTALLED)
	$(BIN)/python notebooks/build.py --out demo 00_quickstart

test: $(INSTALLED)
	$(BIN)/python -m pytest

notebooks: $(INSTALLED)
	$(BIN)/python notebooks/build.py

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --progress-bar off -c constraints.txt -e ".[notebooks,test]"
	touch $@

clean:
	rm -rf .venv demo runs
