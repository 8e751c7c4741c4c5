# Everything here works on a fresh machine: what is missing is installed first (tools/setup).
SHELL := /bin/bash
.DEFAULT_GOAL := help
.NOTPARALLEL:
BIN := .venv/bin

.PHONY: help setup demo test check soak bench docs image kafka dapr lock clean

help: ## show this
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: ## install what is missing: PostgreSQL with PostGIS, .venv
	@tools/setup

demo: setup ## a small federation on this machine; ARGS="--help" shows its options
	$(BIN)/fedstac demo $(ARGS)

test: check ## everything that CI runs; ARGS="-k name -x" goes to pytest
	@$(BIN)/python tools/esgf_publisher.py
	@$(BIN)/python tools/event_readers.py
	$(BIN)/pytest -n 2 --dist loadgroup --no-loadscope-reorder --durations 20 $(ARGS)

soak: setup ## the tests that run for minutes or hours; BENCH=hostile for one of them
	$(BIN)/pytest -m soak --log-cli-level INFO -s $(if $(BENCH),-k $(BENCH)) $(ARGS)

check: setup ## lint, format, types, import contracts, prose
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/prose.py

bench: setup ## measure fedstac beside stock stac-fastapi-pgstac; BENCH=read, write, replica, search (SIZE=20k, 100k, 1m); ARGS="--help"
	@$(BIN)/python -m benchmarks $(BENCH) $(if $(SIZE),--size $(SIZE)) $(ARGS)

kafka: setup ## fetch Apache Kafka for the tests and `make demo ARGS="--broker kafka"` (43 MB; needs Java 17 and Maven)
	@$(BIN)/python tools/kafka.py $(ARGS)

dapr: setup ## build Dapr's sidecar for the tests marked `dapr` (some minutes; needs Go)
	@$(BIN)/python tools/dapr.py $(ARGS)

docs: setup ## write the generated pages of docs/reference, the dashboard, and the examples of the OpenAPI document
	$(BIN)/python tools/reference.py
	$(BIN)/python tools/dashboard.py
	PYTHONHASHSEED=0 $(BIN)/python tools/examples.py # stac-fastapi takes fields from a set

image: setup ## build the container image with buildah, as root; docs/operations.md
	@tools/image

PIN := uv pip compile --universal --generate-hashes --no-header --no-emit-index-url --no-emit-find-links --quiet
lock: ## pin what pyproject.toml names (needs uv); ARGS=--upgrade takes the newest of everything
	$(PIN) --extra server --extra netcdf --extra parquet --extra kafka --extra nats --extra nats-server --extra replica --group dev $(ARGS) \
		--output-file requirements.lock pyproject.toml
	$(PIN) --extra server --extra kafka --extra nats --extra parquet --extra replica --constraint requirements.lock --output-file docker/server.lock pyproject.toml
	$(PIN) --group build --constraint requirements.lock --output-file docker/build.lock

clean: ## remove caches and build products; .venv stays
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -path ./.venv -prune -o -type d -name __pycache__ -exec rm -rf {} +
