# The two commands of the README: make demo, make test. `make check` is what CI runs before the tests.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Processes that share the tests, each with one compute thread and up to 2 GiB.
TEST_PROCESSES ?= auto
export OMP_WAIT_POLICY ?= PASSIVE
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true

# The settings under which a processor with AVX-512 computes with the kernels of one without.
OTHER_KERNELS := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2
FUZZ_INPUTS ?= 5000
KILLS ?= 500

.PHONY: help demo fuzz kills nightly controls kfp-local image image-test manifests test test-kernels test-servers check docs format install ui clean lock

help:
	@echo "make demo     run the whole job on real images and print where the report is"
	@echo "make test     run every test except those that start databases and object stores"
	@echo "make nightly  the same with the slow tests that seldom fail, at their full size: an hour"
	@echo "make test-servers run the tests on PostgreSQL, S3 and MLflow: minutes"
	@echo "make check    format, lint, types, import rules, generated files"
	@echo "make fuzz     read $(FUZZ_INPUTS) mutated files of each format that a user can pass in"
	@echo "make kills    kill the commands of the job $(KILLS) times in all, and compare their outputs; resumes an interrupted run"
	@echo "make controls remove every safeguard that docs/reliability.md names, one by one: a named test must fail"
	@echo "make docs     build the manual as a site into build/site"
	@echo "make ui       MLflow's user interface on the runs of make demo"
	@echo "make kfp-local run the job as the pipeline that a cluster runs, on this machine"
	@echo "make manifests render what a cluster needs in addition to Kubeflow, with kustomize or kubectl"
	@echo "make clean    remove what the job wrote (not the virtual environment)"

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip sync --quiet --python $(BIN)/python requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	$(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null 2>&1 || true
	@touch $(STAMP)

install: $(STAMP)

# The demo keeps its ledger in this folder: its test images are the same for everyone, so other users' looks do not count.
demo: export GDA_LEDGER ?= $(CURDIR)/.gda/test_ledger.jsonl
demo: $(STAMP)
	@test -d .dvc || dvc init --quiet
	dvc repro
	@gda summary

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not servers" -n $(TEST_PROCESSES) --maxprocesses 4 --dist loadfile --no-loadscope-reorder
	@if grep -q -w avx512f /proc/cpuinfo 2>/dev/null; then $(MAKE) --no-print-directory test-kernels; else echo "learning tests are not run again: this processor has no other kernels to run them with"; fi

# Everything of make test, and the slow tests that seldom fail, at their full size.
nightly: export GDA_TEST_NIGHTLY := 1
nightly: test

# PostgreSQL must be installed. The first run builds the S3 server with go (minutes) and downloads MLflow's drivers, into ~/.cache/gda-tests.
test-servers: $(STAMP)
	GDA_TEST_INSTALL=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m servers -rs

# What networks learn must not depend on rounding: the learning tests run again, with the kernels of another processor.
test-kernels: $(STAMP)
	$(OTHER_KERNELS) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m learning -n $(TEST_PROCESSES) --maxprocesses 4 --dist loadfile

check: $(STAMP)
	ruff format --check .
	ruff check .
	mypy gda components pipelines manifests
	mypy docs/site
	lint-imports
	$(BIN)/python -m gda.flow | diff - dvc.yaml
	$(BIN)/python -m pipelines compile --check
	$(BIN)/python -m pipelines lint pipelines/compiled/*.yaml
	NO_MKDOCS_2_WARNING=1 mkdocs build --quiet --strict
	$(BIN)/python -m pytest -q -p no:cacheprovider tests/contract/test_words.py tests/contract/test_structure.py
	$(BIN)/python -m manifests.render --check
	for whole in base local; do $(BIN)/python -m manifests.check manifests/rendered/$$whole.yaml pipelines/compiled/*.manifest.yaml || exit 1; done
	$(BIN)/python -m manifests.check manifests/rendered/standalone.yaml
	@for seed in 1 2; do PYTHONHASHSEED=$$seed OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --collect-only >$(VENV)/collected-$$seed.txt || { tail -20 $(VENV)/collected-$$seed.txt; exit 1; }; done
	@grep -h :: $(VENV)/collected-1.txt >$(VENV)/names-1.txt; grep -h :: $(VENV)/collected-2.txt | diff $(VENV)/names-1.txt - || { echo "the names of tests change from process to process"; exit 1; }
	@if grep -q -i -E '^--(extra-)?index-url|^--find-links|@ http' requirements.lock; then echo "requirements.lock names an index address"; exit 1; fi

# The whole job as the pipeline `augment`, one process per step, with the demo's parameters. Pages are written to kfp-local/pages.
kfp-local: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pipelines.local --data-root kfp-local

# The image that pipeline steps run in. BASE names another base image with Python 3.11, for machines that reach no registry.
image: $(STAMP)
	$(BIN)/python -m components.images.build --target $(or $(TARGET),cpu) --tag $(or $(TAG),gda:local) $(if $(BASE),--base $(BASE))

image-test: $(STAMP)
	$(BIN)/python -m pytest -rs tests/images

# Renders manifests/rendered from its sources.
manifests: $(STAMP)
	$(BIN)/python -m manifests.render

# Each format is read in a process with 2 GiB of memory and 5 s per file. Files that raised an unexpected error are kept in fuzz-kept.
fuzz: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/fuzz_runner.py --inputs $(FUZZ_INPUTS) --keep fuzz-kept

# Rounds are kept in kills.jsonl, so that an interrupted run resumes. KILL_MINUTES ends it early.
KILL_MINUTES ?= 100000
kills: $(STAMP)
	PYTHONPATH=.:tests/worlds OMP_NUM_THREADS=1 $(BIN)/python tests/kills/kill_runner.py --kills $(KILLS) --minutes $(KILL_MINUTES)

# Each safeguard of docs/reliability.md is removed, in a copy: the tests that the page names must fail. ROWS="3 9" runs only those rows.
controls: $(STAMP)
	PYTHONPATH=tests/controls $(BIN)/python tests/controls/control_runner.py $(if $(ROWS),--row $(ROWS))

format: $(STAMP)
	ruff format .
	ruff check --fix .

# Reference pages are generated from the code; a dead link fails the build.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict
	@echo "open build/site/index.html; its search needs a server: python -m http.server -d build/site"

ui: $(STAMP)
	mlflow ui --backend-store-uri sqlite:///mlflow.db

lock:
	uv pip compile pyproject.toml --extra dev --extra kfp --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url -q -o requirements.lock
	python -m components.images.build --requirements | uv pip compile - --constraint requirements.lock --python-version 3.11 --python-platform x86_64-manylinux_2_28 --generate-hashes --no-header --no-annotate --no-emit-index-url -q -o components/images/requirements.lock

clean:
	rm -rf data models reports .gda mlflow.db .mlflow.db.lock mlruns dvc.lock kfp-local fuzz-kept kills.jsonl
