# The doors of the project. A bare Debian with python3, pip and make is enough: everything else is brought
# into this folder, and once it is there no network is needed.
.DEFAULT_GOAL := help
.PHONY: help run test chaos mutants overload soak recovery drain check format figures bench bench-long bench-peers

SOURCES := baton_tasks.py gateway pipeline storage tests benchmarks
UV_VERSION := 0.13.9
UV := .tools/uv-$(UV_VERSION)
BIN := .venv/bin
# Most tests wait for servers, so three processes share two cores well; each has servers of its own.
TEST_PROCESSES := --numprocesses 3 --dist loadfile --no-loadscope-reorder

MINUTES := 3
ROUNDS := 5

export UV_PYTHON_DOWNLOADS := never
export UV_PYTHON_PREFERENCE := only-system

help: ## say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile

run: .venv/synced ## start everything at http://127.0.0.1:8000, data in .baton/
	@exec $(BIN)/baton run --embedded

test: .venv/synced ## run every test, with private servers
	@exec $(BIN)/pytest $(TEST_PROCESSES) -m "not alone"

chaos: .venv/synced ## break the service for MINUTES, as SEED says: make chaos MINUTES=3 SEED=1
	@exec $(BIN)/python -m tests.chaos.harness --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(if $(RATE),--tasks-per-second $(RATE))

mutants: .venv/synced ## check the checker of chaos by programs with one mistake each, in ten minutes
	@exec $(BIN)/pytest -m alone

overload: .venv/synced ## post 500,000 tasks while nobody works, and watch the memory of every process
	@exec $(BIN)/python -m tests.chaos.harness.overload

soak: .venv/synced ## keep the service busy for 25 minutes, 8 of them beside a reader that holds its snapshot
	@exec $(BIN)/python -m tests.chaos.harness.soak

check: .venv/synced ## all that continuous integration runs: lint, types, tests and three minutes of chaos
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec compose.yaml
	$(BIN)/hadolint Containerfile
	@$(MAKE) --no-print-directory test
	@$(MAKE) --no-print-directory chaos RATE=100
	@echo "make check: everything passed"

recovery: .venv/synced ## measure how soon work goes on after each kind of death, in 25 minutes
	@exec $(BIN)/python -m tests.chaos.harness.recovery --keep

drain: .venv/synced ## end processes by SIGTERM under load, 50 times, in 15 minutes
	@exec $(BIN)/python -m tests.chaos.harness.drain --keep

figures: .venv/synced ## write the figures of tests/chaos/reports into documents/guarantees.md
	@exec $(BIN)/python -m tests.chaos.harness.figures

bench: .venv/synced ## measure the service, the limits of this machine and the peers: make bench ROUNDS=5
	@$(BIN)/python -m benchmarks --rounds $(ROUNDS)
	@exec $(BIN)/python -m benchmarks.document

bench-long: .venv/synced ## measure what takes minutes: backlogs, memory, reads among 10,000,000 tasks, a steady load
	@$(BIN)/python -m benchmarks --long --rounds $(ROUNDS)
	@exec $(BIN)/python -m benchmarks.document

bench-peers: .peers/synced ## install the other task queues for make bench, into .peers

format: .venv/synced ## rewrite the sources as `make check` wants them
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

# Each file below is written last, so that an interrupted installation is started over.
.venv/synced: $(UV) uv.lock pyproject.toml
	@echo "installing what uv.lock names into .venv"
	@.tools/bin/uv sync --locked --quiet
	@touch $@

.peers/synced: $(UV) benchmarks/peers/requirements.txt
	@echo "installing the peers into .peers"
	@.tools/bin/uv venv --quiet --allow-existing .peers
	@.tools/bin/uv pip sync --quiet --python .peers/bin/python benchmarks/peers/requirements.txt
	@touch $@

$(UV):
	@for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	    $$python -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; python=; \
	done; \
	test -n "$$python" || { echo "Baton needs Python 3.11 or newer with pip: apt-get install python3-pip"; exit 1; }; \
	echo "installing uv $(UV_VERSION) into .tools"; rm -rf .tools; \
	$$python -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --target .tools uv==$(UV_VERSION)
	@touch $@
