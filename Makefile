# Everything works from a fresh clone: the first target that needs the environment builds it.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: check-readme demo test test-slow test-cuda lint fmt parity coverage mutants lab falsify bench gate-cost twenty-gates docs docs-images goldens clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: $(READY)        ## train a small MoE, tune it gently and brutally, audit both
	$(BIN)/python -m scripts.demo

test: $(READY)        ## the tests, in random order on every core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "not slow"

test-slow: $(READY)   ## the tests that take minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m slow

test-cuda: $(READY)   ## the tests that need a GPU, where there is one
	$(BIN)/python -m pytest -n 0 -m cuda -rs

lint: $(READY)        ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fmt: $(READY)         ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

parity: $(READY)      ## every family against transformers, as a table
	OMP_NUM_THREADS=1 $(BIN)/python -m scripts.parity

coverage: $(READY)    ## do the intervals cover? the simulation grid of docs/statistics.md
	$(BIN)/python -m scripts.coverage

mutants: $(READY)     ## can the tests of verdict, header parser, ledger and exit codes fail?
	OMP_NUM_THREADS=1 $(BIN)/python -m scripts.mutants

lab: $(READY)         ## train, tune and break small MoEs, audit every pair: docs/lab.md (an hour of CPU at most)
	OMP_NUM_THREADS=1 $(BIN)/python -m scripts.lab
	OMP_NUM_THREADS=1 $(BIN)/python -m scripts.lab.history
	OMP_NUM_THREADS=1 $(BIN)/python -m scripts.lab.witness
	OMP_NUM_THREADS=1 $(BIN)/python -m scripts.lab.noise
	OMP_NUM_THREADS=1 $(BIN)/python -m scripts.lab.provisional

falsify: $(READY)     ## the programme's own falsifiers on the lab's pairs: docs/falsify.md
	OMP_NUM_THREADS=1 $(BIN)/python -m scripts.lab.falsified

bench: $(READY)       ## speed and memory against transformers on the same work
	$(BIN)/python -m scripts.bench

gate-cost: $(READY)   ## what a gate at every checkpoint costs a training, on what `make demo` left: docs/api.md
	OMP_NUM_THREADS=1 $(BIN)/python -m scripts.gate_cost --write

check-readme: $(READY) ## do README and pages name only commands and options that exist?
	$(BIN)/python -m pytest -q -n 0 tests/docs/test_pages.py -k "page_names_exists or link"

twenty-gates: $(READY) ## a healthy and a sick training, each with twenty gates, on what `make demo` left: docs/api.md
	OMP_NUM_THREADS=1 $(BIN)/python -m scripts.twenty_gates --write

docs: $(READY)        ## the pages as a site in build/site
	$(BIN)/mkdocs build --strict -f configs/mkdocs.yml

docs-images: $(READY) ## the pictures of the pages, from what `make demo` left; needs Chromium
	$(BIN)/python -m scripts.docs_images

goldens: $(READY)     ## write the snapshots anew; read the diff before you commit it
	UPDATE_GOLDENS=1 $(BIN)/python -m pytest -n 0 tests/report/test_goldens.py tests/cli/test_surface.py tests/receipt/test_derivation.py

clean:
	rm -rf $(VENV) demo lab build dist
