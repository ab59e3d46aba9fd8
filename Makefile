# `make` needs Python 3.11+ and nothing else; everything is installed into .venv.
PYTHON ?= python3
PORT ?= 8000
BIN := .venv/bin
PY := $(BIN)/python
export PORT
# With these of the shell, Python would load other code, drivers would speak to other servers, uvicorn would start other
# processes, and `cd` would end elsewhere. What is meant for this project is in src/.env.
KEPT := PYTHON PYTHONDEVMODE PYTHONASYNCIODEBUG PYTHONFAULTHANDLER PYTHONTRACEMALLOC PGPASSWORD PGPASSFILE
FOREIGN := PYTHON% PG% UVICORN_% GUNICORN_% WEB_CONCURRENCY FORWARDED_ALLOW_IPS CDPATH
unexport $(filter-out $(KEPT),$(filter $(FOREIGN),$(.VARIABLES)))

# Those that compare how long things take come last, one after the other. (5: there are none among ARGS.)
PARALLEL := $(PY) -m pytest -n auto --dist worksteal -m "not alone"
ALONE := $(PY) -m pytest -m alone

.DEFAULT_GOAL := help

help: ## Show this list.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "make %-10s %s\n", $$1, $$2 }'

install: ## Install the locked dependencies into .venv (the other targets do it for you).
	@$(PYTHON) -I src/scripts/install.py

run: install ## Start PostgreSQL, Valkey, the API (PORT=8000) and the worker; Ctrl-C stops all.
	@exec $(PY) -m src.scripts.dev run --port "$$PORT"

services: install ## Start only PostgreSQL and Valkey; Ctrl-C stops them.
	@exec $(PY) -m src.scripts.dev services

worker: install ## Run a worker beside a running `make services`.
	@exec $(BIN)/arq src.app.core.worker.settings.WorkerSettings

migrate: install ## Bring the database to the newest schema.
	@cd src && exec ../$(BIN)/alembic upgrade head

# The message goes through the environment, not expanded: neither make nor the shell reads quotes and dollars in it.
ifdef m
override m := $(value m)
export m
endif

migration: install ## Write a migration from the models: make migration m="add colour".
	@test -n "$$m" || { echo 'Say what it does: make migration m="add colour"' >&2; exit 2; }
	@cd src && exec ../$(BIN)/alembic revision --autogenerate --message="$$m"

test: install ## Run all tests on PostgreSQL and Valkey of their own.
	$(PARALLEL) $(ARGS)
	$(ALONE) $(ARGS) || test $$? = 5

format: install ## Format the code.
	@$(BIN)/ruff format && $(BIN)/ruff check --fix

check: install ## Format, lint, types, tests with coverage: what CI runs.
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(PARALLEL) --cov --cov-report= --cov-fail-under=0 $(ARGS)
	$(ALONE) --cov --cov-append --cov-report=term $(ARGS)

doctor: install ## Look at the settings and every server they name; each fault with its remedy.
	@exec $(PY) -m src.scripts.doctor $(ARGS)

docs: install ## Build the documents' site into site/; it needs no other host, and refuses broken links.
	@exec $(PY) -m src.scripts.docs

bench: install ## What requests, jobs and the console's pages cost, next to a bare FastAPI route; needs wrk (docs/benchmarks.md).
	@exec $(PY) -m bench $(ARGS)

chaos: install ## Break nginx, servers, workers, PostgreSQL and Valkey in turn under load; what failed, what was lost.
	@exec $(PY) -m chaos $(ARGS)

lock: install ## Compile the lock files anew from pyproject.toml.
	@$(PY) -m pip install --quiet --disable-pip-version-check uv
	@$(COMPILE) pyproject.toml -o requirements.txt
	@$(COMPILE) --extra tracing -c requirements.txt pyproject.toml -o requirements-tracing.txt
	@$(COMPILE) --extra s3 -c requirements.txt pyproject.toml -o requirements-s3.txt
	@$(COMPILE) --group dev -c requirements.txt -c requirements-tracing.txt -c requirements-s3.txt pyproject.toml -o requirements-dev.txt

# The extras stay in the pins: pip would not take "redis==5.3" for an answer to another package's "redis[hiredis]".
COMPILE := $(BIN)/uv pip compile --quiet --universal --upgrade --generate-hashes --no-strip-extras --no-emit-index-url \
	--custom-compile-command "make lock"

.PHONY: help install run services worker migrate migration test format check doctor docs bench chaos lock
