# make demo | test | lint | bench | format; each works from a clean checkout with Python >= 3.10,
# a C++ compiler and pip. Overridable: make PYTHON=python3.12 TORCH=torch==2.12.0 demo
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu')
SIMT := $(wildcard python_tests/simt/*)
# The operator suite, which runs on every backend.
OPERATORS := $(addprefix python_tests/test_,cuda.py gat.py gatv2.py determinism.py philox.py)

# An address sanitizer for the emulated CUDA kernels, where the compiler is GCC and has one to load beforehand
# (and the C++ library with it, or it misses exceptions).
ifeq ($(origin CXX),default)
CXX := c++
endif
ifeq ($(findstring clang,$(shell $(CXX) --version)),)
ASAN := $(realpath $(shell $(CXX) -print-file-name=libasan.so))
endif
ifneq ($(ASAN),)
LIBSTDCXX := $(realpath $(shell $(CXX) -print-file-name=libstdc++.so.6))
SANITIZED := GATKERNELS_SANITIZE=address ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$(ASAN) $(LIBSTDCXX)"
endif

# And once more the Triton kernels, in Triton's interpreter (Linux only).
ifeq ($(shell uname),Linux)
INTERPRETED := $(addprefix interpreted-,gat gatv2 philox ops determinism)
endif

.PHONY: demo test test-cuda test-triton $(INTERPRETED) gpu lint format bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    train the paper's GAT on Cora, then time the layer"
	@echo "make test    all tests; parts of them alone: make test-cuda, make test-triton"
	@echo "make gpu     build, check and measure everything on a GPU (bench/gpu.sh)"
	@echo "make lint    ruff, mypy, clang-format"
	@echo "make bench   the layers against PyG and DGL (installs both)"

$(VENV)/torch:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python >= 3.10 is needed")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	@touch $@

$(VENV)/ready: $(VENV)/torch setup.py pyproject.toml $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' "$(TORCH)"
	@touch $@

$(VENV)/peers: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,peers]' "$(TORCH)"
	@touch $@

demo: $(VENV)/ready
	$(BIN)/gatkernels demo

test: $(VENV)/ready
	$(BIN)/python -m pytest python_tests
	$(MAKE) test-cuda
	$(MAKE) --jobs=2 --output-sync test-triton

# The CUDA kernels on the tests' emulator, out-of-bounds accesses caught; on a GPU `make gpu`.
test-cuda: $(VENV)/ready
	$(SANITIZED) GATKERNELS_TEST_BACKEND=cuda $(BIN)/python -m pytest $(OPERATORS)

test-triton: $(INTERPRETED)

ifdef INTERPRETED
$(INTERPRETED): interpreted-%: $(VENV)/ready
	TRITON_INTERPRET=1 GATKERNELS_TEST_BACKEND=triton \
	  $(BIN)/python -m pytest python_tests/test_$*.py
endif

# In the virtual environment where there is one, else with what PYTHON has.
gpu:
	PYTHON=$(firstword $(wildcard $(BIN)/python) $(PYTHON)) bench/gpu.sh

lint: $(VENV)/ready
	$(BIN)/ruff check gatkernels python_tests bench docs setup.py
	$(BIN)/ruff format --check gatkernels python_tests bench docs setup.py
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(SOURCES) $(SIMT)

format: $(VENV)/ready
	$(BIN)/ruff check --fix gatkernels python_tests bench docs setup.py
	$(BIN)/ruff format gatkernels python_tests bench docs setup.py
	$(BIN)/clang-format -i $(SOURCES) $(SIMT)

bench: $(VENV)/peers
	$(BIN)/gatkernels bench

clean:
	rm -rf build $(VENV) gatkernels/*.so *.egg-info
