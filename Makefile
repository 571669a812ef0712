# Every target sets up what it needs, once, in .venv; nothing else is to be typed.
#   make demo       ask the manual that ships with the repository a question
#   make test       linters, types, import contracts, tests (WORKERS=4: by four processes, not two)
#   make test-slow  the tests that take minutes (killed and resumed training, learning from scratch)
#   make coverage   the fast tests, and which lines and branches none of them guards
#   make lint       linters, types and import contracts, without the tests
#   make evaluate   measure on six real manuals, as in README.md (Debian or Ubuntu; fetches them)
#   make nano       train the embedded models anew (hours; NANO_MINUTES sets the time)
#   make docs       the documentation as a site in build/site; warnings are errors (its search needs a server:
#                   python -m http.server -d build/site)
#   make report     ask the demo's manual, and write what was read as a page for the browser, report.html
#   make app        a page in the browser to try things out, with the demo's manual
#   make notebooks  run the notebooks and store their outputs
#   make test-browser  report and app in a real Chromium (Debian or Ubuntu: installs it where it is missing)
#   make test-scaling  reading, encoding and serving on a Ray cluster of one machine (installs Ray)
#   make clean      remove what the other targets made, .venv included, but not the measurements in results

BIN := .venv/bin
STAMP := .venv/.set-up
MANUAL := demo/gle-manual-chapters-4-9.pdf
QUESTION ?= How do I draw a surface plot?
PICTURE ?= answer.png
QUERIES ?= 17
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-browser test-scaling coverage lint evaluate nano docs report app notebooks clean

help:
	@sed -n 's/^#   //p' Makefile

$(STAMP): pyproject.toml scripts/set_up.sh
	@PYTHON="$(PYTHON)" bash scripts/set_up.sh
	@touch $@

demo: $(STAMP)
	$(BIN)/ziprerank ask "$(QUESTION)" --pdf $(MANUAL) --picture $(PICTURE)

report: $(STAMP)
	$(BIN)/ziprerank ask "$(QUESTION)" --pdf $(MANUAL) --report report.html

app: $(STAMP)
	$(BIN)/ziprerank app $(MANUAL)

notebooks: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/python notebooks/build.py

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" -n $(WORKERS) --dist loadfile

test-slow: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/pytest -m slow

test-browser: $(STAMP)
	@bash scripts/set_up.sh browser
	HF_HUB_OFFLINE=1 $(BIN)/pytest tests/app tests/report

test-scaling: $(STAMP)
	$(BIN)/python -m pip install --quiet -e '.[scaling]'
	HF_HUB_OFFLINE=1 $(BIN)/pytest tests/scaling

coverage: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/pytest -m "not slow" --cov --cov-report=term

evaluate: $(STAMP)
	$(BIN)/ziprerank evaluate manuals --development --queries $(QUERIES)

nano: $(STAMP)
	$(BIN)/python -m llama_index_ziprerank.training.nano.build

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .coverage build dist answer.png report.html
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
