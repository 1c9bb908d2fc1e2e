# Two commands on a fresh machine: `make demo` and `make test`. Each makes its own virtual environment in .venv.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

# Where torch's CPU build lies; used only where no NVIDIA driver is found. TORCH_INDEX= (empty) takes the default build.
ifeq ($(shell command -v nvidia-smi 2>/dev/null),)
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
endif

# One process of tests a core, at most four: each holds torch and the tiny models (about 1.5 GB). A process that is done
# takes tests from the end of another's list. WORKERS= runs them in one process.
WORKERS ?= --numprocesses logical --maxprocesses 4 --dist worksteal --benchmark-disable

.PHONY: demo test test-verify test-all lint bench report clean

demo: $(VENV)/.demo
	$(BIN)/python -m ditf.demo --out demo

test: $(VENV)/.test
	$(BIN)/python -m pytest $(WORKERS) -m "not slow and not gpu"

test-verify: $(VENV)/.test
	TRITON_INTERPRET=1 DITF_VERIFY_REPORT=1 $(BIN)/python -m pytest -m verify

test-all: $(VENV)/.test
	$(BIN)/python -m pytest $(WORKERS) -m "not gpu"
	$(MAKE) test-verify

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(VENV)/.test
	$(BIN)/python -m pytest bench -m "not slow" --benchmark-columns=min,median,rounds

report: $(VENV)/.test
	$(BIN)/python bench/report.py

clean:
	rm -rf $(VENV) build dist demo *.egg-info

$(VENV)/.torch: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(BIN)/pip install --quiet --no-deps --retries 1 --constraint constraints.txt \
		--extra-index-url $(TORCH_INDEX) torch)
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[demo]"
	touch $@

# vos-benchmark is an oracle of the tests; its dependencies would put OpenCV's desktop build over the headless one.
$(VENV)/.test: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[test]"
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps vos-benchmark
	touch $@
