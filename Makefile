# Each target is one way in: README.md names `demo` and `test`, .ci/run calls the same targets as people do.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
# Servers, runners and tools are processes: each starts several times faster from bytecode that is kept.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help: ## list the targets
	@awk 'BEGIN { FS = ":.*## " } /^## / { printf "\n%s\n", substr($$0, 4) } \
	  /^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

## Start: each does its own set-up

.PHONY: demo demo-down test
demo: .venv/installed ## run a real pipeline on a stack of its own; Ctrl+C stops all of it
	@$(BIN)/python -m demo.demo

demo-down: .venv/installed ## clean up after a demo that crashed
	@$(BIN)/python -m demo.down

test: .venv/installed ## run the tests, on a PostgreSQL of their own
	@$(BIN)/python -m pytest tests -n 3 --dist worksteal

## Develop

.PHONY: setup format proto docs-roles lock clean
setup: .venv/installed ## make or renew .venv from requirements.lock

format: .venv/installed ## write Python and proto files in their one format
	@$(BIN)/ruff check --quiet --fix --exit-zero .
	@$(BIN)/ruff format .
	@$(BIN)/buf format --write

proto: ## generate src/animus/v1 from proto/
	@proto/generate

docs-roles: .venv/installed ## generate docs/roles.md from the access table
	@$(BIN)/python tests/golden/roles.py

lock: .venv/installed ## renew both lock files after a change of dependencies; UPGRADE=1 takes new versions
	@compile() { $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	  $(if $(UPGRADE),--upgrade) "$$@"; }; \
	compile --all-extras --group demo --group dev --output-file requirements.lock pyproject.toml; \
	compile --output-file proto/requirements.lock proto/requirements.in

clean: ## remove what the other targets made, both virtual environments included
	@rm -rf .venv .proto-venv dist .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

## Check: what .ci/run runs

.PHONY: check lint format-check typecheck proto-check deploy-check security audit demo-smoke role-matrix
check: test lint format-check typecheck proto-check deploy-check security audit demo-smoke ## all of the checks, tests and demo included

lint: .venv/installed ## ruff
	@$(BIN)/ruff check .

format-check: .venv/installed ## ruff and buf, changing nothing
	@$(BIN)/ruff format --check .
	@$(BIN)/buf format --diff --exit-code

typecheck: .venv/installed ## mypy, strict, tests included; folders that have a conftest.py of the same name apart
	@$(BIN)/mypy
	@$(BIN)/mypy demo benchmarks faults supply
	@MYPYPATH=src:gateway:tests $(BIN)/mypy tests/*.py tests/{cli,domain,faults,golden,sdk,service,store,verify}
	@MYPYPATH=src:gateway:tests:tests/gateway $(BIN)/mypy tests/gateway
	@MYPYPATH=src:gateway:tests:tests/demo $(BIN)/mypy tests/demo

proto-check: .venv/installed ## the contract's rules, its compatibility with the last release, and the generated code
	@$(BIN)/buf lint
	@$(BIN)/buf breaking --against proto/baseline.binpb
	@proto/generate --check

deploy-check: .venv/installed ## hadolint, and the compose file against its schema and our rules
	@$(BIN)/hadolint deploy/Dockerfile
	@$(BIN)/python -m pytest tests/test_deploy.py

# Every severity. What bandit is less sure of, and the rules left out here, are ruff's S rules of the same numbers, or the
# lists of tests/test_shape.py; asserts state what is true by construction.
security: .venv/installed ## bandit
	@$(BIN)/bandit --quiet --recursive --confidence-level medium --skip B101,B105,B311,B404,B603,B607 \
	  src gateway migrations demo supply

audit: .venv/installed ## known weaknesses of the locked packages; AUDIT="-s osv" takes another service
	@$(BIN)/python -m supply.audit $(AUDIT)

role-matrix: .venv/installed ## every method by every credential in every place, as a table
	@ANIMUS_ROLE_MATRIX=whole $(BIN)/python -m pytest -s tests/service/test_role_matrix.py

demo-smoke: .venv/installed ## the demo without a person, what it prints checked; then again with the server killed
	@$(BIN)/python -m demo.smoke
	@$(BIN)/python -m demo.smoke --kill

## Measure and break: bounded, on this machine only, minutes each

.PHONY: bench-log bench-evidence bench-hashing bench-isolation bench-lineage bench-neighbour bench-profile bench-revocation
.PHONY: faults fuzz
bench-log: .venv/installed ## what the audit log costs, and how fast it is, as JSON
	@$(BIN)/python -m benchmarks.log

bench-evidence: .venv/installed ## what an export of 100,000 entries and its verification cost, as JSON
	@$(BIN)/python -m benchmarks.evidence

bench-hashing: .venv/installed ## digests of a large file and of 10,000 small ones against sha256sum, as JSON
	@$(BIN)/python -m benchmarks.hashing

bench-isolation: .venv/installed ## whether time tells what another project has, as JSON; and that a planted delay is found
	@$(BIN)/python -m benchmarks.isolation
	@! $(BIN)/python -m benchmarks.isolation --samples 2000 --plant 0.2

bench-lineage: .venv/installed ## how fast lineage answers on 10,000, 100,000 and 1,000,000 edges, as JSON
	@$(BIN)/python -m benchmarks.lineage

bench-neighbour: .venv/installed ## what a project feels of another at full load, as JSON; more than three times is an error
	@$(BIN)/python -m benchmarks.neighbour

bench-profile: .venv/installed ## time and memory of the profile of a table larger than its memory limit, as JSON
	@$(BIN)/python -m benchmarks.profile

bench-revocation: .venv/installed ## how soon a revoked token is refused by another server, as JSON; fails over one second
	@$(BIN)/python -m benchmarks.revocation

faults: .venv/installed ## 200 kills under load, leaders taken away, 8 writers at once; each checked by code of its own
	@$(BIN)/python -m faults.kills --kills 200
	@$(BIN)/python -m faults.replicas --times 10
	@$(BIN)/python -m faults.writers --writers 8 --seconds 30

fuzz: .venv/installed ## 100,000 random and mutated messages to every RPC, and every HTTP route by its description
	@$(BIN)/python -m faults.fuzz --messages 100000
	@$(BIN)/python -m faults.http --examples 50

## Release

.PHONY: wheel proto-baseline
wheel: .venv/installed ## build the wheel, its list of packages (SBOM) and the source distribution into dist/
	@rm -rf dist
	@$(BIN)/hatchling build
	@$(BIN)/python -m supply.sbom dist/*.whl

proto-baseline: .venv/installed ## take the contract as it is for the one that later changes must not break
	@$(BIN)/buf build --exclude-source-info --output proto/baseline.binpb

# The environment is made anew, and only when the lock or the package's metadata are others than those it was made of.
# The stamp is written last: what was interrupted is made again.
UV = $(if $(shell command -v uv),uv,$(BIN)/uv)
STAMP := $(shell cat requirements.lock pyproject.toml install | cksum | tr ' ' -)
ifneq ($(shell cat .venv/installed 2>/dev/null),$(STAMP))
.PHONY: .venv/installed
endif
.venv/installed:
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is missing; install Python 3.11 or newer" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $$($(PYTHON) --version) is too old; install Python 3.11 or newer, or give PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "error: $(PYTHON) has no venv module; install it (on Debian: apt install python3-venv)" >&2; exit 1; }
	@echo "==> making .venv from requirements.lock"
	@rm -rf .venv
	@$(PYTHON) -m venv .venv
	@./install .venv requirements.lock .
	@echo "$(STAMP)" > $@
