# The two commands of the README. Everything they make lies in .venv, data and out.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test test-slow docs

quickstart: .venv/installed
	$(BIN)/python data/python_stdlib/prepare.py
	$(BIN)/python train.py config/quickstart.py --init_from=auto
	$(BIN)/python sample.py out/quickstart --max_new_tokens=300
	$(BIN)/python compare_architectures.py out/quickstart --png out/quickstart/loss.png
	@echo "log:        out/quickstart/log.jsonl"
	@echo "loss curve: out/quickstart/loss.png"
	@echo "checkpoint: out/quickstart/checkpoints"

test: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: .venv/installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "slow and not soak"

docs: .venv/installed
	$(BIN)/python configurator.py > docs/configuration.md
	$(BIN)/python -m components.reference > docs/reference/components.md

# torch first: what depends on it then keeps the build that was chosen.
.venv/installed: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; call: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet "$$(grep ^torch== requirements.txt)"
	$(BIN)/pip install --quiet -r requirements.txt
	touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	$(BIN)/pip install --quiet -r requirements-dev.txt
	touch $@
