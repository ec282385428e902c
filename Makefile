# Works on a fresh clone with Python 3.11+ and pip; everything it installs goes into .venv.
PYTHON ?= python3
BIN := .venv/bin
.DEFAULT_GOAL := help
# Old ones do not know the groups of pyproject.toml, so pip itself comes first.
PIP := -m pip install --quiet --disable-pip-version-check
# The tests start many processes, so bytecode is cached even if the environment forbids it (images of containers do).
# One worker more than cores: some tests wait for a process.
PYTEST := -m pytest -n $$(($$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2) + 1)) --dist worksteal
PACKAGE := -e '.[langchain,prometheus,opentelemetry,embedded]'
.PHONY: help install demo test test-newest lint format live engines record vendors models tables docs docs-serve coverage bench

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

install: .venv/ready ## the package with everything its tests and demo need, into .venv

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python $(PIP) -c constraints.txt pip
	$(BIN)/python $(PIP) -c constraints.txt $(PACKAGE) --group dev
	@touch $@

demo: install ## ask a local server if one answers, else the embedded model, else play recorded answers; says which
	@$(BIN)/python examples/demo.py

test: install ## the tests: no network but loopback, no server, no GPU
	PYTHONDONTWRITEBYTECODE= $(BIN)/python $(PYTEST) $(ARGS)

test-newest: .venv-newest/ready ## the same tests on the newest LiteLLM that resolves (constraints-newest.txt)
	PYTHONDONTWRITEBYTECODE= .venv-newest/bin/python $(PYTEST) $(ARGS)

.venv-newest/ready: pyproject.toml constraints-newest.txt
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python $(PIP) -c constraints-newest.txt pip
	.venv-newest/bin/python $(PIP) -c constraints-newest.txt $(PACKAGE) --group test
	@touch $@

lint: install ## ruff, strict types, and the language of code and documents
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python tools/check_language.py

format: install ## let ruff format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

live: install ## the tests against every model server that the environment names (LLAMACPP_BASE_URL, OLLAMA_BASE_URL, ...)
	$(BIN)/python -m pytest -q -m live -rs tests/live $(ARGS)

engines: .venv/engines ## the tests of routers of several servers (vllm-router, smg), and several processes of ours; Linux
	$(BIN)/python -m pytest -q -m engines tests/engines $(ARGS)

.venv/engines: .venv/ready
	$(BIN)/python $(PIP) -c constraints.txt --group engines
	@touch $@

record: install ## make the cassettes of a row anew: make record PROVIDER=llamacpp (the server that LLAMACPP_BASE_URL names)
	@PYTHONPATH=tests:tests/contract $(BIN)/python tests/contract/record.py $(PROVIDER)

vendors: install ## the table of LiteLLM's vendors anew, from the LiteLLM that is installed
	@PYTHONPATH=tests:tests/contract $(BIN)/python tests/contract/vendors.py

models: install ## what is sent to each model of LiteLLM's price map anew, from the LiteLLM that is installed
	@PYTHONPATH=tests:tests/contract $(BIN)/python tests/contract/sent_to_models.py

tables: install ## what README and docs have from the code: tables and settings
	@$(BIN)/python docs/generate.py

docs: .venv/docs ## the documentation as a site, into site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build
	$(BIN)/python tools/check_site.py

docs-serve: .venv/docs ## the same at http://localhost:8005, built again when a file changes
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve --dev-addr localhost:8005

.venv/docs: .venv/ready
	$(BIN)/python $(PIP) -c constraints.txt --group docs
	@touch $@

coverage: install ## which branches of learnflow/llm the tests do not run
	$(BIN)/python -m pytest -q -n auto -p no:learnflow_llm --cov $(ARGS)

bench: install ## what the layer costs, beside LiteLLM and httpx
	$(BIN)/python benchmarks/cost.py
	$(BIN)/python benchmarks/failover.py

release: install ## the wheel and sdist of a tagged version, into dist/: built, checked, with SHA-256; uploads nothing
	@$(BIN)/python tools/release.py
