# make demo | test | lint | bench | format; each works from a clean checkout with Python >= 3.10,
# a C++ compiler and pip. Overridable: make PYTHON=python3.12 TORCH=torch==2.12.0 demo
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
MINUTES ?= 60
BIN := $(VENV)/bin
SOURCES := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu')
PYTHON_FILES := gatkernels python_tests bench docs examples wheels setup.py
SIMT := $(wildcard python_tests/simt/*)
# The operator suite, which runs on every backend, and the kernels before it, on every instruction set.
OPERATORS := $(addprefix python_tests/test_,cuda.py gat.py gatv2.py dot.py isolation.py node_scores.py determinism.py \
    philox.py draws.py)
KERNELS := $(OPERATORS) python_tests/test_features.py
INTERPRETED := $(addprefix python_tests/test_,gat.py gatv2.py dot.py dot_ops.py node_scores.py philox.py draws.py ops.py determinism.py \
    triton_scorers.py)
ISAS := baseline avx2 avx512
# One worker per processor; each computes on one thread but where a test is about threads.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=auto

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
SANITIZED := GATKERNELS_SANITIZE=address ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 LD_PRELOAD="$(ASAN) $(LIBSTDCXX)"
endif

.PHONY: always help demo test test-cpu $(ISAS) test-cuda test-triton fuzz sanitize sanitize-threads gpu lint \
    format bench docs wheel clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    train the paper's GAT on Cora, then time the layer"
	@echo "make test    all tests; parts of them alone: make test-cpu, test-cuda, test-triton"
	@echo "make fuzz    random cases for an hour; MINUTES=5 for five minutes"
	@echo "make sanitize  the kernels under the sanitizers of addresses and of undefined behaviour (GCC)"
	@echo "make sanitize-threads  the kernels under clang's sanitizer of threads, with LLVM's OpenMP"
	@echo "make gpu     build, check and measure everything on a GPU (bench/gpu.sh)"
	@echo "make lint    ruff, mypy, clang-format"
	@echo "make bench   the layers against PyG and DGL (installs both)"
	@echo "make docs    the documentation, in build/site"
	@echo "make wheel   an sdist and a wheel that needs no compiler, in dist; tried in an environment of its own"

# Quiet but for errors. Modules are compiled to bytecode when they are first imported, which most
# never are.
PIP := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --no-compile

$(VENV)/tools:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python >= 3.10 is needed")'
	@echo "making $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) 'setuptools>=77' 'pybind11>=2.13,<4' 'ninja>=1.11'
	@touch $@

# Torch and what the extra `experiments` asks for, as setuptools reads it.
$(VENV)/packages: pyproject.toml | $(VENV)/tools
	@echo "installing $(TORCH) and the packages of the demo"
	@$(BIN)/python setup.py --quiet egg_info --egg-base $(VENV)
	@sed -n '/^\[experiments\]$$/,/^$$/{/^[^[]/p;}' $(VENV)/*.egg-info/requires.txt > $(VENV)/experiments.txt
	@$(PIP) "$(TORCH)" --requirement $(VENV)/experiments.txt
	@touch $@

# What the environment asks of the build; written anew when it changes.
$(VENV)/settings: always | $(VENV)/tools
	@echo '$(CXX) $(CXXFLAGS) $(LDFLAGS) $(CUDA_HOME) $(GATKERNELS_CUDA) $(GATKERNELS_CUDA_ARCHS)' > $@.now
	@if cmp -s $@.now $@; then rm $@.now; else mv $@.now $@; fi
always:

# Without torch, which is installed meanwhile.
$(VENV)/kernels: setup.py $(SOURCES) $(VENV)/settings | $(VENV)/tools
	@echo "compiling the kernels"
	@MAKEFLAGS= $(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

# Compiles nothing: the kernels' objects are there.
define install
	@echo "installing $(1)"
	@$(PIP) --no-build-isolation --editable '.[$(1)]' "$(TORCH)"
	@touch $@
endef

$(VENV)/demo: $(VENV)/packages $(VENV)/kernels
	$(call install,experiments)

$(VENV)/ready: $(VENV)/demo
	$(call install,dev)

$(VENV)/peers: $(VENV)/ready
	$(call install,peers)

# The packages and the compiler side by side
demo:
	@$(MAKE) --silent --jobs=2 $(VENV)/packages $(VENV)/kernels
	@$(MAKE) --silent $(VENV)/demo
	$(BIN)/gatkernels demo

test: $(VENV)/ready
	$(PYTEST) python_tests $(addprefix --ignore=,$(KERNELS))
	@$(MAKE) --no-print-directory test-cpu test-cuda test-triton

# Under each instruction set; all tests are skipped where the processor has not got it. What malloc
# hands out is filled, so that scratch that is read unwritten shows.
test-cpu: $(ISAS)

$(ISAS): $(VENV)/ready
	MALLOC_PERTURB_=128 GATKERNELS_ISA=$@ $(PYTEST) $(KERNELS)

# The CUDA kernels on the tests' emulator, out-of-bounds accesses caught; on a GPU `make gpu`.
test-cuda: $(VENV)/ready
	$(SANITIZED) GATKERNELS_TEST_BACKEND=cuda $(PYTEST) $(OPERATORS)

# The Triton kernels in Triton's interpreter (Linux only).
test-triton: $(VENV)/ready
ifeq ($(shell uname),Linux)
	TRITON_INTERPRET=1 GATKERNELS_TEST_BACKEND=triton $(PYTEST) $(INTERPRETED)
endif

# Random cases, others every day.
fuzz: $(VENV)/ready
	$(BIN)/gatkernels fuzz --minutes $(MINUTES) --seed $$(date +%Y%m%d)

# The CPU module under the address sanitizer and that of undefined behaviour: the package again, in a
# folder of its own. Of the latter what the former does not see, as checks of each access to memory
# take the compiler minutes. An object takes one to two.
SANITIZERS := -fsanitize=address,bounds,shift,signed-integer-overflow,integer-divide-by-zero,return,bool,enum
sanitize: $(VENV)/ready
	CXXFLAGS="-O1 -g1 -fno-omit-frame-pointer $(SANITIZERS) -fno-sanitize-recover=all" \
	    LDFLAGS="$(SANITIZERS)" GATKERNELS_CUDA=0 \
	    $(BIN)/python setup.py --quiet build --build-base build/sanitized --build-lib build/sanitized/lib
	for isa in $(ISAS); do \
	    export GATKERNELS_ISA=$$isa PYTHONPATH=build/sanitized/lib OMP_NUM_THREADS=1; \
	    $(SANITIZED) $(BIN)/pytest --numprocesses=auto $(KERNELS) && \
	    $(SANITIZED) $(BIN)/gatkernels fuzz --cases 10000 || exit; \
	done

# The same under the sanitizer of threads. It takes barriers for races but with LLVM's OpenMP, which
# tells it of them through Archer (Debian: clang-19 libclang-rt-19-dev libomp-19-dev). Which thread
# writes what is the same for every instruction set: one will do.
CLANG ?= $(firstword $(shell which clang++ clang++-22 clang++-19 clang++-16 clang++-14 2> /dev/null))
TSAN = $(shell $(or $(CLANG),false) -print-file-name=libclang_rt.tsan-$(shell uname -m).so)
ARCHER = $(shell $(or $(CLANG),false) -print-file-name=libarcher.so)
RACED := $(addprefix python_tests/test_,threads.py determinism.py gat.py gatv2.py dot.py node_scores.py \
    features.py)
sanitize-threads: $(VENV)/ready
	@test -n "$(CLANG)" || { echo "there is no clang++ here; CLANG=... names it"; exit 1; }
	@test -e "$(TSAN)" || { echo "$(CLANG) has no library of its ThreadSanitizer (libclang-rt-dev)"; exit 1; }
	@test -e "$(ARCHER)" || { echo "$(CLANG) has no OpenMP with libarcher.so (libomp-dev)"; exit 1; }
	CXX="$(CLANG)" CXXFLAGS="-O1 -g1 -fsanitize=thread -Wno-unknown-warning-option" \
	    LDFLAGS="-fsanitize=thread -shared-libsan" GATKERNELS_CUDA=0 \
	    $(BIN)/python setup.py --quiet build --build-base build/threads --build-lib build/threads/lib
	export GATKERNELS_ISA=avx2 PYTHONPATH=build/threads/lib OMP_NUM_THREADS=4 OMP_WAIT_POLICY=passive \
	    LD_PRELOAD="$(TSAN)" OMP_TOOL_LIBRARIES="$(ARCHER)" \
	    TSAN_OPTIONS="ignore_noninstrumented_modules=1 allocator_may_return_null=1 exitcode=66"; \
	$(BIN)/pytest $(RACED) && $(BIN)/gatkernels fuzz --cases 10000 --jobs 1

# In the virtual environment where there is one, else with what PYTHON has.
gpu:
	PYTHON=$(firstword $(wildcard $(BIN)/python) $(PYTHON)) bench/gpu.sh

lint: $(VENV)/ready
	$(BIN)/ruff check $(PYTHON_FILES)
	$(BIN)/ruff format --check $(PYTHON_FILES)
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(SOURCES) $(SIMT)

format: $(VENV)/ready
	$(BIN)/ruff check --fix $(PYTHON_FILES)
	$(BIN)/ruff format $(PYTHON_FILES)
	$(BIN)/clang-format -i $(SOURCES) $(SIMT)

bench: $(VENV)/peers
	$(BIN)/gatkernels bench

docs: $(VENV)/ready
	$(BIN)/python -m mkdocs build --strict

wheel: $(VENV)/ready
	rm -rf dist
	$(BIN)/python wheels/build.py
	$(BIN)/python wheels/try.py dist/*.whl --torch "$(TORCH)"

clean:
	rm -rf build dist $(VENV) gatkernels/*.so *.egg-info
