# Set-up and every check. `make` lists the targets; PYTHON=python3.12 picks another interpreter.

PYTHON ?= python3
VENV := .venv
WHEEL_VENV := .venv-wheel
SERVERS_VENV := .venv-servers
BIN := $(VENV)/bin
EXTRAS := accurate-counts,bundled,chinese,chroma,lance,milvus,plot,qdrant,qdrant-edge,ray,recipes,redis,dev
SAMPLE := sample_data/texts.jsonl
BENCH_INPUT ?= $(SAMPLE)
KILLS ?= 100
JOBS ?= 2000
# Twice quiet: errors only.
PIP_INSTALL := -m pip install --quiet --quiet --disable-pip-version-check -c constraints.txt
NEEDS := pyproject.toml constraints.txt

# $(call step,TITLE,COMMAND): print what a step does, run it, and print how long it took.
step = printf '%s\n' '$(1)'; begin=$$(date +%s); $(2) && printf '(%s s)\n\n' "$$(($$(date +%s) - begin))"
SHOW = $(BIN)/python scripts/show.py out.parquet && \
	printf '\nThe rows nearest to "my charger is too hot":\n\n' && \
	$(BIN)/embedcli search out.parquet "my charger is too hot" -k 3

unexport PYTHONPATH
.DEFAULT_GOAL := help
.PHONY: help demo test format format-check lint types imports docs docs-check architectures pytest wheel bench kill-test fuzz servers samples clean

help:  ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo:  ## set up, embed the sample rows and show the result
	@$(call step,1 of 3: set up $(VENV),$(MAKE) --no-print-directory --silent $(VENV)/.run)
	@$(call step,2 of 3: embed $(SAMPLE),$(BIN)/embedcli encode $(SAMPLE) out.parquet --keep text --keep lang --overwrite)
	@$(call step,3 of 3: show rows and search them,$(SHOW))

test: format-check lint imports types docs-check wheel pytest  ## set up and run every check

format: $(VENV)/.dev  ## format the code and apply safe lint fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

format-check: $(VENV)/.dev  ## check the formatting of the code
	$(BIN)/ruff format --check .

lint: $(VENV)/.dev  ## check the code with ruff
	$(BIN)/ruff check .

types: $(VENV)/.dev  ## check the types with mypy
	$(BIN)/mypy

imports: $(VENV)/.dev  ## check that packages import downwards only
	$(BIN)/lint-imports --no-logo

docs: $(VENV)/.dev  ## update the generated parts of the documentation
	$(BIN)/python scripts/docs.py

docs-check: $(VENV)/.dev  ## check that the generated parts of the documentation are up to date
	$(BIN)/python scripts/docs.py --check

architectures: $(VENV)/.dev  ## embed with every architecture of the table in docs/reference/models.md and update it
	$(BIN)/python scripts/compare_architectures.py

pytest: $(VENV)/.dev  ## run the tests in parallel; PYTEST_ADDOPTS="-k name" selects some
	$(BIN)/python -m pytest --numprocesses $$($(BIN)/python -c 'import os; print(min(4, (os.cpu_count() or 1) + 1))')

wheel: $(VENV)/.dev  ## build the wheel and test it without development packages
	rm -rf dist
	$(BIN)/python -m hatchling build --target wheel
	@$(MAKE) --no-print-directory $(WHEEL_VENV)/.run
	$(WHEEL_VENV)/bin/python $(PIP_INSTALL) --no-deps --force-reinstall dist/*.whl
	$(WHEEL_VENV)/bin/python -m pip check
	$(WHEEL_VENV)/bin/python -I scripts/smoke_wheel.py sample_data

bench: $(VENV)/.dev  ## compare the speed with sentence-transformers; BENCH_INPUT=FILE sets the rows
	$(BIN)/embedcli bench $(BENCH_INPUT)

kill-test: $(VENV)/.dev  ## kill runs at random moments, resume them and compare the outputs; KILLS=1000
	$(BIN)/python scripts/kill_test.py --kills $(KILLS)

fuzz: $(VENV)/.dev  ## embed random files and compare ids, texts and counts with what was written; JOBS=2000
	$(BIN)/python scripts/fuzz_inputs.py --jobs $(JOBS)

servers: $(VENV)/.dev $(SERVERS_VENV)/.run  ## embed with servers that others wrote, kill them and compare the outputs
	$(BIN)/python scripts/real_servers.py --programs $(SERVERS_VENV)/bin

samples: $(VENV)/.dev  ## write the CSV and Parquet sample files from the JSONL file
	$(BIN)/python scripts/make_samples.py

clean:  ## remove the environments, caches and built files
	rm -rf $(VENV) $(WHEEL_VENV) $(SERVERS_VENV) dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache out.parquet*

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "embedcli needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.run: $(VENV)/.created $(NEEDS)
	$(BIN)/python $(PIP_INSTALL) -e '.[bundled]'
	@touch $@

# The development set-up includes what the demo needs, so that nothing is installed twice.
$(VENV)/.dev: $(VENV)/.created $(NEEDS)
	$(BIN)/python $(PIP_INSTALL) -e '.[$(EXTRAS)]'
	@touch $(VENV)/.run $@

$(WHEEL_VENV)/.run: $(NEEDS)
	$(PYTHON) -m venv --clear $(WHEEL_VENV)
	$(WHEEL_VENV)/bin/python $(PIP_INSTALL) "$$(ls dist/*.whl)[bundled]"
	@touch $@

# The servers need other versions of the libraries than embedcli.
$(SERVERS_VENV)/.run: scripts/servers/requirements.txt
	$(PYTHON) -m venv --clear $(SERVERS_VENV)
	$(SERVERS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	$(SERVERS_VENV)/bin/python -m pip check
	@touch $@
