# make quickstart   from a fresh clone to a model that speaks
# make test         the whole test suite, with lint and types
# make gpu-check    parity and speed on a GPU, where there is one
PYTHON ?= python3
BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: setup setup-test quickstart test lint slow gpu-check clean

setup: .venv/.setup
setup-test: .venv/.setup-test

# The stamps are newer than what they were made from, so that a second call costs nothing.
.venv/.setup: pyproject.toml constraints.txt
	@test -x $(BIN)/python || { echo "making the virtual environment .venv"; $(PYTHON) -m venv .venv; }
	@echo "installing Cupola and its dependencies (about a minute)"
	@$(PIP_INSTALL) -e .
	@touch $@

.venv/.setup-test: .venv/.setup
	@echo "installing what only the tests need (about a minute)"
	@$(PIP_INSTALL) -e '.[huggingface,test]'
	@touch $@

quickstart: setup
	@$(BIN)/cupola run recipes/quickstart.yaml

lint: setup-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

slow: setup-test
	$(BIN)/python -m pytest -m slow

gpu-check: setup-test
	@$(BIN)/python -m bench.gpu_check

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
