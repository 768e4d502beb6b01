# Two commands do it all, on a machine with nothing but Python 3.11 and make:
#   make demo    the quick-start notebook on the embedded data: figures and a results table in demo/
#   make test    all tests, and every notebook executed
# For those who change a notebook:
#   make notebooks   executes every notebook afresh, in place; its figures go to figures/
#   make test-browser    the notebooks in JupyterLab, and the site, in a real browser (Debian: apt install chromium)
#   make bench-widgets   milliseconds from a key to the new picture, for every slider of every notebook
# For those who read or teach them without a kernel, without a network:
#   make site    the executed notebooks as a static site: open site/index.html
#   make slides  slides for each notebook: open slides/NN_name.html

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
DRIVER := .venv/browser-installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-browser bench-widgets notebooks site slides clean

demo: $(INSTALLED)
	$(BIN)/python notebooks/build.py --out demo 00_quickstart

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-browser: $(DRIVER)
	$(BIN)/python -m pytest tests/browser

bench-widgets: $(DRIVER)
	$(BIN)/python tests/browser/latency.py --json figures/bench_widgets.json

notebooks: $(INSTALLED)
	$(BIN)/python notebooks/build.py

site: $(INSTALLED)
	$(BIN)/python notebooks/publish.py site

slides: $(INSTALLED)
	$(BIN)/python notebooks/publish.py slides

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --progress-bar off -c constraints.txt -e ".[notebooks,test,site]"
	touch $@

$(DRIVER): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --progress-bar off -c constraints.txt -e ".[browser]"
	touch $@

clean:
	rm -rf .venv demo runs site slides
