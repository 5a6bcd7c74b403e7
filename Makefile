# Everything runs in .venv, which is made when it is missing.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTHON ?= $(firstword $(shell command -v python3.11 python3.12 python3.13 python3))
# The longest first.
TESTS ?= tests/cli/ $(filter-out tests/cli/,$(sort $(wildcard tests/[a-z]*/)))
# Folders that are tested at the same time; more than one keep to a core each.
JOBS ?= 2
THREADS := $(if $(filter-out 1,$(JOBS)),OMP_NUM_THREADS=1)
GOLDEN := tests/pipelines/golden

# Import names for mypy, which does not follow the mapping in pyproject.toml.
NAMES := .mypy_cache/path/yolo_distill

.PHONY: help setup run test lint compile docs golden

help:  ## Show what there is to make
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP)  ## Make .venv with everything installed

run: setup  ## Run the pipeline on the embedded digits, or with ARGS="--data …"
	@$(BIN)/yolo-distill run $(ARGS)

# Each step's tests get a process of their own, as the steps do: all native libraries in one have crashed at its end.
test: lint  ## Check and test everything, or some folders with TESTS="tests/compare/ tests/docs/"
	@$(MAKE) --no-print-directory --keep-going --jobs $(JOBS) --output-sync=target $(patsubst tests/%,test-%,$(TESTS:/=))

# Exit status 5 says that ARGS selected no test of a folder.
test-%:
	@$(THREADS) $(BIN)/pytest tests/$*/ $(ARGS) || test $$? -eq 5

lint: setup  ## Check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	@mkdir -p $(NAMES)
	@ln -sfn ../../../components $(NAMES)/components
	@ln -sfn ../../../pipelines $(NAMES)/pipelines
	MYPYPATH=.mypy_cache/path $(BIN)/mypy -p yolo_distill.components -p yolo_distill.pipelines

compile: setup  ## Write the pipelines as KFP IR YAML into build/
	@mkdir -p build
	@for name in distillation ablation; do \
		$(BIN)/yolo-distill compile --pipeline $$name --output build/yolov8-$$name.yaml; done

docs: setup  ## Write inputs and outputs into components' READMEs, and figures into that of the benchmarks
	$(BIN)/python scripts/generate_readmes.py

golden: setup  ## Accept the pipelines as they are compiled now
	@for name in distillation ablation; do \
		$(BIN)/yolo-distill compile --pipeline $$name --output $(GOLDEN)/$$name.yaml; done

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo 'error: Python 3.11 or newer is needed; name it with PYTHON=…' >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo 'Installing into $(VENV): this takes some minutes and about 7 GB.'
	$(BIN)/pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev]'
	@touch $@
