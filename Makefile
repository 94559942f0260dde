# `make demo`, `make app` and `make test` work on a fresh machine; they set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo app test lint docs support-table bench clean

setup: $(READY)

$(READY): pyproject.toml requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $(READY)

demo: setup
	$(BIN)/tts-vision generate "two red circles left of a blue star" --algorithm evosearch --seed 2

app: setup
	$(BIN)/tts-vision app

# two processes of one thread each: most tests are too small for two threads; compiled files are kept, because
# rewriting the asserts of all tests takes each process longer than many a file of tests; files come in the order of
# the alphabet, whose last ones are short, and not by their number of tests, of which some of the longest have few
test: setup
	PYTHONDONTWRITEBYTECODE= PYTHONHASHSEED=0 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/mypy && $(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target build/mypy .
	MYPYPATH=build/mypy $(BIN)/mypy -p tts_vision

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

support-table: setup
	$(BIN)/python tests/adapter/support_table.py

bench: setup
	$(BIN)/python -m tts_vision.eval.overhead
	$(BIN)/python -m tts_vision.eval.playground --previews expected complete rollout:2 --executor ray
	$(BIN)/python -m tts_vision.eval.judge --mixed
	$(BIN)/python -m tts_vision.eval.verifiers
	$(BIN)/python -m tts_vision.eval.gradients
	$(BIN)/python -m tts_vision.eval.var_costs
	$(BIN)/python -m tts_vision.eval.previews --model playground --prompts 40 --samples 4
	$(BIN)/python -m tts_vision.eval.previews --model playground-var

clean:
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache
