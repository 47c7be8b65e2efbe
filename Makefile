# Two commands on a fresh machine with python3 (3.10 to 3.14) and make: `make demo`, `make test`.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# Kernels are linked by a C compiler. Where there is none, a wheel brings one.
HAS_CC := $(shell command -v $(or $(CC),cc) || command -v gcc || command -v clang)
EXTRA  := $(if $(HAS_CC),,ziglang)

# GPU kernels are compiled, and interpreted, without a GPU. Where there is no nvcc, wheels bring it.
HAS_NVCC := $(or $(wildcard $(CUDA_HOME)/bin/nvcc),$(wildcard $(CUDA_PATH)/bin/nvcc),$(shell command -v nvcc))
COMMA    := ,
EXTRAS   := compile,test$(if $(strip $(HAS_NVCC)),,$(COMMA)cuda)

.PHONY: demo test docs notebooks lint format bench golden rankings clean

demo: $(STAMP)  ## build attention for this machine, check it, time it
	$(BIN)/tvm-flash demo

test: $(STAMP)  ## the whole suite
	$(BIN)/python -m pytest -n auto --dist worksteal $(PYTEST_ARGS)

docs: $(STAMP)  ## the documentation as a site, in build/site
	$(BIN)/python -c 'import mkdocstrings' 2>/dev/null || $(BIN)/python -m pip install -c constraints.txt --no-build-isolation -e '.[docs]'
	$(BIN)/python docs/site/pages.py build/pages
	PYTHONPATH=docs/site NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict
	@echo 'open build/site/index.html'

notebooks: $(STAMP)  ## run the scripts of docs/site/notebook.py, rewrite their pages and pictures
	$(BIN)/python docs/site/notebook.py

lint: $(STAMP)  ## what the pre-commit hooks check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)  ## rewrite to the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## measure this machine (an hour or two, goes on where it was), refresh the documents
	$(BIN)/tvm-flash bench --suite cpu --out benchmarks/results/cpu.json --plot docs/performance-cpu.png $(BENCH_ARGS)
	$(BIN)/python benchmarks/update_readme.py

golden: $(STAMP)  ## rewrite the golden text of the scheduled code
	$(BIN)/python -m pytest tests/schedules/test_golden.py tests/project/test_layers.py --update-golden

RANKED := --target cuda:sm_80 --trials 20 --seed 0 --logs tuning_logs
rankings: $(STAMP)  ## rank GPU configs by the model (no GPU, half an hour), refresh their table in the documents
	$(BIN)/tvm-flash tune bf16,d=64,causal bf16,d=128,causal --directions forward $(RANKED)
	$(BIN)/python -m pytest -n 0 tests/tune/test_rankings.py --update-golden

clean:  ## the environment and everything built; not the kernel cache
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 14) else f"Python {v[0]}.{v[1]} is not supported: call make PYTHON=python3.12 (3.10 to 3.14)")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt setuptools wheel
	$(BIN)/python -m pip install -c constraints.txt --no-build-isolation -e '.[$(EXTRAS)]' $(EXTRA)
	@touch $(STAMP)
