# Two commands do everything on a machine with Python 3.11 or newer and make: `make demo` and `make test`.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test lint types layers pytest format fixtures readme benchmark fuzz clean

demo: $(READY)
	@echo; echo '$$ bncheck audit fixtures/healthy-cnn-module'
	@$(BIN)/bncheck audit fixtures/healthy-cnn-module
	@echo; echo '$$ bncheck audit fixtures/bn201-zero-momentum-module'
	@$(BIN)/bncheck audit fixtures/bn201-zero-momentum-module; \
	code=$$?; echo; echo "exit code $$code (1: findings)"; test $$code -eq 1

test: lint types layers pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

layers: $(READY)
	$(BIN)/lint-imports

pytest: $(READY)
	$(BIN)/pytest -n 2 --dist loadfile --durations 15

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Trains every network anew and writes the files under fixtures/.
fixtures: $(READY)
	$(BIN)/python fixtures/build.py

# Renews the generated parts of the README: the rule table, the examples' output and the picture.
readme: $(READY)
	$(BIN)/python -m tests.readme_blocks --write

benchmark: $(READY)
	$(BIN)/python tests/benchmarks/static_audit.py
	$(BIN)/python tests/benchmarks/formats.py
	$(BIN)/python tests/benchmarks/remote_audit.py
	$(BIN)/python tests/benchmarks/faults.py
	$(BIN)/python tests/benchmarks/audit_memory.py
	$(BIN)/python tests/benchmarks/recalibrate.py --rounds 3

# Reads 100 000 mutated model files under watch; exit code 1 where one of them made a reader do what none may.
fuzz: $(READY)
	$(BIN)/python tests/benchmarks/fuzz.py

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "bncheck needs Python 3.11 or newer; try make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
