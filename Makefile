# On a fresh machine with Python 3.11 or newer, `make demo` and `make test` do everything.
PYTHON ?= python3
BIN = .venv/bin
DEMO ?= demo

.PHONY: setup test test-hostile test-accelerators test-browser test-metrics test-colab test-notebooks notebooks demo lint lock clean

setup: .venv/installed

.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "sedjax needs Python 3.11 or newer; name one with PYTHON=...: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/basedpyright --pythonpath $(BIN)/python

test: setup lint
	$(BIN)/python -m pytest -n 2 --dist=loadscope --no-loadscope-reorder

# The whole corpus of hostile input, then random damage to the input of every command: SECONDS=600 sets the duration,
# SEED=1 the random seed.
SECONDS ?= 60
test-hostile: setup
	SEDJAX_ALL_ROWS=1 $(BIN)/python -m pytest -q tests/properties/hostile
	$(BIN)/python tests/properties/hostile/fuzz.py --seconds=$(SECONDS) $(if $(SEED),--seed=$(SEED))

# Compiles every config at full size for TPUs and GPUs that are not present; takes about an hour.
test-accelerators: .venv-accelerators/installed
	.venv-accelerators/bin/python -m pytest tests/accelerators.py

.venv-accelerators/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv-accelerators
	.venv-accelerators/bin/pip install --quiet --disable-pip-version-check --requirement requirements.lock
	.venv-accelerators/bin/pip install --quiet --disable-pip-version-check --no-deps --editable .
	.venv-accelerators/bin/pip install --quiet --disable-pip-version-check --constraint requirements.lock \
	  'jax[tpu,cuda12-local]'
	@touch $@

# Operates the page that `sedjax predict --formats=html` writes.
CHROMIUM ?= chromium
test-browser: .venv-browser/installed
	@command -v $(CHROMIUM) > /dev/null || \
	  { echo "test-browser needs Chromium: install it, or name another program with CHROMIUM=..."; exit 2; }
	CHROMIUM=$$(command -v $(CHROMIUM)) .venv-browser/bin/python -m pytest tests/browser.py

.venv-browser/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv-browser
	.venv-browser/bin/pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable . \
	  beartype hypothesis playwright pytest

# Compares the field's metrics with sed_eval and sed_scores_eval; building these takes a C++ compiler.
test-metrics: .venv-metrics/installed
	.venv-metrics/bin/python -m pytest tests/scoring/test_field_metrics.py tests/scoring/test_events.py

.venv-metrics/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv-metrics
	.venv-metrics/bin/pip install --quiet --disable-pip-version-check --requirement requirements.lock
	.venv-metrics/bin/pip install --quiet --disable-pip-version-check --editable '.[metrics]'
	.venv-metrics/bin/python -W ignore -c 'import sed_eval, sed_scores_eval'  # else the tests would be skipped
	@touch $@

# Runs the notebook's cells in environments like Colab's GPU and TPU runtimes; needs 10 GB of disk in TMPDIR and
# downloads some gigabytes.
COLAB_PYTHON ?= python3.13
test-colab:
	$(COLAB_PYTHON) tests/colab_runtimes.py

# Runs both notebooks with tiny settings.
test-notebooks: setup
	SEDJAX_NOTEBOOKS=1 $(BIN)/python -m pytest tests/properties/test_notebook.py

# Stores the output of the notebooks.
notebooks: setup
	$(BIN)/python tests/notebooks.py

# The whole pipeline on the built-in data set: recordings, records, models, their cost, a submission, a report.
RUN = $(BIN)/sedjax
demo: setup
	$(RUN) soundscapes --output $(DEMO)/soundscapes
	$(RUN) records --source $(DEMO)/soundscapes --output $(DEMO)/mel_records --features melspectrogram --overwrite
	$(RUN) train --config=demo:naive --config.data.path=$(DEMO)/mel_records --workdir=$(DEMO)/naive
	$(RUN) train --config=demo:conv_transformer --config.data.path=$(DEMO)/mel_records --workdir=$(DEMO)/conv_transformer
	$(RUN) extract --source $(DEMO)/soundscapes --embeddings_from $(DEMO)/conv_transformer
	$(RUN) records --source $(DEMO)/soundscapes --output $(DEMO)/records --overwrite
	$(RUN) train --config=demo:embedding_transformer --config.data.path=$(DEMO)/records --workdir=$(DEMO)/embedding_transformer
	$(RUN) predict --workdir=$(DEMO)/embedding_transformer --source=$(DEMO)/soundscapes --split=test --output=$(DEMO)/predictions.csv
	$(RUN) truth --source $(DEMO)/soundscapes --split test --output $(DEMO)/ground_truth.csv
	$(RUN) score --predictions $(DEMO)/predictions.csv --ground_truth $(DEMO)/ground_truth.csv
	$(RUN) report $(DEMO)/naive $(DEMO)/conv_transformer $(DEMO)/embedding_transformer --output=$(DEMO)/report
	@echo "Recordings: $(DEMO)/soundscapes   Models: $(DEMO)/*_transformer   Submission: $(DEMO)/predictions.csv   Report: $(DEMO)/report/index.md"

lock:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --extra test --universal --python-version 3.11 --no-header --upgrade -o requirements.lock

clean:
	rm -rf .venv .venv-accelerators .venv-browser .venv-metrics $(DEMO)
